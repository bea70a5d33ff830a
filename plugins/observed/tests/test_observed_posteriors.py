"""Posteriors and rewards against closed forms, quadrature and diffusion models; bad observations, the kit, files and decoders."""

import math

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, LiftError, OptionError, SamplingDiverged, ShapeError, UngroundedError
from composable_energy.testing import check_energy
from composable_energy_mcmc import SMC
from composable_energy_observed import Blur, Chain, Downsample, Gaussian, Identity, Linear, Mask, Poisson, Quantised, Radon, operator_of
from tests.refusals import refusals, refused

F64 = torch.float64
SHAPE = (1, 4, 4)
CHAINS = 4000


def cases():
    torch.manual_seed(3)
    return {
        "identity": (None, 0.5),
        "mask": (Mask(torch.rand(SHAPE) > 0.6), 0.1),
        "blur": (Blur(0.7), 0.3),
        "downsample": (Downsample(2), 0.2),
        "radon": (Radon([0.0, 45.0, 100.0]), 0.5),
        "linear": (Linear(torch.randn(3, 16), SHAPE), 0.4),
        "chain": (Chain([Blur(0.5), Downsample(2)]), 0.2),
        "noise of its own for each number": (None, torch.rand(SHAPE) + 0.2),
        "function": (lambda x: x.cumsum(3), 0.5),
    }


@pytest.mark.parametrize("name", cases())
def test_the_posterior_of_a_gaussian_prior_and_a_linear_operator_is_the_gaussian_of_the_closed_form(name):
    operator, noise = cases()[name]
    mean = torch.linspace(-1, 1, 16, dtype=F64)
    scale = torch.linspace(0.5, 1.5, 16, dtype=F64)
    generator = torch.Generator().manual_seed(5)
    truth = mean + scale * torch.randn(16, dtype=F64, generator=generator)
    apply = (lambda x: x) if operator is None else operator.double() if isinstance(operator, torch.nn.Module) else operator
    matrix = apply(torch.eye(16, dtype=F64).view(16, *SHAPE)).flatten(1).T
    sigma = torch.as_tensor(noise, dtype=F64)
    clean = apply(truth.view(1, *SHAPE))[0]
    y = clean + sigma * torch.randn(clean.shape, dtype=F64, generator=generator)

    precision = torch.diag(scale**-2) + matrix.T @ (matrix / sigma.expand(clean.shape).reshape(-1, 1) ** 2)
    expected = mean + torch.linalg.solve(precision, matrix.T @ ((y.flatten() - matrix @ mean) / sigma.expand(clean.shape).flatten() ** 2))

    prior = ce.as_energy(td.Normal(mean.view(SHAPE), scale.view(SHAPE)))
    seen = ce.observed(y, operator, sigma, event_shape=SHAPE)
    x = torch.randn(9, 16, dtype=F64, generator=generator)
    torch.testing.assert_close((prior & seen).with_gradient(x.view(9, *SHAPE))[1].flatten(1), (x - expected) @ precision)


def test_the_energy_is_minus_the_log_probability_of_the_measurement():
    x = torch.tensor([[0.3, 1.2], [2.0, 0.4]], dtype=F64)
    y = torch.tensor([1.0, 2.0], dtype=F64)
    torch.testing.assert_close(ce.observed(y, None, 0.3).double()(x), -td.Normal(x, 0.3).log_prob(y).sum(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(ce.observed(y[0], first, 0.5)(x), -td.Normal(x[:, 0], 0.5).log_prob(y[0]))  # a single number
    torch.testing.assert_close(ce.observed(y, None, Poisson(2.0, 0.5))(x), -td.Poisson(2 * x + 0.5).log_prob(y).sum(1))
    normal = td.Normal(x, 0.3)
    rounded = -(normal.cdf(y + 0.25) - normal.cdf(y - 0.25)).log().sum(1)
    torch.testing.assert_close(ce.observed(y, None, Quantised(0.5, 0.3))(x), rounded)
    total = sum(torch.exp(-ce.observed(torch.tensor([0.5 * k], dtype=F64), None, Quantised(0.5, 0.3))(x[:, :1])) for k in range(-10, 20))
    torch.testing.assert_close(total, torch.ones(2, dtype=F64))


def test_rates_below_zero_are_impossible_and_zero_counts_allow_a_zero_rate():
    x = torch.tensor([[-1.0], [0.0], [2.0]], dtype=F64)
    assert ce.observed(torch.tensor([1.0]), None, "poisson")(x)[:2].tolist() == [math.inf, math.inf]
    energies, gradient = ce.observed(torch.tensor([0.0]), None, "poisson").with_gradient(x)
    assert energies.tolist() == [math.inf, 0.0, 2.0] and gradient.isfinite().all()


def test_either_of_two_instruments_weighs_them_by_the_probability_of_the_measurement():
    prior = ce.as_energy(td.Normal(torch.zeros(1, dtype=F64), torch.tensor(1.0, dtype=F64)))
    y = torch.tensor([1.5], dtype=F64)
    sharp, wide = ce.observed(y, None, 0.2).double(), ce.observed(y, None, 2.0).double()
    x = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    density = sum(td.Normal(x[:, 0], s).log_prob(y).exp() for s in (0.2, 2.0))
    torch.testing.assert_close((prior & (sharp | wide))(x) - prior(x), -density.log(), rtol=1e-6, atol=1e-6)


@pytest.mark.full
def test_not_a_measurement_excludes_the_points_that_fit_it():
    prior = ce.as_energy(td.Normal(torch.zeros(2), 1.0))
    seen = ce.observed(torch.tensor([1.0, 0.0]), torch.tensor([True, False]), 0.5)
    assert (~seen).level == pytest.approx(1.96**2 / 2 + math.log(0.5 * math.sqrt(2 * math.pi)), rel=1e-3)
    draws = (prior & ~seen).sample(500, seed=0)
    assert ((draws[:, 0] - 1).abs() < 1.96 * 0.5).float().mean() < 0.05 and abs(draws[:, 1].std() - 1) < 4 / math.sqrt(2 * 500)


DRAWS = 1000


def denoise(x, t):
    """The clean point of standard normal data."""
    return x / (1 + t.view(-1, *[1] * (x.ndim - 1)) ** 2)


def diffusion(shape=SHAPE, decoder=None):
    schedule = {"name": "ve", "sigma_min": 0.01, "sigma_max": 50.0}
    return ce.get("energy", "diffusion", model=denoise, schedule=schedule, parametrisation="x0", event_shape=shape, decoder=decoder)


def draw(energy, sampler="sde"):
    return energy.sample(DRAWS, sampler=sampler, seed=1)


def test_posteriors_of_two_instruments_are_those_of_the_closed_form():
    both = draw(diffusion((8,)) & ce.observed(torch.ones(8), None, 0.5) & ce.observed(torch.ones(8), None, 0.5))
    twice = draw(diffusion((8,)) & 2 * ce.observed(torch.ones(8), None, 0.5))
    assert all((x.mean() - 8 / 9).abs() < 0.02 and abs(x.std(0).mean() - 1 / 3) < 0.02 for x in (both, twice))


INSTRUMENTS = (Downsample(2), 0.05), (Blur(0.8), 0.3), (Blur(torch.tensor([[0.1, 0.7, 0.3]]), "zeros"), 0.3), (Radon([0, 45, 90]), 0.3)


@pytest.mark.slow
@pytest.mark.parametrize(("operator", "noise"), INSTRUMENTS, ids=str)
def test_draws_along_noise_levels_are_those_of_the_closed_form_for_linear_operators(operator, noise):
    matrix = operator(torch.eye(16).view(16, *SHAPE)).flatten(1).T
    x = draw(diffusion() & ce.observed(operator(torch.ones(1, *SHAPE))[0], operator, noise)).flatten(1)
    variances, axes = torch.linalg.eigh(torch.linalg.inv(torch.eye(16) + matrix.T @ matrix / noise**2))
    along = x @ axes - variances * (axes.T @ matrix.T @ matrix.sum(1)) / noise**2
    assert (along.mean(0) / (variances / DRAWS).sqrt()).abs().max() < 4.5
    assert (along.var(0) / variances - 1).abs().max() < 4.5 * math.sqrt(2 / DRAWS)


@pytest.mark.full
def test_a_precise_blur_does_not_run_away():
    noise, operator, truth = 0.02, Blur(1.0), torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(1))
    x = draw(diffusion() & ce.observed(operator(truth)[0], operator, noise))
    assert x.square().mean() < 1.5 and (operator(x) - operator(truth)).square().mean().sqrt() < 3 * noise


class Rows(nn.Module):
    """A decoder of latent points with shape (3,) to pictures with shape (2, 3), whose rows are multiples of them."""

    event_shape = (2, 3)

    def __init__(self, *factors):
        super().__init__()
        self.factors = factors

    def forward(self, z):
        return torch.stack([factor * z for factor in self.factors], 1)


@pytest.mark.slow
def test_a_decoder_counts_in_what_is_not_known():
    x = draw(diffusion((3,), Rows(3, 3)) & ce.observed(torch.full((2, 3), 3.0), None, 0.5))[:, 0] / 3
    precision = 1 + 18 / 0.5**2
    assert (x.mean() - 18 / 0.5**2 / precision).abs() < 0.01 and abs(x.std(0).mean() * math.sqrt(precision) - 1) < 0.04


@pytest.mark.slow
@pytest.mark.parametrize(("y", "noise"), [(2.0, Quantised(0.1, 0.05)), (40.0, Poisson(20.0, 5.0)), (6.0, Poisson(10.0, 8.0))], ids=str)
def test_rounded_numbers_and_counts_end_near_the_posterior_of_values(y, noise):
    x = draw(diffusion((2,)) & ce.observed(torch.full((2,), y), None, noise))
    grid = torch.linspace(-2, 4, 2001)[:, None]
    p = torch.softmax(-(grid.square().sum(1) / 2 + ce.observed(torch.tensor([y]), None, noise)(grid)), 0)
    mean = (p * grid[:, 0]).sum()
    deviation = (p * (grid[:, 0] - mean).square()).sum().sqrt()
    assert abs(x.mean() - mean) < 0.2 * deviation and 0.7 < x.std() / deviation < 1.3


PICTURE = (2, 6, 6)


def operators():
    torch.manual_seed(1)
    return {
        "identity": Identity(),
        "mask": Mask(torch.rand(PICTURE) > 0.5),
        "blur": Blur(0.8),
        "blur, zeros": Blur(torch.rand(3, 5), "zeros"),
        "blur, circular": Blur(1.0, "circular"),
        "downsample": Downsample(3),
        "radon": Radon([0.0, 30.0, 90.0, 135.0]),
        "linear": Linear(torch.randn(5, 72), PICTURE),
        "chain": Chain([Blur(0.6), Downsample(2)]),
    }


@pytest.mark.parametrize("name", operators())
def test_an_operator_knows_the_shape_of_points_and_is_rebuilt_from_its_description(name):
    operator = operators()[name]
    x = torch.randn(2, *PICTURE)
    y = operator(x)
    assert operator.point_shape(operator.select(y[0]).shape) == PICTURE
    again = operator_of({"name": operator.name, **operator.config()})
    assert type(again) is type(operator) and torch.equal(again(x), y)


def test_a_mask_selects_the_measured_numbers_of_a_picture_or_takes_them_alone():
    mask = torch.tensor([[False, True, False]] * 2)
    x = torch.arange(6.0).view(1, 2, 3)
    assert Mask(mask)(x).tolist() == [[1.0, 4.0]]
    assert Mask(mask).select(x[0]).tolist() == Mask(mask).select(torch.tensor([1.0, 4.0])).tolist() == [1.0, 4.0]
    assert Mask(torch.tensor([False, True, False]))(x).tolist() == [[1.0, 4.0]]  # for each row
    mask = Mask(torch.tensor([True, False]))
    assert [ce.observed(torch.zeros(rows, 2), mask, 1.0).event_shape for rows in (2, 3)] == [(2, 2), (3, 2)]
    y = torch.tensor([1.0, math.nan])
    assert ce.observed(y, Mask(y.isfinite()), 1.0)(torch.zeros(1, 2)).isfinite().all()


def test_later_writes_to_tensors_do_not_change_an_observation():
    mask, matrix, scale, x = torch.tensor([True, False]), torch.eye(2), torch.ones(1), torch.rand(3, 2)
    seen = [ce.observed(torch.zeros(2), operator, scale) for operator in (mask, Linear(matrix), None)]
    before = [energy(x) for energy in seen]
    for tensor in (mask, matrix, scale):
        tensor.copy_(tensor.flip(0) * 3)
    assert all(map(torch.equal, before, [energy(x) for energy in seen]))


def test_a_blur_is_the_convolution_with_its_kernel_and_keeps_a_constant():
    kernel = torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])  # takes the pixel above
    x = torch.rand(1, 1, 4, 4)
    torch.testing.assert_close(Blur(kernel, "circular")(x), x.roll(1, 2))
    torch.testing.assert_close(Blur(1.5)(torch.ones(1, 3, 9, 9)), torch.ones(1, 3, 9, 9))


def test_projections_are_sums_of_rows_and_columns_and_the_lengths_of_chords_of_a_disc():
    x = torch.rand(1, 1, 5, 5)
    torch.testing.assert_close(Radon([0.0, 90.0])(x), torch.stack([x.sum(2), x.sum(3)], 2))
    axis, radius = torch.arange(128) - 63.5, 40.0
    found = Radon([0.0, 20.0, 65.0, 110.0])((axis[:, None] ** 2 + axis**2 <= radius**2).float()[None, None])[0, 0]  # of a disc
    assert (found - (2 * (radius**2 - axis**2).clamp(min=0).sqrt()))[:, axis.abs() < 0.9 * radius].abs().max() < 0.05 * 2 * radius


test_what_cannot_be_measured_is_refused = refusals(
    (lambda: Mask(torch.zeros(3, dtype=torch.bool)), OptionError, "nothing is measured"),
    (lambda: Mask(torch.tensor([0.0, 0.5])), OptionError, "True where a number is measured"),
    (lambda: Mask(torch.ones(3, dtype=torch.bool))(torch.ones(1, 4)), ShapeError, "does not fit"),
    (lambda: Blur(torch.ones(2, 3)), OptionError, "odd length"),
    *((lambda kind=kind: kind(1j * torch.ones(3, 3)), OptionError, "real|positive") for kind in (Blur, Linear, Gaussian)),
    (lambda: Blur(3.0)(torch.ones(1, 1, 4, 4)), ShapeError, "too large"),
    (lambda: Blur(1.0)(torch.ones(1, 4, 4)), ShapeError, "B, C, H, W"),
    (lambda: Downsample(4)(torch.ones(1, 1, 6, 6)), ShapeError, "whole squares"),
    (lambda: Radon([0.0])(torch.ones(1, 1, 4, 5)), ShapeError, "square"),
    (lambda: Radon("ab"), OptionError, "angles must be a number, got 'a'"),  # type: ignore[arg-type]
    (lambda: Linear(torch.eye(3), 5), OptionError, r"takes no points of shape \(5,\)"),
    (lambda: Chain([]), OptionError, "at least one"),
    (lambda: operator_of("blurr"), OptionError, "Did you mean 'blur'"),
    (lambda: operator_of({"name": "blur", "width": 1.0}), OptionError, "takes kernel, padding"),
    (lambda: operator_of(torch.ones(3)), OptionError, "mask.bool"),
)


def gaussian(*shape):
    return ce.as_energy(td.Normal(torch.zeros(shape or 2), 1.0), name="prior")


def first(x):
    return x[:, 0]


def above_one(x):
    return (x[:, 0] > 1).float()


@pytest.mark.full
@pytest.mark.parametrize(("sampler", "beta"), [(None, 2.0), ("chees", -2.0)])
def test_a_step_reward_gives_the_shares_of_the_tilted_density(beta, sampler):
    reward = ce.reward(above_one, beta, differentiable=False)
    share = 1 - td.Normal(0.0, 1.0).cdf(torch.tensor(1.0))
    expected = share * math.exp(beta) / (share * math.exp(beta) + 1 - share)
    draws, trace = (gaussian() & reward).sample(CHAINS, seed=0, sampler=sampler, trace=True)
    # `smc` resamples, so that its draws are worth its effective number of chains.
    count = CHAINS if sampler else min(trace.scalars["ess"])
    assert isinstance(trace.sampler, SMC) == (sampler is None)
    assert sampler is None or trace.sampler.step_size > 0.1  # it suits the Gaussian: no step would avoid the jump
    assert abs(above_one(draws).mean() - expected) < 4 * (expected * (1 - expected) / count).sqrt()
    assert abs(draws[:, 1].std() - 1) < 4 / math.sqrt(2 * count)


def test_a_shape_shows_whether_a_reward_has_a_gradient():
    assert ce.reward(first, event_shape=(2,)).has_gradient
    assert ce.reward(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)).double(), event_shape=(2,)).has_gradient
    for without in (above_one, lambda x: x[:, 0].round(), lambda x: torch.tensor([float(row[0] > 1) for row in x])):
        assert not ce.reward(without, event_shape=(2,)).has_gradient


def test_samplers_that_follow_gradients_alone_refuse_a_reward_without_one():
    energy = gaussian() & (2 * ce.reward(above_one, differentiable=False))
    for sampler in ("langevin", "underdamped"):
        refused(ExpressionError, "has none, so it would not count", energy.sample, 8, sampler=sampler)
    refused(ExpressionError, "differentiable=False", ce.reward(above_one).with_gradient, torch.zeros(3, 2))


def test_a_reward_composes_is_described_and_saved_with_a_network_of_a_plugin(tmp_path):
    reward, x = ce.reward(first, 2.0), torch.randn(5, 2)
    torch.testing.assert_close((gaussian() & reward)(x), gaussian()(x) - 2 * x[:, 0])
    torch.testing.assert_close((0.5 * reward)(x), -x[:, 0])
    assert str(gaussian() & reward) == "prior & reward(first)" and not reward.grounded
    with ce.register("encoder", "preference", lambda: torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0))):
        reward = ce.reward(ce.get("encoder", "preference"), 2.0)
        (gaussian() & reward).save(tmp_path)
        torch.testing.assert_close(ce.load(tmp_path)(x), (gaussian() & reward)(x))


test_bad_rewards_are_refused = refusals(
    (lambda: ce.reward(3), LiftError, "callable"),
    (lambda: ce.reward(first, differentiable="no"), OptionError, "differentiable"),
    (lambda: ce.reward(lambda x: x)(torch.zeros(3, 2)), ShapeError, "expected"),
    (lambda: ce.reward(first).save("nowhere"), ExpressionError, "cannot be saved"),
)


def seen():
    y = torch.linspace(0.5, 1, 16).view(SHAPE)
    return {
        "mask": ce.observed(y, y > 0.7, 0.5),
        "poisson": ce.observed((4 * y).round(), Blur(0.6), Poisson(4.0, 1.0)),
        "quantised": ce.observed(y[:, ::2, ::2], {"name": "downsample", "factor": 2}, Quantised(0.5, 0.5)),
        "scales": ce.observed(y[:, :2, :2], Chain([Blur(0.5), Downsample(2)]), Gaussian(torch.tensor([[0.5, 1.0], [1.0, 0.5]]))),
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", seen())
def test_observations_keep_the_contract_of_energies_and_are_described_in_files(name, tmp_path):
    check_energy(lambda: seen()[name], torch.rand(4, *SHAPE))
    energy = gaussian(*SHAPE) & seen()[name]
    energy.save(tmp_path)
    again = ce.load(tmp_path)
    assert energy.grounded and (str(again), again.recommended) == (str(energy), energy.recommended)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_an_observation_of_pictures_counts_at_the_decoded_points():
    prior = ce.as_energy(td.Normal(torch.zeros(3), 1.0), decoder=Rows(1, 2))
    observation = ce.observed(torch.ones(2, 3), None, 0.5)
    energy, z = prior & observation, torch.randn(5, 3)
    torch.testing.assert_close(energy(z), prior(z) + observation(Rows(1, 2)(z)))
    draws = energy.sample(500, seed=0)
    precision = 1 + 5 / 0.25
    assert draws.shape == (500, 2, 3) and (draws[:, 0].mean(0) - 3 / 0.25 / precision).abs().max() < 4.5 / math.sqrt(500 * precision)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_a_measurement_decides_the_sampler_where_there_are_values():
    noisy = gaussian(2)
    noisy.recommended = ce.Recommendation("langevin", {"steps": 10})
    assert (noisy & ce.observed(torch.ones(2), None, 1.0)).recommended.sampler == "chees"
    score = ce.ScoreEnergy(lambda x: -x, event_shape=(2,))
    assert (score & ce.observed(torch.ones(2), None, 1.0)).sample(64, seed=0, steps=50).isfinite().all()  # by `langevin`: no values
    modes = lambda x: -(torch.tensor([0.9, 0.1]).log() - 2 * (x - torch.tensor([-6.0, 6.0])).square()).logsumexp(1)
    prior = ce.as_energy(modes, event_shape=(1,))
    prior.recommended = ce.Recommendation("smc")
    with pytest.warns(ce.SamplingWarning, match="r_hat"):  # chains stay in a mode
        x = (prior & ce.observed(torch.zeros(1), None, 50.0)).sample(400, seed=0)
    assert abs((x < 0).float().mean() - 0.9) < 4 * (0.09 / 64) ** 0.5  # they start at 64 draws by the sampler of the prior


class Rounding(nn.Module):
    def forward(self, x):
        return x.round()


test_an_observation_that_does_not_fit_is_refused = refusals(
    (lambda: ce.observed(torch.ones(2)), OptionError, "needs its noise"),
    (lambda: ce.observed(torch.ones(2), None, torch.ones(3)), ShapeError, "noise has shape"),
    (lambda: ce.observed(torch.ones(2), None, "poison"), OptionError, "Did you mean 'poisson'"),
    (lambda: ce.observed(torch.ones(2), None, "quantised"), OptionError, "missing step, scale"),
    *((lambda y=y: ce.observed(y, None, 1.0), OptionError, "measured numbers are") for y in (torch.tensor([math.nan]), torch.ones(0))),
    (lambda: ce.observed(torch.tensor([1j]), None, 1.0), DtypeError, "of real numbers"),
    (lambda: ce.observed(torch.tensor([1.0, 0.5]), None, "poisson"), OptionError, "counts"),
    (lambda: ce.observed(torch.ones(2), torch.ones(3, dtype=torch.bool), 1.0), ShapeError, "does not fit"),
    (lambda: ce.observed(torch.ones(1, 2, 2), Downsample(2), 1.0, event_shape=(1, 8, 8)), ShapeError, "not \\(1, 8, 8\\)"),
    (lambda: ce.observed(torch.ones(2), lambda x: x.detach(), 1.0, event_shape=(2,)), ExpressionError, "not differentiable"),
    (lambda: ce.observed(torch.ones(2), Rounding(), 1.0, event_shape=(2,)), ExpressionError, "rounds"),
    (lambda: ce.observed(torch.ones(2), lambda x: x / 0 * 0, 1.0, event_shape=(2,)), ExpressionError, "not finite"),
    (lambda: ce.observed(torch.ones(2), lambda x: x + torch.randn_like(x), 1.0, event_shape=(2,)), ExpressionError, "random"),
    (lambda: ce.observed(torch.ones(2), lambda x: [x], 1.0, event_shape=(2,)), DtypeError, "floating tensor"),
    (lambda: ce.observed(torch.ones(2), lambda x: x[:, :1], 1.0)(torch.ones(3, 4)), ShapeError, "gave shape"),
    (lambda: (gaussian(2) & ce.observed(torch.ones(2), lambda x: x.detach(), 1.0)).sample(4), ExpressionError, "not differentiable"),
    (lambda: (gaussian(2) & ce.observed(torch.ones(2), lambda x: x * math.nan, 1.0)).sample(4), SamplingDiverged, None),
    (lambda: ce.observed(torch.ones(2), lambda x: x, 1.0).save("nowhere"), ExpressionError, "cannot be saved"),
    (lambda: ce.observed(torch.ones(2), None, 1.0).sample(4), UngroundedError, None),
    (lambda: ~ce.observed(torch.ones(2), None, "poisson"), ExpressionError, "level of its own; give one, .*mode='level'"),
)
