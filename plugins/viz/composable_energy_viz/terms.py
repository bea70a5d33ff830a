"""Explanations and shares of branches as bar charts, and forces: where each part of an expression pulls points or pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.algebra.explain import Explanation
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_integer, check_interval
from composable_energy.sampling import Trace
from composable_energy_viz.canvas import BAR, DOT, INK, LINES, MUTED, finish, open_axes, shorten
from composable_energy_viz.files import check_labels, is_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS, _DOTS, _LETTERS = 40, 200, 34  # terms and points that are drawn; letters of a term
_LARGE, _LINEAR = 100, 10  # energies that need a logarithmic axis, and where it begins


def explanation(found: Explanation, *, ax: Axes | None = None, path: str | Path | None = None) -> Figure:
    """Returns a bar chart of an explanation: the mean energy of each term, and a dot for each point.

    Terms stand below the expression that they belong to. Energies that are not finite are written as text.

    Args:
        found: The result of `E.explain(x)`.
        ax: Axes to draw on; None makes a figure. The figure is also written to the file `path`, if given.

    Raises:
        OptionError: It is no explanation, or has no points.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl, tilt = ce.as_energy(lambda x: x.square().sum(1), name="bowl"), ce.as_energy(lambda x: x.sum(1), name="tilt")
        >>> figure = ce.viz.explanation((bowl & tilt).explain(torch.randn(20, 2)))
    """
    _check(found, Explanation, "explanation", "E.explain(x)")
    rows = list(found.rows())
    hidden = len(rows) - _ROWS
    rows = rows[:_ROWS]
    figure, axes = open_axes(ax, path, 6.4, 1.2 + 0.34 * len(rows))
    for place, (depth, row) in enumerate(rows):
        energies = row.energy.detach().cpu().double()
        finite = energies[energies.isfinite()]
        mean = energies.mean().item()
        axes.barh(place, mean if math.isfinite(mean) else 0.0, color=INK if depth == 0 else BAR, height=0.62, zorder=2)
        if 1 < len(finite) <= _DOTS:
            axes.plot(finite.numpy(), torch.full_like(finite, place).numpy(), "o", color=DOT, markersize=2.5, alpha=0.6, zorder=3)
        share = "" if row.share is None else f"   share {row.share.mean().item():.3f}"
        what, wrong = ("not a number", energies.isnan()) if energies.isnan().any() else ("infinite", energies.isinf())
        text = f"{what} at {int(wrong.sum())} of {len(energies)} points" if wrong.any() else f"{mean:.3f}"
        _annotate(axes, place, text + share)
    axes.set_yticks(range(len(rows)), [f"{'  ' * depth}{shorten(row.expression, _LETTERS - 2 * depth)}" for depth, row in rows])
    if max(abs(end) for end in axes.get_xlim()) > _LARGE:
        axes.set_xscale("symlog", linthresh=_LINEAR)
    label = "energy" + (f", logarithmic beyond {_LINEAR}" if axes.get_xscale() == "symlog" else "")
    _style(axes, len(rows), label + (f" (the first {_ROWS} of {len(rows) + hidden} terms)" if hidden > 0 else ""))
    return finish(figure, path)


def shares(
    found: Explanation | Trace, *, labels: Sequence[str] | None = None, ax: Axes | None = None, path: str | Path | None = None
) -> Figure:
    r"""Returns a bar chart of the shares of the branches of `|`: the mean probability that a point came from each, with its standard error.

    Below each mixture stands what its shares are, such as "arbitrary, not calibrated".

    Args:
        found: The result of `E.explain(x)`, or a trace of a mixture at the top of an expression. A trace has no standard errors.
        labels: The names of the branches of a trace.
        ax: Axes to draw on; None makes a figure. The figure is also written to the file `path`, if given.

    Raises:
        OptionError: There is no mixture or no point, or labels are given for an explanation.

    Example:
        >>> import torch, composable_energy as ce
        >>> left, right = (ce.as_energy(torch.distributions.Normal(torch.tensor([m]), 1.0), name=f"at {m}") for m in (-2.0, 2.0))
        >>> figure = ce.viz.shares((left | right).explain(torch.tensor([[-2.0], [0.0], [2.0]])))
    """
    _check(found, (Explanation, Trace), "shares", "E.explain(x)` or the trace of `E.sample(..., trace=True)")
    groups = _of_trace(found, labels) if isinstance(found, Trace) else _of_explanation(found, labels)
    count = sum(len(bars) + 1 for _, bars in groups)
    figure, axes = open_axes(ax, path, 5.6, 0.8 + 0.34 * count)
    place, ticks = 0, []
    for title, bars in groups:
        ticks.append((place, title))
        for i, (name, mean, error) in enumerate(bars, place + 1):
            axes.barh(i, mean, color=BAR, height=0.62, zorder=2)
            if error is not None:
                axes.errorbar(mean, i, xerr=error, color=DOT, capsize=2, linewidth=1, zorder=3)
            _annotate(axes, i, f"{mean:.3f}" + ("" if error is None else f" ± {error:.3f}"))
            ticks.append((i, f"  {name}"))
        place += len(bars) + 1
    axes.set_yticks(*zip(*ticks, strict=True))
    axes.set_xlim(0, 1)
    _style(axes, count, "share")
    return finish(figure, path)


_Bars = list[tuple[str, float, float | None]]


def _of_trace(trace: Trace, labels: Sequence[str] | None) -> list[tuple[str, _Bars]]:
    if trace.branch_shares is None:
        raise OptionError("The trace has no shares: its expression is no mixture `A | B` at the top. Explain points: `E.explain(x)`.")
    means = trace.branch_shares.tolist()
    names = [f"branch {i + 1}" for i in range(len(means))] if labels is None else check_labels(labels, len(means), "branches")
    note = "shares" if trace.shares is None else f"shares: {trace.shares}"
    return [(note, [(shorten(name, _LETTERS), mean, None) for name, mean in zip(names, means, strict=True)])]


def _of_explanation(found: Explanation, labels: Sequence[str] | None) -> list[tuple[str, _Bars]]:
    if labels is not None:
        raise OptionError("An explanation has the names of its branches: leave out labels.")
    groups = []
    for _, row in found.rows():
        bars: _Bars = []
        for term in row.terms:
            if term.share is not None:
                share = term.share.detach().cpu().double()
                error = (share.std() / math.sqrt(len(share))).item() if len(share) > 1 else None
                bars.append((shorten(term.expression, _LETTERS), share.mean().item(), error))
        if bars:
            note = f", {row.note.removeprefix('shares ')}" if row.note else ""
            groups.append((shorten(row.expression, _LETTERS) + note, bars))
    if not groups:
        raise OptionError(f"{found.expression} has no mixture `A | B` of densities, so no branch has a share.")
    return groups


def _check(found: object, wanted: type | tuple[type, ...], name: str, source: str) -> None:
    if not isinstance(found, wanted):
        raise OptionError(f"`{name}` draws the result of `{source}`, got {type(found).__name__}.")
    if isinstance(found, Explanation) and not len(found.energy):
        raise OptionError("The explanation has no points: explain at least one.")


def _annotate(axes: Axes, place: float, text: str) -> None:
    axes.annotate(text, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8, color="#424242")


def _style(axes: Axes, count: int, label: str) -> None:
    longest = 0
    for tick in axes.get_yticklabels():
        longest = max(longest, len(tick.get_text()))
        tick.set(fontfamily="monospace", fontsize=8.5, horizontalalignment="left")
    axes.tick_params(axis="y", length=0, pad=6 + longest * 5.2)
    axes.tick_params(axis="x", labelsize=8)
    axes.axvline(0, color=MUTED, linewidth=0.8, zorder=1)
    axes.grid(axis="x", color="#eeeeee", zorder=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_ylim(count - 0.4, -0.6)
    axes.set_xlabel(label, fontsize=9)


_MOST = 12  # pictures that are drawn
_STRONGEST = 0.995  # the quantile of absolute forces that is fully bright
_GAP = 1  # pixels between pictures


def forces(
    energy: Any,
    x: Tensor | None = None,
    *,
    labels: Sequence[str] | None = None,
    window: tuple[float, float] | None = None,
    resolution: int = 15,
    ax: Axes | None = None,
    path: str | Path | None = None,
) -> Figure:
    r"""Returns a picture of where each part of an expression pulls, $-\nabla_x E_k(x)$.

    The parts are the terms of a conjunction, or the energies of a list; any other expression is one part. All parts have the same scale,
    so that a weak part looks weak.

    Points of two numbers are drawn with one arrow for each part, in its color. A row of pictures has the picture, and the force of each
    part on its pixels: grey is no force, and a color is where the part pulls the pixel.

    Args:
        energy: The expression, or a list of its parts, such as those of `decompose`.
        x: Points of shape $(n, 2)$, or pictures of shape $(n, C, H, W)$ with $C$ = 1 or 3 and values from 0 to 1; at most 12 pictures are
            drawn. None takes a grid of points in the window.
        labels: The names of the parts.
        window: The ends of both axes of the grid, and of the axes of points.
        resolution: The number of grid points on each axis.
        ax: Axes to draw on; None makes a figure. The figure is also written to the file `path`, if given.

    Raises:
        ShapeError: Points are neither two numbers nor pictures, or labels are not one for each part.
        ExpressionError: The list is empty, or a force is not finite.
        OptionError: Neither points nor a window are given, or an option is out of range.

    Example:
        >>> import torch, composable_energy as ce
        >>> left = ce.as_energy(lambda x: (x + 1).square().sum(1), name="left")
        >>> right = ce.as_energy(lambda x: (x - 1).square().sum(1), name="right")
        >>> figure = ce.viz.forces(left & right, window=(-2, 2))
    """
    parts = _parts(energy)
    texts = [str(part) for part in parts] if labels is None else check_labels(labels, len(parts), "parts")
    alike = labels is None and len(set(texts)) < len(texts)  # parts of one model have the same text
    names = [shorten(f"{i}: {text}" if alike else text, _LETTERS) for i, text in enumerate(texts)]
    points = _points(parts, x, window, resolution)
    pulls = torch.stack([part.score(points).detach().cpu().double() for part in parts])
    for part, pull in zip(parts, pulls, strict=True):
        if broken := int((~pull.isfinite()).flatten(1).any(1).sum()):
            raise ExpressionError(f"The force of {part} is not finite at {broken} of {len(points)} points.")
    if points.ndim == 2:
        figure, axes = open_axes(ax, path, 4.8, 4.6)
        _draw_arrows(axes, points.cpu(), pulls, names)
        if window is not None:
            axes.set(xlim=window, ylim=window)
    else:
        figure, axes = open_axes(ax, path, 1.3 * (len(parts) + 1), 0.4 + 1.3 * len(points))
        _draw_pictures(axes, points.cpu(), pulls, names)
    return finish(figure, path)


def _parts(energy: Any) -> list[ce.Energy]:
    if isinstance(energy, list | tuple):
        if not energy:
            raise ExpressionError("There are no parts whose forces could be drawn.")
        return [ce.as_energy(part) for part in energy]
    return [part if weight == 1 else weight * part for part, weight in ce.as_energy(energy).summands()]


def _points(parts: Sequence[ce.Energy], x: Tensor | None, window: tuple[float, float] | None, resolution: int) -> Tensor:
    window = None if window is None else check_interval("window", window)
    if x is None:
        if window is None:
            raise OptionError("Without points the part to show is not known: give points, or window=(low, high).")
        line = torch.linspace(*window, check_integer("resolution", resolution, least=2))
        like = next((tensor for part in parts for tensor in (*part.parameters(), *part.buffers()) if tensor.is_floating_point()), line)
        x = torch.cartesian_prod(line, line).to(like)
    if not isinstance(x, Tensor) or not len(x) or not (x.shape[1:] == (2,) or is_picture(tuple(x.shape[1:]))):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"`forces` draws points of shape (n, 2) or pictures of shape (n, C, H, W), C = 1 or 3, at least one, got {got}.")
    return x


def _draw_arrows(axes: Axes, points: Tensor, pulls: Tensor, names: Sequence[str]) -> None:
    """Draws arrows; the longest is as long as two steps of a grid of as many points."""
    extent = (points.amax(0) - points.amin(0)).max().item() or 1.0
    scale = pulls.norm(dim=2).max().item() * math.sqrt(len(points)) / (2 * extent) or 1.0
    for i, (pull, name) in enumerate(zip(pulls, names, strict=True)):
        color = (INK, DOT, *LINES[1:])[i % (len(LINES) + 1)]
        axes.quiver(
            *points.T.numpy(), *pull.T.numpy(), color=color, label=name, angles="xy", scale_units="xy", scale=scale, width=0.004, alpha=0.85
        )
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), prop={"family": "monospace", "size": 8}, frameon=False)
    axes.set(xlabel="$x_0$", ylabel="$x_1$", aspect="equal")
    axes.tick_params(labelsize=8)


def _draw_pictures(axes: Axes, pictures: Tensor, pulls: Tensor, names: Sequence[str]) -> None:
    pictures, pulls = pictures[:_MOST].double(), pulls[:, :_MOST]
    strongest = pulls.abs().flatten()
    strongest = strongest.kthvalue(max(1, math.ceil(_STRONGEST * len(strongest)))).values.item() or 1.0
    tiles = torch.stack([pictures, *(0.5 + pull / (2 * strongest) for pull in pulls)]).clamp(0, 1)  # (columns, rows, C, H, W)
    tiles = torch.nn.functional.pad(tiles.expand(-1, -1, 3, -1, -1), (0, _GAP, 0, _GAP), value=1.0)
    axes.imshow(tiles.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)[:-_GAP, :-_GAP].numpy(), interpolation="nearest")
    wide = pictures.shape[-1] + _GAP
    axes.set_xticks([(i + 0.5) * wide for i in range(len(tiles))], ["x", *names], rotation=0 if len(names) < 3 else 20, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
