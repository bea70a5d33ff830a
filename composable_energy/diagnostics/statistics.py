r"""R-hat, effective sample sizes and standard errors of draws, by ArviZ.

Of points with very many coordinates not all are judged. Each gets the classic split R-hat, which costs one pass; the worst of those and
some at even distances go to ArviZ, and of more chains than it can digest, some at even distances.

References:
    Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of MCMC (Vehtari et al., 2021),
    https://doi.org/10.1214/20-BA1221
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import ExtraNotInstalled

__all__ = ["LEAST_DRAWS", "MOST_CHAINS", "Row", "compute_statistics", "import_extra", "screen_coordinates"]

LEAST_DRAWS = 4  # that ArviZ asks for
MOST_CHAINS = 512  # that it gets
_MOST_NUMBERS = 4_000_000  # that ArviZ gets, in about two seconds
_COORDINATES = (8, 64)
_WORST = 8


@dataclass(frozen=True)
class Row:
    """The statistics of one number of a draw, such as a coordinate or the energy; not a number where they are unknown.

    Args:
        name: Which.
        mean: The mean over all draws.
        sd: The standard deviation.
        mcse: The standard error of the mean.
        ess_bulk: The effective sample size, of the ranks.
        ess_tail: The least effective sample size of the 5 % and the 95 % quantile.
        r_hat: The rank-normalised split R-hat.
    """

    name: str
    mean: float
    sd: float
    mcse: float = math.nan
    ess_bulk: float = math.nan
    ess_tail: float = math.nan
    r_hat: float = math.nan


def import_extra(module: str) -> Any:
    """Imports a module of the extra `diagnostics`.

    Raises:
        ExtraNotInstalled: It is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraNotInstalled(
            f"This needs {module.partition('.')[0]}, which is not installed: pip install 'composable-energy[diagnostics]'."
        ) from error


def compute_statistics(names: Sequence[str], values: Tensor, by_arviz: bool) -> list[Row]:
    """Returns the statistics of some numbers.

    Args:
        names: Their names.
        values: Their draws, with shape (draws, chains, numbers).
        by_arviz: Whether ArviZ is there, and there are enough draws for it.
    """
    values = values.double()
    several = values[..., 0].numel() > 1
    means, sds = values.mean((0, 1)).tolist(), values.flatten(0, 1).std(0).tolist() if several else [math.nan] * len(names)
    figures = [[math.nan] * 4 for _ in names]
    if by_arviz:
        statistics = import_extra("arviz_stats.base").array_stats
        array, axes = _thin(values, 1, MOST_CHAINS).permute(1, 0, 2).numpy(), {"chain_axis": 0, "draw_axis": 1}
        with np.errstate(all="ignore"):  # a coordinate that never moves has no R-hat
            columns = (
                statistics.mcse(array, method="mean", **axes),
                statistics.ess(array, method="bulk", **axes),
                statistics.ess(array, method="tail", prob=(0.05, 0.95), **axes),
                statistics.rhat(array, **axes),
            )
        still = (array == array[:1, :1]).all((0, 1))
        figures = np.where(still[:, None], np.nan, np.stack([np.broadcast_to(column, still.shape) for column in columns], 1)).tolist()
    return [Row(name, mean, sd, *some) for name, mean, sd, some in zip(names, means, sds, figures, strict=True)]


def screen_coordinates(values: Tensor) -> tuple[list[int], list[int]]:
    """Returns which coordinates stand for all, and which of the others look worst.

    Args:
        values: All draws, with shape (draws, chains, coordinates).
    """
    draws, chains, coordinates = values.shape
    least, most = _COORDINATES
    room = max(least, min(most, _MOST_NUMBERS // max(1, draws * min(chains, MOST_CHAINS))))
    if coordinates <= room:
        return list(range(coordinates)), []
    together = max(1, 4 * _MOST_NUMBERS // (draws * chains))
    worst = torch.cat([_split_r_hat(some) for some in values.split(together, 2)]).topk(_WORST).indices.tolist()
    even = _even_indices(coordinates, max(least, room - _WORST))
    return even, [place for place in worst if place not in even]


def _split_r_hat(values: Tensor) -> Tensor:
    """The classic one, before ranks; 0 where nothing moves."""
    half = len(values) // 2
    if half < 2:
        return values.new_zeros(values.shape[2], dtype=torch.float64)
    halves = torch.cat([values[:half], values[-half:]], 1).double()
    within, between = halves.var(0).mean(0), halves.mean(0).var(0)
    return torch.where(within > 0, between / within, torch.where(between > 0, torch.inf, 0.0))


def _thin(values: Tensor, axis: int, most: int) -> Tensor:
    count = values.shape[axis]
    return values if count <= most else values.index_select(axis, torch.tensor(_even_indices(count, most)))


def _even_indices(count: int, some: int) -> list[int]:
    return [place * count // some for place in range(some)]
