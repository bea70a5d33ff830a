"""The laws of the algebra, for one energy combined with two Gaussians."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from composable_energy.algebra import negate
from composable_energy.energies.energy import Energy
from composable_energy.testing.checks import assert_close
from composable_energy.testing.targets import Gaussian


def assert_laws(a: Energy, x: Tensor) -> None:
    """Asserts the laws of `&`, `|`, `~`, `*` and `-`.

    Args:
        a: The energy.
        x: Points, with shape $(B, *)$.
    """
    b, c = Gaussian(torch.zeros_like(x[0])), Gaussian(torch.ones_like(x[0]), 2.0)
    b.decoder = c.decoder = a.decoder  # in the same space
    at_a, at_b = a(x), b(x)

    assert_close((a & b)(x), at_a + at_b, "A & B is the sum", factor=10)
    assert_close((a & b)(x), (b & a)(x), "A & B is B & A", factor=10)
    assert_close(((a & b) & c)(x), (a & (b & c))(x), "& is associative", factor=10)

    mixed = -torch.logaddexp(-at_a, -at_b)
    assert_close((a | b)(x), mixed, "A | B is the mixture", factor=10)
    assert_close((a | b)(x), (b | a)(x), "A | B is B | A", factor=10)
    assert_close(((a | b) | c)(x), (a | (b | c))(x), "| is associative", factor=10)

    assert torch.equal((1 * a)(x), at_a), "1 * A is not A"
    assert_close((2 * a)(x), 2 * at_a, "2 * A is twice A")
    assert_close((a / 2)(x), at_a / 2, "A / 2 is half of A")
    assert_close((a - b)(x), at_a - at_b, "A - B is the difference", factor=10)
    assert not bool((a - a)(x).any()), "A - A is not 0"

    if a.no_complement is None and a.evidence_has_value:
        _assert_laws_of_negation(a, b, x)


def _assert_laws_of_negation(a: Energy, b: Energy, x: Tensor) -> None:
    """Asserts the laws of `~`, without the level of an absolute energy, which needs draws."""
    assert (~(a | b)).equals(negate(a) & negate(b)), "~(A | B) is not ~A & ~B"
    level = a.evidence(x).detach().median().item()
    if math.isfinite(level):
        expected = softplus((level - a.evidence(x)) / 0.5)
        assert_close(
            negate(a, level=level, temperature=0.5, mode="level").evidence(x), expected, "~A by its level is a softplus", factor=10
        )
    if a.bases:
        other = b.relative_to(a.bases[0].energy)
        assert_close((~(a & other))(x), (negate(a) | negate(other))(x), "~(A & B) is ~A | ~B", factor=10)
        assert_close((~(a | other))(x), (negate(a) & negate(other))(x), "~(A | B) is ~A & ~B", factor=10)
