r"""Energies of heads over a base: classifiers, and Gaussian heads of continuous concepts.

A label has the evidence $-\log p(\text{label} \mid x)$. A Gaussian head says $v \mid x \sim \mathcal N(f(x), w(x)^2)$ for each axis: a
point $c$ has a density and no complement; `near` and `between` are events with exact tails.
"""

import math
from abc import ABC
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy.energies import Energy, RelativeEnergy, WeightedBase
from composable_energy.energies.conditions import CHAINS, Parameters, copy_condition, rows_for
from composable_energy.errors import OptionError, ShapeError
from composable_energy.events.cells import ChainValues, Interval
from composable_energy.events.formula import Formula, conjoin
from composable_energy.events.variables import Categorical, Continuous, Source
from composable_energy.options import check_instance, check_integer

ArrayLike = float | Sequence[float] | Tensor


class HeadEnergy(RelativeEnergy, ABC):
    """Abstract energy of one head over a base, the density of all points; without a base it is evidence alone, and no density."""

    _head: Formula | Source  # a subclass sets it: the event, or the network of a density or of a free label
    _own: frozenset[str] = frozenset()  # conditions beside those of the network

    def __init__(self, base: Energy | None, name: str) -> None:
        super().__init__()
        if base is not None and not isinstance(base, Energy):
            raise OptionError(f"base must be an energy or None, got {type(base).__name__}; lift it with composable_energy.as_energy.")
        self.base, self.name = base, check_instance("name", name, str) or ""
        if base is not None:
            self.bases = (WeightedBase(base),)
            self.event_shape, self.recommended = base.event_shape, base.recommended

    @property
    def formula(self) -> Formula | None:
        return self._head if isinstance(self._head, Formula) else None

    @property
    def evidence_parameters(self) -> Parameters:
        return Parameters(self._head.conditions | self._own, self._head.required_conditions | (self._own - {CHAINS}))

    def __str__(self) -> str:
        return self.name or f"{type(self).__name__}({self.extra_repr()})"


class ClassifierEnergy(HeadEnergy):
    r"""The event that the label of a classifier is in a set: evidence $-\log \sum_{c \in \text{label}} p(c \mid x)$.

    Events with the same `logits` and columns are statements about one variable: `&`, `|`, `~` and `>>` of them, and of events of other
    classifiers over the same base, are exact; see `composable_energy.events.Formula`.

    Args:
        logits: `logits(x, **conditions)` has shape (B, K); one column is the log odds of label 1 against label 0.
        label: A label or several; None leaves it as the condition `y`, bound by `given(y=3)`, or `given(y=tensor)` for each chain.
        base: The base, the density of all $x$; without it the energy is not a density.
        columns: The columns of the logits, for a network of several heads.
        each: In place of `label`, a label for each chain: whole numbers with shape $(n,)$, which are copied.
        labels: The number of labels; None finds it at the first call; before that `unsatisfiable` cannot show that all labels are excluded.
        name: The name in expressions.

    Raises:
        OptionError: A label is not a whole number, or out of range.

    Example:
        >>> red = ce.ClassifierEnergy(lambda x: torch.stack([x.sum(1), -x.sum(1)], 1), 0)
        >>> red.evidence(torch.zeros(2, 3))
        tensor([0.6931, 0.6931])
    """

    each: Tensor | None

    def __init__(
        self,
        logits: Callable[..., Tensor],
        label: int | Iterable[int] | None = None,
        base: Energy | None = None,
        *,
        columns: slice | int | None = None,
        each: Tensor | None = None,
        labels: int | None = None,
        name: str = "",
    ) -> None:
        super().__init__(base, name)
        if not callable(logits):
            raise OptionError(f"logits must be a module or a function of x, got {type(logits).__name__}.")
        if label is not None and each is not None:
            raise OptionError("Give either `label`, for all chains, or `each`, a label for each chain.")
        self.logits = logits
        self.columns = slice(columns, columns + 1 or None) if isinstance(columns, int) else columns
        self.label = None if label is None else _check_labels(label)
        if each is not None:
            wrong = not isinstance(each, Tensor) or each.ndim != 1 or each.is_complex() or each.numel() == 0
            if wrong or bool((each != each.long()).any()) or bool((each < 0).any()):
                raise OptionError(f"Labels of chains are whole numbers from 0 on, with shape (n,), got {each!r}.")
            each = each.detach().to(torch.int64, copy=True)
        self.register_buffer("each", each, persistent=False)
        self._variable = Categorical(Source(logits), base, self.columns, labels=labels)
        self.labels = self._variable.labels
        if (values := self.label if self.each is None else [ChainValues(self.each)]) is None:
            self._head, self._own = self._variable.source, frozenset({"y"})
            self.no_complement = "bind one label first, with `.given(y=3)` or `ClassifierEnergy(logits, 3)`"
        else:
            self._head = Formula.atom(self._variable, values, str(self))

    def bind(self, conditions: Mapping[str, Any]) -> Energy:
        """Returns the energy with conditions bound; a label `y` for all points or for each chain makes it an event."""
        if self.formula is not None or (y := conditions.get("y")) is None:
            return super().bind(conditions)
        config = self.config()
        if isinstance(y, Tensor) and y.ndim > 0 and y.shape != (1,):
            text, config["each"] = f"<{len(y)} chains>", y
        else:
            config["label"] = _check_labels(y.item() if isinstance(y, Tensor) else y)
            text = ",".join(map(str, sorted(config["label"])))
        event = ClassifierEnergy(**{**config, "name": f"{self.name}={text}" if self.name else ""})
        rest = {name: value for name, value in conditions.items() if name != "y" or name in event.conditions}
        return event.bind(rest) if rest else event

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if self.formula is not None:
            return self.formula.energy(x, **conditions)
        y = rows_for("y", conditions["y"], x)
        log_probs = self._variable.read(self._variable.source.evaluate(x, conditions), x)
        if y.ndim != 1 or y.is_complex() or bool((y != y.long()).any()) or bool(((y < 0) | (y >= log_probs.shape[1])).any()):
            raise OptionError(f"y must be labels from 0 to {log_probs.shape[1] - 1}, one for all points or one for each.")
        return -log_probs.gather(1, y.long().unsqueeze(1)).squeeze(1)

    def config(self) -> dict[str, Any]:
        own = {"logits": self.logits, "base": self.base, "columns": self.columns, "labels": self.labels, "name": self.name}
        return own | ({"label": None if self.label is None else sorted(self.label)} if self.each is None else {"each": self.each})

    def extra_repr(self) -> str:
        if self.each is not None:
            return f"each=<{len(self.each)} chains>"
        labels = ", ".join(map(str, sorted(self.label or ())))
        return f"label={None if self.label is None else labels if len(self.label) == 1 else f'{{{labels}}}'}"


def _check_labels(label: Any) -> frozenset[int]:
    try:
        values = label.flatten().tolist() if isinstance(label, Tensor) else list(label) if isinstance(label, Iterable) else [label]
        labels = frozenset(int(value) for value in values)
    except (TypeError, ValueError) as error:
        raise OptionError(f"A label is a whole number or several of them, got {label!r}.") from error
    if isinstance(label, str) or any(value != int(value) or value < 0 for value in values):
        raise OptionError(f"A label is a whole number from 0 on, or several of them, got {label!r}.")
    return labels


class GaussianHead:
    r"""Builds energies from the predictions of a Gaussian head: `head(c)`, `head.near(c, r)`, `head.between(low, high)`.

    The axes are independent given $x$. Log widths are clamped to $[-5, 1]$. Points, radii and ends have shape (dims,) for all chains or
    (n, dims) for each; a number applies to all axes. Another shape raises `ShapeError`.

    Args:
        network: `network(x, **conditions)` has shape (B, 2 dims), means and then log widths, or is a pair of both.
        base: The base, the density of all $x$.
        dims: The number of predicted values.
        columns: The columns of the output, for a network of several heads.
        name: The name in expressions, as in `position(0.2, 0.5)`.

    Example:
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
        self.network, self.base, self.dims, self.columns, self.name = network, base, check_integer("dims", dims), columns, name

    def __call__(self, c: ArrayLike | None = None) -> "DensityEnergy":
        """Returns the density at a point; None leaves it as the condition `c`."""
        if c is None:
            return DensityEnergy(**self._config(""))
        point = self._points("c", c)
        return DensityEnergy(**self._config(f"({_format_values(point).strip('()')})"), c=point)

    def near(self, c: ArrayLike, r: ArrayLike) -> "IntervalEnergy":
        r"""Returns the event that every axis is within $c \pm r$; a radius that is not positive and finite raises `OptionError`."""
        center, radius = self._points("c", c), self._points("r", r)
        if not bool(((radius > 0) & radius.isfinite()).all()):
            raise OptionError(f"r must be positive and finite, got {r}.")
        config = self._config(f".near({_format_values(c)}, {_format_values(r)})")
        return IntervalEnergy(**config, low=center - radius, high=center + radius)

    def between(self, low: ArrayLike, high: ArrayLike) -> "IntervalEnergy":
        """Returns the event that every axis is between two ends, which may be infinite if they are the same for all chains.

        Raises:
            OptionError: `high` is not above `low`.
        """
        config = self._config(f".between({_format_values(low)}, {_format_values(high)})")
        return IntervalEnergy(**config, low=self._points("low", low), high=self._points("high", high))

    def _points(self, name: str, values: ArrayLike) -> Tensor:
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

    def _config(self, text: str) -> dict[str, Any]:
        name = f"{self.name}{text}" if self.name else ""
        return {"network": self.network, "base": self.base, "dims": self.dims, "columns": self.columns, "name": name}


class DensityEnergy(HeadEnergy):
    r"""The density of a Gaussian head at a point $c$: evidence $-\sum_a \log \mathcal N(c_a; f_a(x), w_a(x)^2)$. It includes $\log w_a$, so
    that `|` of two points has the right shares. The point has shape (1, dims) for all chains or (n, dims) for each; None leaves it as the
    condition `c` for `given` and `infer`. The other arguments are those of `GaussianHead`."""

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
        self._variable = Continuous(Source(network), base, columns, dims=dims)
        self._head = self._variable.source
        self._own = frozenset({"c"} if self.c is None else {CHAINS} if len(self.c) != 1 else ())
        self.no_complement = "a point has no complement: use `.near(c, r)`, whose complement is the outside"

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        mean, width = self._variable.read_all(self._variable.source.evaluate(x, conditions), x)
        c = rows_for("c", conditions["c"] if self.c is None else self.c, mean, None if self.c is None else conditions.get(CHAINS))
        if (c := c.unsqueeze(1) if c.ndim == 1 else c).shape != mean.shape:
            raise ShapeError(f"c has shape {tuple(c.shape)} for {len(mean)} points; expected ({len(mean)}, {mean.shape[1]}).")
        return (((c - mean) / width).square() / 2 + width.log() + math.log(2 * math.pi) / 2).sum(1)

    def config(self) -> dict[str, Any]:
        return {**_head_config(self, self._variable), "c": self.c}

    def extra_repr(self) -> str:
        return "c=None" if self.c is None else f"c={_format_values(self.c)}"


class IntervalEnergy(HeadEnergy):
    r"""The event that every axis lies in an interval: evidence $-\sum_a \log(\Phi(b_a) - \Phi(a_a))$ with ends in widths from the mean.

    The ends have shape (1, dims) for all chains or (n, dims) for each, and are copied. The other arguments are those of `GaussianHead`.

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
        if len({1, len(low), len(high := high.to(low.device))}) > 2:
            raise ShapeError(f"low is for {len(low)} chains and high for {len(high)}.")
        if not bool((low < high).all()):
            raise OptionError(f"The upper end must be above the lower one, got {_format_values(low)} to {_format_values(high)}.")
        if any(len(end) > 1 and not bool(end.isfinite().all()) for end in (low, high)):
            raise OptionError("Ends that differ between chains must be finite.")
        self.network = network
        self.register_buffer("low", low.detach().clone())
        self.register_buffer("high", high.detach().clone())
        axes = []
        for axis, ends in enumerate(zip(self.low.unbind(1), self.high.unbind(1), strict=True)):
            variable = Continuous(Source(network), base, columns, axis=axis, dims=dims)
            interval = Interval(*(values.item() if len(values) == 1 else ChainValues(values) for values in ends))
            axes.append(Formula.atom(variable, interval, str(self) if dims == 1 else f"{self}[{axis}]"))
        self._head = self._formula = conjoin(axes)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return self._formula.energy(x, **conditions)

    def config(self) -> dict[str, Any]:
        return {**_head_config(self, self._formula.variables[0]), "low": self.low, "high": self.high}

    def extra_repr(self) -> str:
        return f"low={_format_values(self.low)}, high={_format_values(self.high)}"


def _head_config(energy: HeadEnergy, variable: Any) -> dict[str, Any]:
    network = variable.source.network
    return {"network": network, "base": energy.base, "dims": variable.dims, "columns": variable.columns, "name": energy.name}


def _format_values(values: ArrayLike) -> str:
    """Returns values as text; values of each chain as the number of chains."""
    if not isinstance(values, Tensor):
        return f"{values}"
    if values.ndim == 2 and len(values) > 1:
        return f"<{len(values)} chains>"
    numbers = ", ".join(f"{value:g}" for value in values.flatten().tolist())
    return numbers if values.numel() == 1 else f"({numbers})"
