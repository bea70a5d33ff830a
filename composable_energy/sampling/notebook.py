"""Traces as HTML for notebooks: what ran, how it went, and a small picture of the energies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from composable_energy.algebra import describe_shares
from composable_energy.tables import Html, escape, html_block, html_table

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace

__all__ = ["html_trace"]

_WIDTH, _HEIGHT, _PAD = 360, 70, 3  # pixels
_STEPS, _CHAINS = 180, 256  # in the picture


def html_trace(trace: Trace) -> str:
    """Returns a trace as HTML; `Trace.summary` says more, and takes longer."""
    rows = [(Html(f"<b>{escape(name)}</b>"), value) for name, value in _facts(trace)]
    warnings = [Html(f"<li>{escape(warning)}</li>") for warning in trace.observed]
    found = Html(f"<ul>{''.join(warnings)}</ul>") if warnings else ""
    return html_block(Html(f"<code>{escape(repr(trace.sampler))}</code>"), html_table((), rows), _picture(trace), found)


def _facts(trace: Trace) -> list[tuple[str, str]]:
    total, diverged = len(trace.diverged_at), int(trace.diverged.sum())
    facts = [("chains", f"{total}" + (f", {diverged} diverged" if diverged else ""))]
    facts.append(("steps", f"{trace.steps}" + (f", the first {trace.burn_in} burn-in" if trace.burn_in else "")))
    facts.append(("seed", f"{trace.seed}"))
    facts.append(("points", f"{trace.shape}" + (f", the best of {trace.best_of} each" if trace.best_of > 1 else "")))
    if trace.seconds is not None:
        facts.append(("time", f"{trace.seconds:.3g} s"))
    if trace.acceptance is not None and trace.acceptance.numel():
        facts.append(("acceptance", f"{trace.acceptance.nanmean().item():.2f}"))
    if trace.branch_shares is not None:
        what = "" if trace.shares is None else f" ({describe_shares(trace.shares)})"
        facts.append(("branch shares", "  ".join(f"{share:.3f}" for share in trace.branch_shares.tolist()) + what))
    if trace.formula_probability is not None:
        facts.append(("P(formula)", f"{trace.formula_probability:.3g}"))
    if trace.points is not None:
        facts.append(("recorded", f"{len(trace.points)} points of each chain"))
    if trace.errors:
        facts.append(("errors", f"at {trace.errors} points, first {trace.first_error}"))
    return facts


def _picture(trace: Trace) -> Html | None:
    """Returns the median energy after each step as a line, and the band that holds 90 % of the chains; None without energies."""
    energies = trace.energies.detach().cpu().double()
    energies = energies[:: math.ceil(len(energies) / _STEPS) or 1, :: math.ceil(energies.shape[1] / _CHAINS) or 1]
    energies = torch.where(energies.isfinite(), energies, math.nan)
    energies = energies[~energies.isnan().all(1)] if energies.numel() else energies
    if len(energies) < 2:
        return None
    quantiles = energies.nanquantile(torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64), 1)
    low, high = quantiles.min().item(), quantiles.max().item()
    x = torch.linspace(0, _WIDTH, len(energies)).tolist()
    y = (_PAD + (high - quantiles) / ((high - low) or 1.0) * (_HEIGHT - 2 * _PAD)).tolist()
    band = _path([*zip(x, y[2], strict=True), *reversed(list(zip(x, y[0], strict=True)))])
    line = _path(list(zip(x, y[1], strict=True)))
    return Html(
        f'<svg width="{_WIDTH}" height="{_HEIGHT}" role="img" aria-label="energies after each step">'
        f'<polygon points="{band}" fill="currentColor" opacity="0.15"/>'
        f'<polyline points="{line}" fill="none" stroke="currentColor" stroke-width="1.2"/></svg>'
        f'<div class="ce-muted">energy after each step, from {low:.4g} to {high:.4g}: median, and 90 % of the chains</div>'
    )


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
