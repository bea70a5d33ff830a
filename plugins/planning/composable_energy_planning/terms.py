r"""Terms over trajectories of shape $(B, T, d)$: where one starts, ends and passes, how much it moves, and energies over time."""

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from composable_energy import Energy, Recommendation, as_energy
from composable_energy.algebra import Transformed
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_integer, check_number
from composable_energy_observed import Gaussian


class Waypoint(Energy):
    r"""A Gaussian of one state of a trajectory, $E(x) = \lVert g(x_t) - y \rVert^2 / 2 w^2$ + const.

    Args:
        target: $y$.
        time: $t$, the index of the state; negative ones count from the end.
        width: $w$, the standard deviation: a number, or one for each number of $y$.
        axes: The numbers of a state that are compared; None for all, or those of `of`.
        of: $g$, a function of states of shape $(B, d)$, such as the hand of an arm; None compares the state itself.
        name: The name in expressions.

    Raises:
        OptionError: The width is not positive, a target is not finite, or there are both `axes` and `of`.
    """

    stored_texts: ClassVar[tuple[str, ...]] = ("name",)

    target: Tensor
    width: Tensor

    def __init__(
        self,
        target: Tensor | Sequence[float],
        time: int,
        width: float | Tensor = 0.02,
        *,
        axes: Sequence[int] | None = None,
        of: Callable[[Tensor], Tensor] | None = None,
        name: str = "waypoint",
    ) -> None:
        super().__init__()
        target = torch.as_tensor(target, dtype=torch.get_default_dtype()) if not isinstance(target, Tensor) else target
        width = torch.as_tensor(width, dtype=target.dtype)
        if target.ndim != 1 or not bool(target.isfinite().all()):
            raise OptionError(f"The target of {name} is a vector of finite numbers, got {target.tolist()}.")
        if not bool((width > 0).all()) or width.ndim > 1 or (width.ndim == 1 and width.shape != target.shape):
            raise OptionError(f"The width of {name} is a positive number, or one for each number of the target, got {width.tolist()}.")
        if axes is not None and of is not None:
            raise OptionError(f"{name} compares `axes` of a state or what `of` returns, not both.")
        self.register_buffer("target", target.detach().clone())
        self.register_buffer("width", width.detach().clone())
        self.time, self.axes, self.of, self.name = int(time), None if axes is None else tuple(axes), of, name
        self.evidence_normalized = True
        self.recommended = Recommendation("trajectories", precedence=3)

    def config(self) -> dict[str, Any]:
        return {"target": self.target, "time": self.time, "width": self.width, "axes": self.axes, "of": self.of, "name": self.name}

    @property
    def grounded(self) -> bool:
        return False

    def known_level(self, quantile: float) -> float | None:
        return Gaussian(self.width).level(self.target, quantile)

    def seen(self, states: Tensor) -> Tensor:
        """Returns what is compared with the target, for states of shape $(B, d)$."""
        if self.of is not None:
            return self.of(states)
        return states if self.axes is None else states[:, list(self.axes)]

    def of_states(self, states: Tensor) -> Tensor:
        """Returns the energies, with shape $(B,)$, of states at the time of the waypoint, with shape $(B, d)$."""
        found = self.seen(states)
        if found.shape != (len(states), len(self.target)):
            raise ShapeError(f"{self} compares {len(self.target)} numbers, and a state gives shape {tuple(found.shape[1:])}.")
        return ((found - self.target) / self.width).square().sum(1) / 2 + self.least

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or not -x.shape[1] <= self.time < x.shape[1]:
            raise ShapeError(
                f"{self} is about the state at {self.time} of trajectories of shape (B, T, d), got points of {tuple(x.shape)}."
            )
        return self.of_states(x[:, self.time])

    @property
    def least(self) -> float:
        """The energy of a state at the target."""
        size = len(self.target)
        return float(self.width.expand(size).log().sum()) + size / 2 * math.log(2 * math.pi)

    def __str__(self) -> str:
        return f"{self.name}({', '.join(f'{number:g}' for number in self.target.tolist())})"


class Effort(Energy):
    r"""The cost of motion, $E(x) = \tfrac w2 \sum_t \lVert \Delta^k x_t \rVert^2$ with the $k$-th differences over time.

    Args:
        weight: $w > 0$.
        order: $k$: 1 for speed, which keeps paths short, 2 for acceleration, which keeps them smooth.
        axes: The numbers of a state that count; None for all.

    Raises:
        OptionError: The weight is not positive, or the order is neither 1 nor 2.
    """

    no_complement = "the complement of a cost is no term of a plan; give it a smaller weight."

    def __init__(self, weight: float = 1.0, order: int = 1, axes: Sequence[int] | None = None) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, above=0)
        if order not in (1, 2):
            raise OptionError(f"order is 1, for speed, or 2, for acceleration, got {order!r}.")
        self.order, self.axes = order, None if axes is None else tuple(axes)

    def config(self) -> dict[str, Any]:
        return {"weight": self.weight, "order": self.order, "axes": self.axes}

    @property
    def grounded(self) -> bool:
        return False

    def forward(self, x: Tensor) -> Tensor:
        moved = x if self.axes is None else x[:, :, list(self.axes)]
        return self.weight / 2 * moved.diff(n=self.order, dim=1).square().flatten(1).sum(1)

    def __str__(self) -> str:
        return f"effort({self.weight:g}{'' if self.order == 1 else f', order={self.order}'})"


def start(state: Tensor | Sequence[float], width: float | Tensor = 0.01, **options: Any) -> Waypoint:
    """Returns the term that a trajectory starts at a state; the other arguments are those of `Waypoint`."""
    return Waypoint(state, 0, width, **{"name": "start", **options})


def goal(target: Tensor | Sequence[float], width: float | Tensor = 0.02, **options: Any) -> Waypoint:
    """Returns the term that a trajectory ends at a target, by `axes` or `of` if that is not a whole state; see `Waypoint`."""
    return Waypoint(target, -1, width, **{"name": "goal", **options})


def via(target: Tensor | Sequence[float], time: int, width: float | Tensor = 0.02, **options: Any) -> Waypoint:
    """Returns the term that a trajectory is at a target at a time; see `Waypoint`. `zone` has places to pass at any time."""
    return Waypoint(target, time, width, **{"name": "via", **options})


def effort(weight: float = 1.0, order: int = 1, axes: Sequence[int] | None = None) -> Effort:
    """Returns the cost of motion; see `Effort`."""
    return Effort(weight, order, axes)


class OverTime(Transformed):
    r"""An energy of states in succession over a whole trajectory, $E(x) = \sum_t E_\text{pair}(x_t, \dots, x_{t + k - 1})$.

    For a normalised $E_\text{pair} = -\log p(s' \mid s)$ it is the density of trajectories, given their first state. All windows are
    rows of one evaluation. A conditional density is no density of trajectories by itself: `start` or another term has to say where
    trajectories are, and `sample` needs one of them.

    Args:
        pair: The energy of $k$ states in succession, with `event_shape` $(k, d)$; $k = 2$ for pairs.
        horizon: $T$, the number of states of a trajectory.
        axes: The numbers of a state that the pair energy sees; None for all. Two agents are two terms with other axes.
        size: The numbers of a state of the trajectory, beside `axes`.

    Raises:
        ShapeError: The pair energy has no `event_shape` of two axes, or there are not as many `axes` as its states have numbers.
        OptionError: The horizon is shorter than $k$, or an axis is out of range.
        ExpressionError: The pair energy is relative to a base: a base would count once for each transition.

    Example:
        >>> import torch, composable_energy as ce
        >>> step = ce.energies.CallableEnergy(lambda x: (x[:, 1] - x[:, 0]).square().sum(1) / 2, event_shape=(2, 1))
        >>> ce.over_time(step, 3)(torch.tensor([[[0.0], [1.0], [3.0]]]))
        tensor([2.5000])
    """

    def __init__(self, pair: Energy, horizon: int, *, axes: Sequence[int] | None = None, size: int | None = None) -> None:
        pair = as_energy(pair)
        shape = pair.event_shape
        if shape is None or len(shape) != 2:
            found = "none" if shape is None else tuple(shape)
            raise ShapeError(
                f"The energy of states in succession needs an event_shape (k, d), such as (2, d) for pairs; {pair} has {found}."
            )
        if pair.bases:
            raise ExpressionError(
                f"{pair} is relative to {pair.bases[0].energy}, which would count once for each transition: lift an absolute energy."
            )
        super().__init__(pair)
        self.window, own = shape
        self.horizon = check_integer("horizon", horizon, self.window)
        self.axes = None if axes is None else tuple(axes)
        self.size = own if axes is None and size is None else size
        if self.axes is not None and len(self.axes) != own:
            raise ShapeError(f"{pair} has states of {own} numbers, and axes names {len(self.axes)}.")
        if self.size is None or (self.axes is None and self.size != own):
            raise OptionError(f"size, the numbers of a state, is given beside axes; got size={size} and axes={axes}.")
        if self.axes is not None and any(not 0 <= axis < self.size for axis in self.axes):
            raise OptionError(f"axes are numbers from 0 to {self.size - 1}, got {self.axes}.")
        self.event_shape = (self.horizon, self.size)
        self.recommended = Recommendation("trajectories", precedence=3)

    def config(self) -> dict[str, Any]:
        return {"horizon": self.horizon, "axes": self.axes, "size": self.size}

    def windows(self, x: Tensor) -> Tensor:
        """Returns the states in succession of trajectories, with shape $(B (T - k + 1), k, d)$, for $x$ of shape $(B, T, d)$."""
        seen = x if self.axes is None else x[:, :, list(self.axes)]
        return seen.unfold(1, self.window, 1).transpose(2, 3).flatten(0, 1)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        count = x.shape[1] - self.window + 1
        repeated = {name: _repeat(value, len(x), count) for name, value in conditions.items()}
        return self.terms[0](self.windows(x), **repeated).unflatten(0, (len(x), count)).sum(1)

    def __str__(self) -> str:
        which = "" if self.axes is None else f", axes={list(self.axes)}"
        return f"over_time({self.terms[0]}, {self.horizon}{which})"


def _repeat(value: Any, rows: int, count: int) -> Any:
    """Returns a condition with one row for each transition, if it has one for each trajectory."""
    return value.repeat_interleave(count, 0) if isinstance(value, Tensor) and value.ndim > 0 and len(value) == rows > 1 else value
