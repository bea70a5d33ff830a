r"""What points say of an expression: the energy of each of its terms, and conditions that fit, $p(c \mid x) \propto e^{-E(x \mid c)}$."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.algebra import SHARES, Conditioned, Disjunction, Negation, PulledBack
from composable_energy.energies.checks import check_batch, check_value, check_weights
from composable_energy.energies.conditions import CHAINS, rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluating, memoize
from composable_energy.errors import ContradictionError, ExpressionError, OptionError, ShapeError
from composable_energy.options import check_flag


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
    terms: tuple[Explanation, ...] = ()
    note: str = ""
    probability: Tensor | None = None

    def rows(self, depth: int = 0) -> Iterator[tuple[int, Explanation]]:
        """Yields each node with its depth, in reading order; the terms of a repeated part are yielded once."""
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
            share += "" if row.probability is None else f"  p {row.probability.mean():.3g}"
            values = " ".join(f"{value:9.3f}" for value in row.energy[:8].tolist()) + (" ..." if len(row.energy) > 8 else "")
            note = f"  ({row.note})" if row.note else ""
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
    with torch.no_grad(), evaluating():
        whole = _explain_once(energy, x, conditions)
        bases = tuple(Explanation(str(base.energy), base(x, **conditions)) for base in energy.bases)
        total = _evaluate(lambda: energy(x, **conditions), x)
        return Explanation(str(energy), total, None, bases + (whole.terms or (whole,) * bool(bases)), whole.note, whole.probability)


def encode_points(energy: Energy, x: Tensor) -> Tensor:
    """Returns points in the space of an energy; decoded points of a latent energy are encoded by its decoder."""
    check_batch(energy, x)
    decoder, shape = energy.decoder, energy.event_shape
    if decoder is None or shape is None or x.shape[1:] == shape:
        return x
    takes = f"{energy} takes latent points of shape (B, {', '.join(map(str, shape))})"
    encode = getattr(decoder, "encode", None)
    if encode is None:
        raise ExpressionError(f"{takes}, got {tuple(x.shape)}, and its decoder {type(decoder).__name__} has no `encode`.")
    check_weights(energy, decoder, x)
    try:
        with torch.no_grad():
            return encode(x)
    except RuntimeError as error:
        name = type(decoder).__name__
        raise ShapeError(f"{takes} or points that {name} can encode; a batch of shape {tuple(x.shape)} failed: {error}") from error


def _explain_once(energy: Energy, x: Tensor, conditions: dict[str, Any]) -> Explanation:
    """Returns the explanation of a node; a repeated part is evaluated once."""
    key = "explanation", id(energy), id(x), tuple((name, id(value)) for name, value in conditions.items())
    return memoize(key, (energy, x, conditions), lambda: _explain_node(energy, x, conditions))


def _explain_node(energy: Energy, x: Tensor, conditions: dict[str, Any]) -> Explanation:
    own = _evaluate(lambda: energy.evidence(x, **conditions), x)
    probability = None if energy.formula is None else (-own).exp()
    if isinstance(energy, Conditioned):  # its terms are those of what it binds
        bound = {name: rows_for(name, value, x) for name, value in energy.values.items()}
        inner = _explain_once(energy.terms[0], x, {**conditions, **bound})
        return replace(inner, expression=str(energy), energy=own, probability=probability)
    if isinstance(energy, PulledBack):  # its term takes decoded points
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


@dataclass(frozen=True)
class Inference:
    """A distribution over $K$ candidate conditions; log probabilities have shape $(B, K)$, or $(1, K)$ for one condition of all points."""

    candidates: tuple[Mapping[str, Any], ...]
    log_probabilities: Tensor

    @property
    def probabilities(self) -> Tensor:
        """The probabilities, with the shape of the log probabilities."""
        return self.log_probabilities.exp()

    @property
    def best(self) -> list[Mapping[str, Any]]:
        """The most probable candidate of each row."""
        return [self.candidates[k] for k in self.log_probabilities.argmax(1).tolist()]

    def mean(self, name: str) -> Tensor:
        """Returns the mean of a condition for each row, with shape $(B, *)$; for numbers and points, not for labels.

        If candidates are closer to each other than the width of the posterior, the error is smaller than their distance.

        Raises:
            OptionError: The condition was not inferred.
        """
        if name not in self.candidates[0]:
            raise OptionError(f"{name} was not inferred; there is {', '.join(sorted(self.candidates[0]))}.")
        values = torch.stack([torch.as_tensor(candidate[name]) for candidate in self.candidates]).to(self.log_probabilities)
        return torch.einsum("bk,k...->b...", self.probabilities, values)


def infer(energy: Energy, x: Tensor, over: Mapping[str, Sequence[Any] | Tensor], *, joint: bool = False) -> Inference:
    r"""Compares conditions by their energies at given points.

    The prior over candidates is uniform, and the normalisers of $e^{-E(x \mid c)}$ are assumed equal for all $c$, as they are for evidence
    and for a classifier.

    Args:
        energy: An energy that depends on the conditions.
        x: Points of shape $(B, *)$; for a latent energy also decoded points, if its decoder can encode.
        over: The candidates of each condition: numbers, or the rows of a tensor. Several conditions are combined in all ways. Points of
            a continuous concept are the condition `c` of `GaussianHead()`, labels the condition `y` of a classifier without a label.
        joint: Whether all points have the same condition; their energies are then added.

    Raises:
        OptionError: The energy does not depend on a condition, or `over` is no mapping from conditions to lists of candidates.
        ContradictionError: No point fulfils the energy for any candidate. A candidate that no point fulfils has probability 0.
        ExpressionError: The energy has no value.
    """
    names = sorted(energy.conditions - {CHAINS})
    if not isinstance(over, Mapping) or any(isinstance(values, str | Mapping) for values in over.values()):
        raise OptionError(f"`over` maps conditions to lists of candidates, as in over={{{(names or ['y'])[0]!r}: [...]}}, got {over!r}.")
    check_flag("joint", joint)
    if over.keys() - energy.conditions or not over:
        raise OptionError(f"{energy} depends on {names}; got candidates of {sorted(map(str, over))}.")
    try:
        candidates = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    except TypeError as error:  # a single number
        raise OptionError(f"Candidates must be lists, as in over={{'y': [0, 1]}} or {{'y': range(10)}}, got {dict(over)}.") from error
    if not candidates:
        raise OptionError("Inference needs at least one candidate for each condition.")
    check_value(energy, "`infer`")
    x = encode_points(energy, x)
    found: list[Tensor | None] = []
    with torch.no_grad(), evaluating():  # a network that depends on no candidate is evaluated once
        for candidate in candidates:
            try:
                found.append(energy.given(**{name: _as_row(value) for name, value in candidate.items()})(x))
            except ContradictionError:  # no point fulfils it
                found.append(None)
    like = next((energies for energies in found if energies is not None), None)
    if like is None:
        raise ContradictionError(f"No point fulfils {energy} for any candidate: each has probability 0.")
    energies = torch.stack([torch.full_like(like, torch.inf) if one is None else one for one in found], 1)
    return Inference(tuple(candidates), torch.log_softmax(-(energies.sum(0, keepdim=True) if joint else energies), 1))


def _as_row(value: Any) -> Any:
    if isinstance(value, np.ndarray) or (isinstance(value, list | tuple) and any(isinstance(number, float) for number in value)):
        value = torch.as_tensor(value)  # a list of whole numbers is several labels
    return value.unsqueeze(0) if isinstance(value, Tensor) and value.ndim > 0 else value
