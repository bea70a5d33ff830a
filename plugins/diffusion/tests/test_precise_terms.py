"""Precise terms of a user beside noise levels: the posterior of Gaussian data in closed form, and a warning where levels end too early."""

import math

import pytest

import composable_energy as ce

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

CHAINS, SIZE = 500, 8


def denoise(x, t):
    """The clean point of standard normal data."""
    return x / (1 + t[:, None] ** 2)


def measured(deviation: float) -> ce.Energy:
    schedule = {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}
    data = ce.get("energy", "diffusion", model=denoise, schedule=schedule, parametrisation="x0", event_shape=(SIZE,))
    half = ce.as_energy(lambda x: (x[:, : SIZE // 2] - 2).square().sum(1) / (2 * deviation**2), event_shape=(SIZE,))
    return data & half


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
