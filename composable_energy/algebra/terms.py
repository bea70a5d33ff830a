"""Functions of the terms of a node: without repetition, their common bases, their events, and their recommended sampler."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from torch import Tensor

from composable_energy.bases import WeightedBase
from composable_energy.energy import Energy
from composable_energy.events import Formula
from composable_energy.identity import same
from composable_energy.options import Recommendation


def distinct(terms: Iterable[Energy]) -> dict[Energy, int]:
    """Returns each term once, with the number of its occurrences."""
    counts: dict[Energy, int] = {}
    for term in terms:
        counts[term] = counts.get(term, 0) + 1
    return counts


def flatten(terms: Sequence[Energy], inner: Callable[[Energy], Sequence[Energy] | None]) -> list[Energy]:
    """Returns terms with nodes of the same kind replaced by their terms.

    A node that occurs several times is kept, so that repeating `E = E & E` adds one node each.

    Args:
        terms: The terms.
        inner: A function that returns the terms of a node of the same kind, and None for another energy.
    """
    counts, result = distinct(terms), []
    for term in terms:
        found = inner(term) if counts[term] == 1 else None
        result += [term] if found is None else found
    return result


def union_of_bases(terms: Sequence[Energy]) -> tuple[WeightedBase, ...]:
    """Returns each distinct base of the terms once.

    A base keeps its weight if all terms give it the same one; else it has weight 1, so that `A & 2 * B` over one base is the base plus the
    evidence of A plus twice that of B.
    """
    found: list[WeightedBase] = []
    for base in (base for term in terms for base in term.bases):
        index = next((i for i, other in enumerate(found) if same(other.energy, base.energy)), None)
        if index is None:
            found.append(base)
        elif not _same_weight(found[index], base):
            found[index] = WeightedBase(found[index].energy)
    return tuple(found)


def shared_bases(terms: Sequence[Energy]) -> tuple[WeightedBase, ...]:
    """Returns the bases that all terms have with the same weight; a mixture factors them out."""
    return tuple(
        base
        for base in terms[0].bases
        if all(any(same(b.energy, base.energy) and _same_weight(b, base) for b in term.bases) for term in terms[1:])
    )


def contains(bases: Sequence[WeightedBase], energy: Energy) -> bool:
    """Returns whether an energy is one of the bases."""
    return any(same(base.energy, energy) for base in bases)


def join_events(terms: Sequence[Energy], join: Callable[[Sequence[Formula]], Formula]) -> tuple[tuple[Formula, ...], tuple[Energy, ...]]:
    """Returns one formula for the events over each base, and the terms that are not events."""
    groups: list[list[Formula]] = []
    for formula in (term.formula for term in terms):
        if formula is None:
            continue
        group = next((g for g in groups if g[0].same_base(formula)), None)
        groups.append([formula]) if group is None else group.append(formula)
    return tuple(join(group) for group in groups), tuple(term for term in terms if term.formula is None)


def _same_weight(a: WeightedBase, b: WeightedBase) -> bool:
    """Returns whether weights are equal numbers, or products of the same tensors, which stay equal in training."""
    if isinstance(a.weight, Tensor) or isinstance(b.weight, Tensor):
        return [node.weight_key for node in a.scaled_by] == [node.weight_key for node in b.scaled_by]
    return a.weight == b.weight


def common_recommendation(terms: Sequence[Energy]) -> Recommendation | None:
    """Returns the recommendation of the terms with the highest precedence; None if there is none or they disagree."""
    found = [term.recommended for term in terms if term.recommended is not None]
    found = [advice for advice in found if advice.precedence == max(other.precedence for other in found)]
    return found[0] if found and all(other == found[0] for other in found[1:]) else None
