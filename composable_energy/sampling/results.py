"""After the loop: the points and the trace of a call, or what to do about chains that diverged or ran away."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from composable_energy.algebra import Conjunction, Disjunction, Weighted, value_of
from composable_energy.algebra.node import as_float
from composable_energy.diagnostics.warnings import find_branch_warnings
from composable_energy.energies.energy import Energy
from composable_energy.errors import SamplingDiverged
from composable_energy.events import Formula, conjoin
from composable_energy.sampling.chains import Chains, Diverged
from composable_energy.sampling.observers import TraceRecorder
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import State, bound_conditions
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.wrappers import UnconstrainedEnergy, near_border, visible_energy, warn_of_rounding

_FAR, _VERY_FAR = 10.0, 100.0  # of chains that start at standard normal points; multiples of that
_LATER = (
    "take a smaller step, or keep such chains at their last finite points by on_divergence='keep'; if the density is 0 there, return "
    "`torch.where(inside, energy, torch.inf)`, and use a sampler with a Metropolis test"
)


def finish(chains: Chains, recorder: TraceRecorder, keep_values: bool) -> tuple[Tensor, Trace]:
    """Returns the points, decoded where they are latent, and the trace, with the values by which a resumed call knows the energy again."""
    problem, trace, faults = chains.problem, recorder.trace(chains), chains.problem.energy.faults
    undefined, drawn, sampler = int(faults.undefined), chains.state.x.clone(), problem.sampler  # the trace keeps its own points
    trace.errors, trace.first_error = faults.points + undefined, faults.first or ("an energy of NaN" if undefined else "")
    trace.points = None if trace.points is None else problem.points.constrain(trace.points)
    trace.exact = problem.call.resume.exact if problem.call.resume else problem.drawn is not None and problem.drawn.exact
    _describe(problem, drawn, trace)
    if chains.active and sampler.traits.warn is not None:
        trace.observed = (*sampler.traits.warn(sampler, chains.active_state(), trace.exact), *trace.observed)
    if keep_values:
        trace.reference = (chains.values(),)
    if isinstance(problem.plain, UnconstrainedEnergy):
        warn_of_rounding(problem.plain, drawn)
    return problem.points.decode(drawn), trace


def _describe(problem: Problem, points: Tensor, trace: Trace) -> None:
    r"""Adds to a trace the shares of branches of a mixture and $P(\text{formula} \mid x)$ of events, at the points that are returned."""
    whole, known = visible_energy(problem.plain, points[:0])[0], problem.branches if len(points) else ()
    formulas, mixture = _stated_formulas(whole), whole if isinstance(whole, Disjunction) else None
    if not (formulas or known) and mixture is None:
        return
    points = visible_energy(problem.plain, points)[1]
    shifts = points.new_tensor([branch.shift for branch in known])[:, None]
    probabilities, shares, of_known = list[Tensor](), list[Tensor](), list[Tensor]()
    for ids, x in zip(torch.arange(problem.points.n).split(problem.batch_size), points.split(problem.batch_size), strict=True):
        bound = problem.conditions_at(x, ids)
        if formulas:
            probabilities.append((-torch.stack([one.energy(x, **bound) for one in formulas]).sum(0)).exp())
        if mixture is not None and not mixture.needs_log_densities:
            shares.append(torch.softmax(-mixture.branches(x, **bound), 0))
        if known:
            of_known.append(torch.softmax(-torch.stack([value_of(one.energy, x, bound) for one in known]) - shifts, 0))
    if formulas:
        trace.formula_probability = torch.cat(probabilities).mean().item()
    found = None
    if mixture is not None:
        trace.shares = mixture.shares
        trace.branch_shares = found = torch.cat(shares, 1).mean(1) if shares else None
    if known:
        trace.branch_of, found = torch.cat(of_known, 1).argmax(0).cpu(), torch.cat(of_known, 1).mean(1)
    if found is None or (not known and trace.shares == "exact"):
        return
    if not known and mixture is not None and len(mixture.terms) == len(found):  # unsatisfiable branches have no points
        found = found.masked_fill(torch.tensor([term.unsatisfiable for term in mixture.terms], device=found.device), torch.nan)
    trace.observed += tuple(find_branch_warnings(problem.sampler, found.tolist(), known, len(points)))


def _stated_formulas(energy: Energy) -> list[Formula]:
    """Returns the formulas that hold together in an expression, one for each base; weights of evidence do not change them.

    Branches of a mixture of other energies state nothing about all points.
    """
    found, seen, todo = list[Formula](), set[Energy](), [energy]  # a shared part states its formula once
    while todo:
        part = todo.pop()
        if part in seen:
            continue
        seen.add(part)
        formula = part.formula
        if formula is None:
            if isinstance(part, Conjunction) or (isinstance(part, Weighted) and as_float(part.weight) > 0):
                todo += reversed(part.terms)
        elif not formula.constant:
            same = next((i for i, other in enumerate(found) if other.same_base(formula)), None)
            if same is None:
                found.append(formula)
            else:
                found[same] = conjoin([found[same], formula])
    return found


# Chains that ran away, or diverged --------------------------------------------------------------------------------------------------------


def check_far_chains(chains: Chains, stop: Diverged | None, warned: Callable[[], bool]) -> None:
    """Raises if chains have run far away, were stopped, or have not converged, because the energy has no density.

    Raises:
        UngroundedError: The energy grows too slowly.
    """
    problem = chains.problem
    if not (chains.sampler.stationary and problem.plain.has_value):
        return
    zeros, init = problem.points.zeros(), problem.init
    x = chains.state.x if chains.active else zeros.new_full((16, *zeros.shape), torch.inf)
    far = _FAR * (1 if init is None else max(1.0, init.abs().max().item()))
    reach = x.reshape(len(x), -1).abs().amax(1).median().item() / far
    if (stop is not None and stop.step > 0) or reach > _VERY_FAR or (reach > 1 and warned()):
        from composable_energy.energies.checks import check_tails  # late: rare

        check_tails(problem.plain, x, bound_conditions(problem.sampler, problem.plain))


def diverged_error(chains: Chains, stop: Diverged) -> SamplingDiverged:
    """Returns the error about chains that diverged under the policy "raise"."""
    problem, points, diverged = chains.problem, chains.state.x, chains.diverged_at >= 0
    energy, faults = problem.plain, problem.energy.faults
    term = "" if stop.step else _find_term(problem, points[diverged.to(points.device)], diverged)
    advice = None if chains.broken is None else _advise(energy, chains.broken)
    where = "other points in `init`" if problem.init is not None else "points in `init`, where it is finite"
    advice = advice or (_LATER if stop.step else f"check the energy there, or give {where}")
    return SamplingDiverged(
        f"{int(diverged.sum())} of {len(diverged)} chains reached a non-finite point, energy or gradient of {energy} {stop.reason}: "
        f"{term}{advice}. The error's `samples` are the last finite points."
        + (f" At {faults.points} points the energy raised an exception, first {faults.first}" if faults.points else ""),
        samples=problem.points.decode(points),
        diverged=diverged,
        step=stop.step,
    )


def _find_term(problem: Problem, points: Tensor, diverged: Tensor) -> str:
    """Returns which term is not finite where chains start, and in which quantity."""
    energy, points = visible_energy(problem.plain, points)
    if not points.isfinite().all():
        return "the start points are not finite themselves; "
    chains, found, todo = diverged.nonzero()[: problem.batch_size, 0], "", [energy]
    bound = problem.conditions_at(points[: len(chains)], chains)
    while todo and len(chains):
        term = todo.pop()
        try:
            own = {name: value for name, value in bound.items() if name in term.conditions}
            values, grads = term.with_gradient(points[: len(chains)], **own)
        except Exception:  # as of a term of other points or conditions; the node above it is named
            continue
        for name, numbers in (("energy", values[:, None]), ("gradient", grads.flatten(1))):
            bad = ~numbers.isfinite().all(1)
            if bad.any():
                kind = "NaN" if numbers.isnan().any() else "infinite"
                found, todo = f"the {name} of {term} is {kind} at {int(bad.sum())} of {len(chains)}: ", list(reversed(term.terms))
                break
    return found


def _advise(energy: Energy, broken: State) -> str | None:
    """Returns what to do about chains at points that are finite, at the border of a support or where the gradient alone is broken."""
    finite = broken.x.isfinite().reshape(len(broken.x), -1).all(1)
    if any((near_border(energy, broken.x, dtype) & finite).any() for dtype in (broken.x.dtype, torch.float32)):
        return "they are as close to the border of the support as numbers of their dtype can be: sample in float64, with parameters in it"
    rows = finite & broken.energy.isfinite()
    if not rows.any():
        return None
    return (
        f"at {int(rows.sum())} of the points the energy is finite and its gradient is not. The gradient of `torch.where(c, f(x), g(x))` is "
        "NaN where that of the branch which is not taken is: give each branch a safe argument, `f(torch.where(c, x, 1.0))`. Roots and "
        "norms have no gradient at 0: add a small number inside"
    )
