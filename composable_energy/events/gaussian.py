r"""Gaussian heads of continuous concepts: $v \mid x \sim \mathcal N(f(x), w(x)^2)$ for each axis.

A point $c$ has a density and no complement; `near` and `between` are events with exact tails.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.conditions import CHAINS, copy_condition, rows_for
from composable_energy.energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.events.cells import End, Interval
from composable_energy.events.formula import Formula, conjoin
from composable_energy.events.leaves import HeadEnergy
from composable_energy.events.variables import Continuous, columns_of
from composable_energy.options import check_integer

ArrayLike = float | Sequence[float] | Tensor


class GaussianHead:
    r"""Builds energies from the predictions of a Gaussian head: `head(c)`, `head.near(c, r)`, `head.between(low, high)`.

    The axes are independent given $x$. Log widths are clamped to $[-5, 1]$.

    Args:
        network: `network(x, **conditions)` has shape (B, 2 dims), means and then log widths, or is a pair of both.
        base: The base, the density of all $x$.
        dims: The number of predicted values.
        columns: The columns of the output, for a network of several heads.
        name: The name in expressions, as in `position(0.2, 0.5)`.

    Example:
        >>> import torch, composable_energy as ce
        >>> position = ce.GaussianHead(lambda x: torch.cat([x, torch.zeros_like(x)], 1), dims=2, name="position")
        >>> inside = position.near((0.0, 0.0), 1.0)
        >>> inside.evidence(torch.zeros(1, 2)), (~inside).evidence(torch.zeros(1, 2))
        (tensor([0.7634]), tensor([0.6275]))
    """

    def __init__(
        self, network: Callable[..., Any], base: Energy | None = None, *, dims: int, columns: slice | None = None, name: str = ""
    ) -> None:
        if not callable(network):
            raise OptionError(f"network must be a module or a function of x, got {type(network).__name__}.")
        self.network, self.base, self.dims, self.columns, self.name = network, base, check_integer("dims", dims), columns_of(columns), name

    def __call__(self, c: ArrayLike | None = None) -> DensityEnergy:
        """Returns the density at a point of shape (dims,) for all chains, or (n, dims) for each; None leaves it as the condition `c`."""
        if c is None:
            return DensityEnergy(**self._config(self.name))
        point = self.points("c", c)
        return DensityEnergy(**self._config(f"{self.name}({_format_values(point).strip('()')})" if self.name else ""), c=point)

    def near(self, c: ArrayLike, r: ArrayLike) -> IntervalEnergy:
        r"""Returns the event that every axis is within $c \pm r$.

        Args:
            c: The center, with shape (dims,) for all chains, or (n, dims) for each; a number applies to all axes.
            r: The positive radius, with the same shapes.

        Raises:
            OptionError: A radius is not positive, or not finite.
            ShapeError: A shape does not fit `dims`.
        """
        center, radius = self.points("c", c), self.points("r", r)
        if not bool(((radius > 0) & radius.isfinite()).all()):
            raise OptionError(f"r must be positive and finite, got {r}.")
        return IntervalEnergy(**self._config(self._text("near", c, r)), low=center - radius, high=center + radius)

    def between(self, low: ArrayLike, high: ArrayLike) -> IntervalEnergy:
        r"""Returns the event that every axis is between two ends, which may be infinite if they are the same for all chains.

        Args:
            low: The lower ends, with shape (dims,) for all chains, or (n, dims) for each; a number applies to all axes.
            high: The upper ends, with the same shapes.

        Raises:
            OptionError: `high` is not above `low`.
            ShapeError: A shape does not fit `dims`.
        """
        config = self._config(self._text("between", low, high))
        return IntervalEnergy(**config, low=self.points("low", low), high=self.points("high", high))

    def points(self, name: str, values: ArrayLike) -> Tensor:
        """Returns values with shape (n, dims); n is 1 for all chains."""
        points = values if isinstance(values, Tensor) else torch.tensor(values, dtype=torch.float64)
        points = points if points.is_floating_point() else points.double()
        points = points.repeat(1, self.dims) if points.ndim == 0 else points.unsqueeze(0) if points.ndim == 1 else points
        if points.ndim != 2 or points.shape[1] != self.dims:
            shape = tuple(torch.as_tensor(values).shape)
            raise ShapeError(f"{name} has shape {shape}; expected ({self.dims},) for all chains or (n, {self.dims}) for each.")
        if bool(points.isnan().any()):
            raise OptionError(f"{name} is NaN.")
        return points

    def _config(self, name: str) -> dict[str, Any]:
        return {"network": self.network, "base": self.base, "dims": self.dims, "columns": self.columns, "name": name}

    def _text(self, method: str, *values: ArrayLike) -> str:
        return f"{self.name}.{method}({', '.join(map(_format_values, values))})" if self.name else ""


class DensityEnergy(HeadEnergy):
    r"""The density at a point $c$: evidence $-\sum_a \log \mathcal N(c_a; f_a(x), w_a(x)^2)$.

    It includes $\log w_a$, so that `|` of two points has the right shares.

    Args:
        network: `network(x, **conditions)` has shape (B, 2 dims), means and then log widths, or is a pair of both.
        base: The base, the density of all $x$.
        dims: The number of predicted values.
        columns: The columns of the output, for a network of several heads.
        c: The point, with shape (1, dims) for all chains or (n, dims) for each; None leaves it as the condition `c` for `given` and
            `infer`.
        name: The name in expressions.
    """

    evidence_normalized = True
    c: Tensor | None

    def __init__(
        self,
        network: Callable[..., Any],
        base: Energy | None = None,
        *,
        dims: int,
        columns: slice | None = None,
        c: Tensor | None = None,
        name: str = "",
    ) -> None:
        super().__init__(base, name)
        self.network = network
        self.register_buffer("c", None if c is None else copy_condition(c))
        self._variable = Continuous(network, base, columns_of(columns), dims=dims)
        self.no_complement = "a point has no complement: use `.near(c, r)`, whose complement is the outside"

    @property
    def head_conditions(self) -> tuple[frozenset[str], frozenset[str]]:
        if self.c is None:
            return self._variable.conditions | {"c"}, self._variable.required_conditions | {"c"}
        chains = frozenset({CHAINS} if len(self.c) != 1 else ())
        return self._variable.conditions | chains, self._variable.required_conditions

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        mean, width = self._variable.read_all(self._variable.evaluate(x, conditions), x)
        c = rows_for("c", conditions["c"] if self.c is None else self.c, mean, None if self.c is None else conditions.get(CHAINS))
        c = c.unsqueeze(1) if c.ndim == 1 else c
        if c.shape != mean.shape:
            raise ShapeError(f"c has shape {tuple(c.shape)} for {len(mean)} points; expected ({len(mean)}, {mean.shape[1]}).")
        return (((c - mean) / width).square() / 2 + width.log() + math.log(2 * math.pi) / 2).sum(1)

    def config(self) -> dict[str, Any]:
        return {**_head_config(self, self._variable), "c": self.c}

    def extra_repr(self) -> str:
        return "c=None" if self.c is None else f"c={_format_values(self.c)}"


class IntervalEnergy(HeadEnergy):
    r"""The event that every axis lies in an interval: evidence $-\sum_a \log(\Phi(b_a) - \Phi(a_a))$ with ends in widths from the mean.

    Args:
        network: `network(x, **conditions)` has shape (B, 2 dims), means and then log widths, or is a pair of both.
        base: The base, the density of all $x$.
        dims: The number of predicted values.
        columns: The columns of the output, for a network of several heads.
        low: The lower ends, with shape (1, dims) for all chains or (n, dims) for each; copied without gradient.
        high: The upper ends, with the same shapes.
        name: The name in expressions.

    Raises:
        OptionError: `high` is not above `low`, or an end that differs between chains is infinite.
    """

    low: Tensor
    high: Tensor

    def __init__(
        self,
        network: Callable[..., Any],
        base: Energy | None = None,
        *,
        dims: int,
        low: Tensor,
        high: Tensor,
        columns: slice | None = None,
        name: str = "",
    ) -> None:
        super().__init__(base, name)
        high = high.to(low.device)
        if len({1, len(low), len(high)}) > 2:
            raise ShapeError(f"low is for {len(low)} chains and high for {len(high)}.")
        if not bool((low < high).all()):
            raise OptionError(f"The upper end must be above the lower one, got {_format_values(low)} to {_format_values(high)}.")
        if any(len(end) > 1 and not bool(end.isfinite().all()) for end in (low, high)):
            raise OptionError("Ends that differ between chains must be finite.")
        self.network = network
        self.register_buffer("low", low.detach().clone())
        self.register_buffer("high", high.detach().clone())
        variables = [Continuous(network, base, columns_of(columns), axis=axis, dims=dims) for axis in range(dims)]
        atoms = [Interval(_end(self.low[:, a]), _end(self.high[:, a])) for a in range(dims)]
        names = [str(self) if dims == 1 else f"{self}[{a}]" for a in range(dims)]
        self._formula = conjoin([Formula.atom(*of) for of in zip(variables, atoms, names, strict=True)])

    @property
    def formula(self) -> Formula:
        return self._formula

    @property
    def head_conditions(self) -> tuple[frozenset[str], frozenset[str]]:
        return self._formula.conditions, self._formula.required_conditions

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self._formula.energy(x, **conditions)

    def config(self) -> dict[str, Any]:
        return {**_head_config(self, self._formula.variables[0]), "low": self.low, "high": self.high}

    def extra_repr(self) -> str:
        return f"low={_format_values(self.low)}, high={_format_values(self.high)}"


def _head_config(energy: HeadEnergy, variable: Any) -> dict[str, Any]:
    return {"network": variable.network, "base": energy.base, "dims": variable.dims, "columns": variable.columns, "name": energy.name}


def _end(column: Tensor) -> End:
    return column.item() if len(column) == 1 else column


def _format_values(values: ArrayLike) -> str:
    """Returns values as text; values of each chain as the number of chains."""
    if not isinstance(values, Tensor):
        return f"{values}"
    if values.ndim == 2 and len(values) > 1:
        return f"<{len(values)} chains>"
    numbers = ", ".join(f"{value:g}" for value in values.flatten().tolist())
    return numbers if values.numel() == 1 else f"({numbers})"
