"""Laws of expressions, over every leaf and over random trees of the factories."""

import copy
import pickle

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

import composable_energy as ce
from composable_energy.errors import ExpressionError
from tests.factories import LEAVES, complement, expressions, points

law = settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
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
@given(expressions(), expressions(), seeds)
def test_conjunction_and_disjunction_commute(a, b, seed):
    x = points(seed=seed)
    same(built(lambda: a & b)(x), (b & a)(x))
    same((a | b)(x), (b | a)(x))


@pytest.mark.slow
@law
@given(expressions(3), expressions(3), expressions(3), seeds)
def test_conjunction_and_disjunction_associate(a, b, c, seed):
    x = points(seed=seed)
    same(built(lambda: (a & b) & c)(x), built(lambda: a & (b & c))(x))
    same(((a | b) | c)(x), (a | (b | c))(x))


@pytest.mark.slow
@law
@given(expressions(), seeds)
def test_double_negation_gives_the_energy_back(a, seed):
    x = points(seed=seed)
    assume(not (isinstance(a, ce.Negation) and a.mode == "level"))  # ~ of it is its operand, without the given level
    same((~built(lambda: complement(a)))(x), a(x))


@pytest.mark.slow
@law
@given(expressions(3), expressions(3), seeds)
def test_de_morgan(a, b, seed):
    x = points(seed=seed)
    assert built(lambda: ~(a | b)).equals(built(lambda: ~a & ~b))
    parts = [part for energy in (built(lambda: ~(a & b)), ~a, ~b) for part in energy.modules()]
    if not any(isinstance(part, ce.Negation) and part.mode == "level" for part in parts):
        same((~(a & b))(x), built(lambda: ~a | ~b)(x))
        same((~(a | b))(x), built(lambda: ~a & ~b)(x))


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
def test_evidence_and_bases_make_the_energy(a, seed):
    x = points(seed=seed)
    bases = sum((base.weight * base.energy(x) for base in a.bases), torch.zeros(len(x), dtype=x.dtype))
    same(a.evidence(x) + bases, a(x))


@pytest.mark.slow
@law
@given(expressions(), seeds)
def test_an_energy_depends_on_its_own_point_alone(a, seed):
    x = points(seed=seed)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    same(a(x[order]), a(x)[order])
    same(torch.cat([a(point.unsqueeze(0)) for point in x]), a(x))
    jacobian = torch.autograd.functional.jacobian(a, x)
    off_diagonal = jacobian[~torch.eye(len(x), dtype=torch.bool)]
    assert not off_diagonal.any()


@pytest.mark.slow
@law
@given(expressions(), seeds)
def test_gradients_are_those_of_finite_differences(a, seed):
    x = points(3, seed=seed).requires_grad_()
    (gradient,) = torch.autograd.grad(a(x).sum(), x)
    for axis in range(2):
        step = torch.zeros(2, dtype=x.dtype)
        step[axis] = 1e-5
        with torch.no_grad():
            difference = (8 * (a(x + step) - a(x - step)) - (a(x + 2 * step) - a(x - 2 * step))) / 12e-5
        torch.testing.assert_close(gradient[:, axis], difference, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@law
@given(expressions(), seeds)
def test_copies_keep_values_to_the_bit(a, seed):
    x = points(seed=seed)
    assert torch.equal(copy.deepcopy(a)(x), a(x))
    assert torch.equal(pickle.loads(pickle.dumps(a))(x), a(x))


@pytest.mark.slow
@law
@given(expressions(), st.floats(0.1, 3.0), seeds)
def test_a_dtype_passes_down_the_tree(a, scale, seed):
    x = points(seed=seed)
    single = copy.deepcopy(a).to(torch.float32)
    values = single(x.float())
    assert values.dtype == torch.float32
    torch.testing.assert_close(values.double(), a(x), rtol=1e-3, atol=1e-3)


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
