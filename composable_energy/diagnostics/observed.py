"""Warnings of `sample`, from its record of the run and from the final points."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING

from composable_energy.diagnostics.advice import SamplingWarning, length_of, list_ids, or_use

if TYPE_CHECKING:
    from composable_energy.algebra import Branch
    from composable_energy.sampling.sampler import Sampler
    from composable_energy.sampling.trace import Trace

LARGEST_BIAS = 0.1  # of variances
_ERRORS, _MARGIN = 4.5, 0.05  # of a share: standard errors, and a part of it that does not count
_EMPTY, _LEAST_POINTS = 0.1, 20  # the expected number of points in a branch; with fewer points a rare branch may have none
_RARE = 0.01  # the probability of a false alarm about the worst of several numbers
_PROBABLE = 0.25  # the mean probability of a formula at its draws, below which it is reported


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
    who = f"All {count} chains" if every else f"{list_ids(ids)} of {count} chains"
    ways = f"The energy is much narrower there than where the step was chosen: take a smaller {length_of(sampler)}, or start elsewhere with"
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
        f"Take more `steps`; if no chain leaves its mode, start in all modes (`init=`){or_use(sampler, ' or use {}', 'tempering')}.",
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
    where = f"start chains in all branches by `init=`{or_use(sampler, ', or use {}', 'chees', 'tempering')}."
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
        f"Take more `steps` or more chains{or_use(sampler, ', or {}, which mixes faster', 'chees')}.",
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
        advice = f"Take a smaller {length_of(trace.sampler)}; if that does not help, look at the energy there."
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
        f"Take a smaller {length_of(sampler)}; the excess is proportional to it. Or use an exact sampler, `mala`.",
    )
