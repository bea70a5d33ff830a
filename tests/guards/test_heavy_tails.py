"""Samplers along a path of densities draw heavy tails, half lines and curved densities right, or say that they do not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.distributions import (
    Cauchy,
    Distribution,
    Exponential,
    HalfNormal,
    Independent,
    Laplace,
    LogNormal,
    Normal,
    Pareto,
    StudentT,
)

import composable_energy as ce

N, ERRORS = 2000, 4.5
LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
SAMPLERS = {
    "annealed": {"sampler": "annealed"},
    "annealed, hmc": {"sampler": "annealed", "corrector": "hmc"},
    "annealed, mala": {"sampler": "annealed", "corrector": "mala"},
    "tempering": {"sampler": "tempering"},
    "smc": {"sampler": "smc"},
}


def student(df: float) -> Callable[[Tensor], Tensor]:
    """The quantiles of Student's t with 1, 2 or 4 degrees of freedom."""

    def quantile(p: Tensor) -> Tensor:
        if df == 1:
            return torch.tan(math.pi * (p - 0.5))
        middle = 4 * p * (1 - p)
        if df == 2:
            return (2 * p - 1) * (2 / middle).sqrt()
        root = (torch.arccos(middle.sqrt()) / 3).cos() / middle.sqrt()
        return (p - 0.5).sign() * 2 * (root - 1).sqrt()

    return quantile


def normal(p: Tensor) -> Tensor:
    return torch.special.ndtri(p)


DENSITIES: dict[str, tuple[Distribution, Callable[[Tensor], Tensor]]] = {
    "StudentT(4)": (StudentT(4.0), student(4)),
    "Cauchy": (Cauchy(0.0, 1.0), student(1)),
    "HalfNormal": (HalfNormal(1.0), lambda p: normal((1 + p) / 2)),
    "Exponential": (Exponential(1.0), lambda p: -torch.log1p(-p)),
    "Laplace": (Laplace(0.0, 1.0), lambda p: -(p - 0.5).sign() * torch.log1p(-2 * (p - 0.5).abs())),
    "LogNormal": (LogNormal(0.0, 1.0), lambda p: normal(p).exp()),
    "Pareto": (Pareto(1.0, 3.0), lambda p: (1 - p) ** (-1 / 3)),
    "StudentT(4) of 10": (Independent(StudentT(torch.full((10,), 4.0)), 1), student(4)),
}


def errors(x: Tensor, quantile: Callable[[Tensor], Tensor]) -> float:
    """By how many standard errors the share of draws below a quantile is off, at most."""
    p = torch.tensor(LEVELS, dtype=torch.float64)
    below = (x.reshape(len(x), -1)[:, :1].double() <= quantile(p)).double().mean(0)
    return float(((below - p) / (p * (1 - p) / len(x)).sqrt()).abs().max())


def right_or_warned(draw: Callable[[], Tensor], error: Callable[[Tensor], float]) -> None:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        off = error(draw())
    assert off < ERRORS or any(isinstance(warning.message, ce.SamplingWarning) for warning in found)


@pytest.mark.full
@pytest.mark.parametrize("name", DENSITIES)
def test_annealed_draws_the_quantiles_of_heavy_tails_without_a_warning(name):
    distribution, quantile = DENSITIES[name]
    assert errors(ce.as_energy(distribution).sample(N, seed=11, sampler="annealed"), quantile) < ERRORS


@pytest.mark.full
@pytest.mark.parametrize("name", ["StudentT(4)", "Cauchy", "LogNormal", "Pareto"])
@pytest.mark.parametrize("sampler", ["annealed, mala", "smc"])
def test_quantiles_are_those_of_the_density_or_the_call_warns(name, sampler):
    distribution, quantile = DENSITIES[name]
    right_or_warned(lambda: ce.as_energy(distribution).sample(N, seed=11, **SAMPLERS[sampler]), lambda x: errors(x, quantile))


@pytest.mark.full
@pytest.mark.parametrize(("name", "sampler"), [("StudentT(4)", "annealed, hmc"), ("Exponential", "tempering")])
def test_slower_samplers_draw_these_quantiles_as_well(name, sampler):
    distribution, quantile = DENSITIES[name]
    assert errors(ce.as_energy(distribution).sample(N, seed=11, **SAMPLERS[sampler]), quantile) < ERRORS


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["annealed", "annealed, mala", "smc"])
def test_separate_modes_have_their_shares_or_the_call_warns(sampler):
    def two(x: Tensor) -> Tensor:
        return -torch.logsumexp(torch.tensor([0.7, 0.3]).log() - (x - torch.tensor([-4.0, 4.0])).square() / 2, 1)

    def error(x: Tensor) -> float:
        return abs(float((x < 0).float().mean()) - 0.7) / math.sqrt(0.21 / N)

    energy = ce.as_energy(two, event_shape=(1,))
    right_or_warned(lambda: energy.sample((N, 1), seed=11, **SAMPLERS[sampler]), error)


@pytest.mark.slow
def test_a_score_with_a_heavy_tail_starts_from_a_proper_level():
    """Without values steps are not accepted or rejected, so that a bias of some hundredths of the width is left."""
    score = ce.ScoreEnergy(lambda x: -3 * x / (2 + x.square()), event_shape=(1,))
    x = score.sample((N, 1), sampler="annealed", seed=11)
    assert abs((x.abs() < student(2)(torch.tensor(0.95))).float().mean() - 0.9) < ERRORS * math.sqrt(0.09 / N) + 0.01


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:weak")
def test_a_step_that_is_too_long_for_the_last_level_warns():
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2e-4, event_shape=(2,))
    with pytest.warns(ce.SamplingWarning, match=r"acceptance: The corrector accepts .* of its steps at the last level"):
        energy.sample((64, 2), sampler="annealed", corrector=ce.get("sampler", "hmc")(step_size=0.5), seed=0)


@pytest.mark.slow
def test_paths_contradict_draws_of_separate_modes():
    """Chains that fall into modes too early are not weighed, and say so; `smc` weighs them."""
    far = Normal(torch.zeros(1), 0.3)
    two = ce.as_energy(lambda x: -torch.logaddexp(math.log(0.9) + far.log_prob(x + 4)[:, 0], math.log(0.1) + far.log_prob(x - 4)[:, 0]))
    with pytest.warns(ce.SamplingWarning, match=r"weak: Chains of `annealed` are not weighed .* Use `tempering` or `smc`"):
        two.sample((N, 1), sampler="annealed", levels=8, mean=torch.tensor([-3.6]), scale=torch.tensor([2.3]), seed=11)
