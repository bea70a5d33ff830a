r"""Spaces of points that quadrature covers: a chart $x = x(t)$ on a grid of $t$, with the logarithm of its volume."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from torch.distributions import constraints

import composable_energy as ce

Array = NDArray[np.float64]

_CELLS_OF_A_LINE, _CELLS_OF_AN_AXIS = 20_001, 801


@dataclass(frozen=True)
class Axis:
    """A coordinate: its map from an interval of the chart, the logarithm of the derivative, and the way back."""

    low: float
    high: float
    point: Callable[[Array], Array]
    log_volume: Callable[[Array], Array]
    chart: Callable[[Array], Array]


@dataclass(frozen=True)
class Space:
    """Points with `event` coordinates and a support; `points` maps the coordinates of the axes to them, and `coordinates` back."""

    name: str
    event: int
    support: constraints.Constraint | None
    axes: tuple[Axis, ...]
    points: Callable[[Array], Array] = lambda values: values
    coordinates: Callable[[Array], Array] = lambda points: points
    log_volume: Callable[[Array], Array] = lambda values: np.zeros(len(values))

    def grid(self) -> tuple[Array, Array]:
        """Returns the points in the middle of all cells, with shape (N, event), and the logarithms of the cells' volumes."""
        middles = [self._edges(axis)[:-1] + self._width(axis) / 2 for axis in self.axes]
        charts = np.array(list(product(*middles))) if len(middles) > 1 else middles[0][:, None]
        values = np.stack([axis.point(charts[:, i]) for i, axis in enumerate(self.axes)], 1)
        volume = sum(axis.log_volume(charts[:, i]) for i, axis in enumerate(self.axes))
        return self.points(values), volume + self.log_volume(values)

    def cells(self, points: Array) -> NDArray[np.int64]:
        """Returns the number of the cell of each point; points beyond the grid count to its last cells."""
        values, number = self.coordinates(points), np.zeros(len(points), dtype=np.int64)
        for i, axis in enumerate(self.axes):
            count = self._count()
            with np.errstate(divide="ignore"):
                place = (axis.chart(values[:, i]) - axis.low) / self._width(axis)
            number = number * count + np.clip(np.nan_to_num(place, nan=0.0, posinf=count), 0, count - 1).astype(np.int64)
        return number

    def _count(self) -> int:
        return _CELLS_OF_A_LINE if len(self.axes) == 1 else _CELLS_OF_AN_AXIS

    def _width(self, axis: Axis) -> float:
        return (axis.high - axis.low) / self._count()

    def _edges(self, axis: Axis) -> Array:
        return np.linspace(axis.low, axis.high, self._count() + 1)


def _softplus(t: Array) -> Array:
    return np.logaddexp(0.0, t)


_REAL = Axis(-9, 9, np.sinh, lambda t: np.log(np.cosh(t)), np.arcsinh)
_POSITIVE = Axis(-40, 12, np.exp, lambda t: t, np.log)
_UNIT = Axis(-40, 16, lambda t: 1 / (1 + np.exp(-t)), lambda t: -_softplus(t) - _softplus(-t), lambda x: np.log(x) - np.log1p(-x))
_ANGLE = Axis(-np.pi, np.pi, lambda t: t, np.zeros_like, lambda x: x)


def _between(low: float, high: float) -> Axis:
    width = high - low
    return Axis(
        -16,
        16,
        lambda t: low + width / (1 + np.exp(-t)),
        lambda t: np.log(width) - _softplus(t) - _softplus(-t),
        lambda x: np.log(x - low) - np.log(high - x),
    )


def _to_shares(values: Array) -> Array:
    first, rest = values[:, 0], 1 - values[:, 0]
    return np.stack([first, rest * values[:, 1], rest * (1 - values[:, 1])], 1)


def _from_shares(points: Array) -> Array:
    return np.stack([points[:, 0], points[:, 1] / np.maximum(points[:, 1] + points[:, 2], 1e-300)], 1)


SPACES = {
    space.name: space
    for space in (
        Space("line", 1, None, (_REAL,)),
        Space("plane", 2, None, (_REAL, _REAL)),
        Space("half-line", 1, constraints.positive, (_POSITIVE,)),
        Space("quadrant", 2, constraints.positive, (_POSITIVE, _POSITIVE)),
        Space("unit", 1, constraints.unit_interval, (_UNIT,)),
        Space("box", 2, constraints.interval(-1.0, 2.0), (_between(-1, 2), _between(-1, 2))),
        Space("circle", 1, ce.supports.circle, (_ANGLE,)),
        Space(
            "sphere",
            2,
            ce.supports.sphere,
            (_ANGLE,),
            lambda angles: np.stack([np.cos(angles[:, 0]), np.sin(angles[:, 0])], 1),
            lambda points: np.arctan2(points[:, 1:], points[:, :1]),
        ),
        Space(
            "simplex",
            3,
            constraints.simplex,
            (_UNIT, _UNIT),
            _to_shares,
            _from_shares,
            lambda values: np.log1p(-np.minimum(values[:, 0], 1 - 1e-16)),
        ),
    )
}
