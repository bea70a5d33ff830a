r"""Draws of a trace, and their R-hat, effective sample sizes and standard errors of draws, computed by ArviZ.

If there are too many coordinates for ArviZ, all get the classic split R-hat in one pass; ArviZ gets the worst of them and some at even
distances. If there are too many chains, it gets some at even distances. A single chain has the R-hat of its quarters, taken as chains.

References:
    Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of MCMC (Vehtari et al., 2021),
    https://doi.org/10.1214/20-BA1221
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import import_extra

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace

LEAST_DRAWS = 4  # ArviZ needs
MOST_CHAINS = 512  # for ArviZ
_MOST_NUMBERS = 4_000_000  # for ArviZ, about two seconds
_COORDINATES = (8, 64)
_WORST = 8


@dataclass(frozen=True)
class Draws:
    """The draws of a trace for diagnostics, from the $c$ chains that never diverged.

    Args:
        steps: The $d$ steps, counted from 1.
        chains: The ids of the chains, with shape $(c,)$.
        energies: The energies, with shape $(d, c)$, in float64.
        points: The points, with shape $(d, c, *)$; None if none were kept.
        acceptance: The mean acceptance of each chain from the first draw on, with shape $(c,)$; None for a sampler that never rejects.
        mean_acceptance: The mean of all these acceptances that the sampler tunes for, `Traits.mean_acceptance`; None as above.
        description: The steps in words.
    """

    steps: Sequence[int]
    chains: Tensor
    energies: Tensor
    points: Tensor | None
    acceptance: Tensor | None
    mean_acceptance: float | None
    description: str


def select_draws(trace: Trace, burn_in: int | None) -> Draws:
    """Returns the points that were kept; else the steps after the burn-in, or without burn-in the later half of the steps.

    A sampler with a fixed schedule has draws at its last step only.

    Args:
        trace: The trace.
        burn_in: The number of steps to leave out, from the start of the chains; None for that of the trace.

    Raises:
        OptionError: The burn-in leaves no draws.
    """
    before = trace.steps - len(trace.energies)  # steps of earlier calls
    steps: Sequence[int]
    recorded = range(before + 1, trace.steps + 1)
    if not trace.sampler.stationary:
        steps, description = recorded[-1:], "the last step; earlier ones are no draws"
        points = trace.points[-1:] if trace.points is not None and trace.point_steps[-1:] == list(steps) else None
    elif trace.points is not None:
        rows = [row for row, step in enumerate(trace.point_steps) if step > (burn_in or 0)]
        steps = [trace.point_steps[row] for row in rows]
        description = "the points that were kept"
        points = trace.points[rows] if len(rows) < len(trace.points) else trace.points
    else:
        first = max(before, (trace.burn_in or before + len(recorded) // 2) if burn_in is None else burn_in)
        steps, points = recorded[first - before :], None
        description = "the later half of the steps" if burn_in is None and not trace.burn_in else f"the steps after {first}"
    if burn_in is not None and not len(steps):
        last = trace.point_steps[-1] if trace.point_steps else trace.steps
        raise OptionError(f"burn_in={burn_in} leaves nothing: the trace ends at step {last}.")
    chains = (trace.diverged_at < 0).nonzero().squeeze(1)
    energies = trace.energies[[step - before - 1 for step in steps]].cpu()[:, chains].double()
    rates, mean = trace.acceptance, None
    if rates is not None:
        late = trace.steps - steps[0] + 1 if len(steps) else 0
        rates = rates[max(0, len(rates) - late) :].cpu()[:, chains].double() if late and len(rates) and len(chains) else None
        if rates is not None:
            means = trace.sampler.traits.mean_acceptance
            mean, rates = (rates if means is None else means(rates)).nanmean().item(), rates.nanmean(0)
    if points is not None and len(chains) < points.shape[1]:
        points = points[:, chains.to(points.device)]
    return Draws(steps, chains + trace.chains.start, energies, points, rates, mean, description)


@dataclass(frozen=True)
class Row:
    """The statistics of one quantity, such as a coordinate or the energy; NaN if unknown.

    Args:
        name: The name of the quantity.
        mean: The mean over all draws.
        sd: The standard deviation.
        mcse: The standard error of the mean.
        ess_bulk: The effective sample size of the ranks.
        ess_tail: The smaller effective sample size of the 5 % and the 95 % quantile.
        r_hat: The rank-normalised split R-hat.
    """

    name: str
    mean: float
    sd: float
    mcse: float = math.nan
    ess_bulk: float = math.nan
    ess_tail: float = math.nan
    r_hat: float = math.nan


def compute_statistics(names: Sequence[str], values: Tensor, by_arviz: bool) -> list[Row]:
    """Returns the statistics of some quantities.

    Args:
        names: Their names.
        values: Their draws, with shape (draws, chains, quantities).
        by_arviz: Whether to use ArviZ; it must be installed, with enough draws.
    """
    values = values.double()
    several = values[..., 0].numel() > 1
    means, sds = values.mean((0, 1)).tolist(), values.flatten(0, 1).std(0).tolist() if several else [math.nan] * len(names)
    figures = [[math.nan] * 4 for _ in names]
    if by_arviz:
        statistics = import_extra("arviz_stats.base", "diagnostics").array_stats
        array, axes = _thin(values, 1, MOST_CHAINS).permute(1, 0, 2).numpy(), {"chain_axis": 0, "draw_axis": 1}
        with np.errstate(all="ignore"):  # a coordinate that never moves has no R-hat
            columns = (
                statistics.mcse(array, method="mean", **axes),
                statistics.ess(array, method="bulk", **axes),
                statistics.ess(array, method="tail", prob=(0.05, 0.95), **axes),
                statistics.rhat(array if len(array) > 1 else _quarters(array), **axes),
            )
        still = (array == array[:1, :1]).all((0, 1))
        figures = np.where(still[:, None], np.nan, np.stack([np.broadcast_to(column, still.shape) for column in columns], 1)).tolist()
    return [Row(name, mean, sd, *some) for name, mean, sd, some in zip(names, means, sds, figures, strict=True)]


def screen_coordinates(values: Tensor) -> tuple[list[int], list[int]]:
    """Returns coordinates at even distances, and the worst of the others.

    Args:
        values: All draws, with shape (draws, chains, coordinates).
    """
    draws, chains, coordinates = values.shape
    least, most = _COORDINATES
    room = max(least, min(most, _MOST_NUMBERS // max(1, draws * min(chains, MOST_CHAINS))))
    if coordinates <= room:
        return list(range(coordinates)), []
    chunk = max(1, 4 * _MOST_NUMBERS // (draws * chains))
    worst = torch.cat([_split_r_hat(some) for some in values.split(chunk, 2)]).topk(_WORST).indices.tolist()
    even = _even_indices(coordinates, max(least, room - _WORST))
    return even, [index for index in worst if index not in even]


def _split_r_hat(values: Tensor) -> Tensor:
    """Returns the classic split R-hat without ranks, as a ratio of variances; 0 for constant coordinates."""
    half = len(values) // 2
    if half < 2:
        return values.new_zeros(values.shape[2], dtype=torch.float64)
    halves = torch.cat([values[:half], values[-half:]], 1).double()
    within, between = halves.var(0).mean(0), halves.mean(0).var(0)
    return torch.where(within > 0, between / within, torch.where(between > 0, torch.inf, 0.0))


def _quarters(array: np.ndarray) -> np.ndarray:
    """Returns the quarters of a single chain as chains; the chain itself if it is too short."""
    size = array.shape[1] // 4
    return array[:, -4 * size :].reshape(4, size, -1) if size >= LEAST_DRAWS else array


def _thin(values: Tensor, axis: int, most: int) -> Tensor:
    count = values.shape[axis]
    return values if count <= most else values.index_select(axis, torch.tensor(_even_indices(count, most)))


def _even_indices(count: int, some: int) -> list[int]:
    return [i * count // some for i in range(some)]
