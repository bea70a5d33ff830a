"""Samplers: Langevin, Hamiltonian Monte Carlo, annealing, replica exchange, sequential Monte Carlo, and descent to modes."""

from composable_energy_mcmc.annealed import Annealed
from composable_energy_mcmc.annealing.calibrate import calibrate_mixtures
from composable_energy_mcmc.annealing.log_z import LogZ, estimate_log_z
from composable_energy_mcmc.chees import ChEES
from composable_energy_mcmc.descent import Descent
from composable_energy_mcmc.feynman_kac import FeynmanKac
from composable_energy_mcmc.hamiltonian import HMC
from composable_energy_mcmc.langevin import Langevin
from composable_energy_mcmc.mala import MALA
from composable_energy_mcmc.smc import SMC
from composable_energy_mcmc.tempering import Tempering
from composable_energy_mcmc.underdamped import Underdamped

__all__ = [
    "HMC",
    "MALA",
    "SMC",
    "Annealed",
    "ChEES",
    "Descent",
    "FeynmanKac",
    "Langevin",
    "LogZ",
    "Tempering",
    "Underdamped",
    "calibrate_mixtures",
    "estimate_log_z",
]
