r"""Supports: the sets where densities live, as constraints of `torch.distributions`, with their intersections and unions.

A support is a `torch.distributions.constraints.Constraint`, or None for all of $\mathbb{R}^n$. It describes one point, and leading axes
that it does not use are independent: `positive` on points of shape (3, 4) is 12 half-lines, `simplex` is 3 simplexes. `circle`, `sphere`,
`ordered`, `positive_ordered` and `zero_sum` are supports that torch lacks. Open and closed ends are not distinguished, since a boundary
has probability 0. Discrete numbers have the supports `boolean`, `integer_interval`, `nonnegative_integer` and `one_hot`.
"""

import copy
import math
from collections.abc import Sequence
from types import EllipsisType
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.constraints import Constraint

from composable_energy.errors import ExpressionError, OptionError, ShapeError

Support = Constraint | None
Bound = float | Tensor

_TOLERANCE = 1e-6
_MIXTURE = getattr(constraints, "MixtureSameFamilyConstraint", constraints.independent)  # since torch 2.7


class _Circle(Constraint):
    r"""Angles in radians. Any real number is an angle; points are reported in $[-\pi, \pi)$."""

    def check(self, value: Tensor) -> Tensor:
        return value.isfinite()


class _Sphere(Constraint):
    """Vectors of length 1; the last axis of a point is one vector."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value.norm(dim=-1) - 1).abs() < _tolerance(value)


class _Ordered(Constraint):
    r"""Vectors of increasing numbers, $x_1 < x_2 < \dots$; the last axis of a point is one vector."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (value[..., 1:] >= value[..., :-1]).all(-1)


class _PositiveOrdered(_Ordered):
    """Vectors of increasing positive numbers; the last axis of a point is one vector."""

    def check(self, value: Tensor) -> Tensor:
        return super().check(value) & (value > 0).all(-1)


class _ZeroSum(Constraint):
    """Vectors whose sum is 0; the last axis of a point is one vector. Densities are those of the volume in this subspace."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return value.sum(-1).abs() <= _tolerance(value) * value.abs().sum(-1)  # of any scale: a sum rounds in proportion to its terms


class _Polytope(Constraint):
    r"""Vectors $x$ with $A x \le b$, for $A$ with shape $(m, n)$, given with a point inside; the last axis of a point is one vector."""

    event_dim = 1

    def __init__(self, matrix: Any, bounds: Any, inside: Any) -> None:
        given = [torch.as_tensor(value) for value in (matrix, bounds, inside)]
        a, b, x = (value.to(sum(value.sum() * 1.0 for value in given)) for value in given)
        if a.ndim != 2 or b.shape != a.shape[:1] or x.shape != a.shape[1:] or not (x.isfinite().all() and (a @ x < b).all()):
            raise OptionError(
                f"A polytope has rows of numbers, a bound for each, and a point inside of all bounds, got {matrix}, {bounds} and {inside}. "
                "`scipy.optimize.linprog` finds a point. Two rows that state an equality have none: write the energy of free numbers."
            )
        self.matrix, self.bounds, self.inside = a, b, x

    def check(self, value: Tensor) -> Tensor:
        rows, bounds = self.matrix.to(value).mT, self.bounds.to(value)
        return (value @ rows - bounds <= 8 * torch.finfo(value.dtype).eps * (value.abs() @ rows.abs() + bounds.abs())).all(-1)


class _Empty(Constraint):
    """No point."""

    def check(self, value: Tensor) -> Tensor:
        return torch.zeros_like(value, dtype=torch.bool)


circle: Constraint = _Circle()
sphere: Constraint = _Sphere()
ordered: Constraint = _Ordered()
positive_ordered: Constraint = _PositiveOrdered()
zero_sum: Constraint = _ZeroSum()
empty: Constraint = _Empty()
polytope = _Polytope
positive: Constraint = constraints.positive
"""The support of positive numbers."""

MATRICES = ("lower_triangular", "lower_cholesky", "positive_definite", "positive_semidefinite")
_SINGLE: dict[str, Constraint] = {"circle": circle, "sphere": sphere, "zero_sum": zero_sum, "empty": empty}
_SINGLE |= {"ordered": ordered, "positive_ordered": positive_ordered, "nonnegative_integer": constraints.nonnegative_integer}
_SINGLE |= {name: getattr(constraints, name) for name in ("real", "simplex", "corr_cholesky", "boolean", "one_hot", *MATRICES)}
_ARGUMENTS = {
    "greater_than": ("lower_bound",),
    "greater_than_eq": ("lower_bound",),
    "less_than": ("upper_bound",),
    "interval": ("lower_bound", "upper_bound"),
    "half_open_interval": ("lower_bound", "upper_bound"),
    "integer_interval": ("lower_bound", "upper_bound"),
    "independent": ("base_constraint", "reinterpreted_batch_ndims"),
    "cat": ("cseq", "dim", "lengths"),
    "stack": ("cseq", "dim"),
    "polytope": ("matrix", "bounds", "inside"),
}
_KINDS: dict[str, Any] = {name: polytope if name == "polytope" else getattr(constraints, name) for name in _ARGUMENTS}
# Of single numbers in points of these supports.
_RANGES = {"simplex": (0.0, 1.0), "sphere": (-1.0, 1.0), "corr_cholesky": (-1.0, 1.0), "positive_ordered": (0.0, math.inf)}
_RANGES["one_hot"] = (0.0, 1.0)


def check_support(support: Any) -> Support:
    """Returns a support as `plain` does, if chains can be run on it."""
    if support is None:
        return None
    if not isinstance(support, Constraint):
        got = f"the class {support.__name__}; make an instance of it" if isinstance(support, type) else repr(support)
        raise OptionError(f"A support is a constraint of torch.distributions, such as constraints.positive, or None, got {got}.")
    if constraints.is_dependent(support):
        raise OptionError(f"A support has its own numbers, such as interval(0, 1), got {support}, which depends on arguments.")
    for part in parts_of(support):
        low, high = ends_of(part) or integer_ends_of(part) or (0, 1)
        if wrong := [end for end in (low, high) if hasattr(end, "__len__") and not isinstance(end, Tensor)]:
            raise OptionError(f"The ends of a support are numbers or tensors, got {wrong[0]}: give `torch.tensor(...)` of it.")
        if not _all(low <= high if is_discrete(part) else low < high):
            raise OptionError(f"The support {format_support(part)} is empty: give its lower end first.")
        if part is not None and name_of(part) is None:
            if part.is_discrete:
                known = "boolean, integer_interval(low, high), nonnegative_integer or one_hot"
                raise OptionError(f"A support of discrete numbers is {known}, got {format_support(part)}.")
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


def is_joined(support: Support) -> bool:
    """Returns whether a support is a `cat` or `stack` of others."""
    return isinstance(support, constraints.cat | constraints.stack)


def parts_of(support: Any) -> list[Support]:
    """Returns the parts of a `cat` or `stack`, also nested ones; the support itself if it is neither."""
    support = plain(support)
    return [part for inner in support.cseq for part in parts_of(inner)] if is_joined(support) else [support]


def is_discrete(support: Support) -> bool:
    """Returns whether some numbers of the points of a support are discrete."""
    return support is not None and support.is_discrete


def axis_of(support: Any) -> int:
    """Returns the axis of points with shape $(B, *)$ along which a `cat` or `stack` joins its parts."""
    return support.dim if support.dim < 0 else support.dim + 1  # from the front, an axis of one point


def cut(support: Any, x: Tensor) -> Sequence[Tensor]:
    """Returns the parts of points with shape $(B, *)$ that a `cat` or `stack` joins, or raises `ShapeError` for another shape."""
    stacked, axis = isinstance(support, constraints.stack), axis_of(support)
    lengths = [1] * len(support.cseq) if stacked else list(support.lengths)
    if not -x.ndim < axis < x.ndim or sum(lengths) != x.shape[axis]:
        joins = f"joins {sum(lengths)} numbers along axis {support.dim}"
        raise ShapeError(f"The support {format_support(support)} {joins}, the points have shape {tuple(x.shape[1:])}.")
    return x.unbind(axis) if stacked else x.split(lengths, axis)


def contains(support: Support, x: Tensor) -> Tensor:
    """Returns whether points with shape $(B, *)$ are in a support, with shape $(B,)$; a point that is not finite is not."""
    if is_joined(support := plain(support)):
        found = [contains(part, some) for part, some in zip(vars(support)["cseq"], cut(support, x), strict=True)]
    else:
        checks = [x.isfinite()] if support is None else [x.isfinite(), _check(support, x)]
        found = [check.flatten(1).all(1) if check.ndim > 1 else check for check in checks]
    return torch.stack(found).all(0)


def _check(support: Constraint, x: Tensor) -> Tensor:
    if name_of(support) == "simplex":  # torch's tolerance is that of float64
        return (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < _tolerance(x))
    if name_of(support) in ("positive_definite", "positive_semidefinite"):  # torch skips the test where another matrix is not symmetric
        return torch.isclose(x, x.mT, atol=_TOLERANCE).flatten(-2).all(-1) & (torch.linalg.cholesky_ex(x).info == 0)
    return support.check(x)


def _tolerance(x: Tensor) -> float:
    return max(_TOLERANCE, 64 * torch.finfo(x.dtype).eps)


def ends_of(support: Support) -> tuple[Bound, Bound] | None:
    """Returns the ends of an interval, infinite for a half-line or all of R^n; None for any other support."""
    bounded = (support := plain(support)) is None or {"lower_bound", "upper_bound"}.intersection(_ARGUMENTS.get(name_of(support) or "", ()))
    if not bounded or (support is not None and support.is_discrete):
        return None
    return getattr(support, "lower_bound", -math.inf), getattr(support, "upper_bound", math.inf)


def integer_ends_of(support: Support) -> tuple[Bound, Bound] | None:
    """Returns the least and the largest of the whole numbers of a support; None for any other support."""
    if isinstance(support, type(constraints.boolean)):
        return 0, 1
    known = is_discrete(support) and hasattr(support, "lower_bound")
    return (vars(support)["lower_bound"], getattr(support, "upper_bound", math.inf)) if known else None


def interval(low: Bound, high: Bound) -> Support:
    """Returns the interval between two ends; ends of some or all coordinates may be infinite."""
    below, above = (bool(torch.as_tensor(end).isfinite().any()) for end in (low, high))
    if below and above:
        return constraints.interval(low, high)
    return constraints.greater_than(low) if below else constraints.less_than(high) if above else None


def is_full(support: Support) -> bool:
    """Returns whether a support is a part of R^n with a volume, such as a box; a simplex, a circle, a sphere and matrices are not."""
    return support is None or all(ends_of(part) is not None or isinstance(part, _Ordered | _Polytope) for part in parts_of(support))


def is_bounded(support: Support) -> bool:
    """Returns whether a support is known to have a finite volume."""
    for part in parts_of(support):
        ends = (-math.pi, math.pi) if isinstance(part, _Circle) else _range_of(part)
        if ends is None or not _all(torch.as_tensor(ends[1] - ends[0]).isfinite()):
            return False
    return True


def _range_of(support: Support) -> tuple[Bound, Bound] | None:
    """Returns the ends between which single numbers in points of a support are; None if they are not known."""
    return ends_of(None) if support is None else _RANGES.get(name_of(support) or "", ends_of(support) or integer_ends_of(support))


def _all(condition: bool | Tensor) -> bool:
    return bool(torch.as_tensor(condition).all())


def _larger(a: Bound, b: Bound) -> Bound:
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return max(a, b)
    like = a if isinstance(a, Tensor) else b
    return torch.maximum(*(torch.as_tensor(end, dtype=like.dtype, device=like.device) for end in (a, b)))  # pyright: ignore[reportAttributeAccessIssue]


def _smaller(a: Bound, b: Bound) -> Bound:
    return -_larger(-a, -b)


def name_of(support: Constraint) -> str | None:
    """Returns the name of a support that this module knows; None for a constraint of another package."""
    single = (name for name, known in _SINGLE.items() if type(known) is type(support))
    return next(single, None) or next((name for name in _KINDS if type(support) is _KINDS[name]), None)


def arguments_of(support: Constraint) -> tuple[str, list[Any]]:
    """Returns the name and arguments of a support for `build_support`; raises `ExpressionError` for a constraint of another package."""
    if (name := name_of(support)) is None:
        raise ExpressionError(f"The support {type(support).__name__} is not one of torch's or this library's, so it cannot be saved.")
    return name, [getattr(support, argument) for argument in _ARGUMENTS.get(name, ())]


def build_support(name: str, arguments: Sequence[Any]) -> Constraint:
    """Returns a support from the results of `arguments_of`, or raises `ValueError` if they do not fit."""
    if name in _SINGLE and not arguments:
        return _SINGLE[name]
    kinds = int | float | Tensor | Constraint | (list if name in ("cat", "stack") else Tensor)
    if len(arguments) != len(_ARGUMENTS.get(name, ())) or not all(isinstance(value, kinds) for value in arguments) or name in _SINGLE:
        raise ValueError(f"the support {name!r} with {len(arguments)} arguments is not known")
    try:
        check_support(support := _KINDS[name](*arguments))
    except OptionError as error:
        raise ValueError(str(error)) from error
    return support


def format_support(support: Any) -> str:
    """Returns a support as text, such as `interval(0, 1)`."""
    if (support := plain(support)) is None:
        return "all of R^n"
    if (name := name_of(support) or type(support).__name__.lstrip("_")) not in _ARGUMENTS:
        return name
    parts = map(format_support, vars(support)["cseq"]) if is_joined(support) else map(_format_bound, arguments_of(support)[1])
    text = f"{name}({', '.join(parts)})"
    return {"greater_than(0)": "positive", "greater_than_eq(0)": "nonnegative"}.get(text, text)


def _format_bound(bound: Bound) -> str:
    if not isinstance(bound, Tensor) or bound.ndim == 0:
        return f"{float(bound):.4g}"
    return f"tensor{tuple(bound.shape)}" if bound.numel() > 4 else f"[{', '.join(f'{value:.4g}' for value in bound.flatten().tolist())}]"


def intersect(terms: Sequence[tuple[object, Support]]) -> Support:
    """Returns the intersection of the supports of energies, given as pairs; `empty` if intervals have none."""
    owner, found = terms[0]
    for other, support in terms[1:]:
        if (both := found if support is found else _intersect_two(found, support)) is ...:
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
    if any(isinstance(x, _Ordered) and same_support(y, positive) for x, y in ((a, b), (b, a))):
        return positive_ordered
    one, other = ((-math.pi, math.pi) if isinstance(support, _Circle) else ends_of(support) for support in (a, b))
    if one is not None and other is not None:
        low, high = _larger(one[0], other[0]), _smaller(one[1], other[1])
        return interval(low, high) if _all(low < high) else empty
    one, other = integer_ends_of(a), integer_ends_of(b)
    if one is not None and other is not None:
        low, high = _larger(one[0], other[0]), _smaller(one[1], other[1])
        return constraints.integer_interval(low, high) if _all(low <= high) else empty
    joined = [_intersect_two(*pair) for pair in _pairs(a, b)]
    if any(isinstance(both, _Empty) for both in joined):
        return empty
    if not joined or any(both is ... for both in joined):
        return ...
    whole = copy.copy(a if is_joined(a) else b)
    vars(whole)["cseq"] = [constraints.real if part is None else part for part in joined]
    return whole


def unite(terms: Sequence[tuple[object, Support]], *, one_number: bool) -> Support:
    """Returns the union of the supports of energies, given as pairs; overlapping intervals have one if a point is `one_number`."""
    (owner, found), *others = [term for term in terms if not isinstance(term[1], _Empty)] or terms
    for other, support in others:
        alike, one, two = is_full(found) == is_full(support), ends_of(found), ends_of(support)
        if alike and includes(found, support):
            continue
        if alike and includes(support, found):
            owner, found = other, support
        elif one_number and one and two and _all(_larger(one[0], two[0]) <= _smaller(one[1], two[1])):
            found = interval(_smaller(one[0], two[0]), _larger(one[1], two[1]))
        else:
            raise ExpressionError(
                f"{owner} lives on {format_support(found)} and {other} on {format_support(support)}; their mixture cannot be sampled, as "
                "neither support includes the other. Give it one that holds both, `(A | B).on(...)`, or each all variables, `A.over(...)`."
            )
    return found


def includes(a: Support, b: Support) -> bool:
    """Returns whether a support includes another, as far as it is known."""
    if a is None or same_support(a, b) or isinstance(b, _Empty) or (isinstance(a, _Ordered) and isinstance(b, _PositiveOrdered)):
        return True
    if integer_ends_of(b) is None and integer_ends_of(a) is not None:
        return False
    outer, inner = ends_of(a) or integer_ends_of(a), None if b is None else _range_of(b)
    if outer is not None and inner is not None:
        return _all(outer[0] <= inner[0]) and _all(inner[1] <= outer[1])
    return bool(pairs := _pairs(a, b)) and all(includes(*pair) for pair in pairs)


def same_support(a: Support, b: Support) -> bool:
    """Returns whether two supports are equal, up to their boundary."""
    a, b = plain(a), plain(b)
    one, other = (ends_of(support) or integer_ends_of(support) for support in (a, b))
    if one is not None and other is not None and ((ends_of(a) is None) == (ends_of(b) is None)):
        return _all(one[0] == other[0]) and _all(one[1] == other[1])
    if type(a) is not type(b):
        return False
    if is_joined(a):
        return bool(pairs := _pairs(a, b)) and all(same_support(*pair) for pair in pairs)
    pairs = [(value, vars(b).get(name)) for name, value in vars(a).items()]
    return all(torch.equal(x, y) if isinstance(x, Tensor) and isinstance(y, Tensor) else x == y for x, y in pairs)


def _pairs(a: Any, b: Any) -> list[tuple[Support, Support]]:
    """Returns the pairs of parts of two supports of which one is a `cat` or `stack`; none if they do not fit."""
    if not is_joined(a):
        return [(one, other) for other, one in _pairs(b, a)] if is_joined(b) else []
    if (ends := ends_of(b) or integer_ends_of(b)) is not None and not any(isinstance(end, Tensor) and end.ndim for end in ends):
        return [(plain(part), b) for part in a.cseq]
    if type(a) is not type(b) or any(vars(a)[name] != vars(b)[name] for name in ("dim", "lengths") if name in vars(a)):
        return []
    return list(zip(map(plain, a.cseq), map(plain, b.cseq), strict=True)) if len(a.cseq) == len(b.cseq) else []
