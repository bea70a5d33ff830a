"""Fingerprints of data by value, to check that a run resumes with the data that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.files import digest_of

_MOST = 2**28  # numbers that are read, over all rows: a few seconds
_GROUPS = 1024
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Fingerprint:
    """A summary of data by value."""

    digest: str  # a digest of the values that are compared bit by bit
    # For each group of rows with fractions, a weighted sum and the norm. They are compared up to rounding, since such rows may be computed
    # by a network, on another device or with another number of threads.
    sums: Sequence[Sequence[float]] = ()

    def matches(self, other: Fingerprint) -> bool:
        """Returns whether both fingerprints are of the same data."""
        if self.digest != other.digest or len(self.sums) != len(other.sums):
            return False
        ours, theirs = (torch.tensor(sums, dtype=torch.float64).view(-1, 2) for sums in (self.sums, other.sums))
        close = (ours - theirs).abs() <= _ROUNDING * torch.maximum(ours, theirs)[:, 1:]
        return bool((close | ours.isnan() & theirs.isnan() | (ours == theirs)).all())


def fingerprint_rows(count: int, points: Callable[[Tensor], Tensor], labels: Mapping[str, Tensor], *, rounded: bool) -> Fingerprint:
    """Returns the fingerprint of all labels and all rows, or of evenly spaced rows if there are more than $2^{28}$ numbers.

    `points` is a function from indices to rows; `rounded` ones may differ by rounding.
    """
    digest, sums = digest_of(labels), []
    size = max(1, points(torch.zeros(1, dtype=torch.int64)).numel())
    rows = torch.linspace(0, count - 1, min(count, max(1, _MOST // size)), dtype=torch.float64).round().long()
    length = -(-len(rows) // _GROUPS)
    weights = torch.arange(length * size, dtype=torch.float64).cos_()  # unequal weights detect a changed order of rows
    for group in rows.split(length):
        x = points(group)
        if rounded:
            values = x.detach().to("cpu", torch.float64).flatten()
            sums.append((float(values @ weights[: len(values)]), float(values.norm())))
        else:
            digest = digest_of({"x": x}, digest)
    return Fingerprint(digest, tuple(sums))
