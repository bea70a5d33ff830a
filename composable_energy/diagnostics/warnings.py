"""Warnings about a run: the observation, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy.diagnostics.advice import (
    SamplingWarning,
    advise_shorter_step,
    has_option,
    is_tunable,
    length_of,
    list_ids,
    longer_burn_in,
    or_use,
)
from composable_energy.diagnostics.draws import Draws
from composable_energy.diagnostics.observed import LARGEST_BIAS, find_point_warnings, largest_r_hat, warn_of_bias
from composable_energy.diagnostics.statistics import LEAST_DRAWS, Row
from composable_energy.sampling.sampler import bias_of

if TYPE_CHECKING:
    from composable_energy.sampling.trace import Trace

_ESS, _ESS_OF_A_CHAIN = 400, 100  # Vehtari et al. (2021): 100 for each of four chains; with thousands of chains each needs fewer
_R_HAT = 1.1  # Gelman et al. (2013): a chain is worth about ten independent draws
_LOST = 0.15  # acceptance below its goal
_STUCK, _STUCK_STEPS = 0.05, 20
_DRIFT_ERRORS, _DRIFT_DEVIATIONS, _PAIRS = 4.0, 0.05, 20


def find_warnings(trace: Trace, draws: Draws, rows: Sequence[Row], unchecked: str | None) -> list[SamplingWarning]:
    """Returns the warnings about a run.

    Args:
        trace: The trace.
        draws: Its draws.
        rows: The statistics of the draws.
        unchecked: Why R-hat and effective sample size are unknown, and what to do; None if they are known.
    """
    found = find_point_warnings(trace)
    if trace.sampler.stationary:
        found += [*_acceptance(trace, draws), *_constant(trace, draws), *_stuck(trace, draws), *_bias(trace), *_drift(trace, draws)]
        if not trace.exact and (trace.branch_of is None or len(trace.branch_of.unique()) == 1):  # else they need not leave their branch
            found += [*_r_hat(trace, draws, rows), *_ess(trace, draws, rows)]
        found += [SamplingWarning("unchecked", "R-hat and the effective sample size are not known.", unchecked)] if unchecked else []
    known = {warning.kind for warning in found}
    return found + [warning for warning in trace.observed if warning.kind not in known]


def _acceptance(trace: Trace, draws: Draws) -> Iterator[SamplingWarning]:
    """Judges the mean that was tuned for. Steps that were tuned may be shorter than they need to be, where pilots met narrower places."""
    goal = getattr(trace.sampler, "acceptance", None)
    if draws.acceptance is None or draws.mean_acceptance is None or not isinstance(goal, float) or (draws.acceptance < _STUCK).all():
        return
    mean = draws.acceptance.mean().item()
    seen = f"The mean acceptance is {mean:.2g}, its goal {goal:.2g}."
    if mean < goal - _LOST:  # no other mean of acceptances that samplers tune for is above the arithmetic one
        yield SamplingWarning("acceptance", seen, advise_shorter_step(trace))
    elif 1 - draws.mean_acceptance < (1 - goal) / 4 and "step_size" not in trace.tuned:
        leave = ", or leave it out so that it is tuned" if is_tunable(trace) else ""
        yield SamplingWarning("acceptance", seen, f"Take a larger {length_of(trace.sampler)}{leave}: steps this short mix slowly.")


def _constant(trace: Trace, draws: Draws) -> Iterator[SamplingWarning]:
    """Finds constant chains, for which R-hat is not defined. Single chains that reject nearly all steps are `_stuck`."""
    count, chains = draws.energies.shape
    constant, rates = _constant_chains(draws), draws.acceptance
    every = bool(constant.all())
    if not every and rates is not None:
        constant &= rates >= _STUCK
    if not constant.any() or not (every or draws.steps[-1] - draws.steps[0] >= _STUCK_STEPS):
        return
    if draws.points is None and (rates is None or rates.mean() > _STUCK):
        advice = "The energy may be flat where they are: keep points with `trace=1`, which show whether chains move."
    else:
        advice = (
            advise_shorter_step(trace) if rates is not None else "Check the energy and its gradient there, and the options of the sampler."
        )
    subject = f"All {chains} chains" if every else f"{list_ids(draws.chains[constant].tolist())} of {chains} chains"
    quantity = "energy" if draws.points is None else "point"
    seen = f"{subject} keep one {quantity} each through {count} draws, so that R-hat and the effective sample size are not defined."
    yield SamplingWarning("constant", seen, advice)


def _constant_chains(draws: Draws) -> Tensor:
    """Returns which chains keep one point, or one energy where no points were kept, with shape $(c,)$; none of too few draws."""
    count, chains = draws.energies.shape
    if count < LEAST_DRAWS:
        return torch.zeros(chains, dtype=torch.bool)
    values = draws.energies[:, :, None] if draws.points is None else draws.points.cpu().reshape(count, chains, -1)
    return (values == values[:1]).all(2).all(0)


def _stuck(trace: Trace, draws: Draws) -> Iterator[SamplingWarning]:
    if draws.acceptance is None or not len(draws.acceptance) or draws.steps[-1] - draws.steps[0] < _STUCK_STEPS:
        return
    stuck = draws.acceptance < _STUCK
    if not stuck.any() or _constant_chains(draws).all():
        return
    if stuck.all():
        yield SamplingWarning("stuck", f"All {len(stuck)} chains accept less than {_STUCK:.0%} of their steps.", advise_shorter_step(trace))
        return
    goal = " or a higher goal of `acceptance`" if has_option(trace.sampler, "acceptance") else ""
    yield SamplingWarning(
        "stuck",
        f"{list_ids(draws.chains[stuck].tolist())} of {len(stuck)} chains accept less than {_STUCK:.0%} of their steps, all chains "
        f"together {draws.acceptance.mean():.0%}.",
        "They are where the energy is much narrower than elsewhere, or far from the other chains: take a smaller "
        f"{length_of(trace.sampler)}{goal}, or start them elsewhere with `init=`.",
    )


def _drift(trace: Trace, draws: Draws) -> Iterator[SamplingWarning]:
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
            f"The chains have not converged: take more `steps` than {trace.steps} and {longer_burn_in(trace)}, or start nearer to the "
            "density with `init=`.",
        )


def _r_hat(trace: Trace, draws: Draws, rows: Sequence[Row]) -> Iterator[SamplingWarning]:
    r"""R-hat is about $\sqrt{1 + 2 m / n}$ for $m$ converged chains whose draws are worth $n$ independent ones (Vats & Knudson, 2021).

    So the usual threshold, 1.01 for four chains, asks for 400 independent draws. The same number of draws gives larger values for more
    chains, up to the older threshold, at which a chain is worth about ten draws: it has forgotten its start. For few chains and for the
    worst of many numbers chance adds to it.
    """
    count, chains = draws.energies.shape
    parts = 2 * chains if chains > 1 else 8
    usual = min(_R_HAT, math.sqrt(1 + 2 * max(chains, 4) / _ESS))
    threshold = largest_r_hat(usual, max(1, count * chains // parts), parts, 2 * len(rows)) if rows and chains else usual
    bad = sorted((row for row in rows if round(row.r_hat, 3) > round(threshold, 3)), key=lambda row: -row.r_hat)
    if bad:
        worth = min(bad[0].ess_bulk, bad[0].ess_tail) / chains
        more = f", and above {threshold:.3g} for {len(bad)} of {len(rows)} numbers" if len(bad) > 1 else ""
        yield SamplingWarning(
            "r_hat",
            f"R-hat is {bad[0].r_hat:.3f} for {bad[0].name}, where {chains} chain{'s' * (chains > 1)} of {_ESS} independent draws in all "
            f"have at most {threshold:.3g}{more}; a chain is worth {worth:.2g} independent draws of it.",
            f"{'The chains' if chains > 1 else 'Parts of the chain'} do not agree: take more `steps` than {trace.steps} and "
            f"{longer_burn_in(trace)}; if no chain leaves its mode, start in all modes (`init=`)"
            f"{or_use(trace.sampler, ' or use {}', 'tempering')}.",
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
            "Means and quantiles are imprecise: take more `steps` or more chains"
            f"{or_use(trace.sampler, ', or {}, which mixes faster', 'chees')}.",
        )


def _bias(trace: Trace) -> Iterator[SamplingWarning]:
    bias = None if trace.state is None else bias_of(trace.sampler, trace.state)
    if trace.state is None or bias is None:
        return
    active = bias.double()[~trace.diverged]
    excess, count = active.mean().item(), len(active)
    numbers = count * math.prod(trace.state.x.shape[1:])
    if excess * (1 - 2 * math.sqrt(2 / max(1, numbers))) > LARGEST_BIAS and count:
        yield warn_of_bias(trace.sampler, excess)
