"""Warnings about a run: the observation, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composable_energy.diagnostics.draws import Draws
from composable_energy.diagnostics.statistics import LEAST_DRAWS, Row

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace

__all__ = ["SamplingWarning", "find_warnings"]

_R_HAT = 1.01  # Vehtari et al. (2021), and ArviZ
_ESS, _ESS_OF_A_CHAIN = 400, 100  # the same sources: 100 for each of four chains; with thousands of chains each needs fewer
_LOST = 0.15  # acceptance below its goal
_STUCK, _STUCK_STEPS = 0.05, 20
_DRIFT_ERRORS, _DRIFT_DEVIATIONS, _PAIRS = 4.0, 0.05, 20
_BIAS = 0.1
_SHARE, _LEAST_POINTS = 0.1, 20  # the expected number of points in a branch; with fewer points a rare branch may have none


class SamplingWarning(UserWarning):
    """A warning about a run. Sampling emits none; `trace.warnings()` returns them, and `warnings.warn` takes each.

    Args:
        kind: `"diverged"`, `"acceptance"`, `"constant"`, `"stuck"`, `"drift"`, `"r_hat"`, `"ess"`, `"bias"`, `"branch"` or `"unchecked"`.
        seen: The observation, with figures.
        advice: What to do.
    """

    def __init__(self, kind: str, seen: str, advice: str) -> None:
        super().__init__(kind, seen, advice)
        self.kind, self.seen, self.advice = kind, seen, advice

    def __str__(self) -> str:
        return f"{self.kind}: {self.seen} {self.advice}"


def find_warnings(trace: Trace, draws: Draws, rows: Sequence[Row], unchecked: str | None) -> list[SamplingWarning]:
    """Returns the warnings about a run.

    Args:
        trace: The trace.
        draws: Its draws.
        rows: The statistics of the draws.
        unchecked: Why R-hat and effective sample size are unknown, and what to do; None if they are known.
    """
    found = [*_diverged(trace), *_branch(trace)]
    if trace.sampler.stationary:
        found += [*_acceptance(trace, draws), *_constant(trace, draws), *_stuck(trace, draws), *_bias(trace), *_drift(draws)]
        found += [*_r_hat(trace, draws, rows), *_ess(trace, draws, rows)]
        found += [SamplingWarning("unchecked", "R-hat and the effective sample size are not known.", unchecked)] if unchecked else []
    return found


def _diverged(trace: Trace) -> Iterator[SamplingWarning]:
    bad = trace.diverged_at >= 0
    if bad.any():
        action = {"restart": "and were restarted", "drop": "and were dropped", "keep": "and stay at their last finite point"}
        seen = (
            f"{int(bad.sum())} of {len(bad)} chains reached a point, energy or gradient that is not finite, the first at step "
            f"{int(trace.diverged_at[bad].min())}, {action.get(trace.on_divergence, 'which stopped all')}."
        )
        yield SamplingWarning("diverged", seen, f"Take a smaller {_length(trace)}; if that does not help, look at the energy there.")


def _acceptance(trace: Trace, draws: Draws) -> Iterator[SamplingWarning]:
    goal = getattr(trace.sampler, "acceptance", None)
    if draws.acceptance is None or not len(draws.acceptance) or not isinstance(goal, float):
        return
    mean = draws.acceptance.mean().item()
    seen = f"The mean acceptance is {mean:.2g}, its goal {goal:.2g}."
    if mean < goal - _LOST:
        yield SamplingWarning("acceptance", seen, _advise_shorter_step(trace))
    elif 1 - mean < (1 - goal) / 4:
        leave = ", or leave it out so that it is tuned" if _tunable(trace) else ""
        yield SamplingWarning("acceptance", seen, f"Take a larger {_length(trace)}{leave}: steps this short mix slowly.")


def _constant(trace: Trace, draws: Draws) -> Iterator[SamplingWarning]:
    """Finds constant chains. With rejections only if all are constant: `_stuck` finds single chains that reject nearly all steps."""
    count, chains = draws.energies.shape
    if count < LEAST_DRAWS:
        return
    values = draws.energies[:, :, None] if draws.points is None else draws.points.cpu().reshape(count, chains, -1)
    constant, rates = (values == values[:1]).all(2).all(0), draws.acceptance
    every = bool(constant.all())
    if not constant.any() or not (every or (rates is None and draws.steps[-1] - draws.steps[0] >= _STUCK_STEPS)):
        return
    if draws.points is None and (rates is None or rates.mean() > _STUCK):
        advice = "The energy may be flat where they are: keep points with `trace=1`, which show whether chains move."
    else:
        advice = (
            _advise_shorter_step(trace) if rates is not None else "Check the energy and its gradient there, and the options of the sampler."
        )
    subject = f"All {chains} chains" if every else f"{_list_chains(draws, constant)} of {chains} chains"
    quantity = "energy" if draws.points is None else "point"
    seen = f"{subject} keep one {quantity} each through {count} draws, so that R-hat and the effective sample size are not defined."
    yield SamplingWarning("constant", seen, advice)


def _stuck(trace: Trace, draws: Draws) -> Iterator[SamplingWarning]:
    if draws.acceptance is None or not len(draws.acceptance) or draws.steps[-1] - draws.steps[0] < _STUCK_STEPS:
        return
    stuck = draws.acceptance < _STUCK
    if stuck.any() and not stuck.all():
        goal = " or a higher goal of `acceptance`" if _has(trace, "acceptance") else ""
        yield SamplingWarning(
            "stuck",
            f"{_list_chains(draws, stuck)} of {len(stuck)} chains accept less than {_STUCK:.0%} of their steps, all chains together "
            f"{draws.acceptance.mean():.0%}.",
            "They are where the energy is much narrower than elsewhere, or far from the other chains: take a smaller "
            f"{_length(trace)}{goal}, or start them elsewhere with `init=`.",
        )


def _drift(draws: Draws) -> Iterator[SamplingWarning]:
    """Compares the halves of the draws by pieces; the spread of the differences of pieces accounts for autocorrelation."""
    count, chains = draws.energies.shape
    pieces = math.ceil(_PAIRS / max(1, chains))
    size = count // (2 * pieces)
    if not size or not chains:
        return
    early, late = (half[: size * pieces].reshape(pieces, size, chains).mean(1) for half in (draws.energies, draws.energies[count // 2 :]))
    change = (late - early).flatten()
    mean, error = change.mean().item(), (change.std() / math.sqrt(len(change))).item()
    spread = draws.energies.std().item()
    if abs(mean) > max(_DRIFT_ERRORS * error, _DRIFT_DEVIATIONS * spread):
        way = "falls" if mean < 0 else "rises"
        yield SamplingWarning(
            "drift",
            f"The mean energy still {way}, from {early.mean():.4g} to {late.mean():.4g} with a standard error of {error:.2g}, between the "
            f"halves of the steps {draws.steps[0]} to {draws.steps[-1]}.",
            "The chains have not converged: take more `steps` and a longer `burn_in`, or start nearer to the density with `init=`.",
        )


def _r_hat(trace: Trace, draws: Draws, rows: Sequence[Row]) -> Iterator[SamplingWarning]:
    """R-hat is about the root of 1 + chains / effective sample size (Vats & Knudson, 2021), so short chains never reach the threshold."""
    bad = sorted((row for row in rows if round(row.r_hat, 3) > _R_HAT), key=lambda row: -row.r_hat)
    if bad:
        worth = min(bad[0].ess_bulk, bad[0].ess_tail) / draws.energies.shape[1]
        more = f", and above {_R_HAT} for {len(bad)} of {len(rows)} numbers" if len(bad) > 1 else ""
        yield SamplingWarning(
            "r_hat",
            f"R-hat is {bad[0].r_hat:.3f} for {bad[0].name}{more}; a chain is worth {worth:.2g} independent draws of it.",
            "The chains do not agree yet. If they are short (1.01 needs about 50 independent draws of each), take more `steps`; if they "
            "have not converged, a longer `burn_in`; if no chain leaves its mode, start in all modes (`init=`)"
            f"{_or_use(trace, ' or use {}', 'tempering')}.",
        )


def _ess(trace: Trace, draws: Draws, rows: Sequence[Row]) -> Iterator[SamplingWarning]:
    known = [row for row in rows if not math.isnan(row.ess_bulk)]
    if not known:
        return
    worst = min(known, key=lambda row: min(row.ess_bulk, row.ess_tail))
    least, chains = min(worst.ess_bulk, worst.ess_tail), draws.energies.shape[1]
    required = min(_ESS, _ESS_OF_A_CHAIN * chains)
    if least < required:
        yield SamplingWarning(
            "ess",
            f"{draws.energies.numel()} draws of {worst.name} are worth {least:.0f} independent ones, fewer than {required}.",
            f"Means and quantiles are imprecise: take more `steps` or more chains{_or_use(trace, ', or {}, which mixes faster', 'chees')}.",
        )


def _bias(trace: Trace) -> Iterator[SamplingWarning]:
    parts = [trace.sampler.bias(state) for *_, state in trace.states]
    known = [part for part in parts if part is not None]
    if not known or len(known) < len(parts):
        return
    excess = torch.cat(known).double()
    mean = excess.mean().item()
    error = mean * math.sqrt(2 / max(1, sum(state.x.numel() for *_, state in trace.states)))
    if mean - 2 * error > _BIAS:
        yield SamplingWarning(
            "bias",
            f"The step is so long that points spread too far: for a Gaussian density, variances are too large by {mean:.0%}, on average "
            "over coordinates.",
            f"Take a smaller {_length(trace)}; the excess is proportional to it. Or use an exact sampler, `mala`.",
        )


def _branch(trace: Trace) -> Iterator[SamplingWarning]:
    shares = trace.branch_shares
    if shares is None or len(trace.kept) < _LEAST_POINTS:
        return
    empty = (shares * len(trace.kept) < _SHARE).nonzero().flatten().tolist()
    if empty:
        yield SamplingWarning(
            "branch",
            f"No point of {len(trace.kept)} is in branch {', '.join(map(str, empty))} of the {len(shares)} of the mixture, counted from 0.",
            f"If it should have some: start chains there with `init=`{_or_use(trace, ', or use levels ({})', 'tempering', 'annealed')}; "
            "`ce.calibrate` makes the weights of branches comparable.",
        )


def _length(trace: Trace) -> str:
    value = getattr(trace.sampler, "step_size", None)
    return f"`step_size` than {value:.3g}" if isinstance(value, float) else "step"


def _advise_shorter_step(trace: Trace) -> str:
    """Returns the advice for steps that are too long; it depends on whether the step was tuned."""
    if _tunable(trace):
        return f"Take a smaller {_length(trace)}, or leave it out so that it is tuned; give more steps to `burn_in`."
    if not trace.tuned:
        return f"Take a smaller {_length(trace)}; give more steps to `burn_in`."
    ways = {
        "step_size": f"a smaller {_length(trace)}",
        "acceptance": "a higher goal of `acceptance`",
        "tuning_steps": "more `tuning_steps`",
    }
    return (
        "The step was tuned on pilot chains, where the energy is less narrow than here: start where the density is (`init=`), give more "
        f"steps to `burn_in`, or take {' or '.join(way for option, way in ways.items() if _has(trace, option))}."
    )


def _tunable(trace: Trace) -> bool:
    """Returns whether the step size was given, and would be tuned otherwise."""
    return "step_size" not in trace.tuned and any(f.name == "step_size" and f.default is None for f in _options(trace))


def _has(trace: Trace, option: str) -> bool:
    return any(f.name == option for f in _options(trace))


def _options(trace: Trace) -> Sequence[Field[Any]]:
    return fields(trace.sampler) if is_dataclass(trace.sampler) else ()


def _or_use(trace: Trace, text: str, *names: str) -> str:
    """Returns a text with names of samplers other than the one used; empty if there is none."""
    others = [f"`{name}`" for name in names if name != type(trace.sampler).__name__.lower()]
    return text.format(", ".join(others)) if others else ""


def _list_chains(draws: Draws, some: Tensor) -> str:
    """Returns the number of some chains, and the first ids."""
    ids = draws.chains[some].tolist()
    return f"{len(ids)} (chains {', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''})"
