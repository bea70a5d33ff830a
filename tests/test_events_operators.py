"""Boolean laws of events through the operators of energies, and unsatisfiable parts."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import composable_energy as ce
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.events import ClassifierEnergy, GaussianHead


class Bowl(ce.Energy):
    def forward(self, x):
        return x.square().sum(1) / 2


BASE = Bowl()
with torch.random.fork_rng():
    torch.manual_seed(0)
    MANY, MALE, SMILE, PLACE = (nn.Linear(3, width).double() for width in (8, 1, 2, 4))
X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
C = [ClassifierEnergy(MANY, label, BASE, name=f"c{label}") for label in range(8)]
HEAD = GaussianHead(PLACE, BASE, dims=2, name="place")
A, B, NEAR = ClassifierEnergy(MALE, 1, BASE, name="male"), ClassifierEnergy(SMILE, 1, BASE, name="smile"), HEAD.near((0.1, -0.2), 0.5)
EVENTS = [A, B, NEAR, C[0], C[3] | C[4]]
DENSITY = ce.as_energy(lambda x: (x - 1).square().sum(1), name="density", event_shape=(3,))
NEVER = [A & ~A, C[1] & C[2], A & ~A & DENSITY, 2 * (A & ~A), 0 * (A & ~A), (A & ~A).sharpened(0.5), ~(NEAR | ~NEAR)]
FORMULAS = st.recursive(
    st.sampled_from([*EVENTS, A & ~A, NEAR | ~NEAR]),
    lambda inner: st.builds(lambda a, b: a & b, inner, inner) | st.builds(lambda a, b: a | b, inner, inner) | inner.map(lambda a: ~a),
    max_leaves=5,
)


def values(evaluate) -> torch.Tensor:
    """Energies; infinite for an expression that has none, because no point fulfils it."""
    try:
        return evaluate(X)
    except ContradictionError:
        return torch.full((7,), math.inf, dtype=torch.double)


def same(left: ce.Energy, right: ce.Energy) -> None:
    assert left.unsatisfiable == right.unsatisfiable
    torch.testing.assert_close(values(left), values(right), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(values(left.evidence), values(right.evidence), rtol=1e-12, atol=1e-12)


def probability(energy: ce.Energy) -> torch.Tensor:
    return energy.evidence(X).neg().exp()


def test_exclusive_or():
    p, q = probability(A), probability(B)
    torch.testing.assert_close(probability((A & ~B) | (~A & B)), p * (1 - q) + (1 - p) * q)
    same((A & ~B) | (~A & B), (A | B) & ~(A & B))


def test_excluded_middle_and_contradiction():
    same(A | ~A, BASE & (A | ~A))
    assert torch.equal((A | ~A)(X), BASE(X))
    assert torch.equal((NEAR | ~NEAR).evidence(X), torch.zeros(7).double())
    for never in (*(event & ~event for event in EVENTS), C[1] & C[2], ~(A | ~A)):
        assert never.unsatisfiable
        with pytest.raises(ContradictionError, match="No point fulfils"):
            never(X)


def test_seven_of_eight_excluded_is_the_eighth():
    excluded = ~C[0]
    for label in C[1:7]:
        excluded = excluded & ~label
    same(excluded, C[7])
    same(~(C[0] | C[1] | C[2] | C[3] | C[4] | C[5] | C[6]), C[7])


def test_implication():
    p, q = probability(A), probability(B)
    torch.testing.assert_close(probability(A >> B), 1 - p * (1 - q))
    same(A & (A >> B), A & B)
    same((A >> B) & (B >> A), (A & B) | ~(A | B))
    same(A >> B, ~B >> ~A)
    assert torch.equal((C[1] >> ~C[2]).evidence(X), torch.zeros(7).double())


@pytest.mark.slow
@settings(max_examples=100, deadline=None, derandomize=True)
@given(FORMULAS, FORMULAS, FORMULAS)
def test_laws_hold_between_any_events(a, b, c):
    never, always = a & ~a, a | ~a
    for left, right in (
        (a & b, b & a),
        (a | (b | c), (a | b) | c),
        (a & (b & c), (a & b) & c),
        (a & (a | b), a),
        (a | (a & b), a),
        (a & (b | c), (a & b) | (a & c)),
        (a | (b & c), (a | b) & (a | c)),
        (~(a & b), ~a | ~b),
        (~(a | b), ~a & ~b),
        (~~a, a),
        (a >> b, ~a | b),
        (never | b, b),
        (never & b, never),
        (always & b, b),
        (always | b, always),
        (~never, always),
        (~always, never),
        ((a & b) | (a & ~a), a & b),
    ):
        same(left, right)


OTHERS = [DENSITY, B, A & B, DENSITY.relative_to(BASE), C[0] | DENSITY]


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS, ids=str)
@pytest.mark.parametrize("never", NEVER, ids=str)
def test_an_unsatisfiable_branch_changes_nothing(never, other):
    assert never.unsatisfiable
    for tree in (never | other, other | never, never | never | other, never | (never | other)):
        same(tree, other)
        assert [base.energy for base in tree.bases] == [base.energy for base in other.bases]
        assert (tree.unsatisfiable, tree.grounded) == (False, other.grounded)
    same(ce.any_of(never, other, weights=[0.4, 1.0]), ce.any_of(other, weights=[1.0]))


@pytest.mark.full
@pytest.mark.parametrize(("never", "other"), [*((NEVER[0], other) for other in OTHERS), *((never, B) for never in NEVER[1:])], ids=str)
def test_an_unsatisfiable_branch_changes_no_complement(never, other):
    mixed, alone = ce.calibrate(~(never | other)), ce.calibrate(~other)
    if other is not DENSITY:
        same(mixed, alone)
        return
    (level,) = (part for part in mixed.modules() if isinstance(part, type(alone)))  # both are estimated, from draws of their own
    assert abs(level.level - alone.level) < 4 * math.hypot(level.level_error, alone.level_error)


def test_a_branch_may_turn_out_unsatisfiable_at_the_first_call():
    never = ~ClassifierEnergy(SMILE, 0, BASE) & ~ClassifierEnergy(SMILE, 1, BASE)  # of two labels, which only the network says
    assert not never.unsatisfiable
    same(never | B, B)
    same(never | DENSITY, DENSITY)
    same((never & DENSITY) | (A & DENSITY), A & DENSITY)
    torch.testing.assert_close(ce.any_of(DENSITY, never, weights=[2.0, 5.0])(X), DENSITY(X) - math.log(2))
    assert torch.equal(ce.negate(never & DENSITY, "contrast").evidence(X), torch.zeros(7).double())
    for whole in (never, never & DENSITY, never | (A & ~A & DENSITY), 2 * never):
        with pytest.raises(ContradictionError, match="No point fulfils"):
            whole(X)


@pytest.mark.parametrize("never", NEVER, ids=str)
def test_an_unsatisfiable_whole_raises_whatever_is_asked_of_it(never):
    asked = {
        "energy": lambda e: e(X),
        "evidence": lambda e: e.evidence(X),
        "gradient": lambda e: e.with_gradient(X),
        "sample": lambda e: e.sample((4, 3)),
        "log_z": lambda e: ce.log_z(e, event_shape=(3,)),
        "calibrate": ce.calibrate,
    }
    for whole in (
        never,
        never & DENSITY,
        never | never,
        ce.any_of(never, never, weights=[1.0, 2.0]),
        never - DENSITY,
        never.sharpened(2.0),
    ):
        assert whole.unsatisfiable and str(whole) and repr(whole)
        for ask in asked.values():
            with pytest.raises(ContradictionError, match="No point fulfils"):
                ask(whole)


def test_sampling_refuses_a_contradiction_before_it_evaluates_anything():
    def fails(x):
        raise AssertionError("was evaluated")

    with pytest.raises(ContradictionError):
        (A & ~A & ce.as_energy(fails, event_shape=(3,))).sample(4)


def test_a_density_of_zero_has_no_inverse():
    late = ~ClassifierEnergy(SMILE, 0, BASE) & ~ClassifierEnergy(SMILE, 1, BASE)
    for never in (A & ~A & DENSITY, late):
        assert not (DENSITY - never).unsatisfiable and not (-1 * never).unsatisfiable
        for energy in (DENSITY - never, -1 * never, never.sharpened(-2.0), ce.negate(never, "power")):
            for tree in (energy, energy | DENSITY):  # a branch without value is not one of share 0
                with pytest.raises(ExpressionError, match="divides by a density that is 0") as caught:
                    tree(X)
                assert not isinstance(caught.value, ContradictionError)


@pytest.mark.full
def test_an_unsatisfiable_branch_has_the_share_zero():
    tree = (A & ~A & DENSITY) | DENSITY | (BASE & BASE)
    assert tree.branches(X)[0].isposinf().all() and tree.branches(X)[1:].isfinite().all()
    rows = dict.fromkeys(row.expression for _, row in tree.explain(X).rows())
    never, *others = tree.explain(X).terms
    assert "male & ~male & density" in rows
    assert never.energy.isposinf().all() and not never.share.any()
    torch.testing.assert_close(sum(other.share for other in others), torch.ones(7).double())
    points = ((A & ~A) | DENSITY).sample((50, 3), sampler="langevin", step_size=0.1, steps=5, seed=0)
    assert torch.equal(points, DENSITY.sample((50, 3), sampler="langevin", step_size=0.1, steps=5, seed=0, dtype=torch.double))
    options = {"particles": 64, "levels": 4, "moves": 1, "dtype": torch.double}
    calibrated = ce.calibrate((A & ~A) | (BASE & DENSITY), seed=0, event_shape=(3,), **options)
    torch.testing.assert_close(calibrated(X) - (BASE & DENSITY)(X), torch.full((7,), calibrated.log_z[1]).double())


def test_explain_shows_why_no_point_fulfils_it():
    found = (A & ~A).explain(X)
    assert found.energy.isposinf().all()
    base, male, other = found.terms
    assert (base.expression, male.expression, other.expression) == ("Bowl", "male", "~male")
    torch.testing.assert_close(male.energy, A.evidence(X))


def test_a_tree_copies_and_pickles_with_its_formula():
    tree = (A & ~NEAR) | (C[3] & B)
    for again in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))):
        assert torch.equal(again(X), tree(X))
        assert again.formula is not None
        same(again & again, again)


def test_gradients_of_a_tree_equal_finite_differences():
    tree = ((A & ~NEAR) | (C[3] & B)) & (A >> C[3])
    assert torch.autograd.gradcheck(lambda x: tree(x), X.clone().requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-6)
