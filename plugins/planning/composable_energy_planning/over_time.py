r"""An energy of successive states lifted to whole trajectories."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from composable_energy import Energy, Recommendation, as_energy
from composable_energy.algebra import Transformed
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_integer


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
