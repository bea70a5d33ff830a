"""Laws of expressions, over random trees of the factories."""

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import composable_energy as ce
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
    assert str(leaf) in str(tree)
    assert len(repr(tree).splitlines()) >= 5
    assert "tensor(" not in str(tree)
