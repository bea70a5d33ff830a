"""Events through the operators of energies: yes-or-no heads, formulas that hold always or never, and weights of the joint probability."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import logsigmoid

import composable_energy as ce
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.events import ClassifierEnergy, GaussianHead
from composable_energy.sampling import energy_and_gradient
from tests.factories import Operations
from tests.refusals import refused

BASE = ce.as_energy(lambda x: x.square().sum(1) / 2, name="Bowl")
with torch.random.fork_rng():
    torch.manual_seed(0)
    MANY, MALE, SMILE, PLACE = (nn.Linear(3, width).double() for width in (8, 1, 2, 4))
X = torch.randn(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)
C = [ClassifierEnergy(MANY, label, BASE, name=f"c{label}") for label in range(8)]
HEAD = GaussianHead(PLACE, BASE, dims=2, name="place")
A, B, NEAR = ClassifierEnergy(MALE, 1, BASE, name="male"), ClassifierEnergy(SMILE, 1, BASE, name="smile"), HEAD.near((0.1, -0.2), 0.5)
DENSITY = ce.as_energy(lambda x: (x - 1).square().sum(1), name="density", event_shape=(3,))
NEVER = [A & ~A, C[1] & C[2], A & ~A & DENSITY, 2 * (A & ~A), 2 * A & ~A, 0 * (A & ~A), (A & ~A).sharpened(0.5), ~(NEAR | ~NEAR)]


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


def test_certain_and_impossible_formulas():
    for excluded in (ce.all_of(*(~label for label in C[:7])), ~ce.any_of(*C[:7])):
        same(excluded, C[7])
    assert torch.equal((A | ~A)(X), BASE(X)) and torch.equal((NEAR | ~NEAR).evidence(X), torch.zeros(7).double())
    assert torch.equal((C[1] >> ~C[2]).evidence(X), torch.zeros(7).double())
    found = (A & ~A).explain(X)
    assert found.energy.isposinf().all() and [term.expression for term in found.terms] == ["Bowl", "male", "~male"]
    torch.testing.assert_close(found.terms[1].energy, A.evidence(X))


OTHERS = [DENSITY, B, A & B, DENSITY.relative_to(BASE), B, C[0] | DENSITY, B, DENSITY]


@pytest.mark.slow
@pytest.mark.parametrize(("never", "other"), [*zip(NEVER, OTHERS, strict=True)], ids=str)
def test_an_unsatisfiable_branch_changes_nothing(never, other):
    assert never.unsatisfiable
    for tree in (never | other, other | never, never | never | other, never | (never | other)):
        same(tree, other)
        assert [base.energy for base in tree.bases] == [base.energy for base in other.bases]
        assert (tree.unsatisfiable, tree.grounded) == (False, other.grounded)
    same(ce.any_of(never, other, weights=[0.4, 1.0]), ce.any_of(other, weights=[1.0]))
    if other is not DENSITY:  # whose level is estimated, each time from draws of its own
        same(ce.calibrate(~(never | other)), ce.calibrate(~other))


@pytest.mark.full
def test_an_unsatisfiable_branch_has_the_share_zero():
    tree = (A & ~A & DENSITY) | DENSITY | (BASE & BASE)
    assert tree.branches(X)[0].isposinf().all() and tree.branches(X)[1:].isfinite().all()
    never, *others = tree.explain(X).terms
    assert never.energy.isposinf().all() and not never.share.any()
    torch.testing.assert_close(sum(other.share for other in others), torch.ones(7).double())
    draw = {"sampler": "langevin", "step_size": 0.1, "steps": 5, "seed": 0, "dtype": torch.double}
    assert torch.equal(((A & ~A) | DENSITY).sample((50, 3), **draw), DENSITY.sample((50, 3), **draw))
    options = {"particles": 64, "levels": 4, "moves": 1, "dtype": torch.double}
    calibrated = ce.calibrate((A & ~A) | (BASE & DENSITY), seed=0, event_shape=(3,), **options)
    torch.testing.assert_close(calibrated(X) - (BASE & DENSITY)(X), torch.full((7,), calibrated.log_z[1]).double())


def test_a_branch_may_turn_out_unsatisfiable_at_the_first_call():
    never = ~ClassifierEnergy(SMILE, 0, BASE) & ~ClassifierEnergy(SMILE, 1, BASE)  # of two labels, which only the network says
    assert not never.unsatisfiable
    same(never | B, B)
    same(never | DENSITY, DENSITY)
    same((never & DENSITY) | (A & DENSITY), A & DENSITY)
    torch.testing.assert_close(ce.any_of(DENSITY, never, weights=[2.0, 5.0])(X), DENSITY(X) - math.log(2))
    assert torch.equal(ce.negate(never & DENSITY, "contrast").evidence(X), torch.zeros(7).double())
    for whole in (never, never & DENSITY, never | (A & ~A & DENSITY), 2 * never):
        refused(ContradictionError, "No point fulfils", whole, X)


@pytest.mark.parametrize("never", NEVER, ids=str)
def test_an_unsatisfiable_whole_raises_whatever_is_asked_of_it(never):
    asked = (
        lambda e: e(X),
        lambda e: e.evidence(X),
        lambda e: e.with_gradient(X),
        lambda e: e.sample((4, 3)),
        lambda e: ce.log_z(e, event_shape=(3,)),
        ce.calibrate,
    )

    def fails(x):
        raise AssertionError("was evaluated")

    untouched = never & ce.as_energy(fails, event_shape=(3,))
    mixed = ce.any_of(never, never, weights=[1.0, 2.0])
    for whole in (never, never & DENSITY, untouched, never | never, mixed, never - DENSITY, never.sharpened(2.0)):
        assert whole.unsatisfiable and str(whole) and repr(whole)
        for ask in asked:
            refused(ContradictionError, "No point fulfils", ask, whole)


def test_a_density_of_zero_has_no_inverse():
    late = ~ClassifierEnergy(SMILE, 0, BASE) & ~ClassifierEnergy(SMILE, 1, BASE)
    for never in (A & ~A & DENSITY, late):
        assert not (DENSITY - never).unsatisfiable and not (-1 * never).unsatisfiable
        for energy in (DENSITY - never, -1 * never, never.sharpened(-2.0), ce.negate(never, "power")):
            for tree in (energy, energy | DENSITY):  # a branch without value is not one of share 0
                with pytest.raises(ExpressionError, match="divides by a density that is 0") as caught:
                    tree(X)
                assert not isinstance(caught.value, ContradictionError)


def network(outputs: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, outputs)).double().requires_grad_(False)


def heads(net: nn.Module, count: int) -> list[ClassifierEnergy]:
    return [ClassifierEnergy(net, 1, BASE, columns=column, name=f"h{column}") for column in range(count)]


def test_heads_of_other_kinds_stand_beside_them():
    net = network(9)
    a, b, *_ = heads(net, 3)
    color = ClassifierEnergy(net, 2, BASE, columns=slice(3, 7))
    each = ClassifierEnergy(net, base=BASE, columns=7).given(y=torch.tensor([0, 1, 1, 0, 1, 0, 0]))
    last, logits = ClassifierEnergy(net, 1, BASE, columns=-1), net(X)
    chosen = logits[:, 7] * torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0, -1.0, -1.0])
    parts: list[Tensor] = [logits[:, 0], -logits[:, 1], logits[:, 8], chosen]
    expected = -sum(map(logsigmoid, parts)) - logits[:, 3:7].log_softmax(1)[:, 2]
    torch.testing.assert_close((a & ~b & color & each & last).evidence(X), expected, rtol=1e-12, atol=1e-12)


def test_more_heads_take_no_more_operations():
    net, counts = network(20), []
    for count in (4, 8, 16):
        events = heads(net, count)
        whole = ce.all_of(*events[::2], *(~event for event in events[1::2])).eval()
        energy_and_gradient(whole, X)
        with Operations() as operations:
            energy_and_gradient(whole, X)
        counts.append(operations.counts.total())
    assert counts == sorted(counts, reverse=True)  # a column that no head reads gets a gradient of zeros


LINE = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(1,), name="base")


class Head(nn.Module):
    """One variable with four values, so that events of it depend on each other: both, a alone, b alone, neither."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([3 - 2 * (x - 2).square(), 2 * x, -2 * x, torch.ones_like(x)], 1)


FOUR = Head()
LEFT, RIGHT = (ClassifierEnergy(FOUR, values, LINE, labels=4, name=name) for name, values in (("a", [0, 1]), ("b", [0, 2])))
GRID = torch.linspace(-4, 4, 2001, dtype=torch.double)[:, None]


def loss(*values: int) -> Tensor:
    """Returns -log P(one of the values | x)."""
    return -FOUR(GRID).softmax(1)[:, list(values)].sum(1).log()


BOTH, ONLY_A, EITHER_A, EITHER_B = loss(0), loss(1), loss(0, 1), loss(0, 2)


@pytest.mark.parametrize(
    ("energy", "expected"),
    [
        (2 * LEFT & RIGHT, BOTH + EITHER_A),
        (LEFT.sharpened(2) & ~RIGHT, ONLY_A + EITHER_A),
        (RIGHT & 3 * LEFT, BOTH + 2 * EITHER_A),
        (0.25 * LEFT & RIGHT, 0.25 * BOTH + 0.75 * EITHER_B),
        (0 * LEFT & RIGHT, EITHER_B),
        (3 * LEFT & 2 * RIGHT, 2 * BOTH + EITHER_A),
        (2 * LEFT & 2 * RIGHT, 2 * BOTH),
        (2 * (LEFT & 3 * RIGHT), 2 * BOTH + 4 * EITHER_B),
        (2 * (LEFT & 3 * RIGHT) & LEFT, 2 * BOTH + 4 * EITHER_B),
        (3 * LEFT & 2 * LEFT, 3 * EITHER_A),
        (LEFT & RIGHT & -1 * LEFT, BOTH - EITHER_A),
    ],
)
def test_the_evidence_of_weighted_events_is_that_of_their_joint_distribution(energy, expected):
    torch.testing.assert_close(energy.evidence(GRID), expected)


def test_a_weight_distributes_over_a_conjunction_and_leaves_the_base_of_another_event():
    for w in (0.3, 1.0, 2.5):
        torch.testing.assert_close((w * LEFT & w * RIGHT)(GRID), (w * (LEFT & RIGHT))(GRID))
    torch.testing.assert_close((2 * LEFT & RIGHT)(GRID), LINE(GRID) + BOTH + EITHER_A)  # the base counts once


def test_events_that_are_independent_keep_the_sum_of_weighted_evidences():
    other = ClassifierEnergy(nn.Linear(1, 1).double(), 1, LINE, name="other")
    torch.testing.assert_close((2 * LEFT & 3 * other).evidence(GRID), 2 * EITHER_A + 3 * other.evidence(GRID))


def test_a_learnable_weight_has_the_value_and_the_slope_of_a_number():
    weight = nn.Parameter(torch.tensor(2.0, dtype=torch.double))
    energy = weight * LEFT & RIGHT
    for value, slope in ((2.0, EITHER_A), (0.5, BOTH - EITHER_B), (-1.0, EITHER_A)):
        with torch.no_grad():
            weight.fill_(value)
        torch.testing.assert_close(energy.evidence(GRID), (value * LEFT & RIGHT).evidence(GRID))
        (found,) = torch.autograd.grad(energy.evidence(GRID).sum(), weight)
        torch.testing.assert_close(found, slope.sum())


def test_repeated_conjunctions_of_weighted_events_stay_small():
    energy = 2 * LEFT & RIGHT
    for _ in range(40):
        energy = energy & energy
    torch.testing.assert_close(energy.evidence(GRID), BOTH + EITHER_A)


def test_obedience_does_not_fall_with_a_weight():
    energies = [w * LEFT & RIGHT for w in (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)]
    shares = torch.stack([torch.softmax(-energy.evidence(GRID) - LINE(GRID), 0) for energy in energies])
    for event in (EITHER_A, BOTH):
        assert ((shares @ (-event).exp()).diff() > 0).all()


@pytest.mark.parametrize("formula", [lambda a, b, c: a | b & c, lambda a, b, c: ~(a ^ b ^ c), lambda a, b, c: (a | b) & (a & c | b & ~b)])
def test_events_over_different_named_variables_are_exact(formula):
    base, table = ce.as_energy(Normal(torch.zeros(1).double(), 1.0)), torch.cartesian_prod(*[torch.tensor([False, True])] * 3)
    heads = [ClassifierEnergy(lambda x, k=k: k * x - 1, 1, base, columns=0).over(f"x{k}") for k in range(3)]
    energy, chances = formula(*heads), torch.sigmoid(X * torch.arange(3) - 1)[:, None]
    exact = torch.where(table, chances, 1 - chances).prod(2)[:, formula(*table.unbind(1))].sum(1)
    points, prior = {f"x{k}": X[:, k : k + 1] for k in range(3)}, ce.all_of(*(base.over(f"x{k}") for k in range(3)))
    torch.testing.assert_close(energy(points), prior(points) - exact.log())
    torch.testing.assert_close((energy.sharpened(2) & energy)(points), prior(points) - 2 * exact.log())
    assert energy.grounded and ((heads[0] & heads[1]) & ~(heads[0] | heads[1])).unsatisfiable
