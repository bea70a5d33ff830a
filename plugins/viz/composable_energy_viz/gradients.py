"""Forces: where each part of an expression pulls points or pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy_viz.canvas import DOT, INK, LINES, finish, open_axes, shorten
from composable_energy_viz.files import check_labels, is_picture

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST = 12  # pictures that are drawn
_LETTERS = 34
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
    names = _names(parts, labels)
    points = _points(parts, x, window, resolution)
    pulls = torch.stack([_pull(part, points) for part in parts])
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


def _names(parts: Sequence[ce.Energy], labels: Sequence[str] | None) -> list[str]:
    texts = [str(part) for part in parts] if labels is None else check_labels(labels, len(parts), "parts")
    alike = labels is None and len(set(texts)) < len(texts)  # parts of one model have the same text
    return [shorten(f"{i}: {text}" if alike else text, _LETTERS) for i, text in enumerate(texts)]


def _points(parts: Sequence[ce.Energy], x: Tensor | None, window: tuple[float, float] | None, resolution: int) -> Tensor:
    if window is not None and not (len(window) == 2 and -math.inf < window[0] < window[1] < math.inf):
        raise OptionError(f"window takes two increasing numbers, such as (-3, 3), got {window!r}.")
    if x is None:
        if window is None:
            raise OptionError("Without points the part to show is not known: give points, or window=(low, high).")
        line = torch.linspace(*window, check_integer("resolution", resolution, least=2))
        like = next((tensor for part in parts for tensor in (*part.parameters(), *part.buffers()) if tensor.is_floating_point()), line)
        x = torch.cartesian_prod(line, line).to(like)
    if not isinstance(x, Tensor) or not len(x) or not (x.shape[1:] == (2,) or is_picture(tuple(x.shape[1:]))):
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(
            f"`forces` draws points of shape (n, 2) or pictures of shape (n, C, H, W) with C = 1 or 3, at least one, got {got}."
        )
    return x


def _pull(part: ce.Energy, x: Tensor) -> Tensor:
    """Returns the force of a part, with the shape of x."""
    force = part.score(x).detach().cpu().double()
    if not force.isfinite().all():
        raise ExpressionError(
            f"The force of {part} is not finite at {int((~force.isfinite()).flatten(1).any(1).sum())} of {len(x)} points."
        )
    return force


def _draw_arrows(axes: Axes, points: Tensor, pulls: Tensor, names: Sequence[str]) -> None:
    """Draws arrows; the longest is as long as two steps of a grid of as many points."""
    extent = (points.amax(0) - points.amin(0)).max().item() or 1.0
    longest = pulls.norm(dim=2).max().item()
    scale = longest * math.sqrt(len(points)) / (2 * extent) or 1.0
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
    sheet = tiles.permute(1, 3, 0, 4, 2).flatten(2, 3).flatten(0, 1)[:-_GAP, :-_GAP]
    axes.imshow(sheet.numpy(), interpolation="nearest")
    wide = pictures.shape[-1] + _GAP
    axes.set_xticks([(i + 0.5) * wide for i in range(len(tiles))], ["x", *names], rotation=0 if len(names) < 3 else 20, fontsize=8)
    axes.xaxis.tick_top()
    axes.set_yticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
