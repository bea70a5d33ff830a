"""Laws of expressions over random trees, and infinite energies: expressions are infinite or finite, never NaN, and so are gradients."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.algebra import lacks_level
from composable_energy.errors import ExpressionError
from composable_energy.sampling import twin
from tests.factories import LEAVES, complement, expressions, points

law = settings(max_examples=50, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
seeds = st.integers(0, 1000)


def same(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def built(build):
    """Builds an expression, or gives the example up: a contradiction and the complement of a point are no densities."""
    try:
        energy = build()
    except ExpressionError:
        assume(False)
    assume(not energy.unsatisfiable)
    return energy


@pytest.mark.slow
@law
@given(expressions(3), expressions(3), expressions(3), seeds)
def test_conjunction_and_disjunction_commute_and_associate(a, b, c, seed):
    x = points(seed=seed)
    same(built(lambda: a & b)(x), (b & a)(x))
    same((a | b)(x), (b | a)(x))
    same(built(lambda: (a & b) & c)(x), built(lambda: a & (b & c))(x))
    same(((a | b) | c)(x), (a | (b | c))(x))


@pytest.mark.slow
@law
@given(expressions(3), expressions(3), seeds)
def test_double_negation_and_de_morgan(a, b, seed):
    x = points(seed=seed)
    assert built(lambda: ~(a | b)).equals(built(lambda: ~a & ~b))
    parts = [part for energy in (built(lambda: ~(a & b)), ~a, ~b) for part in energy.modules()]
    if not any(isinstance(part, ce.Negation) and part.mode == "level" for part in parts):
        same((~(a & b))(x), built(lambda: ~a | ~b)(x))
        same((~(a | b))(x), built(lambda: ~a & ~b)(x))
    if not (isinstance(a, ce.Negation) and a.mode == "level"):  # ~ of it is its operand, without the given level
        same((~built(lambda: complement(a)))(x), a(x))


@pytest.mark.slow
@law
@given(expressions(), st.floats(0.2, 3.0), seeds)
def test_a_weight_is_a_power_of_the_density(a, weight, seed):
    x = points(seed=seed)
    assert torch.equal((1 * a)(x), a(x))
    same((weight * a)(x), weight * a(x))
    same((a / weight)(x), a(x) / weight)
    same((a * torch.tensor(weight, dtype=x.dtype))(x), weight * a(x))


@pytest.mark.slow
@law
@given(expressions(), seeds)
def test_an_energy_is_its_evidence_and_bases_at_its_own_point_in_any_dtype_and_in_copies(a, seed):
    x = points(seed=seed)
    bases = sum((base.weight * base.energy(x) for base in a.bases), torch.zeros(len(x), dtype=x.dtype))
    same(a.evidence(x) + bases, a(x))
    same(torch.cat([a(point.unsqueeze(0)) for point in x]), a(x))
    for copied in (copy.deepcopy(a), pickle.loads(pickle.dumps(a)), twin(a)):
        assert torch.equal(copied(x), a(x)) and copied.equals(a) and a.equals(copied)
        assert len((a & copied).bases) == len(a.bases)  # a base is one with that of its copy
        single = copied.to(torch.float32)(x.float())
        assert single.dtype == torch.float32
        torch.testing.assert_close(single.double(), a(x), rtol=1e-3, atol=1e-3)


@pytest.mark.slow
@law
@given(expressions(), seeds)
def test_gradients_are_those_of_finite_differences(a, seed):
    x = points(3, seed=seed).requires_grad_()
    (gradient,) = torch.autograd.grad(a(x).sum(), x)
    for axis, step in enumerate(1e-5 * torch.eye(2, dtype=x.dtype)):
        with torch.no_grad():
            difference = (8 * (a(x + step) - a(x - step)) - (a(x + 2 * step) - a(x - 2 * step))) / 12e-5
        torch.testing.assert_close(gradient[:, axis], difference, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@law
@given(expressions(3), expressions(3), seeds)
def test_the_laws_hold_by_the_names_of_variables(a, b, seed):
    x, y = points(seed=seed), points(seed=seed + 1)
    one, two, point = built(lambda: a.over({"x": (2,)})), built(lambda: b.over({"y": (2,)})), {"x": x, "y": y}
    both, total = one & two, a(x) + b(y)
    for joint in (both, two & one, pickle.loads(pickle.dumps(both)), twin(both)):
        same(joint(point), total)
    slopes = ce.supports.split(both.with_gradient(point)[1], both.variables)
    same(slopes["x"], a.with_gradient(x)[1])
    same(slopes["y"], b.with_gradient(y)[1])
    same(both.given(y=y[0])({"x": x}), a(x) + b(y[:1]))
    opposite = built(lambda: ~a)
    if not lacks_level(opposite):
        same(built(lambda: ~one)({"x": x}), opposite(x))
    same((0.5 * one)({"x": x}), 0.5 * a(x))
    same(built(lambda: one | b.over({"x": (2,)}))({"x": x}), (a | b)(x))
    either, first, second = one | two, a.evidence(x), b.evidence(y)
    if either.formula is None:
        same(either(point), -torch.logaddexp(-a(x), -b(y)))
    else:
        same(either(point), total - first - second - torch.logaddexp(-first, torch.log1p(-torch.exp(-first)) - second))


class Levels(ce.Energy):
    """Depends on a noise level and a label, each its own way."""

    def __init__(self, shift: float) -> None:
        super().__init__()
        self.shift = shift

    def forward(self, x, sigma, y):
        return (x - self.shift * y[:, None]).square().sum(1) / (1 + sigma.square())


@pytest.mark.slow
@law
@given(expressions(3), st.floats(0.05, 4.0), st.sampled_from(["and", "or", "minus", "weigh", "sharpen", "not", "implies"]), seeds)
def test_conditions_pass_down_every_node(a, sigma, operation, seed):
    x, level = points(seed=seed), Levels(0.5)
    build = {
        "and": lambda e, f: e & f,
        "or": lambda e, f: e | f,
        "minus": lambda e, f: e - f,
        "weigh": lambda e, f: 0.7 * (e & f),
        "sharpen": lambda e, f: (e | f).sharpened(1.5),
        "not": lambda e, f: complement(e) | f,
        "implies": lambda e, f: f.sharpened(0.5) | complement(e),
    }[operation]
    tree = built(lambda: build(a, level))
    labels = torch.arange(len(x), dtype=x.dtype)
    same(tree.at(sigma).given(y=labels)(x), build(a, level.given(y=labels).at(sigma))(x))
    same(tree.at(sigma).given(y=labels)(x), tree(x, sigma=torch.full((len(x),), sigma, dtype=x.dtype), y=labels))


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_repr_and_str_of_each_leaf_and_its_nodes_are_readable(name):
    leaf = LEAVES[name]
    tree = (leaf | LEAVES["ring"]) & 2 * leaf.sharpened(1.5)
    assert str(leaf) in str(tree) and len(repr(tree).splitlines()) >= 5 and "tensor(" not in str(tree)


SIZE = 1.0


class Box(ce.Energy):
    """A Gaussian of a mean inside a square around 0, infinite outside; its gradient is finite everywhere."""

    def __init__(self, mean: float = 0.0, size: float = SIZE) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.mean, self.size = mean, size

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.abs().amax(1) < self.size, (x - self.mean).square().sum(1) / 2, torch.inf)


class Free(Box):
    """The same Gaussian everywhere."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / 2


def linear(outputs: int) -> nn.Linear:
    network = nn.Linear(2, outputs, dtype=torch.float64)
    nn.init.normal_(network.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(network.bias)
    return network


U, WIDE, A, B, FREE = Box(), Box(0.0, 2.0), Box(0.5), Box(-0.5), Free(0.2)
POINTS = torch.tensor([[0.1, -0.4], [0.7, 0.3], [1.5, 0.2], [-0.3, -1.7], [2.5, 0.1], [-9.0, 9.0]], dtype=torch.float64)
INSIDE, OUTSIDE = slice(0, 2), slice(2, 6)


def both(energy: ce.Energy) -> tuple[Tensor, Tensor]:
    energies, gradient = energy.with_gradient(POINTS)
    torch.testing.assert_close(energy(POINTS), energies)
    assert not energies.isnan().any(), energy
    assert gradient.isfinite().all(), energy
    return energies, gradient


def all_infinite(energy: ce.Energy) -> bool:
    return bool((both(energy)[0][OUTSIDE] == math.inf).all())


def test_relative_energies_over_a_bounded_base_are_infinite_where_it_is():
    left, right = A.relative_to(U), B.relative_to(U)
    energies, gradient = both(left & right)
    torch.testing.assert_close(energies[INSIDE], (A(POINTS) + B(POINTS) - U(POINTS))[INSIDE])
    torch.testing.assert_close(gradient[INSIDE], POINTS[INSIDE])
    assert all_infinite(left & right) and not left.evidence(POINTS)[OUTSIDE].any()


@pytest.mark.parametrize("weight", [0.0, torch.tensor(-0.0), nn.Parameter(torch.tensor(0.0))], ids=str)
def test_weight_zero_keeps_the_support(weight):
    for E in (weight * U, U.sharpened(weight), weight * A.relative_to(U), A.relative_to(U).sharpened(weight) & U):
        assert all_infinite(E)
    assert not (weight * U)(POINTS)[INSIDE].any()


@pytest.mark.parametrize("value", [0.0, 0.5, -2.0])
def test_a_learnable_weight_has_a_gradient_from_where_energies_are_finite(value):
    weight = nn.Parameter(torch.tensor(value, dtype=torch.float64))
    energies = (weight * U)(POINTS)
    assert (energies[OUTSIDE] == math.copysign(math.inf, value)).all()
    beside = (FREE & U.sharpened(weight))(POINTS)
    for finite in (energies[INSIDE], torch.where(beside.isinf(), 0.0, beside)):
        torch.testing.assert_close(torch.autograd.grad(finite.sum(), weight)[0], U(POINTS)[INSIDE].sum())
    temperature = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    assert torch.autograd.grad((U / temperature)(POINTS).sum(), temperature)[0].isfinite()


def test_differences_mixtures_and_complements_keep_the_right_support():
    red = ce.ClassifierEnergy(linear(2), 0, U, labels=2)
    for E in (A & U, U & (WIDE - U), U & ce.negate(U, level=0.0), -1 * U & A, A | B, ~FREE.relative_to(U), ~red):
        assert all_infinite(E)
    assert all_infinite(ce.negate(red, weight=torch.tensor(0.5))) and both(A - WIDE)[0][OUTSIDE].tolist() == [math.inf] * 4
    energies = both(WIDE - U)[0]
    assert energies[INSIDE].isfinite().all() and energies[OUTSIDE].tolist() == [-math.inf, -math.inf, math.inf, math.inf]
    assert not both(A | B)[1][OUTSIDE].any()
    energies, gradient = both(U | FREE)
    torch.testing.assert_close(energies[OUTSIDE], FREE(POINTS)[OUTSIDE])
    torch.testing.assert_close(gradient[OUTSIDE], FREE.with_gradient(POINTS)[1][OUTSIDE])
    torch.testing.assert_close(both(~U.relative_to(FREE))[0][OUTSIDE], FREE(POINTS)[OUTSIDE])


def test_a_broken_point_stays_broken():
    x = torch.full((1, 2), math.nan)
    for E in (
        0.0 * FREE,
        torch.tensor(0.0) * FREE,
        FREE | FREE.sharpened(2.0),
        FREE - FREE.sharpened(0.5),
        FREE & ce.negate(FREE, level=1.0),
        FREE.relative_to(U),
    ):
        assert E(x).isnan().all(), E


LOGITS = linear(3)
RED, GREEN = (ce.ClassifierEnergy(LOGITS, k, U, labels=3) for k in range(2))
BOUNDED = {
    "box": U,
    "wide": WIDE,
    "moved": A,
    "free": FREE,
    "red": RED,
    "green": GREEN,
    "box relative to itself": A.relative_to(U),
    "free relative to the box": FREE.relative_to(U),
    "box relative to free": U.relative_to(FREE),
    "box relative to wide": U.relative_to(WIDE),
    "wide relative to the box": WIDE.relative_to(U),
    "weight 0": 0.0 * U,
    "power": ce.negate(U, "power"),
    "negative weight": -0.7 * WIDE & U,
}


@pytest.mark.full
@given(expressions(6, BOUNDED))
@settings(max_examples=200, deadline=None)
def test_no_expression_of_bounded_energies_is_nan(energy):
    assume(not energy.unsatisfiable)  # it has no energy, and raises
    both(energy)
    assert not energy.evidence(POINTS).isnan().any()
