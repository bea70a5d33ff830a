r"""Supports: the sets where densities live, as constraints of `torch.distributions`, with their intersections and unions.

A support is a `torch.distributions.constraints.Constraint`, or None for all of $\mathbb{R}^n$. It describes one point, and leading axes
that it does not use are independent: `positive` on points of shape (3, 4) is 12 half-lines, `simplex` is 3 simplexes. `circle` and
`sphere` are supports that torch lacks. Open and closed ends are not distinguished, since a boundary has probability 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from composable_energy.errors import ExpressionError, OptionError

Support = Constraint | None
Bound = float | Tensor

_TOLERANCE = 1e-6
_MIXTURE = getattr(constraints, "MixtureSameFamilyConstraint", constraints.independent)  # since torch 2.7
_RANGES = {"simplex": (0.0, 1.0), "sphere": (-1.0, 1.0), "corr_cholesky": (-1.0, 1.0)}  # of single numbers in points of these supports


class _Circle(Constraint):
    r"""Angles in radians. Any real number is an angle; points are reported in $[-\pi, \pi)$."""

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite()


class _Sphere(Constraint):
    """Vectors of length 1; the last axis of a point is one vector."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.norm(dim=-1) - 1).abs() < _tolerance(value)


class _Empty(Constraint):
    """No point."""

    def check(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value, dtype=torch.bool)


circle: Constraint = _Circle()
sphere: Constraint = _Sphere()
empty: Constraint = _Empty()

_SINGLE: dict[str, Constraint] = {
    "circle": circle,
    "sphere": sphere,
    "empty": empty,
    "real": constraints.real,
    "simplex": constraints.simplex,
    "corr_cholesky": constraints.corr_cholesky,
    "lower_triangular": constraints.lower_triangular,
    "lower_cholesky": constraints.lower_cholesky,
    "positive_definite": constraints.positive_definite,
    "positive_semidefinite": constraints.positive_semidefinite,
}
_BUILT: dict[str, Callable[..., Constraint]] = {
    "greater_than": constraints.greater_than,
    "greater_than_eq": constraints.greater_than_eq,
    "less_than": constraints.less_than,
    "interval": constraints.interval,
    "half_open_interval": constraints.half_open_interval,
    "independent": constraints.independent,
    "cat": lambda parts, dim, lengths: constraints.cat(parts, dim, lengths),
    "stack": lambda parts, dim: constraints.stack(parts, dim),
}


def check_support(support: Any) -> Support:
    """Returns a support as `plain` does, if chains can be run on it.

    Raises:
        OptionError: It is no constraint, is discrete, depends on arguments, or has no known coordinates.
    """
    if support is None:
        return None
    if not isinstance(support, Constraint):
        got = f"the class {support.__name__}; make an instance of it" if isinstance(support, type) else repr(support)
        raise OptionError(f"A support is a constraint of torch.distributions, such as constraints.positive, or None, got {got}.")
    if constraints.is_dependent(support):
        raise OptionError(f"A support has its own numbers, such as interval(0, 1), got {support}, which depends on arguments.")
    if support.is_discrete:
        raise OptionError(f"A support is continuous, because samplers need gradients, got {format_support(support)}.")
    for part in parts_of(support):
        if part is not None and name_of(part) is None:
            try:
                biject_to(part)
            except NotImplementedError as error:
                raise OptionError(
                    f"No coordinates are known for the support {format_support(part)}: register a bijection with "
                    f"`torch.distributions.biject_to.register({type(part).__name__})`."
                ) from error
    return plain(support)


def plain(support: Any) -> Support:
    """Returns a support without `independent` around it, whose axes are independent anyway; None for all of R^n."""
    while isinstance(support, constraints.independent | _MIXTURE):
        support = support.base_constraint
    return None if isinstance(support, type(constraints.real)) else support


def parts_of(support: Support) -> list[Support]:
    """Returns the parts of a `cat` or `stack`, also nested ones; the support itself if it is neither."""
    support = plain(support)
    if isinstance(support, constraints.cat | constraints.stack):
        return [part for inner in support.cseq for part in parts_of(inner)]
    return [support]


def split(support: Support, x: Tensor) -> list[tuple[Support, Tensor]]:
    """Returns the parts of a `cat` or `stack`, each with its part of points of shape $(B, *)$.

    Axes that count from the front are those of one point.

    Raises:
        OptionError: The support is for points of another shape.
    """
    support = plain(support)
    if not isinstance(support, constraints.cat | constraints.stack):
        return [(support, x)]
    axis = support.dim if support.dim < 0 else support.dim + 1
    lengths = list(support.lengths) if isinstance(support, constraints.cat) else [1] * len(support.cseq)
    if not -x.ndim < axis < x.ndim or sum(lengths) != x.shape[axis]:
        raise OptionError(f"The support {format_support(support)} has length {sum(lengths)}, the points have shape {tuple(x.shape[1:])}.")
    some = x.split(lengths, axis) if isinstance(support, constraints.cat) else x.unbind(axis)
    return [item for part, values in zip(support.cseq, some, strict=True) for item in split(part, values)]


def contains(support: Support, x: Tensor) -> Tensor:
    """Returns whether points with shape $(B, *)$ are in a support, with shape $(B,)$; a point that is not finite is not."""
    inside = _rows(x.isfinite())
    for part, some in split(support, x):
        inside = inside if part is None else inside & _rows(_check(part, some))
    return inside


def _rows(inside: Tensor) -> Tensor:
    return inside.flatten(1).all(1) if inside.ndim > 1 else inside


def _check(support: Constraint, x: Tensor) -> Tensor:
    if isinstance(support, type(constraints.simplex)):  # torch's tolerance is that of float64
        return (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < _tolerance(x))
    if name_of(support) in ("positive_definite", "positive_semidefinite"):  # torch skips the test where another matrix is not symmetric
        mirrored = torch.isclose(x, x.mT, atol=_TOLERANCE).flatten(-2).all(-1)
        return mirrored & (torch.linalg.cholesky_ex(x).info == 0)
    return support.check(x)


def _tolerance(x: Tensor) -> float:
    return max(_TOLERANCE, 64 * torch.finfo(x.dtype).eps)


# Intervals ----------------------------------------------------------------------------------------------------------------------------


def ends_of(support: Support) -> tuple[Bound, Bound] | None:
    """Returns the ends of an interval, infinite for a half-line or all of R^n; None for any other support."""
    match plain(support):
        case None:
            return -math.inf, math.inf
        case constraints.greater_than(lower_bound=low) | constraints.greater_than_eq(lower_bound=low):
            return low, math.inf
        case constraints.less_than(upper_bound=high):
            return -math.inf, high
        case constraints.interval(lower_bound=low, upper_bound=high) | constraints.half_open_interval(lower_bound=low, upper_bound=high):
            return low, high
    return None


def interval(low: Bound, high: Bound) -> Support:
    """Returns the interval between two ends; ends of some or all coordinates may be infinite."""
    below, above = (bool(torch.as_tensor(end).isfinite().any()) for end in (low, high))
    if below and above:
        return constraints.interval(low, high)
    return constraints.greater_than(low) if below else constraints.less_than(high) if above else None


# Text and data ------------------------------------------------------------------------------------------------------------------------


def name_of(support: Constraint) -> str | None:
    """Returns the name of a support that this module knows; None for a constraint of another package."""
    found = (name for name, known in _SINGLE.items() if type(known) is type(support))
    return next(found, None) or next((name for name in _BUILT if type(support) is getattr(constraints, name)), None)


def arguments_of(support: Constraint) -> tuple[str, list[Any]]:
    """Returns the name and arguments of a support, for `build_support`.

    Raises:
        ExpressionError: It is a constraint of another package.
    """
    name = name_of(support)
    if name is None:
        raise ExpressionError(f"The support {type(support).__name__} is not one of torch's or this library's, so it cannot be saved.")
    if name in _SINGLE:
        return name, []
    names = ("lower_bound", "upper_bound", "base_constraint", "reinterpreted_batch_ndims", "cseq", "dim", "lengths")
    return name, [vars(support)[part] for part in names if part in vars(support)]


def build_support(name: str, arguments: Sequence[Any]) -> Constraint:
    """Returns a support from the results of `arguments_of`.

    Raises:
        ValueError: The name is not known, or the arguments do not fit.
    """
    if name in _SINGLE and not arguments:
        return _SINGLE[name]
    kinds = int | float | Tensor | Constraint | (list if name in ("cat", "stack") else Tensor)
    bounds = all(isinstance(value, kinds) for value in arguments)
    if name not in _BUILT or not bounds:
        raise ValueError(f"the support {name!r} with {len(arguments)} arguments is not known")
    support = _BUILT[name](*arguments)
    try:
        check_support(support)
    except OptionError as error:
        raise ValueError(str(error)) from error
    return support


def format_support(support: Support) -> str:
    """Returns a support as text, such as `interval(0, 1)`."""
    support = plain(support)
    if support is None:
        return "all of R^n"
    name = name_of(support)
    if name is None or name in _SINGLE:
        return name or type(support).__name__.lstrip("_")
    if isinstance(support, constraints.cat | constraints.stack):
        return f"{name}({', '.join(map(format_support, support.cseq))})"
    bounds = ", ".join(_format_bound(value) for value in arguments_of(support)[1])
    return {"greater_than(0)": "positive", "greater_than_eq(0)": "nonnegative"}.get(f"{name}({bounds})", f"{name}({bounds})")


def _format_bound(bound: Bound) -> str:
    if not isinstance(bound, Tensor) or bound.ndim == 0:
        return f"{float(bound):.4g}"
    return f"tensor{tuple(bound.shape)}" if bound.numel() > 4 else f"[{', '.join(f'{value:.4g}' for value in bound.flatten().tolist())}]"


def map_support(support: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Returns a support with a function applied to all tensors inside; the support itself if there are none."""
    if isinstance(support, list):
        found = [map_support(part, function) for part in support]
        return support if all(new is old for new, old in zip(found, support, strict=True)) else found
    if isinstance(support, Tensor):
        return function(support)
    if not isinstance(support, Constraint):
        return support
    changed = {name: new for name, value in vars(support).items() if (new := map_support(value, function)) is not value}
    if not changed:
        return support
    result = copy.copy(support)
    vars(result).update(changed)
    return result


# Intersections and unions, for `&` and `|` ---------------------------------------------------------------------------------------------


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
