r"""Named variables: a point is a vector of the numbers of all variables, one variable after another, in the order of a mapping.

The support of such points is a `cat` with one part for each variable, or a support that all numbers have. Sites are discrete numbers.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.nn import functional as F

from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.supports.sets import Support, check_support, ends_of, format_support, is_joined, plain

Variables = Mapping[str, torch.Size]


def read_variables(given: Mapping[str, Any]) -> tuple[dict[str, torch.Size], dict[str, Support]]:
    """Returns the shapes and the supports of variables, or raises `OptionError`. Each is given as a shape such as `(8,)`, a support such as
    `constraints.positive` of a single number, or a pair of both."""
    shapes: dict[str, torch.Size] = {}
    supports: dict[str, Support] = {}
    for name, variable in given.items() if isinstance(given, Mapping) else ():
        pair = isinstance(variable, tuple) and len(variable) == 2 and isinstance(variable[1], Constraint | None)
        shape, support = variable if pair else ((), variable) if isinstance(variable, Constraint) else (variable, None)
        if not (isinstance(name, str) and name.isidentifier()):
            raise OptionError(f"The name of a variable is an identifier of Python, got {name!r}.")
        if not isinstance(shape, Sequence) or not all(type(size) is int and size > 0 for size in shape):
            choices = "a shape such as (8,), a support such as constraints.positive, or a pair of both"
            raise OptionError(f"The variable {name} is {choices}, got {variable!r}.")
        if isinstance(support, Constraint) and not shape and support.event_dim:
            raise OptionError(
                f"The support of the variable {name}, {format_support(support)}, is of rows, and it has no shape: give both, as in "
                f"{{'{name}': ((8,), support)}}."
            )
        shapes[name], supports[name] = torch.Size(shape), flatten_support(name, check_support(support), torch.Size(shape))
    if not shapes:
        raise OptionError(f"`variables` maps names to shapes or supports, as in {{'mu': (), 'tau': constraints.positive}}, got {given!r}.")
    return shapes, supports


def flatten_support(name: str, support: Support, shape: torch.Size) -> Support:
    """Returns the support of the numbers of a variable in a row; raises `OptionError` where it needs matrices."""
    joined = len(shape) > 1 and ends_of(support) is None and (2 if is_joined(support) else getattr(support, "event_dim", 0))
    if joined == 1:
        return constraints.cat([support] * (rows := shape[:-1].numel()), dim=-1, lengths=[shape[-1]] * rows)
    if joined:
        raise OptionError(
            f"The variable {name} has shape {tuple(shape)} and the support {format_support(support)}, which joins its rows: name the free "
            "numbers of a matrix, and build it in the function. Supports of rows, such as a simplex, are those of each row."
        )
    return support if getattr(support, "event_dim", 0) else map_support(support, lambda x: x.expand(shape).flatten() if x.ndim else x)


def places_of(variables: Variables) -> dict[str, slice]:
    """Returns where the numbers of each variable are in a point."""
    ends = dict(zip(variables, accumulate(shape.numel() for shape in variables.values()), strict=True))
    return {name: slice(end - variables[name].numel(), end) for name, end in ends.items()}


def size_of(variables: Variables) -> int:
    """Returns how many numbers a point has."""
    return sum(shape.numel() for shape in variables.values())


def unite_variables(terms: Sequence[tuple[object, Variables]]) -> dict[str, torch.Size]:
    """Returns the variables of all terms, given as energies with theirs; raises if one has none, or a variable has two shapes."""
    union, owners = dict[str, torch.Size](), dict[str, object]()
    for term, variables in terms:
        if not variables:
            named, names = next((other, ", ".join(known)) for other, known in terms if known)
            raise ExpressionError(f"{named} is over {names}, and {term} over points without a name: write `E.over(name)`.")
        for name, shape in variables.items():
            if union.setdefault(name, shape) != shape:
                raise ShapeError(f"The variable {name} has shape {tuple(union[name])} in {owners[name]} and {tuple(shape)} in {term}.")
            owners.setdefault(name, term)
    return union


def split(points: Tensor, variables: Variables) -> dict[str, Tensor]:
    r"""Returns the variables of points, each with shape $(*, \text{shape})$, of points with shape $(*, n)$."""
    parts = points.split([shape.numel() for shape in variables.values()], -1)
    return {name: part.reshape(*points.shape[:-1], *shape) for (name, shape), part in zip(variables.items(), parts, strict=True)}


def join(values: Mapping[str, Any], variables: Variables) -> Tensor:
    r"""Returns points with shape $(B, n)$ of variables with shapes $(B, \text{shape})$; raises if names, shapes or rows do not fit."""
    if values.keys() != variables.keys():
        raise OptionError(f"The variables are {', '.join(variables) or 'none'}; got {', '.join(map(str, values)) or 'none'}.")
    try:
        tensors = {name: torch.as_tensor(values[name]) for name in variables}
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"The variables {', '.join(variables)} are tensors, with a row for each point: {error}.") from None
    rows = next(iter(tensors.values())).shape[:1]
    for name, tensor in tensors.items():
        if not tensor.ndim or tensor.shape != (*rows, *variables[name]):
            expected = ("B", *variables[name]) if not rows else (*rows, *variables[name])
            raise ShapeError(f"The variable {name} has a row for each point, with shape {expected}, got {tuple(tensor.shape)}.")
    return torch.cat([tensor.flatten(1) if tensor.ndim > 1 else tensor[:, None] for tensor in tensors.values()], 1)


def join_parts(parts: Mapping[str, Support], variables: Variables) -> Support:
    """Returns the support of points from those of variables, where others are real numbers; None for all of R^n."""
    if all(parts.get(name) is None for name in variables):
        return None
    found = [constraints.real if (part := parts.get(name)) is None else part for name in variables]
    if len(found) == 1 and not is_joined(found[0]):
        return found[0]
    return constraints.cat(found, dim=-1, lengths=[shape.numel() for shape in variables.values()])


def map_support(support: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Returns a support with a function applied to all tensors inside; the support itself if there are none."""
    if isinstance(support, list):
        found = [map_support(part, function) for part in support]
        return support if all(new is old for new, old in zip(found, support, strict=True)) else found
    if isinstance(support, Tensor):
        return function(support)
    if not isinstance(support, Constraint):
        return support
    new = {name: map_support(value, function) for name, value in vars(support).items()}
    if not (changed := {name: value for name, value in new.items() if value is not vars(support)[name]}):
        return support
    result = copy.copy(support)
    vars(result).update(changed)
    return result


def parts_by_name(support: Support, variables: Variables) -> dict[str, Support]:
    """Returns the supports of the variables of points on a support; raises `OptionError` if it has other parts than these."""
    if not is_joined(support):
        if len(variables) > 1 and support is not None and support.event_dim:
            raise OptionError(f"The support {format_support(support)} is of one vector, not of {', '.join(variables)}: name that vector.")
        if getattr(support, "event_dim", 0):
            return dict.fromkeys(variables, support)
        places, size = places_of(variables).items(), size_of(variables)
        return {name: map_support(support, lambda end, place=place: end.expand(size)[place] if end.ndim else end) for name, place in places}
    if vars(support).get("lengths") != [shape.numel() for shape in variables.values()]:
        raise OptionError(f"The support {format_support(support)} has other parts than the variables {', '.join(variables)}.")
    return dict(zip(variables, map(plain, vars(support)["cseq"]), strict=True))


@dataclass(frozen=True)
class SiteGroup:
    """Sites that are next to each other in a point."""

    columns: slice  # of their numbers in a flattened point
    counts: Tensor  # how many values each site takes, with shape (S,)
    low: Tensor | None  # the least value of each, of sites that are one number; None for one-hot rows
    values: int  # the largest number of values

    def indices(self, flat: Tensor) -> Tensor:
        part = flat[:, self.columns]
        return part.unflatten(-1, (len(self.counts), -1)).argmax(-1) if self.low is None else (part - self.low).round().long()

    def numbers(self, index: Tensor, like: Tensor) -> Tensor:
        if self.low is not None:
            return index.to(like.dtype) + self.low
        return F.one_hot(index.long(), self.values).to(like.dtype).flatten(-2)


class Sites:
    r"""The discrete numbers of points with shape $(B, *)$. A site is a number, or a row that is one-hot, and has values 0 to $K_s - 1$."""

    def __init__(self, groups: Sequence[SiteGroup], size: int) -> None:
        self.groups, self.size = tuple(groups), size

    @cached_property
    def counts(self) -> Tensor:
        """How many values each site takes, $K_s$, with shape $(S,)$."""
        return torch.cat([group.counts for group in self.groups])

    @cached_property
    def allowed(self) -> Tensor:
        r"""Which of $K = \max_s K_s$ values each site takes, with shape $(S, K)$."""
        return torch.arange(max(group.values for group in self.groups), device=self.counts.device) < self.counts[:, None]

    @property
    def mixed(self) -> bool:
        """Whether some numbers of a point are continuous."""
        return sum(group.columns.stop - group.columns.start for group in self.groups) < self.size

    @cached_property
    def free(self) -> Tensor:
        """Which numbers of a flattened point are continuous, with shape $(n,)$."""
        free = torch.ones(self.size, dtype=torch.bool, device=self.counts.device)
        for group in self.groups:
            free[group.columns] = False
        return free

    @cached_property
    def log_states(self) -> float:
        """The logarithm of the number of states."""
        return self.counts.double().log().sum().item()

    def index(self, x: Tensor) -> Tensor:
        """Returns which value each site has, with shape $(B, S)$."""
        return torch.cat([group.indices(x.reshape(len(x), -1)) for group in self.groups], 1)

    def place(self, x: Tensor, index: Tensor) -> Tensor:
        """Returns points with other values at their sites, given as by `index`."""
        if len(self.groups) == 1 and self.groups[0].columns == slice(0, self.size):
            return self.groups[0].numbers(index, x).reshape(x.shape)
        flat, start = x.reshape(len(x), -1).clone(), 0
        for group in self.groups:
            flat[:, group.columns] = group.numbers(index[:, start : start + len(group.counts)], flat)
            start += len(group.counts)
        return flat.reshape(x.shape)

    def scatter(self, normals: Tensor) -> Tensor:
        """Returns points whose sites have values that are equally likely, of standard normal numbers; continuous ones stay."""
        flat = normals.reshape(len(normals), -1)
        first = torch.cat([flat[:, g.columns].unflatten(-1, (len(g.counts), -1))[..., 0] for g in self.groups], 1)
        return self.place(normals, (torch.special.ndtr(first).clamp(max=1 - torch.finfo(first.dtype).eps) * self.counts).long())
