"""Markov chain Monte Carlo for energies: Langevin, MALA, Hamiltonian Monte Carlo, and annealed Langevin over noise levels."""

from composable_energy_mcmc.annealed import Annealed

from composable_energy_mcmc.langevin import Langevin


__all__ = ["Annealed", "Langevin"]
