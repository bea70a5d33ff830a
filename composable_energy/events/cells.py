r"""Cells: the partition of the values of a variable by the atoms of a formula.

Labels that occur in the same atoms form one cell; labels that occur in none form *the rest*. Intervals divide the line at their ends. A
formula depends on a variable only through its cell, so a diagram has one edge for each cell. Labels and ends may differ between chains if
the same atoms overlap in all chains, so that one diagram serves all chains.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, cmp_to_key
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from composable_energy.energies.conditions import rows_for
from composable_energy.errors import ExpressionError, OptionError, ShapeError

End = float | Tensor

Label = int | Tensor


@dataclass(frozen=True, eq=False)
class Interval:
    r"""The values between two ends; intervals are compared by value, whatever their dtypes.

    Args:
        low: The lower end: a number, $-\infty$ for none, or a tensor of shape $(n,)$ with one for each chain, which is copied.
        high: The upper end: a number, $\infty$ for none, or a tensor of shape $(n,)$ with one for each chain, which is copied.
    """

    low: End
    high: End

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            end = getattr(self, name)
            several = isinstance(end, Tensor) and end.numel() != 1
            object.__setattr__(self, name, end.detach().clone() if several else float(end))

    @cached_property
    def key(self) -> tuple[float | bytes, ...]:
        """The values of the ends, in float64."""
        return tuple(_bytes(end, torch.float64) if isinstance(end, Tensor) else end for end in (self.low, self.high))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Interval) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def ends(self) -> tuple[End, ...]:
        """The finite ends."""
        return tuple(end for end in (self.low, self.high) if isinstance(end, Tensor) or abs(end) != float("inf"))

    @property
    def chained(self) -> bool:
        """Whether the interval differs between chains."""
        return any(isinstance(end, Tensor) for end in self.ends)


@dataclass(frozen=True, eq=False)
class ChainLabels:
    """One label for each chain; compared by value, whatever the dtypes.

    Args:
        labels: Whole numbers of at least 0, with shape $(n,)$, which are copied.
    """

    labels: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", self.labels.detach().to(torch.int64, copy=True))

    @cached_property
    def key(self) -> bytes:
        """The values of the labels."""
        return _bytes(self.labels, torch.int64)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChainLabels) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    @property
    def chained(self) -> bool:
        """Whether the labels differ between chains."""
        return True


class Cells(ABC):
    """Abstract partition of the values of a variable."""

    def label(self, cells: Sequence[int]) -> int | None:
        """Returns the label of a union of cells; None if it has several, differs between chains, or is no label."""
        return None

    @abstractmethod
    def members(self, values: Any) -> tuple[bool, ...]:
        """Returns for each cell whether the values of an atom contain it."""

    @abstractmethod
    def log_prob(self, reading: Any, cells: Sequence[int], x: Tensor, chains: slice | Tensor | None) -> Tensor:
        """Returns the log probabilities of a union of cells, with shape $(B,)$.

        Args:
            reading: The result of `Variable.read`.
            cells: The indices of the cells, ascending.
            x: The points, with shape $(B, *)$.
            chains: The chains of the points; None if they are all chains.
        """


@dataclass(frozen=True)
class LabelCells(Cells):
    """A partition of labels.

    Args:
        groups: The labels of each cell, ascending; empty for the rest if the number of labels is unknown.
    """

    groups: tuple[tuple[Label, ...], ...]

    @classmethod
    def from_sets(cls, sets: Iterable[frozenset[int] | ChainLabels], count: int | None) -> LabelCells:
        """Returns the partition of labels by sets of labels.

        Raises:
            OptionError: A label is out of range.
            ExpressionError: Labels are the same in some chains and not in others.
            ShapeError: Labels are for different numbers of chains.
        """
        sets = list(dict.fromkeys(sets))
        mentioned: list[Label] = sorted(frozenset().union(*(s for s in sets if not isinstance(s, ChainLabels))))
        largest = max([*mentioned[-1:], *(int(s.labels.max()) for s in sets if isinstance(s, ChainLabels))], default=-1)
        if count is not None and largest >= count:
            raise OptionError(f"Label {largest} is out of range: there are {count} labels, 0 to {count - 1}.")
        for s in sets:
            if isinstance(s, ChainLabels) and not any(_same(s.labels, label) for label in mentioned):
                mentioned.append(s.labels)
        classes: dict[tuple[bool, ...], list[Label]] = {}
        for label in mentioned:
            classes.setdefault(tuple(_has(s, label) for s in sets), []).append(label)
        groups = [tuple(group) for group in classes.values()]
        if count is None:
            groups.append(())
        elif len(mentioned) < count:
            chained = any(isinstance(label, Tensor) for label in mentioned)
            groups.append(() if chained else tuple(label for label in range(count) if label not in mentioned))
        return cls(tuple(groups))

    def label(self, cells: Sequence[int]) -> int | None:
        labels = [label for cell in cells for label in self.groups[cell]]
        return labels[0] if len(labels) == 1 and isinstance(labels[0], int) else None

    def members(self, values: frozenset[int] | ChainLabels) -> tuple[bool, ...]:
        return tuple(bool(group) and _has(values, group[0]) for group in self.groups)

    def log_prob(self, reading: Tensor, cells: Sequence[int], x: Tensor, chains: slice | Tensor | None) -> Tensor:
        if any(isinstance(label, Tensor) for group in self.groups for label in group):
            return self._log_prob_of_each(reading, cells, chains)
        labels = sorted(label for cell in cells for label in self.groups[cell] if isinstance(label, int))
        if len(labels) == 1:
            return reading[:, labels[0]]
        runs = [[label for _, label in run] for _, run in groupby(enumerate(labels), key=lambda pair: pair[1] - pair[0])]
        parts = [reading[:, run[0] : run[-1] + 1] for run in runs]
        return log_sum(parts[0] if len(parts) == 1 else torch.cat(parts, 1), 1)

    def _log_prob_of_each(self, reading: Tensor, cells: Sequence[int], chains: slice | Tensor | None) -> Tensor:
        chosen = [self.groups[cell] for cell in cells]
        rest = () in chosen
        labels = [label for group in (self.groups if rest else chosen) for label in group if not (rest and group in chosen)]
        columns = [rows_for("y", label, reading, chains).unsqueeze(1) for label in labels]  # with the rest: the labels to exclude
        if len(columns) == 1 and not rest:
            return reading.gather(1, columns[0]).squeeze(1)
        wanted = torch.full_like(reading, rest, dtype=torch.bool)
        for column in columns:
            wanted = wanted.scatter(1, column, not rest)
        return log_sum(reading.masked_fill(~wanted, -torch.inf), 1)


@dataclass(frozen=True, eq=False)
class IntervalCells(Cells):
    """A partition of the line at sorted ends.

    Args:
        ends: The ends, ascending and distinct.
    """

    ends: tuple[End, ...]

    @classmethod
    def from_intervals(cls, intervals: Iterable[Interval]) -> IntervalCells:
        """Returns the partition of the line at the ends of intervals.

        Raises:
            ExpressionError: The order of ends differs between chains.
            ShapeError: Ends are for different numbers of chains.
        """
        ends: list[End] = []
        for end in sorted((end for interval in intervals for end in interval.ends), key=cmp_to_key(compare)):
            if not ends or compare(ends[-1], end) != 0:
                ends.append(end)
        return cls(tuple(ends))

    def members(self, values: Interval) -> tuple[bool, ...]:
        lows, highs = (-float("inf"), *self.ends), (*self.ends, float("inf"))
        return tuple(compare(values.low, low) <= 0 and compare(high, values.high) <= 0 for low, high in zip(lows, highs, strict=True))

    def log_prob(self, reading: tuple[Tensor, Tensor], cells: Sequence[int], x: Tensor, chains: slice | Tensor | None) -> Tensor:
        mean, width = reading
        runs = [[cell for _, cell in run] for _, run in groupby(enumerate(cells), key=lambda pair: pair[1] - pair[0])]
        parts = []
        for run in runs:
            low = self._rows(run[0] - 1, mean, chains) if run[0] > 0 else None
            high = self._rows(run[-1], mean, chains) if run[-1] < len(self.ends) else None
            parts.append(log_probability(mean, width, low, high))
        return parts[0] if len(parts) == 1 else log_sum(torch.stack(parts), 0)

    def _rows(self, index: int, mean: Tensor, chains: slice | Tensor | None) -> Tensor | float:
        end = self.ends[index]
        return rows_for("c", end, mean, chains) if isinstance(end, Tensor) else end


def compare(a: End, b: End) -> int:
    """Returns -1, 0 or 1 if an end is below, at or above another in all chains.

    Raises:
        ExpressionError: The order differs between chains.
        ShapeError: The ends are for different numbers of chains.
    """
    if not isinstance(a, Tensor) and not isinstance(b, Tensor):
        return (a > b) - (a < b)
    first, second = (torch.as_tensor(end, dtype=torch.float64, device="cpu") for end in (a, b))
    if first.ndim and second.ndim and len(first) != len(second) and 1 not in (len(first), len(second)):
        raise ShapeError(f"A formula has interval ends for {len(first)} chains and for {len(second)}.")
    for order, holds in ((-1, first < second), (0, first == second), (1, first > second)):
        if bool(holds.all()):
            return order
    chains, below = max(first.numel(), second.numel()), int((first < second).sum())
    raise ExpressionError(
        f"Interval ends cross: one is below another in {below} chains of {chains} and not in the others. Intervals of one variable in a "
        "formula need the same order in all chains: sample the chains of each order in a separate call."
    )


def _bytes(values: Tensor, dtype: torch.dtype) -> bytes:
    """Returns values as bytes, for comparing and hashing; -0 becomes 0."""
    return (values.to("cpu", dtype) + 0).numpy().tobytes()


def _has(values: frozenset[int] | ChainLabels, label: Label) -> bool:
    return any(_same(label, value) for value in ([values.labels] if isinstance(values, ChainLabels) else values))


def _same(a: Label, b: Label) -> bool:
    """Returns whether labels are the same in all chains.

    Raises:
        ExpressionError: They are the same in some chains only.
        ShapeError: The labels are for different numbers of chains.
    """
    if isinstance(a, int) and isinstance(b, int):
        return a == b
    first, second = (torch.as_tensor(label, device="cpu") for label in (a, b))
    if first.ndim and second.ndim and len(first) != len(second):
        raise ShapeError(f"A formula has labels for {len(first)} chains and for {len(second)}.")
    same = first == second
    if bool(same.any()) and not bool(same.all()):
        raise ExpressionError(
            f"Labels of one variable are the same in {int(same.sum())} chains of {len(same)} and differ in the others. In a formula they "
            "must be the same in all chains or in none: sample the chains of each kind in a separate call."
        )
    return bool(same.all())


# Sums and Gaussian intervals in log space ------------------------------------------------------------------------------------------------
#
# log(Phi(b) - Phi(a)) is accurate in both tails. Far from the mean the two terms differ by less than their rounding, and in float32 their
# logarithms reach -1e12. So tails are computed with the scaled complementary error function, Phi(-t) = exp(-t^2 / 2) erfcx(t / sqrt 2) / 2,
# and the ratio of two tails from the width of the interval, without cancellation (W. J. Cody, 1969: erfcx and its use in tails).


def log_probability(mean: Tensor, width: Tensor, low: Tensor | float | None, high: Tensor | float | None) -> Tensor:
    r"""Returns $\log P(\text{low} < v < \text{high})$ for $v \sim \mathcal N(\text{mean}, \text{width}^2)$, with shape $(B,)$.

    Values and gradients are finite if mean, ends, and the squared distances in widths are finite.

    Args:
        mean: The means, with shape $(B,)$.
        width: The standard deviations, with shape $(B,)$.
        low: The lower end, a number or one for each row; None for $-\infty$.
        high: The upper end, a number or one for each row; None for $\infty$.
    """
    if low is None:
        return torch.zeros_like(mean) if high is None else _log_tail((mean - high) / width)
    if high is None:
        return _log_tail((low - mean) / width)
    a, b = (low - mean) / width, (high - mean) / width
    smallest = torch.finfo(mean.dtype).tiny ** 0.5
    span = ((high - low) / width).clamp(min=smallest)  # not b - a, which is 0 where both round to the same number
    above, below = a >= 0, b <= 0
    astride = ~(above | below)

    # The mean is inside: a sum of two positive parts. Elsewhere safe values replace the input, so that no gradient is NaN.
    left, right = torch.where(astride, -a, 1.0), torch.where(astride, b, 1.0)
    inside = ((torch.erf(left * math.sqrt(0.5)) + torch.erf(right * math.sqrt(0.5))) / 2).clamp(min=smallest).log()

    # The mean is outside: the tail beyond the near end minus the tail beyond the far end, with ratio exp(-gap).
    near = torch.where(above, a, torch.where(below, -b, 0.0))
    far = near + span
    gap = span * (near + far) / 2 + _log_scaled_tail(near) - _log_scaled_tail(far)
    gap = torch.maximum(gap, span * math.sqrt(2 / math.pi))  # the smallest hazard rate; the difference may round to 0
    outside = -near.square() / 2 + _log_scaled_tail(near) + (-torch.expm1(-gap)).log()
    return torch.where(astride, inside, outside)


def log_sum(logs: Tensor, axis: int) -> Tensor:
    r"""Returns $\log \sum e^{\text{logs}}$ along an axis.

    Its gradients, the shares, sum to 1 for numbers of any size; those of `torch.logsumexp` are computed from its rounded result and are
    off by .0005 at $10^4$ in `float32`.
    """
    largest = logs.amax(axis, keepdim=True).detach()
    return (logs - largest).exp().sum(axis).log() + largest.squeeze(axis)


def _log_tail(t: Tensor) -> Tensor:
    r"""Returns $\log \Phi(-t)$; the gradients of `torch.special.log_ndtr` are infinite in the far tail in `float32`."""
    right = t > 0
    out, back = torch.where(right, t, 0.0), torch.where(right, 0.0, -t)
    return torch.where(right, -out.square() / 2 + _log_scaled_tail(out), torch.log1p(-torch.erfc(back * math.sqrt(0.5)) / 2))


def _log_scaled_tail(t: Tensor) -> Tensor:
    r"""Returns $\log \Phi(-t) + t^2 / 2$ for $t \ge 0$."""
    return (torch.special.erfcx(t * math.sqrt(0.5)) / 2).log()
