"""What data are by value, so that a run goes on with the data that it was trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.files import digest_of

__all__ = ["Fingerprint", "fingerprint_of"]

_MOST = 2**28  # numbers of all rows together: a few seconds
_GROUPS = 1024
_ROUNDING = 1e-4


@dataclass(frozen=True)
class Fingerprint:
    """What data are by value.

    Args:
        digest: Of values that are compared to the bit.
        sums: For groups of rows of a tensor with fractions, a weighted sum and the norm. They are compared up to rounding: such a tensor
            may have been computed by a network, on another device or with another number of threads.
    """

    digest: str
    sums: Sequence[Sequence[float]] = ()

    def alike(self, other: Fingerprint) -> bool:
        """Whether both are of the same data."""
        if self.digest != other.digest or len(self.sums) != len(other.sums):
            return False
        mine, its = (torch.tensor(sums, dtype=torch.float64).view(-1, 2) for sums in (self.sums, other.sums))
        close = (mine - its).abs() <= _ROUNDING * torch.maximum(mine, its)[:, 1:]
        return bool((close | mine.isnan() & its.isnan() | (mine == its)).all())


def fingerprint_of(count: int, points: Callable[[Tensor], Tensor], labels: Mapping[str, Tensor], *, computed: bool) -> Fingerprint:
    """Returns the fingerprint of all labels and all rows, or of rows that are spread evenly where there are more than $2^{28}$ numbers.

    Args:
        count: How many rows there are.
        points: Returns rows by their indices.
        labels: One value for each row, by name.
        computed: Whether rows may differ by rounding.
    """
    digest, sums = digest_of(labels), []
    size = max(1, points(torch.zeros(1, dtype=torch.int64)).numel())
    rows = torch.linspace(0, count - 1, min(count, max(1, _MOST // size)), dtype=torch.float64).round().long()
    some = -(-len(rows) // _GROUPS)
    weights = torch.arange(some * size, dtype=torch.float64).cos_()  # different ones, so that the order of rows counts
    for group in rows.split(some):
        x = points(group)
        if computed:
            wide = x.detach().to("cpu", torch.float64).flatten()
            sums.append((float(wide @ weights[: len(wide)]), float(wide.norm())))
        else:
            digest = digest_of({"x": x}, digest)
    return Fingerprint(digest, tuple(sums))
