r"""Zones that a trajectory enters or avoids: signed distances, and events with an exact complement."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from composable_energy import ClassifierEnergy
from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_integer, check_number
from composable_energy_planning.terms import vector_of


class Disc(nn.Module):
    """The signed distance from a disc, or from a ball in more dimensions."""

    center: Tensor

    def __init__(self, center: Sequence[float] | Tensor, radius: float) -> None:
        super().__init__()
        self.register_buffer("center", vector_of("The center of a zone", center).to(torch.get_default_dtype()))
        self.radius = check_number("radius", radius, above=0)

    def forward(self, points: Tensor) -> Tensor:
        """Returns the distances, with shape $(*)$, of points with shape $(*, d)$, or with further numbers."""
        return torch.linalg.vector_norm(_from_center(points, self.center), dim=-1) - self.radius


class Box(nn.Module):
    """The signed distance from a box with a center and half of its size along each axis.

    Raises:
        OptionError: A size is not positive, or there is not one for each axis.
    """

    center: Tensor
    extent: Tensor

    def __init__(self, center: Sequence[float] | Tensor, half: Sequence[float] | Tensor) -> None:
        super().__init__()
        self.register_buffer("center", vector_of("The center of a zone", center).to(torch.get_default_dtype()))
        self.register_buffer("extent", vector_of("Half the size of a box", half).to(torch.get_default_dtype()))
        if self.extent.shape != self.center.shape or not bool((self.extent > 0).all()):
            raise OptionError(f"A box has a positive half size for each axis of its center, got {self.extent.tolist()}.")

    def forward(self, points: Tensor) -> Tensor:
        beyond = _from_center(points, self.center).abs() - self.extent
        return torch.linalg.vector_norm(beyond.clamp_min(0), dim=-1) + beyond.amax(-1).clamp_max(0)


def _from_center(points: Tensor, center: Tensor) -> Tensor:
    """Returns the first numbers of points, less those of a center; raises `ShapeError` if there are fewer."""
    if points.shape[-1] < len(center):
        raise ShapeError(f"A center of {len(center)} numbers needs states of as many or more, got states of {points.shape[-1]}.")
    return points[..., : len(center)] - center


class Entered(nn.Module):
    r"""The log probabilities that a trajectory never enters a zone, and that it does, with shape $(B, 2)$.

    A state $s$ with the signed distance $a(s)$ is inside with probability $\operatorname{sigmoid}(-a(s) / w)$, and
    $P(\text{never}) = \prod_s (1 - P(s\ \text{inside}))$ over all states and points on the line between states in succession.

    Args:
        distance: $a$, a function of states of shape $(B, d)$, with shape $(B,)$, or $(B, n)$ to take the least; negative inside.
        width: $w$, the width of the border.
        between: The number of points between states.
        margin: A distance that is added around the zone.
        of: A function of states whose result `distance` takes, such as the outline of an arm; None for the states.
    """

    def __init__(
        self,
        distance: Callable[[Tensor], Tensor],
        width: float = 0.01,
        between: int = 2,
        margin: float = 0.0,
        of: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__()
        if not callable(distance):
            raise OptionError(f"The distance of a zone is a function of states, got {distance!r}.")
        self.distance, self.of = distance, of
        self.width = check_number("width", width, above=0)
        self.between = check_integer("between", between, 0)
        self.margin = check_number("margin", margin)

    def distances(self, states: Tensor) -> Tensor:
        """Returns the signed distances, with shape $(B,)$, of states with shape $(B, d)$."""
        found: Any = self.distance(states if self.of is None else self.of(states))
        if not isinstance(found, Tensor) or not found.is_floating_point():
            raise DtypeError(f"The distance of a zone must return a floating tensor, got {type(found).__name__}.")
        if found.ndim > 1:
            found = found.flatten(1).amin(1)
        if found.shape != states.shape[:1]:
            raise ShapeError(f"The distance of a zone returned shape {tuple(found.shape)} for {len(states)} states.")
        return found - self.margin

    def log_outside(self, states: Tensor) -> Tensor:
        """Returns the log probabilities to be outside, with shape $(B,)$, of states with shape $(B, d)$."""
        return logsigmoid(self.distances(states) / self.width)

    def log_clear(self, states: Tensor, ends: Tensor) -> Tensor:
        """Returns the log probabilities to be outside between states and at the ends, with shape $(B,)$, for shapes $(B, d)$."""
        shares = torch.linspace(0, 1, self.between + 2, dtype=states.dtype, device=states.device)[1:, None, None]
        points = states + shares * (ends - states)
        return self.log_outside(points.flatten(0, 1)).unflatten(0, points.shape[:2]).sum(0)

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3:
            raise ShapeError(f"A zone is about trajectories of shape (B, T, d), got points of shape {tuple(x.shape)}.")
        rows = len(x)
        never = self.log_outside(x[:, 0])
        if x.shape[1] > 1:
            never = never + self.log_clear(x[:, :-1].flatten(0, 1), x[:, 1:].flatten(0, 1)).unflatten(0, (rows, -1)).sum(1)
        tiny = torch.finfo(x.dtype).tiny
        enters = torch.where(never > -0.69, (-torch.expm1(never)).clamp_min(tiny).log(), torch.log1p(-never.clamp_max(-0.69).exp()))
        return torch.stack([never, enters], 1)


def zone(distance: Callable[[Tensor], Tensor], *, name: str = "zone", **options: Any) -> ClassifierEnergy:
    r"""Returns the event that a trajectory enters a zone, given by its signed distance, at a state or between states.

    The complement `~zone(...)`, that it stays outside, is exact and bounded: its energy is $-\log P(\text{never})$, nearly
    the sum of the depths over the width. Not negated, the zone is a place to pass at any
    time. Zones combine with `&`, `|`, `^` and `>>` as all events do.

    Args:
        **options: `width`, `between`, `margin` and `of` of `Entered`.

    Example:
        >>> import torch, composable_energy_planning as planning
        >>> wet = planning.disc((0.0, 0.0), 0.5)
        >>> wet.evidence(torch.tensor([[[-1.0, 0.0], [1.0, 0.0]]])).abs().round()
        tensor([0.])
    """
    return ClassifierEnergy(Entered(distance, **options), 1, labels=2, name=name)


def disc(center: Sequence[float] | Tensor, radius: float, *, name: str = "disc", **options: Any) -> ClassifierEnergy:
    """Returns the event that a trajectory enters a disc of the first coordinates of its states; see `zone`."""
    return zone(Disc(center, radius), name=name, **options)


def box(center: Sequence[float] | Tensor, half: Sequence[float] | Tensor, *, name: str = "box", **options: Any) -> ClassifierEnergy:
    """Returns the event that a trajectory enters a box of the first coordinates of its states; see `zone`."""
    return zone(Box(center, half), name=name, **options)


def apart(least: float, *, name: str = "meet", **options: Any) -> Any:
    """Returns the event that two agents, the halves of a state, keep a distance; `options` are `width` and `between` of `Entered`."""
    return ~zone(Gap(least), name=name, **options)


class Gap(nn.Module):
    """The distance between two agents, the halves of a state, over a least one."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = check_number("least", least, above=0)

    def forward(self, states: Tensor) -> Tensor:
        if states.shape[1] % 2:
            raise ShapeError(f"Two agents are halves of a state, got states of {states.shape[1]} numbers.")
        one, other = states.chunk(2, 1)
        return torch.linalg.vector_norm(one - other, dim=1) - self.least
