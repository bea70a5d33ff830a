"""Explanations and the printed forms `str` and `repr` of an expression."""

import torch

import composable_energy as ce
from tests.factories import LEAVES, Tilt, normal, points, quadratic


def test_explain_gives_each_term_and_the_shares_of_branches(base):
    left, right = ce.as_energy(normal(-1.0, 1.0), name="left"), ce.as_energy(normal(1.0, 1.0), name="right")
    x = points()
    explanation = ((left | right) & LEAVES["ring"]).explain(x)
    branches = explanation.terms[0].terms
    assert [branch.expression for branch in branches] == ["left", "right"]
    torch.testing.assert_close(branches[0].share, torch.sigmoid(right(x) - left(x)))
    torch.testing.assert_close(branches[0].energy, left(x))
    assert "share" in str(explanation) and "left | right" in str(explanation)


def test_explain_shows_the_base_of_a_relative_leaf(base):
    tilt, x = Tilt(base, 0.5), points()
    explanation = tilt.explain(x)
    assert [term.expression for term in explanation.terms] == ["base", "Tilt"]
    torch.testing.assert_close(explanation.terms[0].energy + explanation.terms[1].energy, explanation.energy)


def test_str_is_the_expression():
    a, b, c = (ce.as_energy(quadratic, name=name) for name in "abc")
    assert str(a & ~b | c) == "a & ~b | c"
    assert str(a & (~b | c)) == "a & (~b | c)"
    assert str(2 * (a | b)) == "2 * (a | b)"
    assert str(~(2 * a)) == "~(2 * a)"
    assert str(a - (b - c)) == "a - (b - c)"
    assert str((a & b).sharpened(2)) == "(a & b).sharpened(2)"
    assert str(a.relative_to(b)) == "a.relative_to(b)"
    assert str(a >> b) == "~a | b"


def test_repr_is_the_tree():
    a, b = (ce.as_energy(quadratic, name=name) for name in "ab")
    assert repr(a & ~b) == "Conjunction\n├─ CallableEnergy(a)\n└─ Negation(mode='level')\n   └─ CallableEnergy(b)"
