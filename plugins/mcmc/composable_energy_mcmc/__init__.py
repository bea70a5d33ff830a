"""Markov chain Monte Carlo for energies: Langevin, MALA, Hamiltonian Monte Carlo, and annealed Langevin over noise levels."""

from composable_energy_mcmc.annealed import Annealed
from composable_energy_mcmc.hamiltonian import HMC
from composable_energy_mcmc.langevin import Langevin
from composable_energy_mcmc.mala import MALA

__all__ = ["HMC", "MALA", "Annealed", "Langevin"]
