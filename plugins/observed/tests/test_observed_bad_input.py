"""Bad observations and their errors; the conformance kit, files and decoders."""

import math

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError, UngroundedError
from composable_energy.testing import check_energy
from composable_energy_observed import Blur, Chain, Downsample, Gaussian, Mask, Poisson, Quantised
from tests.refusals import refusals

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

PICTURE = (1, 4, 4)


def gaussian(*shape):
    return ce.as_energy(torch.distributions.Normal(torch.zeros(shape), 1.0), name="prior")


def seen():
    y = torch.linspace(0.5, 1, 16).view(PICTURE)
    return {
        "mask": ce.observed(y, y > 0.7, 0.5),
        "poisson": ce.observed((4 * y).round(), Blur(0.6), Poisson(4.0, 1.0)),
        "quantised": ce.observed(y[:, ::2, ::2], {"name": "downsample", "factor": 2}, Quantised(0.5, 0.5)),
        "scales": ce.observed(y[:, :2, :2], Chain([Blur(0.5), Downsample(2)]), Gaussian(torch.tensor([[0.5, 1.0], [1.0, 0.5]]))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", seen())
def test_observations_keep_the_contract_of_energies(name):
    check_energy(lambda: seen()[name], torch.rand(4, *PICTURE))


@pytest.mark.parametrize("name", seen())
def test_observations_are_saved_described_and_rebuilt(name, tmp_path):
    energy = gaussian(*PICTURE) & seen()[name]
    energy.save(tmp_path)
    again, x = ce.load(tmp_path), torch.rand(3, *PICTURE)
    assert again.equals(ce.load(tmp_path)) and torch.equal(again(x), energy(x))
    assert (str(again), again.recommended) == (str(energy), energy.recommended)


def test_a_bare_function_is_not_saved_and_an_observation_alone_is_not_grounded(tmp_path):
    observation = ce.observed(torch.ones(2), lambda x: x, 1.0)
    with pytest.raises(ExpressionError, match="cannot be saved"):
        observation.save(tmp_path)
    with pytest.raises(UngroundedError):
        observation.sample(4)
    assert (gaussian(2) & observation).grounded


class Double(nn.Module):
    """A decoder of latent points with shape (3,) to pictures with shape (2, 3)."""

    event_shape = (2, 3)

    def forward(self, z):
        return torch.stack([z, 2 * z], 1)


@pytest.mark.full
def test_an_observation_of_pictures_counts_at_the_decoded_points():
    prior = ce.as_energy(torch.distributions.Normal(torch.zeros(3), 1.0), decoder=Double())
    observation = ce.observed(torch.ones(2, 3), None, 0.5)
    energy, z = prior & observation, torch.randn(5, 3)
    torch.testing.assert_close(energy(z), prior(z) + observation(Double()(z)))
    draws = energy.sample(500, seed=0)
    precision = 1 + 5 / 0.25
    assert draws.shape == (500, 2, 3)
    assert (draws[:, 0].mean(0) - 3 / 0.25 / precision).abs().max() < 4.5 / math.sqrt(500 * precision)


@pytest.mark.slow
def test_a_measurement_decides_the_sampler_where_there_are_values():
    noisy = gaussian(2)
    noisy.recommended = ce.Recommendation("langevin", {"steps": 10})
    assert (noisy & ce.observed(torch.ones(2), None, 1.0)).recommended.sampler == "chees"
    score = ce.ScoreEnergy(lambda x: -x, event_shape=(2,))
    points = (score & ce.observed(torch.ones(2), None, 1.0)).sample(64, seed=0, steps=50)
    assert points.isfinite().all()  # by `langevin`, as there are no values


class Rounding(nn.Module):
    def forward(self, x):
        return x.round()


test_an_observation_that_does_not_fit_is_refused = refusals(
    (lambda: ce.observed(torch.ones(2)), OptionError, "needs its noise"),
    (lambda: ce.observed(torch.ones(2), None, torch.ones(3)), ShapeError, "noise has shape"),
    (lambda: ce.observed(torch.ones(2), None, "poison"), OptionError, "Did you mean 'poisson'"),
    (lambda: ce.observed(torch.ones(2), None, "quantised"), OptionError, "missing step, scale"),
    (lambda: ce.observed(torch.tensor([1.0, math.nan]), None, 1.0), OptionError, "1 of 2 measured numbers"),
    (lambda: ce.observed(torch.tensor([1.0, 0.5]), None, "poisson"), OptionError, "counts"),
    (lambda: ce.observed(torch.ones(2), torch.ones(3, dtype=torch.bool), 1.0), ShapeError, "does not fit"),
    (lambda: ce.observed(torch.ones(1, 2, 2), Downsample(2), 1.0, event_shape=(1, 8, 8)), ShapeError, "not \\(1, 8, 8\\)"),
    (lambda: ce.observed(torch.ones(2), lambda x: x.detach(), 1.0, event_shape=(2,)), ExpressionError, "not differentiable"),
    (lambda: ce.observed(torch.ones(2), Rounding(), 1.0, event_shape=(2,)), ExpressionError, "rounds"),
    (lambda: ce.observed(torch.ones(2), lambda x: x / 0 * 0, 1.0, event_shape=(2,)), ExpressionError, "not finite"),
    (lambda: ce.observed(torch.ones(2), lambda x: x + torch.randn_like(x), 1.0, event_shape=(2,)), ExpressionError, "random"),
    (lambda: ce.observed(torch.ones(2), lambda x: [x], 1.0, event_shape=(2,)), DtypeError, "floating tensor"),
    (lambda: ~ce.observed(torch.ones(2), None, "poisson"), ExpressionError, "level of its own"),
)


@pytest.mark.full
def test_a_function_without_a_shape_is_checked_where_it_is_evaluated():
    with pytest.raises(ShapeError, match="gave shape"):
        ce.observed(torch.ones(2), lambda x: x[:, :1], 1.0)(torch.ones(3, 4))
    with pytest.raises(ExpressionError, match="not differentiable"):
        (gaussian(2) & ce.observed(torch.ones(2), lambda x: x.detach(), 1.0)).sample(4, seed=0)
    with pytest.raises(ce.errors.SamplingDiverged):
        (gaussian(2) & ce.observed(torch.ones(2), lambda x: x * math.nan, 1.0)).sample(4, seed=0)
    y = torch.tensor([1.0, math.nan])
    assert (gaussian(2) & ce.observed(y, Mask(y.isfinite()), 1.0))(torch.zeros(1, 2)).isfinite().all()
