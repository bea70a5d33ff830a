r"""Summaries of runs: settings, statistics by ArviZ, and warnings.

References:
    Rank-normalization, folding, and localization: an improved R-hat for assessing convergence of MCMC (Vehtari et al., 2021),
    https://doi.org/10.1214/20-BA1221
"""

import importlib.util
import itertools
import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from composable_energy.algebra import SHARES
from composable_energy.diagnostics.warnings import LEAST_DRAWS, Draws, Row, find_warnings
from composable_energy.errors import OptionError, SamplingWarning
from composable_energy.options import check_integer, import_extra, text_table

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace

_MOST_CHAINS = 512  # for ArviZ
_SHOWN, _WORST = 16, 8  # coordinates in a table: all, or the worst
_CHUNK = 16_000_000  # numbers
_FORMATS = (".4g", ".3g", ".2g", ".0f", ".0f", ".3f")


@dataclass(frozen=True)
class Summary:
    """The summary of a run; prints as a table. Its rows are of the energy and of coordinates; of many coordinates the worst."""

    title: str
    facts: Mapping[str, str]
    rows: Sequence[Row]
    warnings: Sequence[SamplingWarning]

    def __str__(self) -> str:
        wide = max(len(name) for name in self.facts)
        lines = [self.title, *(f"  {name:{wide}}  {value}" for name, value in self.facts.items())]
        if self.rows:
            header, cells = ["", *(field.name for field in fields(Row)[1:])], []
            for name, *figures in (astuple(row) for row in self.rows):
                cells.append([name, *("-" if math.isnan(one) else format(one, form) for one, form in zip(figures, _FORMATS, strict=True))])
            lines += ["", text_table(header, cells, right=range(1, len(header)))]
        style: dict[str, Any] = {"initial_indent": "! ", "subsequent_indent": "  ", "break_on_hyphens": False}
        lines += ["", *(textwrap.fill(str(one), 100, **style) for one in self.warnings)] if self.warnings else ["", "No warnings."]
        return "\n".join(lines)

    __repr__ = __str__


def summarize(trace: "Trace", burn_in: int | None) -> Summary:
    """Returns the summary of a trace; see `Trace.summary`."""
    unchecked = _unchecked(trace, draws := select_draws(trace, burn_in))
    by_arviz = unchecked is None and trace.sampler.stationary
    rows = []
    if draws.energies.numel() and not draws.energies.isnan().all():
        rows = _statistics(["energy"], draws.energies[:, :, None], by_arviz)
    facts = _facts(trace, draws)
    if draws.points is not None and draws.points.numel():
        event = draws.points.shape[2:]
        points = draws.points.reshape(*draws.points.shape[:2], -1)
        indices = _worst_coordinates(points)
        shapes = trace.variables or {"x": event}
        places = [(name, place) for name, shape in shapes.items() for place in itertools.product(*map(range, shape))]
        names = [f"{name}[{', '.join(map(str, place))}]" if place else name for name, place in map(places.__getitem__, indices)]
        some = _statistics(names, points[:, :, indices].cpu(), by_arviz)
        if len(indices) < points.shape[2]:
            some.sort(key=lambda row: -row.r_hat if row.r_hat == row.r_hat else 0.0)
            facts["coordinates"] = f"{_WORST} worst of {points.shape[2]}"
        rows += some
    return Summary(repr(trace.sampler), facts, rows, find_warnings(trace, draws, rows, unchecked))


def select_draws(trace: "Trace", burn_in: int | None) -> Draws:
    """Returns the kept points; else the steps after the burn-in, or the later half of them; of a fixed schedule the last step alone."""
    burn_in = check_integer("burn_in", burn_in, 0, optional=True)
    before, stationary = trace.steps - len(trace.energies), trace.sampler.stationary  # steps of earlier calls
    kept = trace.points is not None and (stationary or trace.point_steps[-1:] == [trace.steps])
    if not stationary:
        first, description = trace.steps - 1, "the last step; earlier ones are no draws"
    elif kept:
        first, description = burn_in or 0, "the points that were kept"
    else:
        first = max(before, (trace.burn_in or before + len(trace.energies) // 2) if burn_in is None else burn_in)
        description = "the later half of the steps" if burn_in is None and not trace.burn_in else f"the steps after {first}"
    steps = [step for step in (trace.point_steps if kept else range(before + 1, trace.steps + 1)) if step > first]
    if burn_in is not None and not steps:
        last = trace.point_steps[-1] if trace.point_steps else trace.steps
        raise OptionError(f"burn_in={burn_in} leaves nothing: the trace ends at step {last}.")
    chains, acceptance, points = (trace.diverged_at < 0).nonzero().squeeze(1), None, None
    if trace.acceptance is not None and steps and len(chains):
        acceptance = trace.acceptance[max(0, steps[0] - 1 - before) :].cpu()[:, chains].double()
    if trace.points is not None and kept:
        points = trace.points[len(trace.points) - len(steps) :]
        points = points[:, chains.to(points.device)] if len(chains) < points.shape[1] else points
    energies = trace.energies[[step - before - 1 for step in steps]].cpu()[:, chains].double()
    return Draws(steps, chains, energies, points, acceptance, description)


def _unchecked(trace: "Trace", draws: Draws) -> str | None:
    """Returns why R-hat cannot be computed, and what to do; None if it can."""
    if not len(draws.chains):
        return "No chain reached the end; see above."
    if not trace.alike:
        return "Chains have conditions and densities of their own: draw each condition by itself with several chains."
    if len(draws.steps) < LEAST_DRAWS:
        return f"There are {len(draws.steps)} draws of each chain: take more `steps`, or keep more points with a smaller `trace=`."
    return None if importlib.util.find_spec("arviz_stats") else "ArviZ computes them: pip install 'composable-energy[diagnostics]'."


def _statistics(names: Sequence[str], values: Tensor, by_arviz: bool) -> list[Row]:
    """Returns the statistics of quantities with draws of shape (draws, chains, quantities)."""
    values = values.double()
    draws, chains, numbers = values.shape
    means, sds = values.mean((0, 1)).tolist(), values.flatten(0, 1).std(0).tolist() if draws * chains > 1 else [math.nan] * numbers
    figures = [[math.nan] * 4 for _ in names]
    if by_arviz:
        statistics = import_extra("arviz_stats.base", "diagnostics").array_stats
        even = [i * chains // _MOST_CHAINS for i in range(_MOST_CHAINS)] if chains > _MOST_CHAINS else slice(None)
        array, axes = values[:, even].permute(1, 0, 2).numpy(), {"chain_axis": 0, "draw_axis": 1}
        quarter = draws // 4 if chains == 1 and draws >= 4 * LEAST_DRAWS else 0  # a single chain has the R-hat of its quarters
        with np.errstate(all="ignore"):  # a coordinate that never moves has no R-hat
            columns = (
                statistics.mcse(array, method="mean", **axes),
                statistics.ess(array, method="bulk", **axes),
                statistics.ess(array, method="tail", prob=(0.05, 0.95), **axes),
                statistics.rhat(array[:, -4 * quarter :].reshape(4, quarter, -1) if quarter else array, **axes),
            )
        still = (array == array[:1, :1]).all((0, 1))
        figures = np.where(still[:, None], np.nan, np.stack([np.broadcast_to(column, still.shape) for column in columns], 1)).tolist()
    return [Row(name, mean, sd, *some) for name, mean, sd, some in zip(names, means, sds, figures, strict=True)]


def _worst_coordinates(points: Tensor) -> list[int]:
    """Returns all coordinates of points with shape (draws, chains, coordinates), or of many the worst by the split R-hat without ranks."""
    if points.shape[2] <= _SHOWN:
        return list(range(points.shape[2]))
    half, found = max(1, len(points) // 2), []
    for some in points.split(max(1, _CHUNK // points[..., 0].numel()), 2):
        halves = torch.cat([some[:half], some[-half:]], 1).double()
        within, between = halves.var(0, correction=0).mean(0), halves.mean(0).var(0)
        found.append(torch.where(within > 0, between / within, torch.where(between > 0, torch.inf, 0.0)))
    return torch.cat(found).topk(_WORST).indices.tolist()


def _facts(trace: "Trace", draws: Draws) -> dict[str, str]:
    chains = len(trace.diverged_at)
    facts = {
        "chains": f"{chains}" + (f", {chains - len(draws.chains)} of them diverged" if chains > len(draws.chains) else ""),
        "steps": f"{trace.steps}, seed {trace.seed}" + (f", {trace.seconds:.3g} s" if trace.seconds is not None else ""),
        "draws": f"{len(draws.steps)} of each chain: {draws.description}",
    }
    gradients, counts = trace.sampler.traits.gradients, trace.scalars.get("leapfrogs", ())
    if len(counts) == trace.steps or gradients is not None:  # and one at the start
        number = int(sum(counts)) if gradients is None else trace.steps * gradients
        facts["gradients"] = f"{number + 1} of each chain" + (", without those of tuning" if trace.tuned else "")
    if draws.acceptance is not None:
        rates, goal = draws.acceptance.nanmean(0), getattr(trace.sampler, "acceptance", None)
        facts["acceptance"] = f"{rates.mean().item():.2g}, of single chains {rates.min().item():.2g} to {rates.max().item():.2g}"
        facts["acceptance"] += f" (goal {goal:.2g})" if isinstance(goal, float) else ""
    for name, values in trace.scalars.items():
        if known := [value for value in values if not math.isnan(value)]:
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
    if len(draws.chains) > _MOST_CHAINS:
        facts["R-hat, ESS"] = f"of {_MOST_CHAINS} chains, at even distances"
    return facts
