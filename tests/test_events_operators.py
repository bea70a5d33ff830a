"""Boolean laws of events through the operators of energies."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import composable_energy as ce
from composable_energy.errors import ContradictionError
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


def same(left: ce.Energy, right: ce.Energy) -> None:
    torch.testing.assert_close(left(X), right(X), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(left.evidence(X), right.evidence(X), rtol=1e-12, atol=1e-12)


def probability(energy: ce.Energy) -> torch.Tensor:
    return energy.evidence(X).neg().exp()


def test_one_event_twice_is_one_event():
    same(A & A, A)
    same(A | A, A)
    same(A & (A | B), A)
    same(A | (A & B), A)
    same(~~A, A)


def test_exclusive_or():
    p, q = probability(A), probability(B)
    torch.testing.assert_close(probability((A & ~B) | (~A & B)), p * (1 - q) + (1 - p) * q)
    same((A & ~B) | (~A & B), (A | B) & ~(A & B))


def test_excluded_middle_and_contradiction():
    same(A | ~A, BASE & (A | ~A))
    assert torch.equal((A | ~A)(X), BASE(X))
    assert torch.equal((NEAR | ~NEAR).evidence(X), torch.zeros(7).double())
    for event in EVENTS:
        with pytest.raises(ContradictionError, match="No point fulfils"):
            event & ~event
    with pytest.raises(ContradictionError):
        C[1] & C[2]
    with pytest.raises(ContradictionError):
        ~(A | ~A)


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


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(EVENTS), st.sampled_from(EVENTS), st.sampled_from(EVENTS))
def test_laws_hold_between_any_events(a, b, c):
    if {id(a), id(b)} != {id(EVENTS[3]), id(EVENTS[4])}:
        same(a & b, b & a)
        same(~(a & b), ~a | ~b)
    same(~(a | b), ~a & ~b)
    same(a | (b | c), (a | b) | c)
    same((a | b) & (a | c), a | (b & c)) if {id(b), id(c)} != {id(EVENTS[3]), id(EVENTS[4])} else None


def test_a_tree_copies_and_pickles_with_its_formula():
    tree = (A & ~NEAR) | (C[3] & B)
    for again in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))):
        assert torch.equal(again(X), tree(X))
        assert again.formula is not None
        same(again & again, again)


def test_gradients_of_a_tree_equal_finite_differences():
    tree = ((A & ~NEAR) | (C[3] & B)) & (A >> C[3])
    assert torch.autograd.gradcheck(lambda x: tree(x), X.clone().requires_grad_(), eps=1e-6, atol=1e-6, rtol=1e-6)
