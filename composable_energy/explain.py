"""What each term of an expression says of given points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import Conditioned, Disjunction, PulledBack
from composable_energy.checks import check_batch, check_value, check_weights
from composable_energy.conditions import rows_for
from composable_energy.energy import Energy
from composable_energy.errors import ContradictionError, ExpressionError, ShapeError
from composable_energy.memo import memo_scope, memoize

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """One node of an expression with its evidence, and the same for its terms.

    Attributes:
        expression: The node as written.
        energy: Its evidence (for a base: its energy) at each point, with shape $(B,)$; infinite where no point fulfils it.
        share: Under `|`, the probability that a point came from this branch, with shape $(B,)$; None elsewhere.
        terms: The bases of the whole expression first, then the terms.
    """

    expression: str
    energy: Tensor
    share: Tensor | None = None
    terms: tuple[Explanation, ...] = ()

    def rows(self, depth: int = 0) -> Iterator[tuple[int, Explanation]]:
        """Yields each node below with its depth, in reading order; the terms of a part that occurs again are not repeated."""
        seen: set[int] = set()
        todo = [(depth, self)]
        while todo:
            level, row = todo.pop()
            yield level, row
            if id(row.terms) not in seen:
                todo += [(level + 1, term) for term in reversed(row.terms)]
                seen.add(id(row.terms))

    def __str__(self) -> str:
        lines = []
        for depth, row in self.rows():
            share = "" if row.share is None else f"  share {row.share.mean():.3f}"
            values = " ".join(f"{value:9.3f}" for value in row.energy[:8].tolist()) + (" ..." if len(row.energy) > 8 else "")
            lines.append(f"{'  ' * depth + row.expression:40} {values}{share}")
        return "\n".join(lines)


def explain(energy: Energy, x: Tensor, **conditions: Any) -> Explanation:
    """Returns the energy of each term of an expression at given points.

    What no point fulfils, such as `A & ~A`, has infinite energy here, as a term or as the whole, so that the terms show why.

    Args:
        energy: The expression.
        x: Points of shape $(B, *)$; for a latent energy also what people see, if its decoder can encode.
        **conditions: Such as `sigma`, where they are not bound.

    Raises:
        ExpressionError: The energy has no value.
    """
    check_value(energy, "`explain`")
    x = encode_points(energy, x)
    with torch.no_grad(), memo_scope():
        whole = _node(energy, x, conditions)
        bases = tuple(Explanation(str(base.energy), base(x, **conditions)) for base in energy.bases)
        total = _values(lambda: energy(x, **conditions), x)
        return Explanation(str(energy), total, None, bases + (whole.terms or (whole,) * bool(bases)))


def encode_points(energy: Energy, x: Tensor) -> Tensor:
    """Returns points of the space where an energy lives: as they are, or encoded by its decoder if they have the shape it decodes to.

    Raises:
        ExpressionError: They must be encoded and the decoder cannot.
        ShapeError, DtypeError, DeviceError: They are nothing that the decoder takes.
    """
    check_batch(energy, x)
    if energy.decoder is None or energy.event_shape is None or x.shape[1:] == energy.event_shape:
        return x
    encode = getattr(energy.decoder, "encode", None)
    if encode is None:
        raise ExpressionError(
            f"{energy} takes latent points of shape (B, {', '.join(map(str, energy.event_shape))}), got {tuple(x.shape)}, and its decoder "
            f"{type(energy.decoder).__name__} has no `encode` that turns them round."
        )
    check_weights(energy, energy.decoder, x)
    try:
        with torch.no_grad():
            return encode(x)
    except RuntimeError as error:
        raise ShapeError(
            f"{energy} takes latent points of shape (B, {', '.join(map(str, energy.event_shape))}) or what its decoder "
            f"{type(energy.decoder).__name__} encodes, which a batch of shape {tuple(x.shape)} is not: {error}"
        ) from error


def _node(energy: Energy, x: Tensor, conditions: dict[str, Any]) -> Explanation:
    """A part that occurs several times is explained once."""
    key = "explanation", id(energy), id(x), tuple((name, id(value)) for name, value in conditions.items())
    return memoize(key, (energy, x, conditions), lambda: _explained(energy, x, conditions))


def _explained(energy: Energy, x: Tensor, conditions: dict[str, Any]) -> Explanation:
    if isinstance(energy, Conditioned):
        bound = {name: rows_for(name, value, x) for name, value in energy.values.items()}
        inner = _node(energy.terms[0], x, {**conditions, **bound})
        return Explanation(str(energy), _values(lambda: energy.evidence(x, **conditions), x), None, inner.terms)
    own = _values(lambda: energy.evidence(x, **conditions), x)
    if isinstance(energy, PulledBack):  # its term takes decoded points
        return Explanation(str(energy), own)
    shares: list[Tensor | None] = [None] * len(energy.terms)
    if isinstance(energy, Disjunction):
        with suppress(ContradictionError):  # of all branches
            shares = list(torch.softmax(-energy.branches(x, **conditions), 0))
    terms = []
    for term, share in zip(energy.terms, shares, strict=True):
        node = _node(term, x, conditions)
        terms.append(Explanation(node.expression, node.energy, share, node.terms))
    return Explanation(str(energy), own, None, tuple(terms))


def _values(evaluate: Callable[[], Tensor], x: Tensor) -> Tensor:
    try:
        return evaluate()
    except ContradictionError:
        return x.new_full(x.shape[:1], torch.inf)
