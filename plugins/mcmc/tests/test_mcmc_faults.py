"""Samplers with planted faults: a check of the test kit catches each; `test_mcmc_contract.py` has the samplers without them."""

import math

import pytest
import torch

from composable_energy.sampling import Info, State, energy_and_gradient
from composable_energy.testing import SkipCheck, sampler_checks
from composable_energy_mcmc import HMC, MALA, Langevin


class NeverRejects(MALA):
    """Langevin's step, with an acceptance of 1."""

    def step(self, energy, state, noise):
        x = state.x - self.step_size / 2 * state.grad + math.sqrt(self.step_size) * noise.normal(state.x)
        return State(x, *energy_and_gradient(energy, x)), Info(torch.ones(len(x)))


class TwiceTheTemperature(MALA):
    """Proposals are judged by half of the energy."""

    def step(self, energy, state, noise):
        return super().step(energy / 2, State(state.x, state.energy / 2, state.grad / 2), noise)


class SameNoise(HMC):
    """Draws at each step what it drew at the first."""

    def step(self, energy, state, noise):
        return super().step(energy, state, noise.at(1))


class ForgetsTheEnergy(HMC):
    """A point has the energy and the gradient of the point before."""

    def step(self, energy, state, noise):
        after, info = super().step(energy, state, noise)
        return State(after.x, state.energy, state.grad), info


class NoiseOfTheChunk(Langevin):
    """All chains that are drawn together get the same noise."""

    def step(self, energy, state, noise):
        first = noise.for_chains(noise.chains[:1]).normal(state.x[:1])
        x = state.x - self.step_size / 2 * state.grad + math.sqrt(self.step_size) * first
        return State(x, *energy_and_gradient(energy, x)), Info()


FAULTS = [
    (NeverRejects(0.3), "exact"),
    (TwiceTheTemperature(0.3), "moments"),
    (SameNoise(0.3, 8), "noise"),
    (ForgetsTheEnergy(0.3, 8), "values"),
    (NoiseOfTheChunk(0.5), "noise"),
]


@pytest.mark.full
@pytest.mark.parametrize(("fault", "name"), FAULTS, ids=lambda value: type(value).__name__)
def test_a_planted_fault_is_caught(fault, name):
    exact = None if isinstance(fault, Langevin) else True
    checks = [check for check in sampler_checks(fault, steps=60, exact=exact) if check.name == name]
    assert len(checks) == 1
    try:
        checks[0]()
    except SkipCheck:
        pytest.fail(f"{name} was not checked")
    except AssertionError:
        return
    pytest.fail(f"{name} found nothing")
