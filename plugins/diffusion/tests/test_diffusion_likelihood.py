"""Log likelihoods by the probability flow, beside closed forms."""

import math

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.testing import Gaussian
from composable_energy_diffusion import DiffusionEnergy, log_likelihood
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


@pytest.mark.slow
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
