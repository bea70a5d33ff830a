"""What a call of `sample` returns: the chosen points, the trace, shares of branches and probabilities of formulas; or its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from composable_energy.algebra import Conjunction, Disjunction, Sharpened, Weighted, value_of
from composable_energy.algebra.node import as_float
from composable_energy.conditions import CHAINS
from composable_energy.diagnostics.warnings import find_branch_warnings
from composable_energy.energy import Energy
from composable_energy.errors import SamplingDiverged, SamplingInterrupted
from composable_energy.events import Formula, conjoin
from composable_energy.sampling.chains import Chains, Diverged
from composable_energy.sampling.checkpoint_observer import final_reference
from composable_energy.sampling.faults import Faults
from composable_energy.sampling.loop import TraceRecorder
from composable_energy.sampling.request import SampleRequest
from composable_energy.sampling.sampler import Sampler, State, bound_conditions
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.unconstrained import near_border, visible_energy, warn_of_rounding
from composable_energy.sampling.values import Evaluator

_LATER = (
    "take a smaller step, or keep such chains at their last finite points by on_divergence='keep'; if the density is 0 there, return "
    "`torch.where(inside, energy, torch.inf)`, and use a sampler with a Metropolis test"
)
_AT_SOME, _AT_OTHERS = (
    f"check the energy there, or give {where}" for where in ("points in `init`, where it is finite", "other points in `init`")
)


def collect_result(
    request: SampleRequest, chains: Chains, recorder: TraceRecorder, evaluator: Evaluator, stop: Diverged | None, faults: Faults
) -> tuple[Tensor, Trace]:
    """Returns the points, decoded where they are latent, and the trace.

    Raises:
        SamplingDiverged: Chains diverged, and the policy ends the sampling.
    """
    first, points = chains.own.start, chains.state.x
    if stop is not None:
        diverged = chains.diverged_at >= 0
        term = "" if stop.step else _find_term(request, chains.sampler, points[diverged.to(points.device)], diverged, first)
        advice = None if chains.broken is None else _advise(request.energy, chains.broken)
        advice = advice or (_LATER if stop.step else _AT_OTHERS if request.init is not None else _AT_SOME)
        raise _diverged_error(request.energy, stop, term + advice, request.points.decode(points), diverged, faults) from None
    trace = recorder.trace(chains)
    undefined = int(faults.undefined)
    trace.errors, trace.first_error = faults.points + undefined, faults.first or ("an energy of NaN" if undefined else "")
    trace.points = None if trace.points is None else request.points.constrain(trace.points)
    drawn, ids = points.clone(), torch.arange(first, chains.own.stop)  # the trace keeps its own
    trace.formula_probability = _formula_probability(request, chains.sampler, drawn, ids)
    whole, visible = visible_energy(request.energy, drawn)
    if isinstance(whole, Disjunction):
        trace.shares, trace.branch_shares = whole.shares, _branch_shares(whole, request, chains.sampler, visible, ids)
    branches = chains.problem.starts.branches
    trace.exact = request.resume.exact if request.resume is not None else branches is not None and branches.exact
    if chains.active and (warn := chains.sampler.traits.warn) is not None:
        trace.observed = tuple(warn(chains.sampler, chains.active_state(), trace.exact))
    if request.branches or trace.branch_shares is not None:
        _judge_shares(request, chains.sampler, drawn, trace)
    if request.trace:
        trace.reference = (final_reference(evaluator, chains),)
    warn_of_rounding(request.energy, drawn)
    return request.points.decode(drawn), trace


def interrupted_error(
    request: SampleRequest, chains: Chains, recorder: TraceRecorder, evaluator: Evaluator, faults: Faults, last_step: int
) -> SamplingInterrupted:
    """Returns the error of a call that Ctrl-C ended, with what it would have returned after the steps that it took."""
    points, trace = collect_result(replace(request, trace=True), chains, recorder, evaluator, None, faults)
    return SamplingInterrupted(
        f"Sampling was interrupted after {chains.step} of {last_step} steps. The error's `points` and `trace` are those of now; "
        f"`sample(..., resume=error.trace, steps={last_step - chains.step})` takes the other steps.",
        points=points,
        trace=trace,
    )


def _find_term(request: SampleRequest, sampler: Sampler, points: Tensor, diverged: Tensor, first: int) -> str:
    """Returns which term is not finite where chains start, and in which quantity; `first` is the first chain here."""
    energy, points = visible_energy(request.energy, points)
    if not points.isfinite().all():
        return "the start points are not finite themselves; "
    chains, found, todo = diverged.nonzero()[: request.batch_size, 0] + first, "", [energy]
    bound = _conditions_at(request, sampler, points[: len(chains)], chains)
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


def _diverged_error(energy: Energy, stop: Diverged, advice: str, samples: Tensor, diverged: Tensor, faults: Faults) -> SamplingDiverged:
    return SamplingDiverged(
        f"{int(diverged.sum())} of {len(diverged)} chains reached a non-finite point, energy or gradient of {energy} {stop.reason}: "
        f"{advice}. The error's `samples` are the last finite points."
        + (f" At {faults.points} points the energy raised an exception, first {faults.first}" if faults.points else ""),
        samples=samples,
        diverged=diverged,
        step=stop.step,
    )


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


def _branch_shares(energy: Disjunction, request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor) -> Tensor | None:
    """Returns the mean share of each branch of a mixture at points of chains, with shape $(K,)$; None if it is not known."""
    if energy.needs_log_densities or not len(chains):
        return None
    return _at_points(lambda x, bound: torch.softmax(-energy.branches(x, **bound), 0), request, sampler, points, chains).mean(1)


def _judge_shares(request: SampleRequest, sampler: Sampler, points: Tensor, trace: Trace) -> None:
    """Finds the branch of each point, of a mixture with known shares, and warns in the trace if they have other shares."""
    energy, points = visible_energy(request.energy, points)
    known, shares = request.branches if len(points) else (), trace.branch_shares
    if known:
        shifts = points.new_tensor([branch.shift for branch in known])[:, None]

        def probabilities(x: Tensor, bound: dict[str, Tensor]) -> Tensor:
            return torch.softmax(-torch.stack([value_of(branch.energy, x, bound) for branch in known]) - shifts, 0)

        found = _at_points(probabilities, request, sampler, points, torch.arange(trace.chains.start, trace.chains.stop))
        trace.branch_of, shares = found.argmax(0).cpu(), found.mean(1)
    if shares is None or (not known and trace.shares == "exact"):
        return
    if not known and isinstance(energy, Disjunction) and len(energy.terms) == len(shares):  # unsatisfiable branches have no points
        shares = shares.masked_fill(torch.tensor([term.unsatisfiable for term in energy.terms], device=shares.device), torch.nan)
    trace.observed += tuple(find_branch_warnings(sampler, shares.tolist(), known, len(points)))


def _formula_probability(request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor) -> float | None:
    r"""Returns the mean of $P(\text{formula} \mid x)$ at points of chains, by the heads themselves; None without events."""
    energy, points = visible_energy(request.energy, points)
    formulas = _stated_formulas(energy)
    if not formulas or not len(chains):
        return None

    def probability(x: Tensor, bound: dict[str, Tensor]) -> Tensor:
        return (-torch.stack([formula.energy(x, **bound) for formula in formulas]).sum(0)).exp()

    return _at_points(probability, request, sampler, points, chains).mean().item()


def _stated_formulas(energy: Energy) -> tuple[Formula, ...]:
    """Returns the formulas that hold together in an expression, one for each base; weights of evidence do not change them.

    Branches of a mixture of other energies state nothing about all points.
    """
    found: list[Formula] = []
    seen: set[Energy] = set()  # a shared part states its formula once
    todo = [energy]
    while todo:
        part = todo.pop()
        if part in seen:
            continue
        seen.add(part)
        if part.formula is not None:
            _add_formula(found, part.formula)
        elif isinstance(part, Conjunction) or (isinstance(part, Weighted | Sharpened) and as_float(part.weight) > 0):
            todo += reversed(part.terms)
    return tuple(found)


def _add_formula(found: list[Formula], formula: Formula) -> None:
    """Adds a formula to those that hold together, in place; one for each base."""
    if formula.constant:
        return
    for i, other in enumerate(found):
        if other.same_base(formula):
            found[i] = conjoin([other, formula])
            return
    found.append(formula)


def _at_points(
    function: Callable[[Tensor, dict[str, Tensor]], Tensor], request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor
) -> Tensor:
    """Returns a function of points and conditions at points of chains, batch by batch, joined along the last axis."""
    parts = []
    for ids, some in zip(chains.split(request.batch_size), points.split(request.batch_size), strict=True):
        parts.append(function(some, _conditions_at(request, sampler, some, ids)))
    return torch.cat(parts, -1)


def _conditions_at(request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor) -> dict[str, Tensor]:
    """Returns the conditions of an energy at points of chains: the last noise level, and the rows."""
    conditions = bound_conditions(sampler, request.energy)
    return {name: points.new_full((len(points),), value) for name, value in conditions.items()} | {CHAINS: chains}
