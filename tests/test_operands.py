"""Operands of expressions and their conditions: what can be lifted and bound, shapes and dtypes, sparse tensors, and inference."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.errors import DeviceError, DtypeError, ExpressionError, OptionError, ShapeError
from tests.factories import LEAVES, Affine, needs_compiler, normal, points, quadratic
from tests.refusals import refusals


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_anything_that_computes_energies_is_lifted_by_an_operator(base):
    x, module = points(), LEAVES["network"].function
    for tree in (base & quadratic, quadratic & base):
        torch.testing.assert_close(tree(x), base(x) + quadratic(x))
    torch.testing.assert_close((module & base)(x), module(x) + base(x))
    torch.testing.assert_close((base & normal(1.0, 1.0))(x), base(x) - normal(1.0, 1.0).log_prob(x))
    torch.testing.assert_close((quadratic | base)(x), -torch.logsumexp(torch.stack([-quadratic(x), -base(x)]), 0))
    torch.testing.assert_close((quadratic - base)(x), quadratic(x) - base(x))
    torch.testing.assert_close(ce.negate(quadratic, "power")(x), -0.01 * quadratic(x))
    assert str(quadratic >> base) == str(~ce.as_energy(quadratic) | base)
    script = torch.jit.trace(nn.Sequential(Affine(1, 0), nn.Flatten(0)), x)
    torch.testing.assert_close((base & script)(x), base(x) + script(x))
    assert ce.as_energy(base) is base


test_what_cannot_be_lifted_or_does_not_fit_is_refused = refusals(
    *((lambda base, operand=operand: base & operand, TypeError, None) for operand in (3, "male", None, nn.Linear)),
    *((lambda base, operand=operand: operand | base, TypeError, None) for operand in (3, "male", None, nn.Linear)),
    (lambda base: base.relative_to(quadratic), OptionError, "base must be an energy, got function; lift it once"),
    (lambda base: ce.as_energy(base, name="another"), OptionError, "base is already an energy and takes no options, got name"),
    (lambda base: ce.as_energy(nn.Linear), TypeError, "the class Linear; make an instance"),
    (lambda base: ce.as_energy(3), TypeError, "got int"),
    (lambda base: base & Normal(torch.zeros(3), torch.ones(3)), ShapeError, r"\(2,\).*\(3,\)"),
    (lambda base: base(torch.zeros(5, 3).double()), ShapeError, r"shape \(B, 2\), got \(5, 3\)"),
    (lambda base: ce.as_energy(quadratic)(torch.tensor(1.0)), ShapeError, "batch of points"),
    (lambda base: base(torch.zeros(5, 2, dtype=torch.uint8)), DtypeError, r"torch.uint8; for images write `x.float\(\) / 255`"),
    (lambda base: LEAVES["network"](torch.zeros(5, 2)), DtypeError, r"float64 weights, the points are torch\.float32"),
    (lambda base: LEAVES["network"](points().to("meta")), DeviceError, "is on cpu, the points are on meta"),
    (lambda base: base([[0.0, 1.0]]), DtypeError, "got list"),
    (lambda base: ce.as_energy(lambda x: 1.0)(points()), DtypeError, "floating tensor of energies, got float"),
    (lambda base: (base | (lambda x: x.sum(1, keepdim=True)))(points()), ShapeError, r"shape \(5, 1\).*add `.squeeze\(-1\)`"),
    (lambda base: (base & (lambda x: x.sum()))(points()), ShapeError, r"shape \(\).*not over the batch"),
    (lambda base: (~ce.as_energy(lambda x: x))(points()), ShapeError, r"shape \(5, 2\).*expected \(5,\)"),
    fixture="base",
)


@pytest.mark.parametrize("lift", [ce.as_energy, lambda function: ce.ClassifierEnergy(function, 0)])
def test_an_energy_that_is_gone_keeps_no_function_alive(lift):
    def function(x):
        return x

    energy, known = lift(function), weakref.ref(function)
    assert not energy.conditions
    del energy, function
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("lift", [ce.as_energy, ce.ScoreEnergy])
def test_a_function_that_writes_to_its_points_is_refused(lift):
    def shift(x):
        with torch.no_grad():
            x -= 3
        return -x if lift is ce.ScoreEnergy else x.square().sum(1)

    energy = lift(shift, event_shape=(2,))
    for use in (energy.with_gradient, (energy & quadratic).with_gradient, lambda x: energy.sample(len(x), steps=1, sampler="langevin")):
        with pytest.raises(ExpressionError, match="shift changes its points in place"):
            use(torch.zeros(4, 2))
    if lift is ce.as_energy:
        with pytest.raises(ExpressionError, match="energy changes its points in place"):
            ce.as_energy(lambda x: x.sub_(3).square().sum(1)).with_gradient(points())


def test_a_shape_is_any_sequence_of_numbers():
    ring = LEAVES["ring"].__class__(1.0)
    ring.event_shape = [2]
    assert ring.event_shape == torch.Size([2]) and ring(points()).shape == (5,)
    ring.event_shape = None
    assert ring(torch.zeros(1, 7)).shape == (1,)


LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]
PRECISION = torch.diag_embed(torch.full((6,), 2.0)) - torch.diag_embed(torch.ones(5), 1) - torch.diag_embed(torch.ones(5), -1)
OPTIONS = {"sampler": "langevin", "step_size": 0.05, "steps": 10, "seed": 0}
sparse = pytest.mark.filterwarnings("ignore:Sparse C:UserWarning")  # that compressed layouts are new


class Field(nn.Module):
    def __init__(self, layout=torch.strided):
        super().__init__()
        precision = PRECISION if layout is torch.strided else PRECISION.to_sparse(layout=layout)
        self.register_buffer("precision", precision.coalesce() if layout is torch.sparse_coo else precision)

    def forward(self, x):
        return (x * (self.precision @ x.T).T).sum(1) / 2


@sparse
@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_of_a_sparse_matrix_are_those_of_the_dense_one(layout):
    thin, dense = (ce.as_energy(Field(each)) for each in (layout, torch.strided))
    torch.testing.assert_close((thin & thin).sample((4, 6), **OPTIONS), (dense & dense).sample((4, 6), **OPTIONS))


@sparse
def test_copies_of_sparse_tensors_count_once_until_a_value_changes():
    energy, x = ce.as_energy(Field(torch.sparse_coo)), torch.ones(1, 6)  # torch does not copy other sparse layouts
    copied = copy.deepcopy(energy)
    both = energy | copied
    assert torch.equal(both(x), (energy | energy)(x))
    next(copied.buffers()).values().mul_(2)
    with pytest.raises(ExpressionError, match="their numbers differ now"):
        both(x)
    assert not torch.equal((energy | copied)(x), (energy | energy)(x))


@sparse
@pytest.mark.slow
@needs_compiler
def test_what_torch_does_not_compile_runs_without():
    energy = ce.as_energy(Field(torch.sparse_csr))
    with pytest.warns(RuntimeWarning, match=r"without torch\.compile"):
        draws = energy.sample((4, 6), compile=True, **OPTIONS)
    assert torch.equal(draws, energy.sample((4, 6), **OPTIONS))


LABELLED = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), name="labelled")
OPTIONAL = ce.as_energy(lambda x, label, sigma=1.0: x.square().sum(1) + label, name="optional")
NOISY = ce.as_energy(lambda x, sigma: sigma * x.square().sum(1))
X = points()


def test_conditions_come_as_rows(base):
    labels = torch.arange(5)
    torch.testing.assert_close(LABELLED.given(y=2)(X), (X - 2).square().sum(1))
    torch.testing.assert_close(LABELLED.given(y=labels)(X), (X - labels[:, None]).square().sum(1))
    part = LABELLED.given(y=labels)(X[1:3], chains=slice(1, 3))
    torch.testing.assert_close(part, (X[1:3] - labels[1:3, None]).square().sum(1))
    assert LABELLED.explain(X, y=2).energy.shape == (5,)
    torch.testing.assert_close((OPTIONAL & base).given(label=2)(X), OPTIONAL.given(label=2)(X) + base(X))  # one term takes it
    other = ce.as_energy(lambda x, sigma: sigma + x.sum(1))
    torch.testing.assert_close((NOISY.at(2.0) & other).at(3.0)(X), NOISY.at(2.0)(X) + other.at(3.0)(X))


test_wrong_conditions_are_errors = refusals(
    (lambda base: LABELLED.given(y=torch.arange(3))(X), ShapeError, r"y has 3 rows .* for 5 points"),
    (lambda base: (LABELLED & base)(X), ExpressionError, r"depends on y, which is not bound: bind it with `.given\(y=...\)`"),
    (lambda base: LABELLED.given(y="red")(X), OptionError, "number or a tensor, got str"),
    (lambda base: OPTIONAL.given(lable=3), ExpressionError, r"optional takes no lable\. Did you mean 'label'\?"),
    (lambda base: OPTIONAL(X, label=1, sgima=1.0), ExpressionError, r"takes no sgima\. Did you mean 'sigma'\?"),
    (lambda base: (OPTIONAL & base).evidence(X, label=1, y=3), ExpressionError, "takes no y"),
    (lambda base: OPTIONAL.with_gradient(X, label=1, y=3), ExpressionError, "takes no y"),
    (lambda base: base.given(y=3), ExpressionError, "takes no y"),
    (lambda base: NOISY.at(2.0).at(3.0), ExpressionError, r"takes no sigma\. It is already bound"),
    (lambda base: NOISY.at(2.0)(X, sigma=3.0), ExpressionError, r"takes no sigma\. It is already bound"),
    (lambda base: LABELLED.infer(X, over={"z": [0.0]}), OptionError, r"got candidates of \['z'\]"),
    (lambda base: LABELLED.infer(X, over={"y": []}), OptionError, "at least one candidate"),
    (lambda base: LABELLED.infer(X, over={"y": torch.tensor(1.0)}), OptionError, "Candidates must be lists"),
    fixture="base",
)


class Shifted(nn.Module):
    """Depends on a condition with a default."""

    def forward(self, x, y=0.0):
        return x.square().sum(1) + y


@pytest.mark.slow
def test_compiled_modules_keep_their_conditions(base):
    module = Shifted()
    torch.testing.assert_close(ce.as_energy(torch.compile(module, backend="eager")).given(y=2.0)(X), module(X, 2.0))
    assert "y" in ce.ClassifierEnergy(torch.compile(Shifted(), backend="eager"), 1, base).conditions


def test_infer_finds_the_condition_behind_points():
    x, energy = torch.tensor([[0.1, -0.1], [2.9, 3.2]]), 0.5 * LABELLED
    found = energy.infer(x, over={"y": [0.0, 1.0, 3.0]})
    assert [c["y"] for c in found.best] == [0.0, 3.0]
    expected = torch.softmax(torch.stack([-(x - c).square().sum(1) / 2 for c in (0.0, 1.0, 3.0)], 1), 1)
    torch.testing.assert_close(found.probabilities, expected)
    together = energy.infer(x, over={"y": torch.tensor([0.0, 1.5])}, joint=True)
    assert together.probabilities.shape == (1, 2) and together.best[0]["y"] == 1.5


class Embedded(nn.Module):
    """Two numbers that depend on a condition `z`, whose weights must have its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z) * x.sum(1, keepdim=True)


def test_bound_conditions_follow_the_points_also_where_to_does_not_reach_them():
    inner = Embedded()
    base = ce.as_energy(lambda x, z: inner(x, z).sum(1).square())
    events = [ce.ClassifierEnergy(Embedded(), 0, base).given(z=torch.ones(1, 3)) for _ in range(2)]
    for energy in (events[0], events[0] & events[1], events[0] | ~events[1]):
        inner.double()
        assert energy.double()(X).dtype == torch.float64
