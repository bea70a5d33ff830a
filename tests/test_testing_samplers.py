"""Test kit for samplers: correct samplers pass, and each check detects its defect."""

import math
from dataclasses import dataclass, replace

import pytest
import torch

import composable_energy as ce
from composable_energy.sampling import Info, Noise, Sampler, State, energy_and_gradient
from composable_energy.testing import Banana, Gaussian, SkipCheck, check_energy, check_sampler, sampler_checks
from composable_energy.testing.samplers import measure_deviations

POINTS = torch.tensor([[0.3, -1.2], [1.1, 0.4], [-0.7, 0.9], [2.0, 0.1]], dtype=torch.float64)


@dataclass(frozen=True)
class Walk(Sampler):
    """Unadjusted Langevin, and places to break it."""

    step_size: float = 0.5
    factor: float = 1.0

    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        x = state.x - self.step_size / 2 * state.grad + self.factor * self.step_size**0.5 * self.noise(noise, state.x)
        return State(x, *energy_and_gradient(energy, x)), Info()

    def noise(self, noise, x):
        return noise.normal(x)


class Streaming(Walk):
    def noise(self, noise, x):
        return torch.randn_like(x)


class Seedless(Walk):
    def noise(self, noise, x):
        return replace(noise, seed=0).normal(x)


class Doubling(Walk):
    def step(self, energy, state, noise):
        state, info = super().step(energy, state, noise)
        x = state.x.double()
        return State(x.float().double(), state.energy.float(), state.grad.float()), info


class InPlace(Walk):
    def step(self, energy, state, noise):
        state.x.add_(1e-3)
        return super().step(energy, state, noise)


class Counting(Walk):
    count = 0

    def noise(self, noise, x):
        Counting.count += 1
        return noise.normal(x) + Counting.count


class Coupled(Walk):
    def noise(self, noise, x):
        drawn = noise.normal(x)
        return drawn - drawn.mean(0)


@pytest.mark.parametrize(
    ("sampler", "failing"),
    [
        (Streaming(), "seed"),
        (Seedless(), "seed"),
        (Doubling(), "seed"),
        (Walk(factor=1.1), "moments"),
        (InPlace(), "state"),
        (Counting(), "seed"),
        (Coupled(), "chunks"),
    ],
)
def test_a_broken_sampler_is_caught(sampler, failing):
    (check,) = (c for c in sampler_checks(sampler, steps=20, variance=1 / (1 - 0.5 / 4)) if c.name == failing)
    with pytest.raises(AssertionError):
        check()


@pytest.mark.slow
def test_a_sampler_conforms():
    check_sampler(Walk, steps=20, bias=0.2)
    with ce.register("sampler", "walk", Walk):
        check_sampler("walk", steps=20, variance=1 / (1 - 0.5 / 4))


def test_the_known_target_is_what_it_says():
    target = Gaussian(torch.zeros(3, dtype=torch.float64), 2.0)
    x = torch.ones(2, 3, dtype=torch.float64)
    assert target(x).tolist() == [3 / 8, 3 / 8]
    assert target.at(1.0)(x).tolist() == [0.3, 0.3]
    check_energy(target, POINTS.repeat(1, 2)[:, :3])


def test_exact_draws_of_the_banana_are_white():
    target, n = Banana(), 20_000
    x = target.exact(Noise(0, range(n)))
    errors, distance = measure_deviations(target.whitened(x))
    assert max(errors.values()) < 4.5 and distance < 2.47
    errors, distance = measure_deviations(target.whitened(x) * 1.1)
    assert errors["first variance"] > 10 and errors["second variance"] > 10 and errors["correlation"] < 4.5 and distance > 2.47
    assert all(measure_deviations(x * torch.nan)[0][name] == math.inf for name in errors)
    check_energy(target, POINTS.repeat(1, 2)[:, :2])


def test_a_sampler_that_claims_to_be_exact_must_be():
    """Unadjusted steps tell no acceptance, so they are only if somebody insists."""
    checks = {exact: next(c for c in sampler_checks(Walk(), exact=exact) if c.name == "exact") for exact in (None, False, True)}
    for exact in (None, False):
        with pytest.raises(SkipCheck, match="not exact"):
            checks[exact]()
    with pytest.raises(AssertionError, match="exact draws do not stay exact"):
        checks[True]()
