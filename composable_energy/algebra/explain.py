"""What points say of an expression: the energy of each of its terms."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import SHARES, Conditioned, Disjunction, Factor, Negation, OverTime, PulledBack
from composable_energy.energies.bases import evidence_of
from composable_energy.energies.checks import as_points, check_value, check_weights
from composable_energy.energies.conditions import rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluating, memoize
from composable_energy.errors import ContradictionError, ExpressionError, ShapeError


@dataclass(frozen=True)
class Explanation:
    r"""One node of an expression with its evidence, and the same for its terms.

    Attributes:
        expression: The text of the node.
        energy: Its evidence (of a base its energy) at each point, with shape $(B,)$; infinite if it is unsatisfiable.
        share: For a branch of `|`, the probability that a point came from it, with shape $(B,)$; else None.
        terms: The bases of the whole expression, then the terms.
        note: The mode of a negation and its level, or what the shares of a mixture are; empty for any other node.
        probability: For an event, $P(\text{event} \mid x)$ at each point, with shape $(B,)$; None for any other node.
    """

    expression: str
    energy: Tensor
    share: Tensor | None = None
    terms: tuple["Explanation", ...] = ()
    note: str = ""
    probability: Tensor | None = None

    def rows(self, depth: int = 0) -> Iterator[tuple[int, "Explanation"]]:
        """Yields each node with its depth, in reading order; the terms of a repeated part are yielded once."""
        seen, todo = set[int](), [(depth, self)]
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
            share += "" if row.probability is None else f"  p {row.probability.mean():.3g}"
            note = f"  ({row.note})" if row.note else ""
            values = " ".join(f"{value:9.3f}" for value in row.energy[:8].tolist()) + (" ..." if len(row.energy) > 8 else "")
            lines.append(f"{'  ' * depth + row.expression:40} {values}{share}{note}")
        return "\n".join(lines)

    __repr__ = __str__


def explain(energy: Energy, x: Tensor, **conditions: Any) -> Explanation:
    """Returns the energy of each term of an expression at given points.

    An unsatisfiable expression, such as `A & ~A`, has infinite energy here instead of an error, so that its terms are shown.

    Args:
        energy: The expression.
        x: Points of shape $(B, *)$; for a latent energy also decoded points, if its decoder can encode.
        **conditions: Conditions that are not bound, such as `sigma`.

    Raises:
        ExpressionError: The energy has no value.
    """
    check_value(energy, "`explain`")
    x = encode_points(energy, x)
    with torch.no_grad(), evaluating(repeated=frozenset(id(part) for part in energy.modules() if not getattr(part, "terms", ()))):
        whole = _explain_once(energy, x, conditions)
        bases = tuple(Explanation(str(base.energy), base(x, **conditions)) for base in energy.bases)
        total = _evaluate(lambda: energy(x, **conditions), x)
        return Explanation(str(energy), total, None, bases + (whole.terms or (whole,) * bool(bases)), whole.note, whole.probability)


def encode_points(energy: Energy, x: Tensor) -> Tensor:
    """Returns points in the space of an energy; decoded points of a latent energy are encoded by its decoder, variables are joined."""
    x = as_points(energy, x)
    decoder, shape = energy.decoder, energy.event_shape
    if decoder is None or shape is None or x.shape[1:] == shape:
        return x
    takes = f"{energy} takes latent points of shape (B, {', '.join(map(str, shape))})"
    if (encode := getattr(decoder, "encode", None)) is None:
        raise ExpressionError(f"{takes}, got {tuple(x.shape)}, and its decoder {type(decoder).__name__} has no `encode`.")
    check_weights(energy, decoder, x)
    try:
        with torch.no_grad():
            return encode(x)
    except RuntimeError as error:
        name = type(decoder).__name__
        raise ShapeError(f"{takes} or points that {name} can encode; a batch of shape {tuple(x.shape)} failed: {error}") from error


def _explain_once(energy: Energy, x: Tensor, conditions: dict[str, Any]) -> Explanation:
    """Returns the explanation of a node; a repeated part is explained once, and a leaf evaluated once for all nodes around it."""
    key = "explanation", id(energy), id(x), tuple((name, id(value)) for name, value in conditions.items())
    return memoize(key, (energy, x, conditions), lambda: _explain_node(energy, x, conditions))


def _explain_node(energy: Energy, x: Tensor, conditions: dict[str, Any]) -> Explanation:
    own = _evaluate(lambda: evidence_of(energy, x, conditions), x)
    probability = None if energy.formula is None else (-own).exp()
    if isinstance(energy, Conditioned):  # its terms are those of what it binds
        inner = _explain_once(energy.terms[0], x, conditions | {name: rows_for(name, value, x) for name, value in energy.values.items()})
        return replace(inner, expression=str(energy), energy=own, probability=probability)
    if isinstance(energy, PulledBack | Factor | OverTime):  # its term takes other points
        return Explanation(str(energy), own)
    terms, note = [_explain_once(term, x, conditions) for term in energy.terms], ""
    if isinstance(energy, Negation):
        note = energy.extra_repr()
    elif isinstance(energy, Disjunction):
        note = f"shares {SHARES[energy.shares]}"
        with suppress(ContradictionError):  # all branches are unsatisfiable
            shares = torch.softmax(-energy.branches(x, **conditions), 0)
            terms = [replace(term, share=share) for term, share in zip(terms, shares, strict=True)]
    return Explanation(str(energy), own, None, tuple(terms), note, probability)


def _evaluate(evaluate: Callable[[], Tensor], x: Tensor) -> Tensor:
    """Returns energies with shape $(B,)$; infinite if no point fulfils the expression."""
    try:
        return evaluate()
    except ContradictionError:
        return x.new_full(x.shape[:1], torch.inf)
