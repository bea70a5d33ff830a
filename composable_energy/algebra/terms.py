"""The terms of a node: without repetition, their common bases, events, space, and recommended sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.energies.bases import WeightedBase
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import same
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy.events import Formula
from composable_energy.options import Recommendation


def distinct(terms: Iterable[Energy]) -> dict[Energy, int]:
    """Returns each term once, with the number of its occurrences."""
    counts: dict[Energy, int] = {}
    for term in terms:
        counts[term] = counts.get(term, 0) + 1
    return counts


def flatten(terms: Sequence[Energy], kind: type[Energy]) -> list[Energy]:
    """Returns terms with nodes of a class replaced by their terms, other than weighted ones.

    A node that occurs several times is kept, so that repeating `E = E & E` adds one node each.
    """
    counts, result = distinct(terms), list[Energy]()
    for term in terms:
        nested = isinstance(term, kind) and counts[term] == 1 and not getattr(term, "weighted", False)
        result += term.terms if nested else (term,)
    return result


def union_of_bases(terms: Sequence[Energy]) -> tuple[WeightedBase, ...]:
    """Returns each distinct base of the terms once.

    A base keeps its weight if all terms give it the same one; else it has weight 1, so that `A & 2 * B` over one base is the base plus the
    evidence of A plus twice that of B.
    """
    found: list[WeightedBase] = []
    for term in terms:
        for base in term.bases:
            index = next((i for i, other in enumerate(found) if same(other.energy, base.energy)), None)
            if index is None:
                found.append(base)
            elif not _same_weight(found[index], base):
                found[index] = WeightedBase(found[index].energy)
    return tuple(found)


def shared_bases(terms: Sequence[Energy]) -> tuple[WeightedBase, ...]:
    """Returns the bases that all terms have with the same weight; a mixture factors them out."""
    first, *others = terms
    return tuple(base for base in first.bases if all(any(_same_base(base, other) for other in term.bases) for term in others))


def contains(bases: Sequence[WeightedBase], energy: Energy) -> bool:
    """Returns whether an energy is one of the bases."""
    return any(same(base.energy, energy) for base in bases)


def _same_base(a: WeightedBase, b: WeightedBase) -> bool:
    return same(b.energy, a.energy) and _same_weight(b, a)


def _same_weight(a: WeightedBase, b: WeightedBase) -> bool:
    """Returns whether weights are equal numbers, or products of the same tensors, which stay equal in training."""
    if isinstance(a.weight, Tensor) or isinstance(b.weight, Tensor):
        return [node.weight_key for node in a.scaled_by] == [node.weight_key for node in b.scaled_by]
    return a.weight == b.weight


def join_events(terms: Sequence[Energy], join: Callable[[Sequence[Formula]], Formula]) -> tuple[tuple[Formula, ...], tuple[Energy, ...]]:
    """Returns one formula for the events over each base, and the terms that are not events."""
    groups: list[list[Formula]] = []
    others: list[Energy] = []
    for term in terms:
        formula = term.formula
        if formula is None:
            others.append(term)
            continue
        group = next((group for group in groups if group[0].same_base(formula)), None)
        groups.append([formula]) if group is None else group.append(formula)
    return tuple(map(join, groups)), tuple(others)


def common_recommendation(terms: Sequence[Energy]) -> Recommendation | None:
    """Returns the recommendation of the terms with the highest precedence; None if there is none or they disagree."""
    found: list[Recommendation] = []
    for term in terms:
        advice = term.recommended
        if advice is None or (found and advice.precedence < found[0].precedence):
            continue
        found = [*found, advice] if found and advice.precedence == found[0].precedence else [advice]
    return found[0] if found and found.count(found[0]) == len(found) else None


def common_shape(terms: Sequence[Energy]) -> torch.Size | None:
    """Returns the shape of one point of the terms; None if it is unknown.

    Raises:
        ShapeError: The terms take points of different shapes.
    """
    first, shape = None, None
    for term in terms:
        if shape is None:
            first, shape = term, term.event_shape
        elif term.event_shape not in (None, shape):
            raise ShapeError(
                f"{first} takes points of shape {tuple(shape)} and {term} points of shape {tuple(term.event_shape or ())}; all terms of an "
                "expression must take the same shape."
            )
    return shape


def to_common_space(terms: Sequence[Energy]) -> tuple[Energy, ...]:
    """Returns terms in one space: if some are latent, energies of decoded points are pulled back.

    A term with the shape of decoded points is pulled back; a term with the shape of latent points, such as a prior, is not.

    Raises:
        ExpressionError: The terms have different decoders, or it is unclear from the shapes whether a term is latent.
        ShapeError: Their points have different shapes, or a term has neither the shape of latent nor that of decoded points.
    """
    latent = [term for term in terms if term.decoder is not None]
    for term in latent[1:]:
        if not same(term.decoder, latent[0].decoder):
            raise ExpressionError(
                f"{latent[0]} and {term} have different decoders, {type(latent[0].decoder).__name__} and "
                f"{type(term.decoder).__name__}; an expression has one. Combine energies of one decoder, or energies of decoded points."
            )
    if latent:
        terms = [term if term.decoder is not None else _in_latent_space(term, latent) for term in terms]
    common_shape(terms)
    return tuple(terms)


def _in_latent_space(term: Energy, latent: Sequence[Energy]) -> Energy:
    """Returns a term without a decoder as one of latent points: pulled back, or as it is."""
    decoder: Any = latent[0].decoder
    shape, below, name = term.event_shape, common_shape(latent), type(decoder).__name__
    decoded = next((other.decoded_shape for other in latent if other.decoded_shape is not None), None)
    if shape is None or below == decoded or (below is None and shape == decoded):
        of = "of unknown shape" if shape is None else f"of shape {tuple(shape)}, the shape of both latent and decoded points,"
        raise ExpressionError(
            f"{term} takes points {of} and is combined with {latent[0]}, an energy of latent points of {name}. For decoded points write "
            "`.pull_back(decoder)`, or set its `event_shape`; for latent points set its `decoder`, as in `as_energy(..., decoder=decoder)`."
        )
    if below is None or shape == below:
        return term
    if decoded not in (None, shape):
        raise ShapeError(
            f"{term} takes points of shape {tuple(shape)}. Latent points of {name} have shape {tuple(below)}, decoded ones "
            f"{tuple(decoded or ())}, so it is neither a prior nor an energy of decoded points."
        )
    return term.pull_back(decoder)
