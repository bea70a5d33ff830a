r"""Terms over trajectories of shape $(B, T, d)$: where one starts, ends and passes, and how much it moves."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer, check_number
from composable_energy_observed import Gaussian


def vector_of(what: str, numbers: Tensor | Sequence[float]) -> Tensor:
    """Returns a copy of numbers in their floating dtype, or the default one; raises `OptionError` if they are no vector of finite ones."""
    dtype = numbers.dtype if isinstance(numbers, Tensor) and numbers.is_floating_point() else torch.get_default_dtype()
    try:
        found = torch.as_tensor(numbers, dtype=dtype).detach().clone()
    except (TypeError, ValueError, RuntimeError):
        found = torch.empty(0, 0)
    if found.ndim != 1 or not bool(found.isfinite().all()):
        raise OptionError(f"{what} is a vector of finite numbers, got {numbers!r:.200}.")
    return found


class Waypoint(Energy):
    r"""A Gaussian of one state of a trajectory, $E(x) = \lVert g(x_t) - y \rVert^2 / 2 w^2$ + const.

    Args:
        target: $y$.
        time: $t$, the index of the state; negative ones count from the end.
        width: $w$, the standard deviation: a number, or one for each number of $y$.
        of: $g$, a function of states of shape $(B, d)$, such as the hand of an arm; None compares the state itself.
        name: The name in expressions.

    Raises:
        OptionError: The width is not positive, a target is not finite, or the time is no whole number.
    """

    stored_texts: ClassVar[tuple[str, ...]] = ("name",)
    grounded = False

    target: Tensor
    width: Tensor

    def __init__(
        self,
        target: Tensor | Sequence[float],
        time: int,
        width: float | Tensor = 0.02,
        *,
        of: Callable[[Tensor], Tensor] | None = None,
        name: str = "waypoint",
    ) -> None:
        super().__init__()
        target = vector_of(f"The target of {name}", target)
        width = torch.as_tensor(width, dtype=target.dtype)
        if not bool(((width > 0) & width.isfinite()).all()) or width.shape not in (torch.Size(), target.shape):
            raise OptionError(f"The width of {name} is a positive number, or one for each number of the target, got {width.tolist()}.")
        self.register_buffer("target", target)
        self.register_buffer("width", width.detach().clone())
        self.time, self.of, self.name = check_integer("time", time, -(2**63)), of, name
        self.evidence_normalized = True

    def config(self) -> dict[str, Any]:
        return {"target": self.target, "time": self.time, "width": self.width, "of": self.of, "name": self.name}

    def known_level(self, quantile: float) -> float | None:
        return Gaussian(self.width).level(self.target, quantile)

    def seen(self, states: Tensor) -> Tensor:
        """Returns what is compared with the target, for states of shape $(B, d)$."""
        return states if self.of is None else self.of(states)

    def of_states(self, states: Tensor) -> Tensor:
        """Returns the energies, with shape $(B,)$, of states at the time of the waypoint, with shape $(B, d)$."""
        if (found := self.seen(states)).shape != (len(states), len(self.target)):
            raise ShapeError(f"{self} compares {len(self.target)} numbers, and a state gives shape {tuple(found.shape[1:])}.")
        return ((found - self.target) / self.width).square().sum(1) / 2 + self.least

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or not -x.shape[1] <= self.time < x.shape[1]:
            raise ShapeError(f"{self} is about the state at {self.time} of trajectories (B, T, d), got points of {tuple(x.shape)}.")
        return self.of_states(x[:, self.time])

    @property
    def least(self) -> float:
        """The energy of a state at the target."""
        size = len(self.target)
        return float(self.width.expand(size).log().sum()) + size / 2 * math.log(2 * math.pi)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{number:g}' for number in self.target.tolist())})"


class Effort(Energy):
    r"""The cost of motion, $E(x) = \tfrac w2 \sum_t \lVert \Delta^k g(x_t) \rVert^2$ with the $k$-th differences over time.

    Args:
        weight: $w > 0$.
        order: $k$: 1 for speed, which keeps paths short, 2 for acceleration, which keeps them smooth.
        of: $g$, a function of states of shape $(B, d)$ whose results count; None for the states.

    Raises:
        OptionError: The weight is not positive, or the order is neither 1 nor 2.
    """

    no_complement = "the complement of a cost is no term of a plan; give it a smaller weight."
    grounded = False

    def __init__(self, weight: float = 1.0, order: int = 1, of: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, above=0)
        if order not in (1, 2):
            raise OptionError(f"order is 1, for speed, or 2, for acceleration, got {order!r}.")
        self.order, self.of = order, of

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight, "order": self.order, "of": self.of}

    def seen(self, states: Tensor) -> Tensor:
        """Returns what counts, for states of shape $(B, d)$."""
        return states if self.of is None else self.of(states)

    def forward(self, x: Tensor) -> Tensor:
        return self.weight / 2 * self.seen(x.flatten(0, 1)).unflatten(0, x.shape[:2]).diff(n=self.order, dim=1).square().flatten(1).sum(1)

    def __str__(self) -> str:
        return f"effort({self.weight:g}{'' if self.order == 1 else f', order={self.order}'})"


def start(state: Tensor | Sequence[float], width: float | Tensor = 0.01, **options: Any) -> Waypoint:
    """Returns the term that a trajectory starts at a state; the other arguments are those of `Waypoint`."""
    return Waypoint(state, 0, width, **{"name": "start", **options})


def goal(target: Tensor | Sequence[float], width: float | Tensor = 0.02, **options: Any) -> Waypoint:
    """Returns the term that a trajectory ends at a target, by `of` if that is not a whole state; see `Waypoint`."""
    return Waypoint(target, -1, width, **{"name": "goal", **options})


def via(target: Tensor | Sequence[float], time: int, width: float | Tensor = 0.02, **options: Any) -> Waypoint:
    """Returns the term that a trajectory is at a target at a time; see `Waypoint`. `zone` has places to pass at any time."""
    return Waypoint(target, time, width, **{"name": "via", **options})


effort = Effort
"""The cost of motion; see `Effort`."""
