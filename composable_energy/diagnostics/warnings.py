r"""Warnings about a run: the observation, and what to do."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from composable_energy.errors import SamplingWarning

if TYPE_CHECKING:
    from composable_energy.algebra import Branch
    from composable_energy.sampling.sampler import Sampler
    from composable_energy.sampling.trace import Trace

LEAST_DRAWS = 4  # ArviZ needs
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

_ADVICE = {
    "diverged": "Take a smaller {step}; if that does not help, look at the energy there.",
    "errors": "If the density is not 0 there, draws lack these points: correct the function; `E(x)` raises its exceptions.",
    "varies": "Draws need one value for each point: leave out dropout and noise, evaluate all data, change no state in the function.",
    "gradient": "Draws follow the gradients: correct the `backward`, or what clips or detaches; `mala` draws by the energies.",
    "formula": "Such points may be rare or absent in the data of the base, or the classifiers contradict one another: look at "
    "`E.explain(x)`; `E.sharpened(w)` weighs the formula more.",
    "probabilities": "Leave out the last softmax or sigmoid; or return their logarithms, `p.log()`, of a single column `p.logit()`.",
    "decoded": "Such points may be rare in the data, or the decoder does not show it: a judge of decoded points decides; "
    "`E.sharpened(w)` weighs the formula more.",
    "rare": "Data have hardly shown such points, so draws may not be such: a judge decides; `E.sharpened(w)` weighs the formula more.",
    "longer": "Take a larger {step}{tune}: steps this short mix slowly.",
    "shorter": "Take a smaller {step}{tune}; take a longer `burn_in`.",
    "tuned": "The step was tuned on pilot chains, where the energy is less narrow than here: start where the density is (`init=`), take a "
    "longer `burn_in`{tuning}.",
    "flat": "The energy may be flat where they are: keep points with `trace=1`, which show whether chains move.",
    "broken": "Check the energy and its gradient there, and the options of the sampler.",
    "narrow": "The energy is much narrower there than where the step was chosen: take a smaller {step}, or start elsewhere with `init=`, "
    "such as the points that `descent` finds.",
    "trapped": "No change that the sampler makes may lead to other states: start chains at many (`init=`){tempering}; or write the energy "
    "as one of numbers that may change one by one.",
    "drift": "Take more `steps` and a longer `burn_in`, or start nearer to the density with `init=`.",
    "r_hat": "Take more `steps` and a longer `burn_in`; if no chain leaves its mode, start in all modes (`init=`){tempering}.",
    "ess": "Means and quantiles are imprecise: take more `steps` or more chains{chees}.",
    "bias": "Take a smaller {step}; the excess is proportional to it. Or use an exact sampler, `mala`.",
    "branch": "Leave out `init`, so that chains start in the branches; else start chains in all branches by `init=`{both}.",
    "empty": "If it should have some: start chains in all branches by `init=`{both}. `ce.calibrate` makes the weights comparable.",
}


def advise(name: str, sampler: "Sampler") -> str:
    """Returns what to do about a kind of warning; it names no sampler that is in use."""
    step, own = getattr(sampler, "step_size", None), type(sampler).__name__.lower().removeprefix("discrete")
    others = [f"`{name}`" for name in ("chees", "tempering")["continuous" not in sampler.traits.states :] if name != own]
    tunes = hasattr(sampler, "tuning_steps")
    return _ADVICE[name].format(
        step=f"`step_size` than {step:.3g}" if isinstance(step, float) else "step",
        tune=", or leave it out so that it is tuned" if tunes else "",
        tuning=", or more `tuning_steps`" if tunes else "",
        chees=", or `chees`, which mixes faster" if "`chees`" in others else "",
        tempering=" or use `tempering`" if "`tempering`" in others else "",
        both=f", or use {', '.join(others)}" if others else "",
    )


@dataclass(frozen=True)
class Draws:
    """The draws of a trace for diagnostics, from the $c$ chains that never diverged."""

    steps: Sequence[int]  # d of them, counted from 1
    chains: Tensor  # ids, (c,)
    energies: Tensor  # (d, c), in float64
    points: Tensor | None  # (d, c, *), if they were kept
    acceptance: Tensor | None  # of all steps from the first draw on, (steps, c); None for a sampler that never rejects
    description: str  # the steps in words


@dataclass(frozen=True)
class Row:
    """The statistics of one quantity, such as a coordinate or the energy, by the names of ArviZ; NaN if unknown."""

    name: str
    mean: float
    sd: float
    mcse: float = math.nan
    ess_bulk: float = math.nan
    ess_tail: float = math.nan
    r_hat: float = math.nan


def find_warnings(trace: "Trace", draws: Draws, rows: Sequence[Row], unchecked: str | None) -> list[SamplingWarning]:
    """Returns the warnings about a run; `unchecked` says why R-hat and effective sample size are unknown, and what to do."""
    found = list[SamplingWarning]()
    if trace.sampler.stationary:
        found += [*_acceptance(trace, draws), *_still(trace, draws), *_bias(trace), *_drift(trace, draws)]
        if not trace.exact and (trace.branch_of is None or len(trace.branch_of.unique()) == 1):  # else they need not leave their branch
            found += _r_hat(trace, draws, rows)
            worths = [(min(row.ess_bulk, row.ess_tail), row.name) for row in rows if row.ess_bulk == row.ess_bulk]
            least, name = min(worths, default=(math.inf, ""))
            if least < (required := min(_ESS, _ESS_OF_A_CHAIN * draws.energies.shape[1])):
                seen = f"{draws.energies.numel()} draws of {name} are worth {least:.0f} independent ones, fewer than {required}."
                found.append(SamplingWarning("ess", seen, advise("ess", trace.sampler)))
        found += [SamplingWarning("unchecked", "R-hat and the effective sample size are not known.", unchecked)] if unchecked else []
    return [warning for warning in trace.observed if warning.kind not in {other.kind for other in found}] + found


def _acceptance(trace: "Trace", draws: Draws) -> Iterator[SamplingWarning]:
    """Judges the mean that was tuned for. Steps that were tuned may be shorter than they need to be, where pilots met narrower places."""
    goal, rates = getattr(trace.sampler, "acceptance", None), draws.acceptance
    if rates is None or not isinstance(goal, float) or (rates.nanmean(0) < _STUCK).all():
        return
    tuned_for = trace.sampler.traits.mean_acceptance
    mean, other = rates.nanmean().item(), (rates if tuned_for is None else tuned_for(rates)).nanmean().item()
    seen = f"The mean acceptance is {mean:.2g}, its goal {goal:.2g}."
    if mean < goal - _LOST:  # no other mean of acceptances that samplers tune for is above the arithmetic one
        yield SamplingWarning("acceptance", seen, _shorter_step(trace))
    elif 1 - other < (1 - goal) / 4 and "step_size" not in trace.tuned:
        yield SamplingWarning("acceptance", seen, advise("longer", trace.sampler))


def _still(trace: "Trace", draws: Draws) -> Iterator[SamplingWarning]:
    """Finds constant chains, for which R-hat is not defined, and chains that reject nearly all steps."""
    count, chains = draws.energies.shape
    if not count or not chains:
        return
    values = draws.energies[:, :, None] if draws.points is None else draws.points.cpu().reshape(count, chains, -1)
    constant = (values == values[:1]).all(2).all(0) & (count >= LEAST_DRAWS)
    rates = torch.ones(chains, device="cpu") if draws.acceptance is None else draws.acceptance.nanmean(0)
    stuck, every = rates < _STUCK, bool(constant.all())
    if not every and draws.steps[-1] - draws.steps[0] < _STUCK_STEPS:
        return
    if every or (constant & ~stuck).any():
        if draws.points is None and (draws.acceptance is None or rates.mean() > _STUCK):
            advice = advise("flat", trace.sampler)
        else:
            advice = advise("broken", trace.sampler) if draws.acceptance is None else _shorter_step(trace)
        who, what = _who(draws.chains[constant if every else constant & ~stuck], chains), "energy" if draws.points is None else "point"
        seen = f"{who} keep one {what} each through {count} draws, so that R-hat and the effective sample size are not defined."
        yield SamplingWarning("constant", seen, advice)
    if stuck.any() and not every:
        more = "" if stuck.all() else f", all chains together {rates.mean():.0%}"
        advice = _shorter_step(trace) if stuck.all() else advise("narrow", trace.sampler)
        yield SamplingWarning("stuck", f"{_who(draws.chains[stuck], chains)} accept less than {_STUCK:.0%} of their steps{more}.", advice)


def _bias(trace: "Trace") -> Iterator[SamplingWarning]:
    estimate = trace.sampler.traits.bias
    bias = None if trace.state is None or estimate is None else estimate(trace.sampler, trace.state)
    if trace.state is not None and bias is not None and not trace.diverged.all():
        excess, numbers = bias.double()[~trace.diverged].mean().item(), int((~trace.diverged).sum()) * trace.state.x[0].numel()
        if excess * (1 - 2 * math.sqrt(2 / max(1, numbers))) > LARGEST_BIAS:
            yield warn_of_bias(trace.sampler, excess)


def _drift(trace: "Trace", draws: Draws) -> Iterator[SamplingWarning]:
    """Compares the halves of the draws by pieces; the spread of the differences of pieces accounts for autocorrelation."""
    count, chains = draws.energies.shape
    pieces = math.ceil(_PAIRS / max(1, chains))
    if not (size := count // (2 * pieces)) or not chains:
        return
    early, late = (half[: size * pieces].reshape(pieces, size, chains).mean(1) for half in (draws.energies, draws.energies[count // 2 :]))
    change = (late - early).flatten()
    mean, error = change.mean().item(), (change.std() / math.sqrt(len(change))).item()
    if abs(mean) > max(_DRIFT_ERRORS * error, _DRIFT_DEVIATIONS * draws.energies.std().item()):
        seen = (
            f"The mean energy still {'falls' if mean < 0 else 'rises'}, from {early.mean():.4g} to {late.mean():.4g} with a standard error "
            f"of {error:.2g}, between the halves of the steps {draws.steps[0]} to {draws.steps[-1]}: the chains have not converged."
        )
        yield SamplingWarning("drift", seen, advise("drift", trace.sampler))


def _r_hat(trace: "Trace", draws: Draws, rows: Sequence[Row]) -> Iterator[SamplingWarning]:
    r"""R-hat is about $\sqrt{1 + 2 m / n}$ for $m$ converged chains whose draws are worth $n$ independent ones (Vats & Knudson, 2021). So
    the usual threshold, 1.01 for four chains, asks for 400 independent draws. The same number of draws gives larger values for more chains,
    up to the older threshold, at which a chain is worth about ten draws: it has forgotten its start. For few chains and for the worst of
    many numbers chance adds to it."""
    count, chains = draws.energies.shape
    if not rows or not chains:
        return
    parts, usual = 2 * chains if chains > 1 else 8, min(_R_HAT, math.sqrt(1 + 2 * max(chains, 4) / _ESS))
    numbers = 1 if draws.points is None else 1 + draws.points[0, 0].numel()
    threshold = largest_r_hat(usual, max(1, count * chains // parts), parts, 2 * numbers)
    if bad := sorted((row for row in rows if round(row.r_hat, 3) > round(threshold, 3)), key=lambda row: -row.r_hat):
        more = f", and above {threshold:.3g} for {len(bad)} of {len(rows)} numbers" if len(bad) > 1 else ""
        seen = (
            f"R-hat is {bad[0].r_hat:.3f} for {bad[0].name}, where {chains} chain{'s' * (chains > 1)} of {_ESS} independent draws in all "
            f"have at most {threshold:.3g}{more}; a chain is worth {min(bad[0].ess_bulk, bad[0].ess_tail) / chains:.2g} independent draws "
            f"of it. {'The chains' if chains > 1 else 'Parts of the chain'} do not agree."
        )
        yield SamplingWarning("r_hat", seen, advise("r_hat", trace.sampler))


def chance(pieces: int, numbers: int) -> float:
    """Returns how much larger than expected the variance of the means of pieces is by chance, for the worst of some numbers."""
    spread = 2 / (9 * (pieces - 1))  # the quantile of a chi-squared number by Wilson & Hilferty (1931)
    return (1 - spread + NormalDist().inv_cdf(1 - _RARE / numbers) * math.sqrt(spread)) ** 3


def largest_r_hat(usual: float, draws: int, pieces: int, numbers: int) -> float:
    """Returns the R-hat that chance explains, for the worst of some numbers, where the expected one of pieces is the usual threshold."""
    return math.sqrt(1 + (usual**2 - 1 + 1 / draws) * chance(pieces, numbers) - 1 / draws)


def warn_of_bias(sampler: "Sampler", excess: float) -> SamplingWarning:
    """Returns the warning about steps of an unadjusted sampler that are too long."""
    seen = f"The step is so long that points spread too far: for a Gaussian density, variances are too large by {excess:.0%} on average."
    return SamplingWarning("bias", seen, advise("bias", sampler))


def warn_of_still_chains(sampler: "Sampler", ids: Sequence[int], count: int, steps: int) -> SamplingWarning:
    """Returns the warning about chains that did not move."""
    seen = f"{_who(ids, count)} did not move in the last {steps} steps, so their points are where they started, and no draws."
    advice = advise(("narrow" if "continuous" in sampler.traits.states else "trapped") if sampler.traits.values else "broken", sampler)
    return SamplingWarning("constant" if len(ids) == count else "stuck", seen, advice)


def find_branch_warnings(sampler: "Sampler", shares: Sequence[float], known: Sequence["Branch"], count: int) -> Iterator[SamplingWarning]:
    """Yields warnings about branches without points, or whose shares at the points differ from the `known` ones by more than chance."""
    wrong = []
    for number, (share, branch) in enumerate(zip(shares, known, strict=False)):
        error, off = math.hypot(math.sqrt(branch.share * (1 - branch.share) / count), branch.error), abs(share - branch.share)
        if off > max(_ERRORS * error, _MARGIN * min(branch.share, 1 - branch.share)):
            wrong.append((off, f"branch {number}, {branch.energy}, has {share:.3f} for {branch.share:.3f} +- {error:.2g}"))
    if wrong:
        seen = f"The points do not have the shares of the mixture: {max(wrong)[1]}, counted from 0."
        yield SamplingWarning("branch", seen, advise("branch", sampler))
    if (empty := [str(number) for number, share in enumerate(shares) if share * count < _EMPTY]) and not known and count >= _LEAST_POINTS:
        seen = f"No point of {count} is in branch {', '.join(empty)} of the {len(shares)} of the mixture, counted from 0."
        yield SamplingWarning("branch", seen, advise("empty", sampler))


def find_point_warnings(trace: "Trace") -> list[SamplingWarning]:
    """Returns the warnings about chains that stopped, about points where the energy raised, and about draws that hardly show a formula."""
    found, stopped = [], trace.diverged_at >= 0
    if stopped.any():
        seen = (
            f"{int(stopped.sum())} of {len(stopped)} chains reached a point, energy or gradient that is not finite, the first at step "
            f"{int(trace.diverged_at[stopped].min())}, "
            f"{'and stay at their last finite point' if trace.on_divergence == 'keep' else 'which stopped all'}."
        )
        found.append(SamplingWarning("diverged", seen, advise("diverged", trace.sampler)))
    if trace.errors:
        seen = (
            f"The energy raised an exception or was NaN at {trace.errors} points, those of pilot chains included; they were rejected as "
            f"points of density 0. The first was {trace.first_error}."
        )
        found.append(SamplingWarning("errors", seen, advise("errors", trace.sampler)))
    if (probability := trace.formula_probability) is not None and probability < _PROBABLE:
        seen = f"At the draws the classifiers give the formula a mean probability of {probability:.2g}: most draws do not show it."
        found.append(SamplingWarning("formula", seen, advise("formula", trace.sampler)))
    return found


def _shorter_step(trace: "Trace") -> str:
    """Returns the advice for steps that are too long."""
    tuned = "step_size" in trace.tuned or (trace.tuned and not hasattr(trace.sampler, "step_size"))
    return advise("tuned" if tuned else "shorter", trace.sampler)


def _who(ids: Tensor | Sequence[int], count: int) -> str:
    """Returns which chains of all: their number, and the first ids."""
    if len(some := [int(i) for i in ids]) == count:
        return f"All {count} chains"
    return f"{len(some)} (chains {', '.join(map(str, some[:5]))}{', ...' if len(some) > 5 else ''}) of {count} chains"
