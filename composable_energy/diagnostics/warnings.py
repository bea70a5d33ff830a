"""Warnings about a run: the observation, and what to do."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, is_dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy.diagnostics.statistics import LEAST_DRAWS, Draws, Row
from composable_energy.errors import SamplingWarning

if TYPE_CHECKING:
    from composable_energy.algebra import Branch
    from composable_energy.sampling.sampler import Sampler
    from composable_energy.sampling.trace import Trace

LARGEST_BIAS = 0.1  # of variances
_ERRORS, _MARGIN = 4.5, 0.05  # of a share: standard errors, and a part of it that does not count
_EMPTY, _LEAST_POINTS = 0.1, 20  # the expected number of points in a branch; with fewer points a rare branch may have none
_RARE = 0.01  # the probability of a false alarm about the worst of several numbers
_PROBABLE = 0.25  # the mean probability of a formula at its draws, below which it is reported
_ESS, _ESS_OF_A_CHAIN = 400, 100  # Vehtari et al. (2021): 100 for each of four chains; with thousands of chains each needs fewer
_R_HAT = 1.1  # Gelman et al. (2013): a chain is worth about ten independent draws
_LOST = 0.15  # acceptance below its goal
_STUCK, _STUCK_STEPS = 0.05, 20
_DRIFT_ERRORS, _DRIFT_DEVIATIONS, _PAIRS = 4.0, 0.05, 20


# From a trace -----------------------------------------------------------------------------------------------------------------------------


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
        yield SamplingWarning("acceptance", seen, _shorter_step(trace))
    elif 1 - draws.mean_acceptance < (1 - goal) / 4 and "step_size" not in trace.tuned:
        leave = ", or leave it out so that it is tuned" if _is_tunable(trace) else ""
        yield SamplingWarning("acceptance", seen, f"Take a larger {_length(trace.sampler)}{leave}: steps this short mix slowly.")


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
        advice = _shorter_step(trace) if rates is not None else "Check the energy and its gradient there, and the options of the sampler."
    subject = f"All {chains} chains" if every else f"{_list_ids(draws.chains[constant].tolist())} of {chains} chains"
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
        yield SamplingWarning("stuck", f"All {len(stuck)} chains accept less than {_STUCK:.0%} of their steps.", _shorter_step(trace))
        return
    goal = " or a higher goal of `acceptance`" if hasattr(trace.sampler, "acceptance") else ""
    yield SamplingWarning(
        "stuck",
        f"{_list_ids(draws.chains[stuck].tolist())} of {len(stuck)} chains accept less than {_STUCK:.0%} of their steps, all chains "
        f"together {draws.acceptance.mean():.0%}.",
        "They are where the energy is much narrower than elsewhere, or far from the other chains: take a smaller "
        f"{_length(trace.sampler)}{goal}, or start them elsewhere with `init=`.",
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
            f"The chains have not converged: take more `steps` than {trace.steps} and {_longer_burn_in(trace)}, or start nearer to the "
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
            f"{_longer_burn_in(trace)}; if no chain leaves its mode, start in all modes (`init=`)"
            f"{_or_use(trace.sampler, ' or use {}', 'tempering')}.",
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
            f"{_or_use(trace.sampler, ', or {}, which mixes faster', 'chees')}.",
        )


def _bias(trace: Trace) -> Iterator[SamplingWarning]:
    estimate = trace.sampler.traits.bias
    bias = None if trace.state is None or estimate is None else estimate(trace.sampler, trace.state)
    if trace.state is None or bias is None:
        return
    active = bias.double()[~trace.diverged]
    excess, count = active.mean().item(), len(active)
    numbers = count * math.prod(trace.state.x.shape[1:])
    if excess * (1 - 2 * math.sqrt(2 / max(1, numbers))) > LARGEST_BIAS and count:
        yield warn_of_bias(trace.sampler, excess)


# Without a trace --------------------------------------------------------------------------------------------------------------------------


def chance(pieces: int, numbers: int) -> float:
    """Returns how much larger than expected the variance of the means of pieces is by chance, for the worst of some numbers."""
    spread = 2 / (9 * (pieces - 1))  # the quantile of a chi-squared number by Wilson & Hilferty (1931)
    return (1 - spread + NormalDist().inv_cdf(1 - _RARE / numbers) * math.sqrt(spread)) ** 3


def largest_r_hat(usual: float, draws: int, pieces: int, numbers: int) -> float:
    """Returns the R-hat that chance explains, for the worst of some numbers, where the expected one is the usual threshold.

    Each of the pieces of all chains has that many draws.
    """
    return math.sqrt(1 + (usual**2 - 1 + 1 / draws) * chance(pieces, numbers) - 1 / draws)


def warn_of_still_chains(sampler: Sampler, ids: Sequence[int], count: int, steps: int) -> SamplingWarning:
    """Returns the warning about chains that did not move."""
    every = len(ids) == count
    who = f"All {count} chains" if every else f"{_list_ids(ids)} of {count} chains"
    ways = f"The energy is much narrower there than where the step was chosen: take a smaller {_length(sampler)}, or start elsewhere with"
    return SamplingWarning(
        "constant" if every else "stuck",
        f"{who} did not move in the last {steps} steps, so their points are where they started, and no draws.",
        f"{ways} `init=`, such as the points that `descent` finds."
        if sampler.traits.values
        else "Check the energy and its gradient there, and the options of the sampler.",
    )


def warn_of_drift(sampler: Sampler, name: str, steps: tuple[int, int]) -> SamplingWarning:
    """Returns the warning about chains whose mean still changes."""
    return SamplingWarning(
        "drift",
        f"The mean of {name} over all chains still changed between the halves of the steps {steps[0]} to {steps[1]}: the chains have not "
        "converged.",
        "Take more `steps`, or start nearer to the density with `init=`; `trace=True` shows how far they are.",
    )


def warn_of_disagreement(sampler: Sampler, name: str, r_hat: float, steps: tuple[int, int]) -> SamplingWarning:
    """Returns the warning about chains that differ from one another."""
    return SamplingWarning(
        "r_hat",
        f"The chains do not agree: R-hat is {r_hat:.2f} for {name} over the steps {steps[0]} to {steps[1]}, so each still depends on where "
        "it started.",
        f"Take more `steps`; if no chain leaves its mode, start in all modes (`init=`){_or_use(sampler, ' or use {}', 'tempering')}.",
    )


def find_branch_warnings(sampler: Sampler, shares: Sequence[float], known: Sequence[Branch], count: int) -> Iterator[SamplingWarning]:
    """Yields the warning about branches of a mixture without points, or with more or fewer points than chance explains.

    Args:
        sampler: The sampler.
        shares: The mean probabilities of the branches at the points.
        known: The branches with their shares; none if these are not known.
        count: The number of points.
    """
    wrong = []
    for number, (share, branch) in enumerate(zip(shares, known, strict=False)):
        error = math.hypot(math.sqrt(branch.share * (1 - branch.share) / count), branch.error)
        if abs(share - branch.share) > max(_ERRORS * error, _MARGIN * min(branch.share, 1 - branch.share)):
            wrong.append(
                (abs(share - branch.share), f"branch {number}, {branch.energy}, has {share:.3f} for {branch.share:.3f} +- {error:.2g}")
            )
    where = f"start chains in all branches by `init=`{_or_use(sampler, ', or use {}', 'chees', 'tempering')}."
    if wrong:
        seen = f"The points do not have the shares of the mixture: {max(wrong)[1]}"
        yield SamplingWarning("branch", f"{seen}, counted from 0.", f"Leave out `init`, so that chains start in the branches; else {where}")
    empty = [str(number) for number, share in enumerate(shares) if share * count < _EMPTY]
    if empty and not known and count >= _LEAST_POINTS:
        seen = f"No point of {count} is in branch {', '.join(empty)} of the {len(shares)} of the mixture, counted from 0."
        yield SamplingWarning("branch", seen, f"If it should have some: {where} `ce.calibrate` makes the weights of branches comparable.")


def warn_of_error(sampler: Sampler, name: str, draws: float) -> SamplingWarning:
    """Returns the warning about the mean of the points that a trace keeps."""
    return SamplingWarning(
        "ess",
        f"The points of the trace are worth about {draws:.0f} independent draws of {name}: the standard error of its mean is "
        f"{1 / math.sqrt(draws):.2f} standard deviations.",
        f"Take more `steps` or more chains{_or_use(sampler, ', or {}, which mixes faster', 'chees')}.",
    )


def find_point_warnings(trace: Trace) -> list[SamplingWarning]:
    """Returns the warnings about chains that stopped, about points where the energy raised, and about draws that hardly show a formula."""
    found, stopped = [], trace.diverged_at >= 0
    if stopped.any():
        action = "and stay at their last finite point" if trace.on_divergence == "keep" else "which stopped all"
        seen = (
            f"{int(stopped.sum())} of {len(stopped)} chains reached a point, energy or gradient that is not finite, the first at step "
            f"{int(trace.diverged_at[stopped].min())}, {action}."
        )
        advice = f"Take a smaller {_length(trace.sampler)}; if that does not help, look at the energy there."
        found.append(SamplingWarning("diverged", seen, advice))
    if trace.errors:
        found.append(
            SamplingWarning(
                "errors",
                f"The energy raised an exception or was NaN at {trace.errors} points, those of pilot chains included; they were rejected "
                f"as points of density 0. The first was {trace.first_error}.",
                "If the density is not 0 there, draws lack these points: correct the function; `E(x)` raises its exceptions.",
            )
        )
    probability = trace.formula_probability
    if probability is not None and probability < _PROBABLE:
        found.append(
            SamplingWarning(
                "formula",
                f"At the draws the classifiers give the formula a mean probability of {probability:.2g}: most draws do not show it.",
                "The base may have no such points, or the classifiers contradict one another: look at `E.explain(x)`; `E.sharpened(w)` "
                "weighs the formula more.",
            )
        )
    return found


def warn_of_bias(sampler: Sampler, excess: float) -> SamplingWarning:
    """Returns the warning about steps of an unadjusted sampler that are too long."""
    return SamplingWarning(
        "bias",
        f"The step is so long that points spread too far: for a Gaussian density, variances are too large by {excess:.0%}, on average over "
        "coordinates.",
        f"Take a smaller {_length(sampler)}; the excess is proportional to it. Or use an exact sampler, `mala`.",
    )


# Advice -----------------------------------------------------------------------------------------------------------------------------------


def _length(sampler: Sampler) -> str:
    """Returns the name of the sampler's step, with its value where it is known."""
    value = getattr(sampler, "step_size", None)
    return f"`step_size` than {value:.3g}" if isinstance(value, float) else "step"


def _shorter_step(trace: Trace) -> str:
    """Returns the advice for steps that are too long; it depends on whether the step was tuned, and on the burn-in."""
    burn_in = f"take {_longer_burn_in(trace)}"
    if _is_tunable(trace):
        return f"Take a smaller {_length(trace.sampler)}, or leave it out so that it is tuned; {burn_in}."
    if not trace.tuned:
        return f"Take a smaller {_length(trace.sampler)}; {burn_in}."
    ways = {
        "step_size": f"a smaller {_length(trace.sampler)}",
        "acceptance": "a higher goal of `acceptance`",
        "tuning_steps": "more `tuning_steps`",
    }
    return (
        "The step was tuned on pilot chains, where the energy is less narrow than here: start where the density is (`init=`), "
        f"{burn_in}, or take {' or '.join(way for option, way in ways.items() if hasattr(trace.sampler, option))}."
    )


def _longer_burn_in(trace: Trace) -> str:
    """Returns the advice to take more steps before the draws."""
    return f"a longer `burn_in` than {trace.burn_in}" if trace.burn_in else "a `burn_in`"


def _is_tunable(trace: Trace) -> bool:
    """Returns whether the step size was given, and would be tuned otherwise."""
    options = fields(trace.sampler) if is_dataclass(trace.sampler) else ()
    return "step_size" not in trace.tuned and any(option.name == "step_size" and option.default is None for option in options)


def _or_use(sampler: Sampler, text: str, *names: str) -> str:
    """Returns a text with names of samplers other than the one used; empty if there is none."""
    others = [f"`{name}`" for name in names if name != type(sampler).__name__.lower()]
    return text.format(", ".join(others)) if others else ""


def _list_ids(ids: Sequence[int]) -> str:
    """Returns the number of some chains, and the first ids."""
    return f"{len(ids)} (chains {', '.join(map(str, ids[:5]))}{', ...' if len(ids) > 5 else ''})"
