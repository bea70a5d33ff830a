"""Compares draws with a density on a grid: p-values of groups of cells of equal probability, along several directions."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from tests.truth.expressions import Case
from tests.truth.spaces import Array

_GROUPS = 10
_LEAST = 0.7  # of the binomial standard error, which resampling that is systematic may fall below


@dataclass(frozen=True)
class Comparison:
    """The smallest p-value of a run, of how many, and where it is."""

    p: float
    count: int
    where: str


def _directions(case: Case) -> Iterator[tuple[str, Array]]:
    """Yields numbers for all cells, along which these are cut into groups."""
    number = np.arange(len(case.shares))
    yield "energy", case.energies
    if len(case.space.axes) == 1:
        yield "x", number
        return
    first, second = np.divmod(number, round(len(case.shares) ** 0.5))
    yield from (("x", first), ("y", second), ("x + y", first + second), ("x - y", first - second))


def _groups(case: Case) -> Iterator[tuple[str, Array, Array]]:
    """Yields, for each direction, the group of each cell and the probabilities of the groups; cells with one number stay together."""
    for name, values in _directions(case):
        values, inverse = np.unique(values, return_inverse=True)
        shares = np.bincount(inverse, case.shares, len(values))
        group = np.minimum((_GROUPS * (shares.cumsum() - shares / 2)).astype(np.int64), _GROUPS - 1)
        yield name, group[inverse], np.bincount(group, shares, _GROUPS)


def _least(found: Sequence[tuple[float, str]]) -> Comparison:
    p, where = min(found)
    return Comparison(p, len(found), where)


def compare_independent(case: Case, draws: Tensor) -> Comparison:
    """Compares independent draws, by binomial tests."""
    cells, found = case.space.cells(draws.double().numpy()), []
    for name, group, shares in _groups(case):
        counts = np.bincount(group[cells], minlength=_GROUPS)
        for k in np.flatnonzero(shares):
            law = stats.binom(len(cells), min(shares[k], 1.0))
            p = min(1.0, 2 * min(law.cdf(counts[k]), law.sf(counts[k] - 1)))
            found.append((p, f"{name}, group {k}: {counts[k] / len(cells):.3f} for {shares[k]:.3f}"))
    return _least(found)


def compare_runs(case: Case, runs: Sequence[Tensor]) -> Comparison:
    """Compares draws that depend on each other within a run, by the spread between independent runs."""
    cells, found = [case.space.cells(draws.double().numpy()) for draws in runs], []
    for name, group, shares in _groups(case):
        counts = np.stack([np.bincount(group[cell], minlength=_GROUPS) / len(cell) for cell in cells])
        binomial = np.sqrt(shares * (1 - shares) / len(cells[0]))
        errors = np.maximum(counts.std(0, ddof=1), _LEAST * binomial) / np.sqrt(len(runs))
        for k in np.flatnonzero(shares * (1 - shares)):
            z = (counts[:, k].mean() - shares[k]) / errors[k]
            told = f"{name}, group {k}: {counts[:, k].mean():.3f} for {shares[k]:.3f}"
            found.append((float(2 * stats.t.sf(abs(z), len(runs) - 1)), told))
    return _least(found)
