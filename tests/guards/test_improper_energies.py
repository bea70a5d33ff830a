"""Energies without a density: `sample` and `log_z` refuse them, and no density with heavy tails or a pole."""

import math

import pytest
import torch
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
from composable_energy.errors import OptionError, UngroundedError

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


def energy(function, size=1):
    return ce.as_energy(function, event_shape=(size,), name="energy")


LOG_DENSITIES = {
    "normal": energy(lambda x: -x.square().sum(1) / 2),
    "mixture": energy(lambda x: torch.logsumexp(torch.stack([-(x - 3).square().sum(1) / 2, -(x + 3).square().sum(1) / 2]), 0)),
    "Laplace": energy(lambda x: -x.abs().sum(1)),
    "Cauchy": energy(lambda x: -torch.log1p(x.square()).sum(1)),
    "of a distribution": energy(lambda x: td.Normal(torch.zeros(2), 1.0).log_prob(x).sum(1), 2),
}
IMPROPER = {
    "flat": energy(lambda x: 0 * x.sum(1)),
    "flat on one side": energy(lambda x: torch.relu(-x).square().sum(1)),
    "flat in one coordinate": energy(lambda x: x[:, 0].square(), 2),
    "grows like log r": energy(lambda x: 0.5 * torch.log1p(x.square()).sum(1)),
    "grows like d log r": energy(lambda x: 1.5 * torch.log1p(x.square().sum(1)), 3),
    "periodic": energy(lambda x: -x.cos().sum(1)),
}
PROPER = {  # an energy and its log Z
    "Cauchy": (energy(lambda x: torch.log1p(x.square()).sum(1)), math.log(math.pi)),
    "Student's t in two dimensions": (energy(lambda x: 2 * torch.log1p(x.square().sum(1)), 2), math.log(math.pi)),
    "gamma with a pole": (
        ce.as_energy(lambda x: 0.5 * x.log().sum(1) + x.sum(1), support=constraints.positive, event_shape=(1,)),
        math.log(math.pi) / 2,
    ),
    "log-normal": (
        ce.as_energy(lambda x: (x.log() + x.log().square() / 2).sum(1), support=constraints.positive, event_shape=(1,)),
        math.log(2 * math.pi) / 2,
    ),
    "funnel": (energy(lambda x: x[:, 0].square() / 2 + x[:, 1].square() * torch.exp(-x[:, 0]) / 2 + x[:, 0] / 2, 2), math.log(2 * math.pi)),
    "wall": (energy(lambda x: torch.where(x.abs().amax(1) < 1, 0 * x.sum(1), torch.inf), 2), math.log(4)),
    "wide": (energy(lambda x: (x / 1000).square().sum(1) / 2), math.log(2 * math.pi) / 2 + math.log(1000)),
}


@pytest.mark.parametrize("name", [*LOG_DENSITIES, *IMPROPER])
def test_log_z_refuses_an_integral_that_is_infinite(name):
    improper = {**LOG_DENSITIES, **IMPROPER}[name]
    for other in (0.5 * improper, ce.any_of(improper, improper, weights=[1.0, 2.0])):
        with pytest.raises(UngroundedError, match="Is this a log density" if name in LOG_DENSITIES else "has a finite integral only if"):
            ce.log_z(other, seed=0)
    with pytest.raises(UngroundedError):
        ce.calibrate(improper | ce.as_energy(td.Normal(torch.zeros(improper.event_shape), 1.0)), seed=0)


@pytest.mark.parametrize("sampler", ["langevin", "underdamped"])
def test_a_score_of_the_wrong_sign_is_named(sampler):
    with pytest.raises(OptionError, match="is its sign right"):
        ce.ScoreEnergy(lambda x: x, event_shape=(2,)).sample(20, sampler=sampler, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("name", ["normal", "Cauchy", "of a distribution", "flat on one side", "grows like log r", "periodic"])
def test_chains_that_ran_away_are_no_draws(name):
    improper = {**LOG_DENSITIES, **IMPROPER}[name]
    with pytest.raises(UngroundedError, match="negate it" if name in LOG_DENSITIES else "join it with `&`"):
        improper.sample(200, seed=3)


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in PROPER if name != "gamma with a pole"])
def test_log_z_of_heavy_tails_poles_and_walls_is_finite(name):
    proper, expected = PROPER[name]
    options = {"init": 1000 * torch.randn(256, 1, generator=torch.Generator().manual_seed(0))} if name == "wide" else {}
    found = ce.log_z(proper, seed=1, **options)
    assert abs(found.value - expected) < max(4.5 * found.standard_error, 0.02)


NORMAL = ce.as_energy(td.Normal(torch.zeros(2), 1.0), name="N")
NARROW = ce.as_energy(td.Normal(torch.zeros(2), 0.5), name="narrow")
LAPLACE = ce.as_energy(td.Laplace(torch.zeros(2), 1.0), name="L")


@pytest.mark.parametrize(
    "difference",
    [
        NORMAL & -0.5 * NARROW,
        LAPLACE & -0.5 * NORMAL,
        LAPLACE & ce.negate(NORMAL, "power"),
        NORMAL & NARROW.sharpened(-0.5),
        NORMAL & energy(lambda x: -x.square().sum(1), 2) & -1 * LAPLACE,
    ],
    ids=str,
)
def test_a_grounded_term_does_not_ground_what_is_subtracted(difference):
    langevin = {"sampler": "langevin", "step_size": 0.01, "steps": 5}
    for options in ({}, langevin):
        with pytest.raises(UngroundedError, match="allow_improper"):
            difference.sample(50, seed=0, **options)
    with pytest.raises(UngroundedError):
        ce.log_z(difference, seed=0)
    assert difference.sample(5, seed=0, allow_improper=True, **langevin).shape == (5, 2)


@pytest.mark.full
def test_a_difference_that_has_a_density_is_drawn():
    wide = ce.as_energy(td.Normal(torch.zeros(2), 2.0))
    draws = (NORMAL & -0.5 * wide).sample(2000, seed=3)  # a precision of 1 - .125
    assert abs(draws.var().item() * 0.875 - 1) < 4.5 * math.sqrt(2 / 4000)
    draws = (NORMAL & -0.5 * LAPLACE).sample(500, seed=3)  # |x| / 2 is below x^2 / 2 far away
    assert draws.isfinite().all() and draws.abs().max() < 6
