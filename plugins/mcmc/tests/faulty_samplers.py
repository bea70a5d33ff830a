"""Samplers with one fault each."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.sampling import Info, State, energy_and_gradient
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin
from composable_energy_mcmc.batch import sum_of_each
from composable_energy_mcmc.hamiltonian import leapfrog, propose, van_der_corput
from composable_energy_mcmc.metropolis import choose


def at(energy, x) -> State:
    return State(x, *energy_and_gradient(energy, x))


def langevin_proposal(energy, state, noise, step_size, spread=1.0) -> tuple[State, Tensor, Tensor]:
    """A proposal, and the logarithms of its density and of that of the way back, up to one constant."""
    x = state.x - step_size / 2 * state.grad + math.sqrt(spread * step_size) * noise.normal(state.x)
    there = at(energy, x)
    forth = -sum_of_each((x - state.x + step_size / 2 * state.grad).square()) / (2 * step_size)
    back = -sum_of_each((state.x - x + step_size / 2 * there.grad).square()) / (2 * step_size)
    return there, forth, back


def trajectory(energy, state, momentum, step_size, leapfrogs) -> tuple[State, Tensor, Tensor]:
    """Its end, the momentum there, and the logarithm of the acceptance ratio."""
    before = state.energy + sum_of_each(momentum.square()) / 2
    end, last, _ = leapfrog(energy, state, momentum, step_size, leapfrogs)
    return end, last, before - end.energy - sum_of_each(last.square()) / 2


@dataclass(frozen=True)
class Carrying(State):
    momentum: Tensor


class TwiceTheVariance(MALA):
    """The proposal is wider than its density says."""

    def step(self, energy, state, noise):
        there, forth, back = langevin_proposal(energy, state, noise, self.step_size, spread=2.0)
        return choose(state, there, state.energy - there.energy + back - forth, noise, 1)


class NeverRejects(MALA):
    """Langevin's step, with an acceptance of 1."""

    def step(self, energy, state, noise):
        there, _, _ = langevin_proposal(energy, state, noise, self.step_size)
        return there, Info(torch.ones_like(there.energy))


class SameNoise(HMC):
    """Draws at each step what it drew at the first."""

    def step(self, energy, state, noise):
        return super().step(energy, state, noise.at(1))


class KeepsTheEnergyOfTheRejected(HMC):
    """A rejected point stays where it is, with the energy and the gradient of the proposal."""

    def step(self, energy, state, noise):
        there, _, log_ratio = trajectory(energy, state, noise.normal(state.x), self.step_size, self.leapfrogs)
        after, info = choose(state, there, log_ratio, noise, 1)
        return State(after.x, there.energy, there.grad), info


class KeepsTheMomentum(HMC):
    """Draws a momentum once, at the start."""

    def init(self, energy, x, noise):
        return Carrying(x, *energy_and_gradient(energy, x), noise.normal(x).clone())

    def step(self, energy, state, noise):
        there, last, log_ratio = trajectory(energy, state, state.momentum, self.step_size, self.leapfrogs)
        return self.chosen(state, there, last, log_ratio, noise, state.momentum)

    def chosen(self, state, there, last, log_ratio, noise, otherwise):
        after, info = choose(state, there, log_ratio, noise, 1)
        moved = (after.energy != state.energy)[:, None]
        return Carrying(after.x, after.energy, after.grad, torch.where(moved, last, otherwise)), info


class LongLastKick(HMC):
    """The last half kick of the momentum is a whole one."""

    def step(self, energy, state, noise):
        momentum = noise.normal(state.x)
        before = state.energy + sum_of_each(momentum.square()) / 2
        there, last, _ = leapfrog(energy, state, momentum, self.step_size, self.leapfrogs)
        last = last - self.step_size / 2 * there.grad
        return choose(state, there, before - there.energy - sum_of_each(last.square()) / 2, noise, 1)


class NoiseOfTheChunk(Langevin):
    """All chains that are drawn together get the same noise."""

    def step(self, energy, state, noise):
        first = noise.for_chains(noise.chains[:1]).normal(state.x[:1])
        x = state.x - self.step_size / 2 * state.grad + math.sqrt(self.step_size) * first
        return at(energy, x), Info()


class MomentumOfPoints(ChEES):
    """Draws the momentum in the units of the points, and weighs it in those of the metric."""

    def propose(self, energy, state, noise):
        count = math.ceil(van_der_corput(noise.step) * self.trajectory / self.step_size)
        momentum = self.metric.unwhiten(noise.normal(state.x))
        return *propose(energy, state, momentum, self.step_size, count, self.metric), count
