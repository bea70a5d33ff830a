"""The function `sample`: resolves a call, tunes the sampler, runs the loop, and returns points and trace, or an error."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import Conjunction, Disjunction, Sharpened, Weighted, value_of, warn_of_shares
from composable_energy.algebra.node import as_float
from composable_energy.diagnostics.warnings import find_branch_warnings
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluating
from composable_energy.energies.lift import as_energy
from composable_energy.errors import OptionError, SamplingDiverged, SamplingInterrupted, SamplingWarning
from composable_energy.events import Formula, conjoin
from composable_energy.sampling.chains import Chains, Diverged, Observer, TraceRecorder, run
from composable_energy.sampling.checkpoint import Checkpoint, CheckpointFile
from composable_energy.sampling.convergence import ConvergenceObserver, emit_warnings, warn_of_points, warn_of_spacing
from composable_energy.sampling.evaluation import evaluation_context
from composable_energy.sampling.faults import explain_failure
from composable_energy.sampling.gradient_checks import check_detached, check_own_gradients, check_rows, mixes_values
from composable_energy.sampling.pilots import draw_branches, tune_sampler
from composable_energy.sampling.problem import Call, Problem, resolve
from composable_energy.sampling.progress import Progress, counted
from composable_energy.sampling.sampler import State, bound_conditions, changed_options
from composable_energy.sampling.selection import SamplerLike, recommendations
from composable_energy.sampling.trace import Policy, Trace, Values
from composable_energy.sampling.unconstrained import near_border, visible_energy, warn_of_rounding

_FAR, _VERY_FAR = 10.0, 100.0  # of chains that start at standard normal points; multiples of that
_DECIDED = "what is accepted and the shares of branches"  # by differences of energies
_CHECKED_STEPS = 16  # the check of points that mix costs one or two gradients, much for the short chains of training
_LATER = (
    "take a smaller step, or keep such chains at their last finite points by on_divergence='keep'; if the density is 0 there, return "
    "`torch.where(inside, energy, torch.inf)`, and use a sampler with a Metropolis test"
)
_AT_SOME, _AT_OTHERS = (
    f"check the energy there, or give {where}" for where in ("points in `init`, where it is finite", "other points in `init`")
)


@dataclass(frozen=True)
class Latents:
    """The latent points of an energy that `sample` shows decoded: `E.latents`.

    Args:
        energy: The energy.
    """

    energy: Energy

    def sample(self, shape: int | Sequence[int], **options: Any) -> Any:
        """Draws latent points, which are not decoded; see `composable_energy.sampling.sample`."""
        return sample(self, shape, **options)


def sample(
    energy: Energy | Latents,
    shape: int | Sequence[int],
    *,
    sampler: SamplerLike | None = None,
    steps: int | None = None,
    init: Tensor | None = None,
    seed: int | None = None,
    observers: Sequence[Observer] = (),
    trace: bool | int = False,
    burn_in: int = 0,
    batch_size: int | None = None,
    on_divergence: Policy | None = None,
    allow_improper: bool = False,
    compile: bool = False,
    first_chain: int = 0,
    resume: Trace | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Any:
    r"""Draws points from $p(x) \propto e^{-E(x)}$.

    Sampling evaluates a twin of the energy, in eval mode and without gradients of its parameters (see `twin`). The caller's modules do not
    change, so several threads may sample one energy while another trains it. The sampler's noise is keyed by chain and step, so batches,
    processes and interruptions do not change the draws; random numbers that an energy itself draws come from torch's global state.

    An energy with a support is sampled in unconstrained coordinates, with the logarithm of their change of volume. Points are given and
    returned in the support. Points at which the function of an energy raises, as a Cholesky decomposition that fails, have density 0, are
    counted (`trace.errors`) and warned about. An exception at all points, a `TypeError` and errors of this library are raised.

    Args:
        energy: The energy, or an object that `as_energy` lifts.
        shape: $(n, *)$ with the shape of one point, or $n$ where the energy knows it. An energy in the latent space of a decoder is
            sampled there and decoded at the end: then it is the shape of decoded points; `E.latents.sample` returns latent ones.
        sampler: A name, a class or an instance. None takes the energy's recommendation, with `feynman-kac` in place of `annealed` where
            evidence is weakened; else `annealed` for an energy that needs a noise level `sigma`, `langevin` for one without value, and
            `chees`, which tunes itself, for any other.
        steps: The number of steps; None takes the sampler's own number.
        init: The start points, with shape $(n, *)$, in the support, and latent ones for a latent energy; they are not changed.
        seed: The seed; None draws one, which the trace reports.
        observers: What looks at the chains after each step: `Progress()`, `Stop(function)`, `Checkpoint(path)`, and own subclasses of
            `composable_energy.sampling.Observer`.
        trace: Whether to return a `Trace` as well. A number k also keeps the points of every k-th step.
        burn_in: The number of steps before points are kept.
        batch_size: How many chains are evaluated together; all if None.
        on_divergence: What happens to a chain whose point, energy or gradient is not finite: `"raise"` stops the call, `"keep"` the chain,
            whose last finite point is returned (`trace.diverged` has such chains). None takes that of the resumed trace, else `"raise"`.
        allow_improper: Whether to sample an energy without a lower bound.
        compile: Whether steps run through `torch.compile`, or their gradients where the sampler has a schedule or trajectories of several
            lengths. The first call takes seconds longer, each step less. The draws are those without compilation, up to rounding.
        first_chain: The id of the first chain, for a call that draws a part of many chains; see `composable_energy.distributed`.
        resume: A trace to continue, by `steps` more steps: the chains are those of one long run. The energy must have the same energies
            and gradients as before where the chains stopped.
        dtype: The dtype of the points; None takes that of `init`, else of the energy's tensors, else torch's default. Their device follows
            the same order.
        **options: The sampler's options.

    Returns:
        The points, with shape $(n, *)$, or the pair of points and `Trace`.

    Raises:
        OptionError: An option is unknown or out of range, a start point is outside the support, the terms recommend different settings, or
            the checkpoint or the trace is of another call or of another energy.
        ShapeError, DtypeError, DeviceError: The request, the start points and the energy do not fit.
        ExpressionError: A condition is not bound, the sampler needs values that the energy does not have, or the values of an energy do
            not fit its own `with_gradient`.
        UngroundedError: The energy has no density, as its structure or where its chains ran away shows.
        FileFormatError: The checkpoint is damaged, or of another format.
        StorageError: Another call, here or in another process, uses the checkpoint.
        StorageError: The checkpoint cannot be written; the file holds an earlier step.
        SamplingDiverged: Chains diverged; the error carries the last finite points of all chains.
        SamplingInterrupted: Ctrl-C; the error, a `KeyboardInterrupt`, carries the points and the trace so far.
        PluginNotFound: No plug-in offers the sampler, or none is installed.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> bowl.sample((100, 2), seed=0).shape
        torch.Size([100, 2])
    """
    call = Call(
        energy=as_energy(energy.energy if isinstance(energy, Latents) else energy),
        latents=isinstance(energy, Latents),
        observers=_check_observers(observers),
        shape=shape,
        sampler=sampler,
        steps=steps,
        init=init,
        seed=seed,
        trace=trace,
        burn_in=burn_in,
        batch_size=batch_size,
        on_divergence=on_divergence,
        allow_improper=allow_improper,
        compile=compile,
        first_chain=first_chain,
        resume=resume,
        dtype=dtype,
        options=options,
    )
    points, record, found = _draw(call)
    emit_warnings(found)
    return (points, record) if trace else points


def _check_observers(observers: Any) -> tuple[Observer, ...]:
    found = tuple(observers) if isinstance(observers, Iterable) else (observers,)
    for one in found:
        if not isinstance(one, Observer):
            raise OptionError(f"observers is a list of observers, such as `[Progress(), Stop(f), Checkpoint(path)]`, got {one!r} in it.")
    return found


def _draw(call: Call) -> tuple[Tensor, Trace, list[SamplingWarning]]:
    """Returns the points, the record and the warnings of a call, and emits no warnings."""
    began = time.perf_counter()
    with evaluation_context(call.energy), ExitStack() as held:
        # As recommended, chains need not converge.
        judge = call.sampler is not None or call.steps is not None or not recommendations(call.energy)
        problem = resolve(call)
        call = problem.call
        warn_of_shares(call.energy)
        problem, file = _continue(problem, held)
        observers = [held.enter_context(one.opened(problem.sampler)) if isinstance(one, Progress) else one for one in call.observers]
        sampler, problem = problem.sampler, _tune(problem, observers)
        last_step = problem.last_step()
        chains = Chains(problem, _compiled(problem) if call.compile else None)
        recorder = _recorder(problem, chains, file, call.resume.tuned if call.resume else changed_options(sampler, problem.sampler))
        kept = 0 if call.every is None else last_step - call.burn_in
        observer = ConvergenceObserver(last_step, judge=judge, coordinates=problem.points.coordinates, kept=kept)
        compares = problem.sampler.traits.values or mixes_values(problem.plain)  # whether the draws depend on differences of energies
        every = [recorder, *observers, *([] if file is None else [file]), observer]
        stop = _run(chains, last_step, every, recorder, compares)
        if judge and not call.allow_improper:
            _check_tails(chains, stop, observer)
        if stop is not None:
            raise _diverged_error(chains, stop)
        points, record = _finish(chains, recorder, keep_values=bool(call.trace))
        record.observed += tuple(observer.warnings(chains, record))
        if compares and chains.active:
            record.observed += tuple(warn_of_spacing(chains.state.energy, chains.state.energy.dtype, _DECIDED))
    record.seconds = time.perf_counter() - began
    return points, record, [*record.observed, *warn_of_points(record, traced=bool(call.trace))]


# Before the loop ----------------------------------------------------------------------------------------------------------------------


def _continue(problem: Problem, held: ExitStack) -> tuple[Problem, CheckpointFile | None]:
    """Reads the checkpoint, and checks that the energy is that of the call which goes on."""
    resume, found = problem.call.resume, [one for one in problem.call.observers if isinstance(one, Checkpoint)]
    if len(found) > 1:
        raise OptionError("A call has one Checkpoint, got several.")
    if found:
        file = CheckpointFile(found[0], problem, held)
        file.check_energy()
        return file.problem, file
    if resume is not None:
        advice = "To start this energy at the points of the trace give them as `init`."
        problem.check_same_energy(resume.reference, "The trace is", advice)
    return problem, None


def _tune(problem: Problem, observers: Sequence[Observer]) -> Problem:
    """Draws start points in the branches of mixtures, and tunes the sampler on pilot chains."""
    problem, energy = replace(problem, drawn=draw_branches(problem, lambda call: _draw(call)[0])), problem.energy
    for one in observers:
        energy = counted(energy, problem.sampler, one.report) if isinstance(one, Progress) else energy
    what = f"{type(problem.sampler).__name__.lower()} was being tuned, by 64 pilot chains of shape {(64, *problem.points.event)}."
    try:
        return tune_sampler(problem, energy)
    except Exception as error:
        explain_failure(error, what)
        raise


def _compiled(problem: Problem) -> Any:
    from composable_energy.sampling.compiled import CompiledStep  # late: torch's compiler is slow to import

    return CompiledStep(problem.sampler, problem.energy, problem.call.energy, problem)


def _recorder(problem: Problem, chains: Chains, file: CheckpointFile | None, tuned: Sequence[str]) -> TraceRecorder:
    """Returns the recorder of the trace, with the record of an interrupted run."""
    call, noise = problem.call, problem.noise
    blank = Trace(
        seed=noise.seed,
        noise=noise.kind,
        first_chain=noise.chains[0],
        sampler=problem.sampler,
        shape=problem.points.shape,
        on_divergence=problem.policy,
        tuned=tuple(tuned),
        burn_in=call.burn_in,
        alike=not problem.own_conditions,
    )
    before = None if file is None else file.trace(blank, chains)
    recorder = TraceRecorder(blank, steps=bool(call.trace), every=call.every, before=before)
    if file is not None:
        file.recorder = recorder
    return recorder


def _run(chains: Chains, last_step: int, observers: Sequence[Observer], recorder: TraceRecorder, compares: bool) -> Diverged | None:
    """Starts or continues the chains and takes all steps; returns what ended them earlier.

    Points are checked against others at a start, gradients against values where the draws depend on both.

    Raises:
        SamplingInterrupted: Ctrl-C, after the start.
    """
    problem, before = chains.problem, recorder.before or chains.problem.call.resume
    try:
        if before is not None:
            chains.resume(before)
        else:
            with evaluating(uses=[], memo=None) as start:
                chains.start()
            check_detached(start.uses or ())
        if chains.active:
            ids = chains.active_ids()[: problem.batch_size]
            x = chains.active_state().x[: len(ids)]
            if before is None and (problem.pilots is not None or last_step >= _CHECKED_STEPS):
                check_rows(problem, ids, x)
            if compares and not problem.plain.needs_log_densities:
                some = range(len(ids)) if chains.active == problem.rows else ids
                check_own_gradients(problem.energy_of(some), x, bound_conditions(problem.sampler, problem.plain))
        run(chains, last_step, observers)
    except Diverged as error:
        return error
    except KeyboardInterrupt as interrupt:
        if chains.started:
            with suppress(Exception):
                points, trace = _finish(chains, recorder, keep_values=True)
                raise SamplingInterrupted(
                    f"Sampling was interrupted after {chains.step} of {last_step} steps. The error's `points` and `trace` are those of "
                    f"now; `sample(..., resume=error.trace, steps={last_step - chains.step})` takes the other steps.",
                    points=points,
                    trace=trace,
                ) from interrupt
        raise
    return None


# After the loop -----------------------------------------------------------------------------------------------------------------------


def _check_tails(chains: Chains, stop: Diverged | None, observer: ConvergenceObserver) -> None:
    """Raises if chains have run far away, or diverged, because the energy has no density."""
    problem = chains.problem
    if not (chains.sampler.stationary and problem.plain.has_value):
        return
    zeros, init = problem.points.zeros(), problem.init
    x = chains.state.x if chains.active else zeros.new_full((16, *zeros.shape), torch.inf)
    far = _FAR * (1 if init is None else max(1.0, init.abs().max().item()))
    reach = x.reshape(len(x), -1).abs().amax(1).median().item() / far
    if (stop is not None and stop.step > 0) or reach > _VERY_FAR or (reach > 1 and observer.warnings(chains)):
        from composable_energy.energies.density import check_tails  # late: rare

        check_tails(problem.plain, x, bound_conditions(problem.sampler, problem.plain))


def _finish(chains: Chains, recorder: TraceRecorder, keep_values: bool) -> tuple[Tensor, Trace]:
    """Returns the points, decoded where they are latent, and the trace."""
    problem, trace, faults = chains.problem, recorder.trace(chains), chains.problem.energy.faults
    undefined = int(faults.undefined)
    trace.errors, trace.first_error = faults.points + undefined, faults.first or ("an energy of NaN" if undefined else "")
    trace.points = None if trace.points is None else problem.points.constrain(trace.points)
    drawn = chains.state.x.clone()  # the trace keeps its own
    trace.exact = problem.call.resume.exact if problem.call.resume else problem.drawn is not None and problem.drawn.exact
    _describe(problem, drawn, trace)
    if chains.active and (warn := chains.sampler.traits.warn) is not None:
        trace.observed = (*warn(chains.sampler, chains.active_state(), trace.exact), *trace.observed)
    if keep_values:  # those of the states where they hold them, which costs nothing
        held = chains.active and problem.energy.conditions.isdisjoint(problem.sampler.traits.binds)
        trace.reference = (Values.of_state(chains.active_ids(), chains.active_state()) if held else chains.values(),)
    warn_of_rounding(problem.plain, drawn)
    return problem.points.decode(drawn), trace


def _describe(problem: Problem, points: Tensor, trace: Trace) -> None:
    r"""Adds to a trace the shares of branches of a mixture and $P(	ext{formula} \mid x)$ of events, at the points that are returned."""
    whole = visible_energy(problem.plain, points[:0])[0]
    formulas, known = _stated_formulas(whole), problem.branches if len(points) else ()
    if not (formulas or known or isinstance(whole, Disjunction)):
        return
    points, shares = visible_energy(problem.plain, points)[1], None
    if formulas:
        trace.formula_probability = (
            _at_points(lambda x, bound: (-torch.stack([one.energy(x, **bound) for one in formulas]).sum(0)).exp(), problem, points)
            .mean()
            .item()
        )
    if isinstance(whole, Disjunction):
        trace.shares = whole.shares
        if not whole.needs_log_densities:
            shares = _at_points(lambda x, bound: torch.softmax(-whole.branches(x, **bound), 0), problem, points).mean(1)
        trace.branch_shares = shares
    if known:
        shifts = points.new_tensor([branch.shift for branch in known])[:, None]
        found = _at_points(
            lambda x, bound: torch.softmax(-torch.stack([value_of(one.energy, x, bound) for one in known]) - shifts, 0), problem, points
        )
        trace.branch_of, shares = found.argmax(0).cpu(), found.mean(1)
    if shares is None or (not known and trace.shares == "exact"):
        return
    if not known and isinstance(whole, Disjunction) and len(whole.terms) == len(shares):  # unsatisfiable branches have no points
        shares = shares.masked_fill(torch.tensor([term.unsatisfiable for term in whole.terms], device=shares.device), torch.nan)
    trace.observed += tuple(find_branch_warnings(problem.sampler, shares.tolist(), known, len(points)))


def _at_points(function: Callable[[Tensor, dict[str, Tensor]], Tensor], problem: Problem, points: Tensor) -> Tensor:
    """Returns a function of points and conditions at the points of all chains, batch by batch, joined along the last axis."""
    size = problem.batch_size
    batches = zip(torch.arange(problem.rows).split(size), points.split(size), strict=True)
    return torch.cat([function(some, problem.conditions_at(some, ids)) for ids, some in batches], -1)


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


# Chains that diverged -----------------------------------------------------------------------------------------------------------------


def _diverged_error(chains: Chains, stop: Diverged) -> SamplingDiverged:
    problem, points, diverged = chains.problem, chains.state.x, chains.diverged_at >= 0
    energy, faults = problem.plain, problem.energy.faults
    term = "" if stop.step else _find_term(problem, points[diverged.to(points.device)], diverged)
    advice = None if chains.broken is None else _advise(energy, chains.broken)
    advice = advice or (_LATER if stop.step else _AT_OTHERS if problem.init is not None else _AT_SOME)
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
