"""Summaries of runs: settings, statistics and warnings; and their export to ArviZ."""

from __future__ import annotations

import importlib.util
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from composable_energy.algebra import SHARES
from composable_energy.diagnostics.statistics import (
    LEAST_DRAWS,
    MOST_CHAINS,
    Draws,
    Row,
    compute_statistics,
    screen_coordinates,
    select_draws,
)
from composable_energy.diagnostics.warnings import find_warnings
from composable_energy.errors import SamplingWarning, ShapeError
from composable_energy.options import import_extra

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace

_SHOWN = 16  # coordinates in a table
_WORST = 8
_WIDTH = 100
_QUANTILES = (0.05, 0.5, 0.95)
_COLUMNS = [field.name for field in fields(Row)][1:]


@dataclass(frozen=True)
class Summary:
    """The summary of a run: settings, statistics and warnings; prints as a table.

    Args:
        title: The sampler with its options.
        facts: The settings and results by name.
        rows: The statistics of the energy and of coordinates; of many coordinates the worst.
        quantiles: For many coordinates, the quantiles of each statistic over them.
        warnings: The warnings.
    """

    title: str
    facts: Mapping[str, str]
    rows: Sequence[Row]
    quantiles: Sequence[Row]
    warnings: Sequence[SamplingWarning]

    def __str__(self) -> str:
        wide = max(len(name) for name in self.facts)
        lines = [self.title, *(f"  {name:{wide}}  {value}" for name, value in self.facts.items())]
        if self.rows:
            table = [["", *_COLUMNS], *(_cells(row) for row in (*self.rows, *self.quantiles))]
            widths = [max(map(len, column)) for column in zip(*table, strict=True)]
            lines += ["", *("  ".join([cells[0].ljust(widths[0]), *map(str.rjust, cells[1:], widths[1:])]).rstrip() for cells in table)]
        lines += ["", *(_wrap(str(warning)) for warning in self.warnings)] if self.warnings else ["", "No warnings."]
        return "\n".join(lines)

    __repr__ = __str__


def summarize(trace: Trace, burn_in: int | None) -> Summary:
    """Returns the summary of a trace; see `Trace.summary`."""
    draws = select_draws(trace, burn_in)
    unchecked = _unchecked(trace, draws)
    by_arviz = unchecked is None and trace.sampler.stationary
    energies = draws.energies[:, :, None]
    rows = compute_statistics(["energy"], energies, by_arviz) if energies.numel() and not energies.isnan().all() else []
    shown, quantiles, coordinates = list(rows), [], None
    if draws.points is not None and draws.points.numel():
        points = draws.points.flatten(2) if draws.points.ndim > 2 else draws.points[:, :, None]
        event, total = draws.points.shape[2:], points.shape[2]
        even, worst = screen_coordinates(points)
        indices = sorted({*even, *worst})
        some = compute_statistics([_name_coordinate(i, event) for i in indices], points[:, :, indices].cpu(), by_arviz)
        rows += some
        if total <= _SHOWN:
            shown += some
        else:
            shown += sorted(some, key=lambda row: -row.r_hat if row.r_hat == row.r_hat else 0.0)[:_WORST]
            quantiles = _quantiles([row for i, row in zip(indices, some, strict=True) if i in set(even)])
            coordinates = f"{_WORST} worst of {total}" + (f"; quantiles over {len(even)} of them" if len(even) < total else "")
    warnings = find_warnings(trace, draws, rows, unchecked)
    return Summary(repr(trace.sampler), _facts(trace, draws, coordinates), shown, quantiles, warnings)


def _facts(trace: Trace, draws: Draws, coordinates: str | None) -> dict[str, str]:
    chains = len(trace.diverged_at)
    facts = {
        "chains": f"{chains}" + (f", {chains - len(draws.chains)} of them diverged" if chains > len(draws.chains) else ""),
        "steps": f"{trace.steps}, seed {trace.seed}" + (f", {trace.seconds:.3g} s" if trace.seconds is not None else ""),
        "draws": f"{len(draws.steps)} of each chain: {draws.description}",
    }
    gradients = _gradients(trace)
    if gradients is not None:
        facts["gradients"] = f"{gradients} of each chain" + (", without those of tuning" if trace.tuned else "")
    if draws.acceptance is not None and len(draws.acceptance):
        low, high = draws.acceptance.min().item(), draws.acceptance.max().item()
        goal = getattr(trace.sampler, "acceptance", None)
        mean, tuned_for = draws.acceptance.mean().item(), draws.mean_acceptance
        other = tuned_for is not None and abs(tuned_for - mean) > 0.005
        facts["acceptance"] = f"{mean:.2g}, of single chains {low:.2g} to {high:.2g}" + (
            f" (goal {goal:.2g}{f' of a mean that is {tuned_for:.2g}' if other else ''})" if isinstance(goal, float) else ""
        )
    for name, values in trace.scalars.items():
        known = [value for value in values if not math.isnan(value)]
        if known:
            facts[name] = f"{min(known):.3g} to {max(known):.3g}, at last {values[-1]:.3g}"
    if trace.relocated:
        facts["starts"] = f"{trace.relocated} chains did not get from `init` to the density; they started where pilot chains ended"
    if trace.branch_shares is not None:
        what = "" if trace.shares is None else f" ({SHARES[trace.shares]})"
        facts["branch shares"] = "  ".join(f"{share:.3f}" for share in trace.branch_shares.tolist()) + what
    if trace.formula_probability is not None:
        facts["P(formula)"] = f"{trace.formula_probability:.3g} at the draws, by the classifiers"
    if trace.errors:
        facts["errors"] = f"at {trace.errors} points, which were rejected"
    if len(draws.chains) > MOST_CHAINS:
        facts["R-hat, ESS"] = f"of {MOST_CHAINS} chains, at even distances"
    if coordinates is not None:
        facts["coordinates"] = coordinates
    return facts


def _gradients(trace: Trace) -> int | None:
    """Returns the number of gradients of each chain, with that of the start; None if it is unknown."""
    if "leapfrogs" in trace.scalars:
        counts = trace.scalars["leapfrogs"]
        return int(sum(counts)) + 1 if len(counts) == trace.steps else None
    gradients = trace.sampler.traits.gradients
    return None if gradients is None else trace.steps * gradients + 1


def _unchecked(trace: Trace, draws: Draws) -> str | None:
    """Returns why R-hat cannot be computed, and what to do; None if it can."""
    if not len(draws.chains):
        return "No chain reached the end; see above."
    if not trace.alike:
        return "Chains have conditions and densities of their own: draw each condition by itself with several chains."
    if len(draws.steps) < LEAST_DRAWS:
        return f"There are {len(draws.steps)} draws of each chain: take more `steps`, or keep more points with a smaller `trace=`."
    if importlib.util.find_spec("arviz_stats") is None:
        return "ArviZ computes them: pip install 'composable-energy[diagnostics]'."
    return None


def _name_coordinate(index: int, event: torch.Size) -> str:
    if not event:
        return "x"
    return f"x[{', '.join(str(i) for i in np.unravel_index(index, event))}]"


def _quantiles(rows: Sequence[Row]) -> list[Row]:
    table = torch.tensor([[getattr(row, name) for name in _COLUMNS] for row in rows], dtype=torch.float64)
    values = table.nanquantile(torch.tensor(_QUANTILES, dtype=torch.float64), 0)
    return [Row(f"x, {share:.0%}", *figures) for share, figures in zip(_QUANTILES, values.tolist(), strict=True)]


def _wrap(warning: str) -> str:
    return textwrap.fill(warning, _WIDTH, initial_indent="! ", subsequent_indent="  ", break_on_hyphens=False)


def _cells(row: Row) -> list[str]:
    forms = dict(zip(_COLUMNS, itertools.chain([".4g", ".3g", ".2g", ".0f", ".0f", ".3f"]), strict=True))
    return [row.name, *("-" if math.isnan(getattr(row, name)) else format(getattr(row, name), form) for name, form in forms.items())]


# ArviZ ------------------------------------------------------------------------------------------------------------------------------------


def to_arviz(trace: Trace, name: str, dims: Sequence[str] | None, coords: Mapping[str, Sequence[Any]] | None) -> Any:
    """Returns a trace as an xarray `DataTree`; see `Trace.to_arviz`."""
    xarray = import_extra("xarray", "diagnostics")
    record = trace.to_dict()
    stats, posterior = record["sample_stats"], record["posterior"]
    chains, draws = stats["lp"].shape
    steps = trace.kept_steps
    axes = {"chain": np.arange(chains) + trace.first_chain + trace.chains.start, "draw": np.array(steps, dtype=np.int64)}
    groups = {}
    if posterior:
        event = posterior["x"].shape[2:]
        dims = [f"{name}_dim_{axis}" for axis in range(len(event))] if dims is None else list(dims)
        sizes = dict(zip(dims, event, strict=False))
        wrong = {dim: len(labels) for dim, labels in (coords or {}).items() if len(labels) != sizes.get(dim)}
        if len(dims) != len(event) or len(sizes) < len(event) or {"chain", "draw"} & {*dims} or wrong:
            raise ShapeError(
                f"`dims` names each axis of points of shape {event}, and `coords` labels each index of some of them; got dims={dims}"
                + (f" and, for {', '.join(wrong)}, {list(wrong.values())} labels." if wrong else ".")
            )
        own = {dim: np.asarray(labels) for dim, labels in (coords or {}).items()}
        indices = {dim: np.arange(size) for dim, size in sizes.items()}
        groups["posterior"] = xarray.Dataset({name: (("chain", "draw", *dims), posterior["x"])}, {**axes, **indices, **own})
    stats = {**stats, **{stat: np.broadcast_to(values, (chains, draws)) for stat, values in _scalars(trace, steps).items()}}
    groups["sample_stats"] = xarray.Dataset({stat: (("chain", "draw"), values) for stat, values in stats.items()}, axes)
    tree = xarray.DataTree.from_dict(groups)
    about = {"inference_library": "composable-energy", **record["attrs"]}
    for group in (tree, *tree.children.values()):
        group.attrs.update(about)
    return tree


def _scalars(trace: Trace, steps: Sequence[int]) -> dict[str, Any]:
    """Returns the scalars of all chains, under ArviZ's names."""
    first = trace.steps - len(trace.energies) + 1
    found = {
        {"leapfrogs": "n_steps"}.get(name, name): np.array([values[step - first] for step in steps])
        for name, values in trace.scalars.items()
        if len(values) == len(trace.energies)
    }
    length = getattr(trace.sampler, "step_size", None)
    return {**({"step_size": length} if isinstance(length, float) else {}), **found}
