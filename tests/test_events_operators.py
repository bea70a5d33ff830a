"""Events through the operators of energies: yes-or-no heads of one network, and formulas that hold always or never."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid
from torch.utils._python_dispatch import TorchDispatchMode

import composable_energy as ce
from composable_energy.errors import ContradictionError, ExpressionError
from composable_energy.events import ClassifierEnergy, GaussianHead
from composable_energy.sampling import energy_and_gradient


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
DENSITY = ce.as_energy(lambda x: (x - 1).square().sum(1), name="density", event_shape=(3,))
NEVER = [A & ~A, C[1] & C[2], A & ~A & DENSITY, 2 * (A & ~A), 0 * (A & ~A), (A & ~A).sharpened(0.5), ~(NEAR | ~NEAR)]


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
    assert torch.equal((A | ~A)(X), BASE(X))
    assert torch.equal((NEAR | ~NEAR).evidence(X), torch.zeros(7).double())
    assert torch.equal((C[1] >> ~C[2]).evidence(X), torch.zeros(7).double())
    found = (A & ~A).explain(X)
    assert found.energy.isposinf().all()
    assert [term.expression for term in found.terms] == ["Bowl", "male", "~male"]
    torch.testing.assert_close(found.terms[1].energy, A.evidence(X))


OTHERS = [DENSITY, B, A & B, DENSITY.relative_to(BASE), C[0] | DENSITY, B, DENSITY]


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
        with pytest.raises(ContradictionError, match="No point fulfils"):
            whole(X)


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
            with pytest.raises(ContradictionError, match="No point fulfils"):
                ask(whole)


def test_a_density_of_zero_has_no_inverse():
    late = ~ClassifierEnergy(SMILE, 0, BASE) & ~ClassifierEnergy(SMILE, 1, BASE)
    for never in (A & ~A & DENSITY, late):
        assert not (DENSITY - never).unsatisfiable and not (-1 * never).unsatisfiable
        for energy in (DENSITY - never, -1 * never, never.sharpened(-2.0), ce.negate(never, "power")):
            for tree in (energy, energy | DENSITY):  # a branch without value is not one of share 0
                with pytest.raises(ExpressionError, match="divides by a density that is 0") as caught:
                    tree(X)
                assert not isinstance(caught.value, ContradictionError)


# Yes-or-no heads --------------------------------------------------------------------------------------------------------------------------


class Counting(TorchDispatchMode):
    """Counts the operations that compute."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


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
        with Counting() as operations:
            energy_and_gradient(whole, X)
        counts.append(operations.count)
    assert counts == sorted(counts, reverse=True)  # a column that no head reads gets a gradient of zeros
