"""Correctors of annealed sampling: each leaves its level's density as it is, at every level and in any units."""

import math

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy.sampling import Noise, State
from composable_energy_mcmc import HMC, MALA, SMC, Annealed, ChEES, Langevin
from tests.refusals import refusals

F64 = torch.float64
SPREAD = torch.tensor([0.2, 1.0, 3.0], dtype=F64)


class Noisy(ce.Energy):
    r"""A Gaussian with three widths, with noise of level $\sigma$ added."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x.square() / (2 * (SPREAD**2 + sigma[:, None] ** 2))).sum(1)


class Plain(ce.Energy):
    def forward(self, x: Tensor) -> Tensor:
        return (x.square() / (2 * SPREAD**2)).sum(1)


def worst(sampler: Annealed, energy: ce.Energy, steps: list[int], n: int = 20_000) -> float:
    """By how many standard errors means, variances and covariances are off, after the corrector moved exact draws of some levels."""
    found = []
    for step in steps:
        noise = Noise(3, range(n)).at(step)
        level = sampler.level_energy(energy, step)
        sd = (SPREAD**2 + level.bound["sigma"] ** 2).sqrt() if level.bound else SPREAD * math.sqrt(level.temperature)
        x = sd * noise.child("exact").normal(torch.zeros(n, 3, dtype=F64))
        with torch.no_grad():
            state, _ = sampler.correct(energy, State(x, energy(x, **level.bound), x), noise)
        white = state.x / sd
        second = (white.T @ white / n - torch.eye(3, dtype=F64)) * math.sqrt(n)
        second[range(3), range(3)] /= math.sqrt(2)
        moved = (state.x - x).abs().mean(0) / sd
        assert moved.max() > 0.05
        found += [float((white.mean(0) * math.sqrt(n)).abs().max()), float(second.abs().max())]
    return max(found)


CORRECTORS = [HMC(0.3, leapfrogs=6), MALA(0.08), ChEES(0.3, 1.5)]


@pytest.mark.slow
@pytest.mark.parametrize("corrector", CORRECTORS, ids=repr)
@pytest.mark.parametrize("energy", [Noisy(), Plain()], ids=str)
def test_exact_draws_of_a_level_stay_exact(corrector, energy):
    """Levels from 4 down to .05; the narrowest width is .2."""
    assert worst(Annealed(levels=9, corrector=corrector), energy, [1, 4, 7, 9]) < 4.5


@pytest.mark.full
def test_a_temperature_reaches_the_corrector():
    n = 4000
    sampler = Annealed(levels=12, corrector=HMC(0.2, leapfrogs=24), corrector_steps=3, temperature=0.5)
    x = Plain().sample((n, 3), sampler=sampler, seed=0, dtype=F64)
    assert ((x.var(0) / (0.5 * SPREAD**2) - 1).abs() < 5 * math.sqrt(2 / n)).all()


@pytest.mark.full
def test_a_corrector_is_tuned_once_in_units_of_the_level_and_kept():
    _, trace = Noisy().sample((3, 3), sampler=Annealed(levels=4, corrector="hmc"), seed=0, dtype=F64, trace=True)
    tuned = trace.sampler.corrector
    assert isinstance(tuned, HMC) and 0.3 < tuned.step_size < 2  # the density is a level wide, or little more
    _, again = Noisy().sample((3, 3), sampler=trace.sampler, seed=1, dtype=F64, trace=True)
    assert again.sampler.corrector is tuned or again.sampler.corrector == tuned


test_options_that_make_no_sense = refusals(
    (lambda: Annealed(corrector=3), "corrector must be a sampler or the name of one, got 3"),
    (lambda: Annealed(corrector=SMC()), "a corrector must be able to stop after any step"),
    (lambda: Annealed(corrector=Langevin(0.1, clamp=(0, 1))), "another box at each"),
    (lambda: Annealed(corrector=HMC(), corrector_steps=0), "needs corrector_steps"),
    (lambda: Annealed(corrector=HMC(), temperature=0), "a temperature above 0"),
    (lambda: Annealed(averaged=True, corrector="hmc"), "built-in corrector"),
    (lambda: Plain().sample((4, 3), sampler="annealed", averaged=True, dtype=F64), "does not depend on sigma"),
    (lambda: Annealed(averaged=1), "averaged"),
    (lambda: Annealed(rho=0.0), "rho"),
    error=OptionError,
)


@pytest.mark.parametrize("delta", [0.5, 1.0])
def test_averaged_noise_keeps_the_variance_at_large_steps_and_other_noise_does_not(delta):
    """Many steps at levels that hardly fall; the last one takes points to the means without their noise."""
    n, sigma = 4000, 1.0
    options = {"levels": 30, "sigma_max": 1.0001, "sigma_min": sigma, "corrector_steps": 2, "delta": delta}
    curvature = sigma**2 / (SPREAD**2 + sigma**2)
    expected = (SPREAD**2 + sigma**2) * (1 - curvature) ** 2
    samplers = (Annealed(averaged=flag, **options) for flag in (True, False))
    averaged, plain = (Noisy().sample((n, 3), sampler=sampler, seed=0, dtype=F64).var(0) for sampler in samplers)
    limit = 5 * math.sqrt(2 / n)
    assert ((averaged / expected - 1).abs() < limit).all()
    assert ((plain / expected * (1 - delta * curvature / 2) - 1).abs() < limit).all()
    assert plain[0] / expected[0] > 1.25


def test_levels_are_equally_spaced_in_a_power_for_a_given_rho():
    sampler = Annealed(levels=5, sigma_min=0.25, sigma_max=4.0, rho=2.0)
    assert [sampler.level(step) for step in range(1, 6)] == pytest.approx([4.0, 1.625**2, 1.25**2, 0.875**2, 0.25])


class Steep(ce.Energy):
    """A bowl, and for the first chain one that is a million times as steep."""

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return x.square().flatten(1).sum(1) / (2 * (1 + sigma**2)) * torch.where(torch.arange(len(x)) == 0, 1e6, 1.0)


def test_a_gradient_that_is_too_long_is_cut_and_others_stay_as_they_are():
    x = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0), dtype=F64)
    sampler = Annealed(levels=5, max_gradient=1.5)
    free, cut = (one.init(Steep(), x, Noise(0, range(3))) for one in (Annealed(levels=5), sampler))
    assert torch.equal(cut.grad[1:], free.grad[1:]) and torch.equal(cut.energy, free.energy)
    length = cut.grad[0].norm() * sampler.level(1)
    torch.testing.assert_close(length, torch.tensor(1.5 * 2, dtype=F64))  # four coordinates
    torch.testing.assert_close(cut.grad[0] / cut.grad[0].norm(), free.grad[0] / free.grad[0].norm())


def test_a_steep_term_diverges_without_a_limit_of_gradients_and_not_with_one():
    steep = Noisy() & ce.as_energy(lambda x, sigma: 1e5 * x.square().sum(1))
    options = {"sampler": "annealed", "levels": 10, "sigma_min": 1.0, "corrector_steps": 30, "seed": 0, "dtype": F64}
    with pytest.warns(ce.SamplingWarning, match=r"times that of the Gaussian of the start"):
        with pytest.raises(SamplingDiverged):
            steep.sample((20, 3), **options)
        assert steep.sample((20, 3), max_gradient=3.0, **options).isfinite().all()
