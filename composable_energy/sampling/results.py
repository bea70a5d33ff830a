"""What a call of `sample` returns: the chosen points, the trace, shares of branches and probabilities of formulas; or its error."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from composable_energy.algebra import Conjunction, Disjunction, Sharpened, Weighted, value_of
from composable_energy.algebra.node import as_float
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.errors import SamplingDiverged
from composable_energy.events import Formula, conjoin
from composable_energy.sampling.chains import Chains, Diverged
from composable_energy.sampling.checkpoint_observer import final_reference
from composable_energy.sampling.faults import Faults
from composable_energy.sampling.loop import TraceRecorder
from composable_energy.sampling.request import SampleRequest
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.trace import Trace, gather_trace
from composable_energy.sampling.unconstrained import visible_energy, warn_of_rounding
from composable_energy.sampling.values import Evaluator

__all__ = ["collect_result"]


def collect_result(
    request: SampleRequest, chains: Chains, recorder: TraceRecorder, evaluator: Evaluator, stop: Diverged | None, faults: Faults
) -> tuple[Tensor, Trace]:
    """Returns the points, decoded where they are latent, and the trace.

    Raises:
        SamplingDiverged: Chains of this or another process diverged, and the policy ends the sampling.
    """
    ranks, first, (points, present) = request.ranks, chains.own.start, chains.points()
    stop = stop if ranks is None else next((some for some in ranks.gather(stop) if some is not None), None)
    if stop is not None:
        diverged = chains.diverged_at >= 0
        points, diverged = (points, diverged) if ranks is None else (ranks.gather_rows(points), ranks.gather_rows(diverged))
        raise _diverged_error(request.energy, stop, request.points.decode(points), diverged, faults) from None
    trace = recorder.trace(chains)
    trace.errors, trace.first_error = faults.points, faults.first
    trace.points = None if trace.points is None else request.points.constrain(trace.points)
    trace.kept = _select(evaluator, chains, points, present) + first
    drawn = points[(trace.kept - first).to(points.device)]
    trace.formula_probability = _formula_probability(request, chains.sampler, drawn, trace.kept)
    trace.branch_shares = _branch_shares(request, chains.sampler, drawn, trace.kept)
    trace.shares = whole.shares if isinstance(whole := visible_energy(request.energy, drawn)[0], Disjunction) else None
    branches = chains.layout.starts.branches
    trace.exact = request.resume.exact if request.resume is not None else branches is not None and branches.exact
    trace.observed = tuple(chains.sampler.diagnose(chains.state(), trace.exact)) if chains.chunks else ()
    _judge_shares(request, chains.sampler, drawn, trace)
    if request.trace:
        trace.reference = (final_reference(evaluator, chains),)
    if ranks is not None and ranks.share == "gather":
        own = trace if request.trace else replace(trace, states=[], stopped=[])  # which nobody sees
        drawn, trace = ranks.gather_rows(drawn), gather_trace(own, ranks)
    warn_of_rounding(request.energy, drawn)
    return request.points.decode(drawn), trace


def _select(evaluator: Evaluator, chains: Chains, points: Tensor, present: Tensor) -> Tensor:
    """Returns the places of the chains that are returned: of the copies of each point, the one with the lowest evidence."""
    copies = evaluator.copies
    if copies == 1:
        return present.nonzero().squeeze(1)
    evidence = evaluator.evidence(chains.own, points).cpu()
    evidence[~present | (chains.diverged_at >= 0) & (chains.restarts == 0) | evidence.isnan()] = float("inf")
    best = evidence.view(-1, copies).argmin(1) + torch.arange(0, len(points), copies)
    return best[present.view(-1, copies).any(1)]


def _diverged_error(energy: Energy, stop: Diverged, samples: Tensor, diverged: Tensor, faults: Faults) -> SamplingDiverged:
    ways = (
        "check the energy there, or give `init`"
        if stop.step == 0
        else "take a smaller step, or choose what happens to such chains by on_divergence='drop', 'restart' or 'keep'; if the density is 0 "
        "there, return `torch.where(inside, energy, torch.inf)`, and use a sampler with a Metropolis test"
    )
    return SamplingDiverged(
        f"{int(diverged.sum())} of {len(diverged)} chains reached a non-finite point, energy or gradient of {energy} {stop.reason}: "
        f"{ways}. The error's `samples` are the last finite points."
        + (f" At {faults.points} points the energy raised an exception, first {faults.first}" if faults.points else ""),
        samples=samples,
        diverged=diverged,
        step=stop.step,
    )


def _branch_shares(request: SampleRequest, sampler: Sampler, points: Tensor, chains: Tensor) -> Tensor | None:
    """Returns the mean share of each branch of a mixture at points of chains, with shape $(K,)$; None for another energy."""
    energy, points = visible_energy(request.energy, points)
    if not isinstance(energy, Disjunction) or energy.needs_log_densities or not len(chains):
        return None
    return _at_points(lambda x, bound: torch.softmax(-energy.branches(x, **bound), 0), request, sampler, points, chains).mean(1)


def _judge_shares(request: SampleRequest, sampler: Sampler, points: Tensor, trace: Trace) -> None:
    """Finds the branch of each point, of a mixture with known shares, and warns in the trace if they have other shares."""
    _, points = visible_energy(request.energy, points)
    known = request.branches if len(points) else ()
    if known:
        shifts = points.new_tensor([branch.shift for branch in known])[:, None]

        def probabilities(x: Tensor, bound: dict[str, Tensor]) -> Tensor:
            return torch.softmax(-torch.stack([value_of(branch.energy, x, bound) for branch in known]) - shifts, 0)

        found = _at_points(probabilities, request, sampler, points, trace.kept)
        trace.branch_of, shares = found.argmax(0).cpu(), found.mean(1)
    elif trace.branch_shares is None or trace.shares == "exact":
        return
    else:
        shares = trace.branch_shares
    from composable_energy.diagnostics.observed import find_branch_warnings  # late: most energies are no mixtures

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
    conditions, parts = sampler.final_conditions(request.energy), []
    for ids, some in zip(chains.split(request.batch_size), points.split(request.batch_size), strict=True):
        bound: dict[str, Tensor] = {name: some.new_full((len(some),), value) for name, value in conditions.items()}
        bound[CHAINS] = ids // request.best_of
        parts.append(function(some, bound))
    return torch.cat(parts, -1)
