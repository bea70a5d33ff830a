"""What is no energy of a point: batches that mix, functions of one point, gradients that seem what they are not, and no density."""

import math
from contextlib import nullcontext

import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.distributions import constraints
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError, UngroundedError
from tests.factories import quadratic as square
from tests.refusals import refused

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

MIXES = "depends on the other points of its batch, or on its place"
DATA = torch.arange(64.0) / 32


class OwnGradient(ce.Energy):
    """The values of a bowl, and a gradient that subtracts the mean over the batch."""

    def forward(self, x):
        return square(x)

    def with_gradient(self, x):
        return square(x), x - 0.3 * x.mean(0)


MIXING = {
    "data broadcast along the batch": ce.as_energy(lambda x: (x[:, 0] - DATA).square() / 2 + square(x)),
    "equal numbers broadcast along the batch": ce.as_energy(lambda x: (x[:, :1] - torch.ones(len(x))).square().sum(1) + square(x)),
    "mean over the batch": ce.as_energy(lambda x: (x - x.mean(0)).square().sum(1) + square(x)),
    "batch normalisation": ce.as_energy(lambda x: F.batch_norm(x, None, None, training=True).exp().sum(1) + square(x)),
    "own gradient": OwnGradient(),
    "score": ce.ScoreEnergy(lambda x: 0.3 * x.mean(0) - x, event_shape=(2,)),
    "noise levels": ce.as_energy(lambda x, sigma: (square(x) + x.mean().abs()) / (1 + sigma**2)),
    "a term": ce.as_energy(square) & 0.5 * ce.as_energy(lambda x: x.cumsum(0).square().sum(1) + square(x)),
    "in a support": ce.as_energy(lambda x: square(x) + x.mean(), support=torch.distributions.constraints.positive),
}


@pytest.mark.parametrize("name", MIXING)
def test_points_that_mix_are_refused(name):
    energy = MIXING[name]
    schedules = {"noise levels": {"sampler": "annealed"}, "batch normalisation": {"sampler": "smc"}}  # which takes few steps
    sampler = schedules.get(name, {"sampler": "langevin", "step_size": 0.01, "steps": 16})
    for init in (None, torch.ones(64, 2)) if name in ("mean over the batch", "own gradient") else (None,):
        refused(ExpressionError, MIXES, energy.sample, (64, 2), init=init, seed=0, **sampler)


def test_rounding_that_an_ill_conditioned_function_amplifies_is_no_mixing():
    """Libraries round by the place in a batch; here by two units in the last place, of which a curvature of 1e10 makes 1e-6."""

    def energy(x):
        return ((1e10 * x * (1 + 2.0**-52 * (torch.arange(len(x), dtype=x.dtype) % 3)[:, None])).sin() / 1e10 + x.square() / 2).sum(1)

    for mixed, fails in ((0.0, False), (1e-6, True)):
        lifted = ce.as_energy(lambda x, mixed=mixed: energy(x) + mixed * x.mean())
        with pytest.raises(ExpressionError, match=MIXES) if fails else nullcontext():
            lifted.sample((64, 1), sampler="mala", step_size=0.01, steps=16, seed=0, dtype=torch.float64)


def test_a_single_chain_two_points_of_two_coordinates_and_pilots_are_no_exceptions():
    step = {"sampler": "langevin", "step_size": 0.1, "steps": 16, "seed": 0}
    refused(ExpressionError, MIXES, MIXING["mean over the batch"].sample, (1, 2), **step)
    refused(ExpressionError, MIXES, ce.as_energy(lambda x: x[0] ** 2 + 3 * x[1] ** 2).sample, (2, 2), **step)
    with pytest.raises(ExpressionError, match=rf"{MIXES}.* energy was .* and is .* now.*axis of their own"):
        ce.as_energy(lambda x: (x[:, 0] - DATA).square() / 2).sample((64, 1), sampler="mala", seed=0)


def test_data_of_another_length_are_named_too():
    with pytest.raises(ExpressionError, match=r"raised at \d+ points together .*size of tensor.*data an axis of their own") as error:
        ce.as_energy(lambda x: (x[:, 0] - DATA[:63]).square() / 2).sample((10, 1), seed=0)
    assert isinstance(error.value.__cause__, RuntimeError)


def test_a_function_that_raises_at_a_batch_alone_is_a_mistake_of_the_function():
    branching = lambda x: x[:, 0].square() if x[:, 0] > 0 else 2 * x[:, 0].square()
    with pytest.raises(ExpressionError, match=r"and at none of its parts alone.*Choose by `torch.where`") as error:
        ce.as_energy(branching).sample((8, 1), seed=0)
    assert "Boolean value of Tensor" in str(error.value.__cause__) and error.value.__cause__.__traceback__ is not None


ALONE = {
    "rows of conditions": ce.as_energy(lambda x, m: (x - m[:, None]).square().sum(1)).given(m=torch.arange(33.0)),
    "dropout": ce.as_energy(lambda x: F.dropout(x, 0.2, training=True).square().sum(1)),
    "products of matrices": ce.as_energy(nn.Sequential(nn.Linear(2, 300), nn.Tanh(), nn.Linear(300, 1), nn.Flatten(0))),
    "batch normalisation in eval mode": ce.as_energy(nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1), nn.Flatten(0))),
    "terms that cancel": ce.as_energy(lambda x: ((x + 3e3).square() - x.square() - 9e6).sum(1) / 6e3 + square(x)),
    "data with an axis of their own": ce.as_energy(lambda x: (x[:, :1] - DATA).square().sum(1) / 64 + square(x)),
    "infinite at half of the starts": ce.as_energy(lambda x: torch.where(x[:, 0] > -9, square(x), torch.inf)),
}


@pytest.mark.parametrize("name", ALONE)
def test_energies_of_single_points_pass(name):
    for sampler in ("langevin", "mala"):
        _, trace = ALONE[name].sample((33, 2), sampler=sampler, step_size=0.01, steps=16, seed=0, trace=True)
        varies = any(warning.kind == "varies" for warning in trace.observed)
        assert varies is (name == "dropout" and sampler == "mala")  # langevin takes gradients of minibatches, too
    if name == "dropout":
        with pytest.warns(ce.SamplingWarning, match="varies"):
            ce.log_z(ALONE[name], event_shape=(2,), seed=0)


P = torch.tensor([[2.0, 0.5], [0.5, 1.0]])
SINGLE = {
    "a quadratic form": lambda x: 0.5 * x @ P @ x,
    "a sum over all": lambda x: x.square().sum() / 2,
    "coordinates unpacked": lambda x: (lambda a, b: a**2 + b**2)(*x),
}


@pytest.mark.parametrize("name", SINGLE)
def test_a_function_of_one_point_is_offered_vmap(name):
    energy = ce.as_energy(SINGLE[name], event_shape=(2,))
    for use in (lambda: energy.sample(10, seed=0), lambda: (energy & energy)(torch.zeros(7, 2))):
        with pytest.raises(ShapeError, match=r"takes one point at a time: `torch.vmap` of it takes a batch") as error:
            use()
        assert error.value.__cause__ is not None
    assert ce.as_energy(torch.vmap(SINGLE[name]), event_shape=(2,))(torch.zeros(7, 2)).shape == (7,)


def root(x):  # fails left of 0
    return torch.linalg.cholesky(x[:, :, None])[:, 0, 0] ** 4 / 2


@pytest.mark.full
def test_a_search_for_points_that_raise_has_an_end_that_names_float64_and_jitter():
    start = torch.full((500, 1), 0.5)
    with pytest.raises(ExpressionError, match=r"raised at so many points.*cholesky(.|\n)*torch.float64, and with jitter.*diagonal"):
        ce.as_energy(root).sample((500, 1), sampler="mala", step_size=2.0, steps=2000, init=start, seed=0)


AT = ce.as_energy(lambda x, position: (x - position).square().sum(1) / 2, name="at", event_shape=(2,))
LABEL = ce.as_energy(lambda x, y: (x[:, 0] - y).square() / 2 + x[:, 1].square() / 2, name="label", event_shape=(2,))
X = torch.tensor([[1.0, 2.0], [0.0, 0.5]])
POSITION = torch.tensor([1.0, 2.0])


def test_infer_refuses_candidates_that_are_no_mapping_to_lists():
    for over in ("position", None, {"position"}, {"position": "near"}, {"position": {0: 1}}):
        refused(OptionError, r"over=\{'position': \[...\]\}", AT.infer, X, over=over)
    refused(OptionError, r"depends on \['position'\]; got candidates of \['3'\]", AT.infer, X, over={3: [1]})


def test_infer_takes_points_as_rows_of_tensors_arrays_and_lists():
    candidates = torch.tensor([[1.0, 2.0], [3.0, 0.0]])
    expected = torch.log_softmax(-(X[:, None] - candidates).square().sum(2) / 2, 1)
    for rows in (candidates, candidates.numpy(), candidates.tolist(), tuple(map(tuple, candidates.tolist()))):
        torch.testing.assert_close(AT.infer(X, over={"position": rows}).log_probabilities, expected)


def test_sample_refuses_another_number_of_rows_before_it_evaluates():
    shapeless = ce.as_energy(lambda x, position: (x - position).square().sum(1) / 2)
    for energy, shape in ((LABEL.given(y=torch.zeros(3)), 5), (shapeless.given(position=POSITION) & LABEL.given(y=0), (5, 2))):
        refused(ShapeError, r"5 points were asked for. Ask for [23]; or", energy.sample, shape, seed=0)
    assert LABEL.given(y=torch.zeros(3)).sample(3, seed=0, sampler="langevin", step_size=0.1, steps=2).shape == (3, 2)


def gradient_norm(energy):
    return ce.as_energy(lambda x: torch.autograd.grad(energy(x).sum(), x, create_graph=True)[0].square().sum(1))


@pytest.mark.slow
def test_a_gradient_of_ones_own_is_not_differentiated_as_a_constant():
    for inner in (OwnGradient(), OwnGradient() & ce.as_energy(lambda x: x.square().sum(1).square() / 4)):
        with pytest.raises(ExpressionError, match=r"is that of its own `with_gradient`, and has no derivative"):
            gradient_norm(inner).with_gradient(torch.ones(2, 2))


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
    "gamma with a pole": (energy(lambda x: 0.5 * x.log().sum(1) + x.sum(1)).on(constraints.positive), math.log(math.pi) / 2),
    "log-normal": (energy(lambda x: (x.log() + x.log().square() / 2).sum(1)).on(constraints.positive), math.log(2 * math.pi) / 2),
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
    refused(UngroundedError, None, ce.calibrate, improper | ce.as_energy(td.Normal(torch.zeros(improper.event_shape), 1.0)), seed=0)


@pytest.mark.parametrize("sampler", ["langevin", "underdamped"])
def test_a_score_of_the_wrong_sign_is_named(sampler):
    refused(OptionError, "is its sign right", ce.ScoreEnergy(lambda x: x, event_shape=(2,)).sample, 20, sampler=sampler, seed=0)


@pytest.mark.full
@pytest.mark.parametrize("name", ["normal", "Cauchy", "of a distribution", "flat on one side", "grows like log r", "periodic"])
def test_chains_that_ran_away_are_no_draws(name):
    improper = {**LOG_DENSITIES, **IMPROPER}[name]
    for sampler in ("chees", "smc"):
        refused(UngroundedError, "negate it" if name in LOG_DENSITIES else "join it with", improper.sample, 200, seed=3, sampler=sampler)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_log_z_warns_of_a_pole_at_an_end_of_a_support_and_of_points_that_a_dtype_lacks(dtype):
    pole = lambda power: ce.as_energy(lambda x: (power * x.log() + x).sum(1), support=constraints.positive, event_shape=(1,))
    for power in (1.05, 1.0, 0.98):
        with nullcontext() if (power, dtype) == (0.98, torch.float64) else pytest.warns(ce.SamplingWarning, match="border: log Z is wrong"):
            found = float(ce.log_z(pole(power), seed=0, dtype=dtype))
    assert dtype == torch.float32 or abs(found - math.lgamma(0.02)) < 0.1


def test_a_wide_number_beside_one_with_an_end_has_a_density():
    sizes = {"a": (1,), "s": ((1,), constraints.positive)}
    wide = ce.as_energy(lambda a, s: (a / 100).square().sum(1) / 2 + (s - 2 * s.log()).sum(1), variables=sizes)
    assert abs(float(ce.log_z(wide, seed=0)) - math.log(200 * math.sqrt(2 * math.pi))) < 0.2


def test_energies_along_noise_levels_may_be_flat_where_no_chain_comes():
    def flat(x, sigma):
        return -torch.logaddexp(-x.square().sum(1) / (2 * (900 + torch.as_tensor(sigma) ** 2)), torch.tensor(-12.0))

    x = ce.as_energy(flat, event_shape=(2,)).sample(1000, sampler="annealed", sigma_max=90.0, sigma_min=1.0, seed=0)
    assert abs(x.std() / 30 - 1) < 0.15


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
        refused(UngroundedError, "allow_improper", difference.sample, 50, seed=0, **options)
    refused(UngroundedError, None, ce.log_z, difference, seed=0)
    assert difference.sample(5, seed=0, allow_improper=True, **langevin).shape == (5, 2)


@pytest.mark.full
def test_a_difference_that_has_a_density_is_drawn():
    draws = (NORMAL & -0.5 * ce.as_energy(td.Normal(torch.zeros(2), 2.0))).sample(2000, seed=3)  # a precision of 1 - .125
    assert abs(draws.var().item() * 0.875 - 1) < 4.5 * math.sqrt(2 / 4000)
    draws = (NORMAL & -0.5 * LAPLACE).sample(500, seed=3)  # |x| / 2 is below x^2 / 2 far away
    assert draws.isfinite().all() and draws.abs().max() < 6
