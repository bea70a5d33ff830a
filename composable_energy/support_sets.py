"""Intersections and unions of supports, for `&` and `|`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import EllipsisType

import torch
from torch import Tensor
from torch.distributions import constraints

from composable_energy.errors import ExpressionError
from composable_energy.supports import Bound, Support, empty, ends_of, format_support, interval, name_of, parts_of, plain

_RANGES = {"simplex": (0.0, 1.0), "sphere": (-1.0, 1.0), "corr_cholesky": (-1.0, 1.0)}  # of single numbers in points of these supports


def intersect(terms: Sequence[tuple[object, Support]]) -> Support:
    """Returns the intersection of supports; `empty` if intervals have none.

    Args:
        terms: Energies with their supports.

    Raises:
        ExpressionError: An intersection is none of the known supports.
    """
    owner, found = terms[0]
    for other, support in terms[1:]:
        both = _intersect_two(found, support)
        if both is ...:
            raise ExpressionError(
                f"{owner} lives on {format_support(found)} and {other} on {format_support(support)}; the intersection is none of the "
                "supports that can be sampled. Use one support for both, `E.on(...)`, or a function that is infinite outside."
            )
        owner, found = (other if both is support else owner), both
    return found


def _intersect_two(a: Support, b: Support) -> Support | EllipsisType:
    """Returns the intersection of two supports; an ellipsis if it is unknown."""
    if includes(b, a):
        return a
    if includes(a, b):
        return b
    one, other = ((-math.pi, math.pi) if _has_name(support, "circle") else ends_of(support) for support in (a, b))
    if one is not None and other is not None:
        low, high = _larger(one[0], other[0]), _smaller(one[1], other[1])
        return interval(low, high) if _all(low < high) else empty
    joined = [_intersect_two(*pair) for pair in _pairs(a, b)]
    if any(_has_name(both, "empty") for both in joined):
        return empty
    parts = [both for both in joined if both is not ...]
    return _rebuild(a if _is_joined(a) else b, parts) if parts and len(parts) == len(joined) else ...


def unite(terms: Sequence[tuple[object, Support]], *, one_number: bool) -> Support:
    """Returns the union of supports.

    Args:
        terms: Energies with their supports.
        one_number: Whether a point is one number, so that overlapping intervals have an interval as union.

    Raises:
        ExpressionError: A union is none of the known supports.
    """
    (owner, found), *others = [term for term in terms if not _has_name(term[1], "empty")] or terms
    for other, support in others:
        alike = is_full(found) == is_full(support)
        if alike and includes(found, support):
            continue
        if alike and includes(support, found):
            owner, found = other, support
            continue
        hull = _hull(found, support) if one_number else ...
        if hull is ...:
            raise ExpressionError(
                f"{owner} lives on {format_support(found)} and {other} on {format_support(support)}; their mixture cannot be sampled, as "
                "neither support includes the other. Give it one that holds both, as in `(A | B).on(...)`."
            )
        found = hull
    return found


def _hull(a: Support, b: Support) -> Support | EllipsisType:
    """Returns the union of two intervals of numbers that overlap; an ellipsis for other supports."""
    one, other = ends_of(a), ends_of(b)
    if one is None or other is None or not _all(_larger(one[0], other[0]) <= _smaller(one[1], other[1])):
        return ...
    return interval(_smaller(one[0], other[0]), _larger(one[1], other[1]))


def includes(a: Support, b: Support) -> bool:
    """Returns whether a support includes another, as far as it is known."""
    if a is None or same_support(a, b) or _has_name(b, "empty"):
        return True
    outer = ends_of(a)
    inner = None if b is None else _RANGES.get(name_of(b) or "", ends_of(b))
    if outer is not None and inner is not None:
        return _all(outer[0] <= inner[0]) and _all(inner[1] <= outer[1])
    pairs = _pairs(a, b)
    return bool(pairs) and all(includes(*pair) for pair in pairs)


def same_support(a: Support, b: Support) -> bool:
    """Returns whether two supports are equal, up to their boundary."""
    a, b = plain(a), plain(b)
    one, other = ends_of(a), ends_of(b)
    if one is not None and other is not None:
        return _all(one[0] == other[0]) and _all(one[1] == other[1])
    if type(a) is not type(b):
        return False
    if _is_joined(a):
        pairs = _pairs(a, b)
        return bool(pairs) and all(same_support(*pair) for pair in pairs)
    pairs = [(value, vars(b).get(name)) for name, value in vars(a).items()]
    return all(torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y for x, y in pairs)


def is_full(support: Support) -> bool:
    """Returns whether a support is a part of R^n with a volume, such as a box; a simplex, a circle, a sphere and matrices are not."""
    return all(ends_of(part) is not None for part in parts_of(support))


def is_bounded(support: Support) -> bool:
    """Returns whether a support is known to have a finite volume."""
    for part in parts_of(support):
        ends = ends_of(part)
        if ends is None and not (part is not None and name_of(part) in ("circle", *_RANGES)):
            return False
        if ends is not None and not _all(torch.as_tensor(ends[1] - ends[0]).isfinite()):
            return False
    return True


def _pairs(a: Support, b: Support) -> list[tuple[Support, Support]]:
    """Returns the pairs of parts of two supports of which one is a `cat` or `stack`; none if they do not fit."""
    if not _is_joined(a):
        return [(one, other) for other, one in _pairs(b, a)] if _is_joined(b) else []
    ends = ends_of(b)
    if ends is not None and not any(isinstance(end, Tensor) and end.ndim for end in ends):
        return [(plain(part), b) for part in a.cseq]  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
    if type(a) is not type(b) or any(vars(a)[name] != vars(b)[name] for name in ("dim", "lengths") if name in vars(a)):
        return []
    return list(zip(map(plain, a.cseq), map(plain, b.cseq), strict=True)) if len(a.cseq) == len(b.cseq) else []  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def _rebuild(support: Support, parts: Sequence[Support]) -> Support:
    found = [constraints.real if part is None else part for part in parts]
    if isinstance(support, constraints.cat):
        return constraints.cat(found, support.dim, support.lengths)
    return constraints.stack(found, support.dim)  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]


def _is_joined(support: Support) -> bool:
    return isinstance(support, constraints.cat | constraints.stack)


def _has_name(support: Support | EllipsisType, name: str) -> bool:
    return isinstance(support, constraints.Constraint) and name_of(support) == name


def _all(condition: bool | Tensor) -> bool:
    return bool(condition.all()) if isinstance(condition, Tensor) else condition


def _larger(a: Bound, b: Bound) -> Bound:
    return _extreme(torch.maximum, max, a, b)


def _smaller(a: Bound, b: Bound) -> Bound:
    return _extreme(torch.minimum, min, a, b)


def _extreme(function: Callable[[Tensor, Tensor], Tensor], plainly: Callable[[float, float], float], a: Bound, b: Bound) -> Bound:
    if isinstance(a, Tensor):
        return function(a, torch.as_tensor(b, dtype=a.dtype, device=a.device))
    return function(torch.as_tensor(a, dtype=b.dtype, device=b.device), b) if isinstance(b, Tensor) else plainly(a, b)
