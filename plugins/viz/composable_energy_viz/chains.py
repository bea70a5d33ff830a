"""The energies of chains, step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from composable_energy.errors import OptionError
from composable_energy.options import check_integer
from composable_energy.sampling import Trace
from composable_energy_viz.canvas import DOT, INK, LINES, MUTED, finish, open_axes, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CHAINS, _STEPS = 256, 2_000  # chains in the band, and steps that are drawn


def trace(record: Trace, *, chains: int = 5, ax: Axes | None = None, path: str | Path | None = None) -> Figure:
    """Returns a picture of the energies of chains after each step: the median, the band that holds 90 % of the chains, and some chains.

    The burn-in is shaded, and the ends of chains that diverged are marked. The steps are those of the call that the trace is of.

    Args:
        record: The trace of `sample(..., trace=True)`.
        chains: The number of single chains.
        ax: Axes to draw on; None makes a figure. The figure is also written to the file `path`, if given.

    Raises:
        OptionError: It is no trace, or has no energies, as that of an energy without values.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> _, record = bowl.sample(50, seed=0, steps=20, trace=True)
        >>> figure = ce.viz.trace(record)
    """
    if not isinstance(record, Trace):
        raise OptionError(f"`trace` draws the Trace that `sample(..., trace=True)` returned, got {type(record).__name__}.")
    single = check_integer("chains", chains, least=0)
    energies = record.energies.detach().cpu().double().numpy()
    energies = np.where(np.isfinite(energies), energies, np.nan)
    if not energies.size or np.isnan(energies).all():
        raise OptionError(f"{record!r} has no energies: the energy has no values, or no step was taken.")
    figure, axes = open_axes(ax, path, 6.4, 3.4)
    steps = np.arange(record.steps - len(energies) + 1, record.steps + 1)
    some = slice(None, None, math.ceil(len(steps) / _STEPS))
    drawn = energies[some][:, :: math.ceil(energies.shape[1] / _CHAINS)]
    known = ~np.isnan(drawn).all(1)
    low, middle, high = np.nanquantile(drawn[known], (0.05, 0.5, 0.95), axis=1)
    at = steps[some][known]
    axes.fill_between(at, low, high, color=MUTED, alpha=0.45, linewidth=0, label="90 % of the chains")
    for i in range(min(single, energies.shape[1])):
        axes.plot(steps[some], energies[some, i], color=LINES[i % len(LINES)], linewidth=0.6, alpha=0.6)
    axes.plot(at, middle, color=INK, linewidth=1.5, label="median")
    if record.burn_in >= steps[0]:
        axes.axvspan(steps[0] - 0.5, record.burn_in + 0.5, color="#9e9e9e", alpha=0.2, linewidth=0, label="burn-in")
    ended = record.diverged_at[record.diverged_at >= 0].unique().tolist()
    for i, step in enumerate(ended):
        axes.axvline(step, color=DOT, linewidth=0.8, linestyle=":", label="a chain diverged" if i == 0 else None)
    axes.set(xlabel="step", ylabel="energy", xlim=(steps[0] - 0.5, steps[-1] + 0.5))
    axes.set_title(shorten(f"{type(record.sampler).__name__}, {len(record.diverged_at)} chains, seed {record.seed}", 70), fontsize=10)
    axes.tick_params(labelsize=8)
    axes.legend(fontsize=8, frameon=False)
    return finish(figure, path)
