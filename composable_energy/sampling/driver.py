"""The function `sample`: resolves a request, tunes the sampler, runs the loop, and returns points and trace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import warn_of_shares
from composable_energy.energy import Energy
from composable_energy.errors import SamplingWarning
from composable_energy.evaluation import recording
from composable_energy.lift import as_energy
from composable_energy.noise import Kind, Noise
from composable_energy.sampling.chains import Chains, Diverged, Problem, Step
from composable_energy.sampling.checkpoint_observer import CheckpointObserver
from composable_energy.sampling.context import evaluation_context
from composable_energy.sampling.convergence import ConvergenceObserver, emit_warnings, warn_of_points, warn_of_spacing
from composable_energy.sampling.faults import Faults, GuardedEnergy, explain_failure
from composable_energy.sampling.gradient_checks import check_detached, check_own_gradients, check_rows, mixes_values
from composable_energy.sampling.loop import Observer, TraceRecorder, run
from composable_energy.sampling.progress import Progress, counted
from composable_energy.sampling.request import Call, SampleRequest, resolve_request
from composable_energy.sampling.results import collect_result, interrupted_error
from composable_energy.sampling.sampler import Sampler, bound_conditions, changed_options
from composable_energy.sampling.selection import SamplerLike, recommendations
from composable_energy.sampling.starts import BranchDraws, PilotResult, Starts, draw_starts
from composable_energy.sampling.trace import Policy, Trace
from composable_energy.sampling.values import Evaluator, check_same_energy
from composable_energy.sampling.warmup import tune_sampler
from composable_energy.sampling.wrappers import has_rows

_FAR, _VERY_FAR = 10.0, 100.0  # of chains that start at standard normal points; multiples of that
_DECIDED = "what is accepted and the shares of branches"  # by differences of energies
_CHECKED_STEPS = 16  # the check of points that mix costs one or two gradients, much for the short chains of training


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
    noise: Kind | None = None,
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
        noise: `"blocks"` or `"philox"`, see `composable_energy.noise`; None takes blocks on the CPU, and Philox elsewhere.
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
        InUseError: Another call, here or in another process, uses the checkpoint.
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
        shape=shape,
        sampler=sampler,
        steps=steps,
        init=init,
        seed=seed,
        observers=observers,
        trace=trace,
        burn_in=burn_in,
        batch_size=batch_size,
        on_divergence=on_divergence,
        noise=noise,
        allow_improper=allow_improper,
        compile=compile,
        first_chain=first_chain,
        resume=resume,
        dtype=dtype,
        options=options,
        latents=isinstance(energy, Latents),
    )
    points, record, found = draw(call)
    emit_warnings(found)
    return (points, record) if trace else points


def draw(call: Call) -> tuple[Tensor, Trace, list[SamplingWarning]]:
    """Returns the points, the record and the warnings of a call, and emits no warnings."""
    began = time.perf_counter()
    energy = call.energy
    with evaluation_context(energy), ExitStack() as held:
        request = resolve_request(call, held)
        warn_of_shares(energy)
        evaluator = Evaluator(request.energy, request.sampler, request.points.n, request.batch_size)
        check_same_energy(evaluator, request.reference, request.checkpoint.path if request.checkpoint and request.saved else None)
        faults = Faults()
        used = GuardedEnergy(request.energy, request.energy, faults)
        seen = [held.enter_context(one.opened(request.sampler)) if isinstance(one, Progress) else one for one in request.observers]
        branches, tuned, pilots = _tune(replace(request, energy=used), used, [one for one in seen if isinstance(one, Progress)])
        step = _compile(tuned, used, request, evaluator) if call.compile else tuned.step
        chains = Chains(_problem(request, used, tuned, step, pilots, branches, faults))
        recorder, last_step = _recorder(request, chains), request.last_step(tuned)
        judge = (
            call.sampler is not None or call.steps is not None or not recommendations(energy)
        )  # as recommended, chains need not converge
        kept = 0 if request.every is None else last_step - (request.burn_in or 0)
        observer = ConvergenceObserver(last_step, judge=judge, coordinates=request.points.coordinates, kept=kept)
        every = [recorder, *seen, *_writers(request, recorder, evaluator), observer]
        compares = tuned.traits.values or mixes_values(request.energy)  # whether the draws depend on differences of energies
        stop = _run(request, chains, last_step, every, recorder, evaluator, faults, compares)
        if not call.allow_improper:
            _check_tails(request, chains, stop, observer)
        points, record = collect_result(request, chains, recorder, evaluator, stop, faults)
        record.observed += tuple(observer.warnings(chains, record))
        if compares and chains.active:
            record.observed += tuple(warn_of_spacing(chains.state.energy, chains.state.energy.dtype, _DECIDED))
    record.seconds = time.perf_counter() - began
    return points, record, [*record.observed, *warn_of_points(record, traced=bool(call.trace))]


def _tune(request: SampleRequest, used: Energy, shown: Sequence[Progress]) -> tuple[BranchDraws | None, Sampler, PilotResult | None]:
    """Draws start points in the branches of mixtures, and tunes the sampler on pilot chains."""
    what = f"{type(request.sampler).__name__.lower()} was being tuned, by 64 pilot chains of shape {(64, *request.points.event)}."
    branches = draw_starts(request)
    for one in shown:
        used = counted(used, request.sampler, one.report)
    try:
        return branches, *tune_sampler(request, used, branches)
    except Exception as error:
        explain_failure(error, what)
        raise


def _compile(sampler: Sampler, energy: GuardedEnergy, request: SampleRequest, evaluator: Evaluator) -> Step:
    from composable_energy.sampling.compiled import CompiledStep  # late: torch's compiler is slow to import

    return CompiledStep(sampler, energy, request.owner, evaluator)


def _problem(
    request: SampleRequest,
    used: Energy,
    sampler: Sampler,
    step: Step,
    pilots: PilotResult | None,
    branches: BranchDraws | None,
    faults: Faults,
) -> Problem:
    noise, points = Noise(request.seed, request.chains, kind=request.noise), request.points
    starts = Starts(sampler, points.zeros(), request.init, pilots, branches)
    plain = request.energy if step == sampler.step else used
    return Problem(used, plain, sampler, noise, starts, points.n, request.batch_size, request.on_divergence, faults, step)


def _recorder(request: SampleRequest, chains: Chains) -> TraceRecorder:
    """Returns the recorder of the trace, with the record of an interrupted run."""
    blank = Trace(
        seed=request.seed,
        noise=request.noise,
        first_chain=request.chains.start,
        sampler=chains.sampler,
        shape=request.points.shape,
        on_divergence=request.on_divergence,
        tuned=request.resume.tuned if request.resume else changed_options(request.sampler, chains.sampler),
        burn_in=request.burn_in,
        alike=not has_rows(request.energy),
    )
    before = None
    if request.saved is not None:
        first = chains.own.start
        before = request.saved.trace(blank, chains.started_at(range(first, first + 1)))
    return TraceRecorder(blank, steps=request.trace, every=request.every, before=before)


def _run(
    request: SampleRequest,
    chains: Chains,
    last_step: int,
    observers: Sequence[Observer],
    recorder: TraceRecorder,
    evaluator: Evaluator,
    faults: Faults,
    compares: bool,
) -> Diverged | None:
    """Starts or continues the chains and takes all steps; returns what ended them earlier.

    Points are checked against others at a start, gradients against values where the draws depend on both.

    Raises:
        SamplingInterrupted: Ctrl-C, after the start.
    """
    before = recorder.before or request.resume
    try:
        if before is not None:
            chains.resume(before)
        else:
            with recording(constant=True) as uses:
                chains.start()
            check_detached(uses)
            if chains.active and (chains.problem.starts.pilots is not None or last_step >= _CHECKED_STEPS):
                check_rows(evaluator, chains.active_ids()[: request.batch_size], chains.active_state().x[: request.batch_size])
        if chains.active and compares and not request.energy.needs_log_densities:
            ids = chains.active_ids()[: request.batch_size]
            ids = range(int(ids[0]), int(ids[-1]) + 1) if chains.active == len(chains.own) else ids
            x, conditions = chains.active_state().x[: len(ids)], bound_conditions(chains.sampler, request.energy)
            check_own_gradients(chains.problem.energy_of(ids), x, conditions)
        run(chains, last_step, observers)
    except Diverged as error:
        return error
    except KeyboardInterrupt as interrupt:
        if chains.started:
            with suppress(Exception):
                raise interrupted_error(request, chains, recorder, evaluator, faults, last_step) from interrupt
        raise
    return None


def _check_tails(request: SampleRequest, chains: Chains, stop: Diverged | None, observer: ConvergenceObserver) -> None:
    """Raises if chains have run far away, or diverged, because the energy has no density."""
    if not (observer.judge and chains.sampler.stationary and request.energy.has_value):
        return
    zeros = request.points.zeros().unsqueeze(0)
    x = chains.state.x if chains.active else zeros.new_full((16, *zeros.shape[1:]), torch.inf)
    far = _FAR * (1 if request.init is None else max(1.0, request.init.abs().max().item()))
    reach = x.reshape(len(x), -1).abs().amax(1).median().item() / far
    if (stop is not None and stop.step > 0) or reach > _VERY_FAR or (reach > 1 and observer.warnings(chains)):
        from composable_energy.density import check_tails  # late: rare

        check_tails(request.energy, x, bound_conditions(chains.sampler, request.energy))


def _writers(request: SampleRequest, recorder: TraceRecorder, evaluator: Evaluator) -> list[Observer]:
    """Returns the observer that writes the checkpoint, if there is one."""
    if request.checkpoint is None or request.file is None:
        return []
    start = recorder.before.reference[0] if recorder.before else None
    return [CheckpointObserver(request.file, request.checkpoint.every, recorder, evaluator, start)]
