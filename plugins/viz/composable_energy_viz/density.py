"""Densities of points with one or two numbers, with draws and the paths of chains, and the energies of chains step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_instance, check_integer
from composable_energy.sampling import Trace, twin
from composable_energy.supports import join
from composable_energy_viz.canvas import DOT, INK, LINES, MUTED, SHADES, finish, open_axes, shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BATCH = 10_000  # points that are evaluated together
_MOST = 5_000  # points that are drawn
_TAIL, _MARGIN = 0.005, 0.2  # the window: quantiles of the draws, and a margin of their distance


def show(
    energy: Any,
    points: Tensor | Mapping[str, Tensor] | None = None,
    *,
    trace: Trace | None = None,
    chains: int = 4,
    draws: int = 300,
    seed: int | None = 0,
    window: Any = None,
    resolution: int = 201,
    ax: Axes | None = None,
    path: str | Path | None = None,
) -> Figure:
    r"""Returns a picture of the density $e^{-E(x)}$ of points with one or two numbers, with draws and the paths of chains.

    Two numbers are a plane: the colour is the density, relative to its highest value in the window. One number is a line: the density is
    normalised within the window, over a histogram of the draws.

    Args:
        energy: The energy, or an object that `as_energy` lifts.
        points: Points of shape $(n, 2)$, or $(n, 1)$ or $(n,)$, or a mapping of named variables, to draw as dots; None takes those of the
            trace, else draws some.
        trace: A trace with recorded points, `sample(..., trace=1)`, whose chains are drawn as paths.
        chains: The number of chains that are drawn.
        draws: The number of points that are drawn if none are given; 0 draws none, and then needs a window.
        seed: The seed of these draws.
        window: The part that is shown: $(a, b)$ for all numbers, or $((a, b), (c, d))$; None holds 99 % of the points.
        resolution: The number of grid points on each axis.
        ax: Axes to draw on; None makes a figure. The figure is also written to the file `path`, if given.

    Raises:
        ShapeError: Points of the energy have more than two numbers, or the given points do not fit.
        ExpressionError: An energy is not a number, or minus infinity, or it has no values.
        OptionError: The trace has no points, the density is 0 in the whole window, or an option is out of range.

    Example:
        >>> import torch, composable_energy as ce
        >>> ring = ce.as_energy(lambda x: 8 * (x.norm(dim=1) - 2).square(), name="ring")
        >>> figure = ce.viz.show(ring, window=(-3, 3), draws=0)
    """
    energy, trace = ce.as_energy(energy), check_instance("trace", trace, Trace)
    if points is not None:
        points = join(points, energy.variables) if isinstance(points, Mapping) else torch.as_tensor(points)
    size = _size(energy, points, trace)
    figure, axes = open_axes(ax, path, *((4.6, 4.4) if size == 2 else (5.2, 3.2)))
    shape = energy.event_shape if energy.event_shape is not None else torch.Size([size])
    paths = None if trace is None else _paths(trace, size, check_integer("chains", chains, least=0))
    if points is None and trace is not None and trace.points is not None:
        points = trace.points[-1]
    if points is None and check_integer("draws", draws, least=0):
        points = cast(Tensor, energy.latents.sample((draws, *shape), seed=seed))
    dots = None if points is None else _dots(points, size)
    ends = _window(window, dots, size)
    count = check_integer("resolution", resolution, least=2)
    axis = [torch.linspace(low, high, count, dtype=torch.float64) for low, high in ends]
    energies = _evaluate(energy, torch.cartesian_prod(*axis).reshape(-1, *shape), points)
    if size == 2:
        _draw_plane(axes, axis, energies, dots, paths)
    else:
        _draw_line(axes, axis[0], energies, dots)
    if len(energy.variables) == size:
        for label, name in zip((axes.set_xlabel, axes.set_ylabel), energy.variables, strict=False):
            label(name)
    axes.set_title(shorten(str(energy), 60), fontfamily="monospace", fontsize=10)
    return finish(figure, path)


def _size(energy: ce.Energy, points: Tensor | None, trace: Trace | None) -> int:
    """Returns how many numbers a point has, 1 or 2."""
    if energy.decoder is not None:
        raise ShapeError(f"{energy} is an energy of latent points that are decoded; draw its samples with `grid`.")
    if (shape := energy.event_shape) is None:
        found = points if points is not None and len(points) else None if trace is None or trace.points is None else trace.points[0]
        shape = (2,) if found is None else tuple(found.shape[1:])
    if (size := math.prod(shape)) not in (1, 2):
        ways = "draw its samples with `grid`" if len(shape) == 3 else "show one of its terms, or a function of two of its numbers"
        raise ShapeError(f"`show` draws points of one or two numbers; {energy} takes points of shape {tuple(shape)}: {ways}.")
    return size


def _dots(points: Tensor, size: int) -> Tensor:
    """Returns the finite ones of points with shape (n, size), evenly chosen if they are many."""
    points = torch.as_tensor(points).detach().cpu().double()
    if points.ndim == 0 or not len(points) or points[0].numel() != size:
        raise ShapeError(f"points must have the shape (n, {size}), got {tuple(points.shape)}.")
    found = points.reshape(len(points), size)
    if not len(found := found[found.isfinite().all(1)]):
        raise OptionError(f"None of the {len(points)} points is finite.")
    return found[:: math.ceil(len(found) / _MOST)]


def _paths(trace: Trace, size: int, chains: int) -> Tensor | None:
    """Returns the paths of some chains, with shape (steps, chains, size)."""
    if trace.points is None or not len(trace.points):
        raise OptionError("The trace has no points: record those of each step by `sample(..., trace=1)`.")
    if trace.points[0, 0].numel() != size:
        raise ShapeError(f"The trace has points of shape {tuple(trace.points.shape[2:])}, the energy takes {size} numbers.")
    return trace.points[:, :chains].detach().cpu().double().reshape(len(trace.points), -1, size) if chains else None


def _window(window: Any, dots: Tensor | None, size: int) -> list[tuple[float, float]]:
    if window is not None:
        found = []
        with suppress(TypeError, ValueError, RuntimeError):
            given = torch.as_tensor(window, dtype=torch.float64)
            found = [(low, high) for low, high in (given.expand(size, 2) if given.ndim == 1 else given).tolist()]
        if len(found) != size or not all(-math.inf < low < high < math.inf for low, high in found):
            raise OptionError(f"window takes (low, high), or such a pair for each of {size} numbers, got {window!r}.")
        return found
    if dots is None:
        raise OptionError("Without points the part to show is not known: give window=(low, high), or draws=300.")
    low, high = dots.quantile(_TAIL, 0), dots.quantile(1 - _TAIL, 0)
    margin = ((high - low) * _MARGIN).clamp_min(1e-3)
    return list(zip((low - margin).tolist(), (high + margin).tolist(), strict=True))


def _evaluate(energy: ce.Energy, grid: Tensor, points: Tensor | None) -> Tensor:
    """Returns the energies of grid points, with the dtype and on the device of the energy's tensors."""
    like = next((t for t in (*energy.parameters(), *energy.buffers()) if t.is_floating_point()), points)
    grid = grid.to(torch.get_default_dtype() if like is None else like)
    with torch.no_grad():
        still = twin(energy)
        energies = torch.cat([still(some) for some in grid.split(_BATCH)]).cpu().double()
    if (wrong := energies.isnan() | (energies == -math.inf)).any():
        raise ExpressionError(f"{energy} is not a number, or minus infinity, at {int(wrong.sum())} of {len(grid)} points of the window.")
    if not energies.isfinite().any():
        raise OptionError(f"The density of {energy} is 0 in the whole window: give another one by window=(low, high).")
    return energies


def _draw_plane(axes: Axes, axis: list[Tensor], energies: Tensor, dots: Tensor | None, paths: Tensor | None) -> None:
    from matplotlib.colors import LinearSegmentedColormap

    x, y = axis
    density = (energies.min() - energies).exp().reshape(len(x), len(y)).T
    shades = LinearSegmentedColormap.from_list("shades", SHADES)
    left, right, low, high = (float(end) for a in axis for end in (1.5 * a[0] - a[1] / 2, 1.5 * a[-1] - a[-2] / 2))  # centres are points
    axes.imshow(density.numpy(), origin="lower", extent=(left, right, low, high), cmap=shades, vmin=0, vmax=1.05, aspect="auto")
    if dots is not None:
        axes.scatter(*dots.T.numpy(), s=5, color=DOT, linewidths=0, alpha=0.7)
    for i in range(0 if paths is None else paths.shape[1]):
        one, color = paths[:, i].numpy(), LINES[i % len(LINES)]  # pyright: ignore[reportOptionalSubscript]
        axes.plot(*one.T, color=color, linewidth=0.7, alpha=0.85)
        axes.plot(*one[:1].T, "o", color=color, markersize=4, markerfacecolor="white")
        axes.plot(*one[-1:].T, "o", color=color, markersize=4)
    axes.set(xlim=x[[0, -1]].tolist(), ylim=y[[0, -1]].tolist(), xlabel="$x_0$", ylabel="$x_1$")
    axes.tick_params(labelsize=8)


def _draw_line(axes: Axes, x: Tensor, energies: Tensor, dots: Tensor | None) -> None:
    density = (energies.min() - energies).exp()
    density = density / torch.trapezoid(density, x)
    inside = x[:0] if dots is None else dots[(dots >= x[0]) & (dots <= x[-1])]
    if len(inside):
        axes.hist(inside.numpy(), bins=40, range=(float(x[0]), float(x[-1])), density=True, color=MUTED, alpha=0.7)
    axes.plot(x.numpy(), density.numpy(), color=INK)
    axes.set(xlim=(float(x[0]), float(x[-1])), ylim=(0, None), xlabel="$x$", ylabel="density")
    axes.tick_params(labelsize=8)


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
