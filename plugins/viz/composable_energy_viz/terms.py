"""Explanations and shares of branches as bar charts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from composable_energy.algebra.explain import Explanation
from composable_energy.errors import OptionError
from composable_energy.sampling import Trace
from composable_energy_viz.canvas import BAR, DOT, INK, MUTED, finish, open_axes, shorten
from composable_energy_viz.files import check_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ROWS, _DOTS, _LETTERS = 40, 200, 34  # terms and points that are drawn; letters of a term
_LARGE, _LINEAR = 100, 10  # energies that need a logarithmic axis, and where it begins


def explanation(found: Explanation, *, ax: Axes | None = None, path: str | Path | None = None) -> Figure:
    """Returns a bar chart of an explanation: the mean energy of each term, and a dot for each point.

    Terms stand below the expression that they belong to. Infinite energies are written as text.

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
    if not len(found.energy):
        raise OptionError("The explanation has no points: explain at least one.")
    figure, axes = open_axes(ax, path, 6.4, 1.2 + 0.34 * len(rows))
    for place, (depth, row) in enumerate(rows):
        energies = row.energy.detach().cpu().double()
        finite = energies[energies.isfinite()]
        mean = energies.mean().item()
        axes.barh(place, mean if math.isfinite(mean) else 0.0, color=INK if depth == 0 else BAR, height=0.62, zorder=2)
        if 1 < len(finite) <= _DOTS:
            axes.plot(finite.numpy(), torch.full_like(finite, place).numpy(), "o", color=DOT, markersize=2.5, alpha=0.6, zorder=3)
        share = "" if row.share is None else f"   share {row.share.mean().item():.3f}"
        text = f"{mean:.3f}" if len(finite) == len(energies) else f"infinite at {len(energies) - len(finite)} of {len(energies)} points"
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
        OptionError: There is no mixture, or labels are given for an explanation.

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
        for term in row.terms if len(row.energy) else ():
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
