"""Warnings of `sample`, from its record of the run and from the final points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from composable_energy.diagnostics.advice import SamplingWarning, length_of, list_ids, or_use

if TYPE_CHECKING:
    from composable_energy.sampling.sampler import Sampler
    from composable_energy.sampling.trace import Trace

__all__ = [
    "LARGEST_BIAS",
    "find_point_warnings",
    "warn_of_bias",
    "warn_of_disagreement",
    "warn_of_drift",
    "warn_of_still_chains",
]

LARGEST_BIAS = 0.1  # of variances
_PROBABLE = 0.25  # the mean probability of a formula at its draws, below which it is reported


def warn_of_still_chains(sampler: Sampler, ids: Sequence[int], count: int, steps: int) -> SamplingWarning:
    """Returns the warning about chains that did not move."""
    every = len(ids) == count
    who = f"All {count} chains" if every else f"{list_ids(ids)} of {count} chains"
    ways = f"The energy is much narrower there than where the step was chosen: take a smaller {length_of(sampler)}, or start elsewhere with"
    return SamplingWarning(
        "constant" if every else "stuck",
        f"{who} did not move in the last {steps} steps, so their points are where they started, and no draws.",
        f"{ways} `init=`, such as the points that `descent` finds."
        if sampler.needs_values
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


def find_point_warnings(trace: Trace) -> list[SamplingWarning]:
    """Returns the warnings about points where the energy raised, and about draws at which the heads hold the formula for improbable."""
    found = []
    if trace.errors:
        found.append(
            SamplingWarning(
                "errors",
                f"The energy raised an exception or was NaN at {trace.errors} points, those of pilot chains included; they were rejected "
                f"as points of density 0. The first was {trace.first_error}.",
                "If the density is not 0 there, draws lack these points: correct the function; `on_error='raise'` stops there.",
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
