"""Log likelihoods by the probability flow and terms without noise levels beside a score, in closed form."""

import math

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.testing import Gaussian
from composable_energy_diffusion import ODE, SDE, DiffusionEnergy, log_likelihood
from composable_energy_mcmc import Annealed
from plugins.diffusion.tests.mixture_models import F64, PROCESSES, mixture, network

ENDS = {"sigma_min": 0.002, "sigma_max": 80.0}


@pytest.mark.full
@pytest.mark.parametrize(("process", "d"), [("ve", 1), ("vp", 2), ("edm", 6), ("flow", 2)])
def test_exact_divergences_give_the_likelihood_of_mixtures(process, d):
    schedule, path, time_scale = PROCESSES[process]
    law = mixture(d, seed=d)
    E = DiffusionEnergy(network(law, path, "x0", time_scale), schedule, "x0", event_shape=(d,))
    x = law.draw(20)
    found = log_likelihood(E, x, exact=True)
    expected = law.log_prob(x, torch.zeros(20, dtype=F64))
    assert (found.values - expected).abs().max() < 0.02
    assert not found.standard_error.any()
    assert found.evaluations == 4 * 39 * (1 + 2 * d) + 1


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 32])
def test_random_signs_are_exact_for_independent_coordinates(d):
    """The divergence of a Gaussian with independent coordinates has no variance under random signs."""
    sd = 0.4
    E = Gaussian(torch.full((d,), 0.3, dtype=F64), sd)
    x = 0.3 + sd * torch.randn(10, d, generator=torch.Generator().manual_seed(0), dtype=F64)
    found = log_likelihood(E, x, probes=2, **ENDS)
    expected = torch.distributions.Normal(0.3, sd).log_prob(x).sum(1)
    assert (found.values - expected).abs().max() < 0.02
    assert found.standard_error.max() < 1e-6


@pytest.mark.full
def test_random_signs_agree_with_the_exact_divergence_within_their_error():
    law = mixture(4, seed=3)
    E = ce.as_energy(lambda x, sigma: -law.log_prob(x, sigma), event_shape=(4,))
    x = law.draw(40)
    found = log_likelihood(E, x, probes=12, levels=25, **ENDS)
    exact = log_likelihood(E, x, exact=True, levels=25, **ENDS).values
    error = (found.standard_error.square().sum().sqrt() / 40).item()
    assert abs((found.values - exact).mean().item()) < 4.5 * error
    assert error > 0.001
    again = log_likelihood(E, x[:7], probes=12, levels=25, **ENDS)
    torch.testing.assert_close(again.values, found.values[:7])  # the directions belong to the points


@pytest.mark.full
def test_the_likelihood_of_guidance_is_that_of_its_draws():
    r"""Two concepts that shift N(0, 1) by $m$: guidance with weight 3 draws N(3 m, 1)."""

    def model(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return t[:, None] * (x - 0.5 * y[:, None]) / (1 + t[:, None] ** 2)

    E = DiffusionEnergy(model, "ve", unconditional={"y": 0}, event_shape=(1,))
    x = torch.tensor([[1.5], [0.0], [3.0]], dtype=F64)
    found = log_likelihood(E.concept(y=1).sharpened(3), x, exact=True)
    expected = -(x[:, 0] - 1.5).square() / 2 - math.log(2 * math.pi) / 2
    assert (found.values - expected).abs().max() < 0.02


def test_one_direction_has_no_error_and_no_points_no_likelihood():
    E = Gaussian(torch.zeros(2))
    assert log_likelihood(E, torch.zeros(3, 2), probes=1, levels=5).standard_error.isnan().all()
    assert log_likelihood(E, torch.zeros(0, 2), levels=5).values.shape == (0,)


def test_bad_input_is_refused():
    E, x = Gaussian(torch.zeros(2)), torch.zeros(3, 2)
    with pytest.raises(ShapeError):
        log_likelihood(E, torch.zeros(3, 5))
    with pytest.raises(ExpressionError, match="does not depend on sigma"):
        log_likelihood(ce.as_energy(lambda x: x.square().sum(1)), x)
    for wrong in ({"levels": 1}, {"probes": 0}, {"exact": "yes"}, {"sigma_min": 2.0, "sigma_max": 1.0}):
        with pytest.raises(OptionError):
            log_likelihood(E, x, **wrong)


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
