"""The leaves of an expression that depend on a noise level, and expressions as functions of their energies."""

import pytest
import torch

import composable_energy as ce
from composable_energy.algebra import noise_leaves, weakens_evidence
from composable_energy.errors import ExpressionError
from composable_energy.gradients import substituting

X = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]


def score(name):
    return ce.ScoreEnergy(lambda x, sigma: -x / (1 + sigma[:, None] ** 2), name=name, event_shape=(1,))


base, one, two = (score(name) for name in ("base", "one", "two"))
A, B = one.relative_to(base), two.relative_to(base)
plain = ce.as_energy(lambda x: x.square().sum(1), name="plain", event_shape=(1,))
head = ce.ClassifierEnergy(lambda x: torch.cat([-x, x], 1), 1, base, labels=2)


@pytest.mark.parametrize(
    ("energy", "leaves", "others"),
    [
        (one, {one}, set()),
        (A & ~B, {one, two, base}, set()),
        ((A & B) | (2.0 * A & ~B.sharpened(3)), {one, two, base}, set()),
        (A & plain, {one, base}, {plain}),
        (head & A, {one, base}, {head}),
        (one.at(0.5) & two, {two}, None),
    ],
)
def test_leaves_are_what_depends_on_the_noise_level(energy, leaves, others):
    found = noise_leaves(energy)
    assert set(found.leaves) == leaves
    assert len(found.others) == 1 if others is None else set(found.others) == others


def test_plain_parts_are_those_without_noise_levels():
    noisy = ce.ClassifierEnergy(lambda x, sigma: torch.cat([-x, x], 1) / sigma[:, None], 1, base, labels=2)
    decoded = ce.as_energy(lambda x: x.square().sum(1), event_shape=(2,)).pull_back(torch.nn.Linear(1, 2))
    assert noise_leaves(noisy & A).plain == ()
    assert set(noise_leaves(head & noisy & decoded & plain).plain) == {head, decoded, plain}


def test_plain_parts_add_unless_a_mixture_or_a_negation_is_around_them():
    for sums in (A & plain, A & 3.0 * plain, (A & plain).sharpened(2.0), A & head):
        assert noise_leaves(sums).additive
    for others in ((A & plain) | B, A & ~plain):
        assert not noise_leaves(others).additive


def test_powers_below_one_weaken_evidence():
    for weak in (A.sharpened(0.3), 0.5 * A & B, (A / 2.0) | B):
        assert weakens_evidence(weak)
    decoded = ce.as_energy(lambda x: x.square().sum(1), event_shape=(2,)).pull_back(torch.nn.Linear(1, 2))
    for other in (A, A & ~B, A.sharpened(3), 2.0 * A & B, A & 0.5 * plain, 0.5 * decoded):
        assert not weakens_evidence(other)


def test_a_bound_condition_makes_leaves_of_their_own():
    labelled = ce.ScoreEnergy(lambda x, sigma, y: y[:, None] - x, name="labelled", event_shape=(1,))
    assert len(noise_leaves(labelled.given(y=1.0) | labelled.given(y=2.0)).leaves) == 2


def test_an_expression_is_the_function_of_its_leaves_that_it_says():
    energies = {
        leaf: torch.randn(5, dtype=torch.float64, generator=torch.Generator().manual_seed(i)) for i, leaf in enumerate((base, one, two))
    }
    e0, e1, e2 = energies.values()
    with substituting(energies):
        for energy, expected in (
            (A & B, e1 + e2 - e0),
            (A | B, -torch.logaddexp(-e1, -e2)),
            (A & ~B, e1 + torch.nn.functional.softplus(e0 - e2)),
            (A.sharpened(3), e0 + 3 * (e1 - e0)),
            (one.relative_to(base), e1),
        ):
            torch.testing.assert_close(energy(X, sigma=0.3), expected)
    with pytest.raises(ExpressionError, match="needs values"):
        (A | B)(X, sigma=0.3)


def test_bound_leaves_are_substituted_as_terms():
    labelled = ce.ScoreEnergy(lambda x, sigma, y: y[:, None] - x, name="labelled", event_shape=(1,))
    left, right = labelled.given(y=1.0), labelled.given(y=2.0)
    energies = {left: torch.ones(5, dtype=torch.float64), right: torch.full((5,), 3.0, dtype=torch.float64)}
    mixture, product = left | right, left & 2 * right
    assert set(noise_leaves(mixture).leaves) == set(energies)
    with substituting(energies):
        torch.testing.assert_close(product(X, sigma=0.3), torch.full((5,), 7.0, dtype=torch.float64))
        torch.testing.assert_close(mixture(X, sigma=0.3), -torch.logaddexp(-energies[left], -energies[right]))
