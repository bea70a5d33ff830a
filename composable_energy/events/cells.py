r"""Cells: the partition of the values of a variable by the atoms of a formula, and probabilities of intervals in log space.

Labels that occur in the same atoms form one cell; labels that occur in none form the rest. The ends of intervals cut the line. A formula
depends on a variable only through its cell, so a diagram has one edge for each cell. Labels and ends may differ between chains if the same
atoms overlap in all chains, so that one diagram serves all chains.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cmp_to_key
from itertools import groupby, pairwise
from operator import contains
from typing import Any

import torch
from torch import Tensor

from composable_energy.energies.conditions import rows_for
from composable_energy.errors import ExpressionError, OptionError, ShapeError


class ChainValues:
    """One label or end for each chain, copied from a tensor of shape $(n,)$; compared by value, whatever the dtype."""

    def __init__(self, values: Tensor) -> None:
        self.values = values.detach().clone()
        self.key = (self.values.to("cpu", torch.float64) + 0).numpy().tobytes()  # -0 becomes 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ChainValues) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)


Label = int | ChainValues
End = float | ChainValues


@dataclass(frozen=True)
class Interval:
    r"""The values between two ends, which are numbers or differ between chains; $\pm\infty$ for none."""

    low: End
    high: End


def differs(values: frozenset[Label] | Interval) -> bool:
    """Returns whether labels or the ends of an interval differ between chains."""
    return any(isinstance(value, ChainValues) for value in ((values.low, values.high) if isinstance(values, Interval) else values))


class LabelCells:
    """The partition of labels by atoms, which are sets of labels; `count` is the number of labels, None if it is unknown."""

    def __init__(self, atoms: Iterable[frozenset[Label]], count: int | None) -> None:
        atoms = list(dict.fromkeys(atoms))
        labels = dict.fromkeys(label for atom in atoms for label in atom)
        largest = max((int(label.values.max()) if isinstance(label, ChainValues) else label for label in labels), default=-1)
        if count is not None and largest >= count:
            raise OptionError(f"Label {largest} is out of range: there are {count} labels, 0 to {count - 1}.")
        self._contains = _contains if differs(frozenset(labels)) else contains  # which does not compare all labels
        mentioned: list[Label] = [*sorted(label for label in labels if isinstance(label, int))]
        for label in labels:
            if isinstance(label, ChainValues) and not _contains(mentioned, label):
                mentioned.append(label)
        classes: dict[tuple[bool, ...], list[Label]] = {}
        for label in mentioned:
            classes.setdefault(tuple(self._contains(atom, label) for atom in atoms), []).append(label)
        self.groups: list[tuple[Label, ...]] = [tuple(group) for group in classes.values()]  # () is the rest, if it cannot be listed
        self.chained = differs(frozenset(mentioned))
        if count is None or (self.chained and len(mentioned) < count):
            self.groups.append(())
        elif len(mentioned) < count:
            self.groups.append(tuple(label for label in range(count) if label not in mentioned))

    def members(self, values: frozenset[Label]) -> tuple[bool, ...]:
        """Returns for each cell whether an atom contains it."""
        return tuple(bool(group) and self._contains(values, group[0]) for group in self.groups)

    def log_prob(self, reading: Tensor, cells: Sequence[int], chains: Tensor | None) -> Tensor:
        """Returns the log probabilities of a union of ascending cells, with shape $(B,)$; `chains` are those of points, None for all."""
        chosen = [self.groups[cell] for cell in cells]
        if not self.chained:
            parts = [reading[:, first : last + 1] for first, last in _runs(sorted(label for group in chosen for label in group))]
            whole = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
            return whole[:, 0] if whole.shape[1] == 1 else log_sum(whole, 1)
        rest = () in chosen
        listed = [label for group in self.groups for label in group if (group in chosen) != rest]  # with the rest: those to exclude
        rows = [rows_for("y", label.values if isinstance(label, ChainValues) else label, reading, chains) for label in listed]
        if len(columns := [row.long().unsqueeze(1) for row in rows]) == 1 and not rest:
            return reading.gather(1, columns[0]).squeeze(1)
        wanted = torch.full_like(reading, rest, dtype=torch.bool)
        for column in columns:
            wanted = wanted.scatter(1, column, not rest)
        return log_sum(reading.masked_fill(~wanted, -torch.inf), 1)


class IntervalCells:
    """The partition of the line at the ends of intervals, whose order is the same in all chains."""

    def __init__(self, atoms: Iterable[Interval]) -> None:
        ends = [end for atom in atoms for end in (atom.low, atom.high) if isinstance(end, ChainValues) or math.isfinite(end)]
        self.ends: list[End] = []
        for end in sorted(ends, key=cmp_to_key(_compare)):
            if not self.ends or _compare(self.ends[-1], end) != 0:
                self.ends.append(end)

    def members(self, values: Interval) -> tuple[bool, ...]:
        """Returns for each cell whether an atom contains it."""
        ends = [-math.inf, *self.ends, math.inf]
        return tuple(_compare(values.low, low) <= 0 <= _compare(values.high, high) for low, high in pairwise(ends))

    def log_prob(self, reading: tuple[Tensor, Tensor], cells: Sequence[int], chains: Tensor | None) -> Tensor:
        """Returns the log probabilities of a union of cells; see `LabelCells.log_prob`."""
        mean, width = reading
        sides = [None, *(rows_for("c", end.values, mean, chains) if isinstance(end, ChainValues) else end for end in self.ends), None]
        parts = [log_probability(mean, width, sides[first], sides[last + 1]) for first, last in _runs(cells)]
        return parts[0] if len(parts) == 1 else log_sum(torch.stack(parts), 0)


def _runs(numbers: Iterable[Any]) -> list[tuple[int, int]]:
    """Returns the first and last of each run of consecutive numbers, given in ascending order."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])]
    return [(run[0], run[-1]) for run in runs]


def _contains(values: Iterable[Label], label: Label) -> bool:
    return any(_compare(label, value, "Labels") == 0 for value in values)


def _compare(a: float | ChainValues, b: float | ChainValues, what: str = "Ends of intervals") -> int:
    """Returns -1, 0 or 1 if a value is below, at or above another in all chains; for labels 0 or 1, as their order does not matter."""
    if not isinstance(a, ChainValues) and not isinstance(b, ChainValues):
        return (a > b) - (a < b)
    values = [value.values if isinstance(value, ChainValues) else torch.tensor([value]) for value in (a, b)]
    if len({1, *map(len, values)}) > 2:
        raise ShapeError(f"{what} of one formula are for {len(values[0])} chains and for {len(values[1])}.")
    first, second = (value.to("cpu", torch.float64) for value in values)
    orders = torch.sign(first - second).abs() if what == "Labels" else torch.sign(first - second)
    if len(set(orders.tolist())) > 1:
        raise ExpressionError(
            f"{what} of one variable are the same in {int((first == second).sum())} chains of {len(orders)}, and one is below another in "
            f"{int((first < second).sum())} chains of {len(orders)}. In a formula they must compare alike in all chains: sample the chains "
            "of each kind in a separate call."
        )
    return int(orders[0]) if len(orders) else 0


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
    return torch.where(astride, inside, -near.square() / 2 + _log_scaled_tail(near) + (-torch.expm1(-gap)).log())


def log_sum(logs: Tensor, axis: int) -> Tensor:
    r"""Returns $\log \sum e^{\text{logs}}$ along an axis. Its gradients sum to 1; in float32 those of `torch.logsumexp` do not."""
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
