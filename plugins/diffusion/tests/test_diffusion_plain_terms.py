"""Terms without noise levels beside a score, in closed form: linear and precise ones, and a warning where levels end too early."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy_diffusion import ODE, SDE, log_likelihood
from composable_energy_mcmc import Annealed

F64 = torch.float64
MEAN, WIDTH = torch.tensor([0.3, -0.5], dtype=F64), torch.tensor([0.5, 1.2], dtype=F64)
SLOPE = torch.tensor([1.5, -0.8], dtype=F64)
score = ce.ScoreEnergy(lambda x, sigma: (MEAN - x) / (WIDTH**2 + sigma[:, None] ** 2), name="score", event_shape=(2,))
gaussian = ce.as_energy(
    lambda x, sigma: ((x - MEAN).square() / (2 * (WIDTH**2 + sigma[:, None] ** 2))).sum(1), name="gaussian", event_shape=(2,)
)
tilt = ce.as_energy(lambda x: x @ SLOPE, name="tilt", event_shape=(2,))
RANGE = {"sigma_min": 0.01, "sigma_max": 12.0}


@pytest.mark.full
@pytest.mark.parametrize("energy", [score, gaussian], ids=str)
@pytest.mark.parametrize(
    "sampler", [ODE(levels=40, **RANGE), SDE(levels=60, **RANGE), Annealed(levels=60, **RANGE)], ids=lambda s: type(s).__name__
)
def test_a_linear_term_moves_a_gaussian_by_its_variance(energy, sampler):
    """Within four standard errors and the bias of the levels, 3% of a width and 8% of a spread; the move is up to 2.3 widths."""
    n = 3000
    x = (energy & tilt).sample((n, 2), sampler=sampler, seed=0, dtype=F64)
    off = (x.mean(0) - (MEAN - WIDTH**2 * SLOPE)).abs() / WIDTH
    assert (off < 4 / n**0.5 + 0.03).all()
    assert ((x.std(0) / WIDTH - 1).abs() < 4 / (2 * n) ** 0.5 + 0.08).all()


@pytest.mark.full
def test_the_likelihood_counts_a_plain_term():
    """Both points have another likelihood than without the term, by its value and the change of the normaliser."""
    points = torch.tensor([[0.0, 0.0], [-0.5, 1.0]], dtype=F64)
    density = torch.distributions.Normal(MEAN - WIDTH**2 * SLOPE, (WIDTH**2 + 0.01**2).sqrt())
    found = log_likelihood(score & tilt, points, exact=True, **RANGE).values
    torch.testing.assert_close(found, density.log_prob(points).sum(1), rtol=0, atol=0.05)


# Precise terms

CHAINS, SIZE = 500, 8


def denoise(x, t):
    """The clean point of standard normal data."""
    return x / (1 + t[:, None] ** 2)


def measured(deviation: float) -> ce.Energy:
    schedule = {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}
    data = ce.get("energy", "diffusion", model=denoise, schedule=schedule, parametrisation="x0", event_shape=(SIZE,))
    half = ce.as_energy(lambda x: (x[:, : SIZE // 2] - 2).square().sum(1) / (2 * deviation**2), event_shape=(SIZE,))
    return data & half


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
@pytest.mark.full
@pytest.mark.parametrize("sampler", ["sde", "ode", pytest.param("feynman-kac", marks=pytest.mark.slow)])
@pytest.mark.parametrize("deviation", [0.1, 0.3, 1.0])
def test_the_posterior_is_that_of_the_closed_form(deviation, sampler):
    x = measured(deviation).sample(CHAINS, sampler=sampler, seed=0)
    seen, rest = x[:, : SIZE // 2], x[:, SIZE // 2 :]
    mean, width = 2 / (1 + deviation**2), deviation / math.sqrt(1 + deviation**2)
    error = width / math.sqrt(CHAINS * SIZE / 2)
    assert abs(seen.mean() - mean) < 4 * error + 0.02 * width  # of the levels
    assert abs(seen.std(0).mean() / width - 1) < 0.05
    assert abs(rest.std(0).mean() - 1) < 0.05


@pytest.mark.full
@pytest.mark.parametrize(
    ("sampler", "options"), [("sde", {"sigma_min": 0.1}), ("ode", {"sigma_min": 0.1}), ("annealed", {"sigma_min": 0.1})]
)
def test_a_term_more_precise_than_the_lowest_level_warns(sampler, options):
    with pytest.warns(ce.SamplingWarning, match="precise: A term of .* is more precise than the lowest noise level") as found:
        measured(0.05).sample(64, sampler=sampler, seed=0, **options)
    assert found[0].filename == __file__
