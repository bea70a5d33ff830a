"""The function `sample`: resolves a request, tunes the sampler, runs the loop, and returns points and trace."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import warn_of_shares
from composable_energy.energy import Energy
from composable_energy.gradients import recording
from composable_energy.lift import as_energy
from composable_energy.noise import Kind, Noise
from composable_energy.sampling.chains import Chains, Diverged
from composable_energy.sampling.checkpoint_observer import CheckpointObserver
from composable_energy.sampling.context import evaluation_context
from composable_energy.sampling.convergence import ConvergenceObserver, emit_warnings, silenced, warn_of_points, warn_of_spacing
from composable_energy.sampling.faults import Faults, GuardedEnergy, noted
from composable_energy.sampling.gradient_checks import check_detached, check_own_gradients, check_rows, mixes_values
from composable_energy.sampling.layout import Layout
from composable_energy.sampling.loop import Callback, CallbackObserver, Observer, SamplingLoop, TraceRecorder
from composable_energy.sampling.progress import ProgressFunction, ProgressObserver, counted, open_progress
from composable_energy.sampling.ranks import Share
from composable_energy.sampling.request import SampleRequest, resolve_request
from composable_energy.sampling.results import collect_result, interrupted_error
from composable_energy.sampling.sampler import Sampler, changed_options
from composable_energy.sampling.selection import SamplerLike, recommendations
from composable_energy.sampling.starts import BranchDraws, PilotResult, Starts, draw_starts
from composable_energy.sampling.trace import Policy, Trace
from composable_energy.sampling.values import Evaluator, check_same_energy
from composable_energy.sampling.warmup import tune_sampler
from composable_energy.sampling.wrappers import has_rows

_FAR, _VERY_FAR = 10.0, 100.0  # of chains that start at standard normal points; multiples of that
_DECIDED = "what is accepted and the shares of branches"  # by differences of energies
_CHECKED_STEPS = 16  # the check of points that mix costs one or two gradients, much for the short chains of training


def sample(
    energy: Energy,
    shape: int | Sequence[int],
    *,
    sampler: SamplerLike | None = None,
    steps: int | None = None,
    init: Tensor | None = None,
    seed: int | None = None,
    progress: bool | ProgressFunction = False,
    callback: Callback | None = None,
    trace: bool | int = False,
    burn_in: int = 0,
    batch_size: int | None = None,
    on_divergence: Policy | None = None,
    warn: bool = True,
    noise: Kind | None = None,
    latents: bool = False,
    allow_improper: bool = False,
    compile: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_every: float = 10.0,
    ranks: Share | None = None,
    first_chain: int = 0,
    resume: Trace | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
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
            sampled there and decoded at the end: then it is the shape of decoded points.
        sampler: A name, a class or an instance. None takes the energy's recommendation, with `feynman-kac` in place of `annealed` where
            evidence is weakened; else `annealed` for an energy that needs a noise level `sigma`, `langevin` for one without value, and
            `chees`, which tunes itself, for any other.
        steps: The number of steps; None takes the sampler's own number.
        init: The start points, with shape $(n, *)$, in the support, and latent ones for a latent energy; they are not changed.
        seed: The seed; None draws one, which the trace reports.
        progress: Whether to show progress bars on stderr, or a function that is called with what runs, `"tuning"` or `"sampling"`, how many
            evaluations or steps are done, and how many there will be, None while that is not known.
        callback: A function that is called after each step with the step number, counted from 1, the state of the active chains, and
            the sampler's info. Points and energies are those of the support, gradients those of its unconstrained coordinates. It stops
            the sampling by returning True or a tensor of True alone, such as `state.energy < 3`.
        trace: Whether to return a `Trace` as well. A number k also keeps the points of every k-th step.
        burn_in: The number of steps before points are kept.
        batch_size: How many chains are evaluated together; all if None.
        on_divergence: What happens to a chain whose point, energy or gradient is not finite: `"raise"` stops the call, `"keep"` the chain,
            whose last finite point is returned (`trace.diverged` has such chains). None takes that of the resumed trace, else `"raise"`.
        warn: Whether to emit a `SamplingWarning` if chains stood still or clearly did not converge; see the page on diagnostics.
        noise: `"blocks"` or `"philox"`, see `composable_energy.noise`; None takes blocks on the CPU, and Philox elsewhere and for
            compiled steps.
        latents: Whether to return latent points without decoding them.
        allow_improper: Whether to sample an energy without a lower bound.
        compile: Whether energies and gradients run through `torch.compile`; of samplers without a schedule also whole steps with their
            noise, for points with up to 1,024 coordinates. The first call takes seconds longer, each step less. The draws are those
            without compilation and with the same `noise`, up to rounding.
        checkpoint: The path of a file that keeps the state of all chains. If the file exists, the call continues from it, and returns the
            bits of an uninterrupted call. The file stays at the end; a call with more `steps` continues. It also holds energies and
            gradients at points of the chains: the energy is evaluated there again, and another energy is refused.
        checkpoint_every: The least time between two writings, in seconds; 0 writes after each step.
        ranks: Under `torchrun`, the processes share the chains: with `"gather"` each returns all points, with `"shard"` its own. All of
            them make the same call. None draws in this process alone.
        first_chain: The id of the first chain, for a call that draws a part of many chains.
        resume: A trace to continue, by `steps` more steps: the chains are those of one long run. The energy must have the same energies
            and gradients as before where the chains stopped.
        dtype: The dtype of the points; None takes that of `init`, else of the energy's tensors, else torch's default.
        device: The device of the points; None follows the same order.
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
    energy = as_energy(energy)
    arguments, began = dict(locals()), time.perf_counter()
    with evaluation_context(energy), silenced(warn is False), ExitStack() as held:
        request = resolve_request(arguments, held)
        warn_of_shares(energy)
        evaluator = Evaluator(request.energy, request.sampler, request.points.n, request.batch_size)
        check_same_energy(evaluator, request.reference, request.ranks, checkpoint if request.saved else None)
        faults = Faults()
        plain = GuardedEnergy(request.energy, request.energy, faults)
        used = GuardedEnergy(_compile(request), request.energy, faults) if compile else plain
        shown = request.progress if request.ranks is None or request.ranks.rank == 0 else False
        report = held.enter_context(open_progress(shown, request.sampler))
        branches, tuned, pilots = _tune(replace(request, energy=plain), used, report)
        layout = _layout(request, used, tuned, pilots, branches, compile)
        chains = Chains(layout, request.on_divergence, faults, single=callback is not None)
        recorder, last_step = _recorder(request, chains), request.last_step(tuned)
        judge = sampler is not None or steps is not None or not recommendations(energy)  # as recommended, chains need not converge
        kept = 0 if request.every is None else last_step - (request.burn_in or 0)
        observer = ConvergenceObserver(last_step, judge=judge, coordinates=request.points.coordinates, kept=kept)
        loop = SamplingLoop(chains, last_step, [*_observers(request, recorder, evaluator, last_step, report), observer])
        compares = tuned.needs_values or mixes_values(request.energy)  # whether the draws depend on differences of energies
        stop = _run(request, loop, recorder, evaluator, faults, compares)
        if not allow_improper:
            _check_tails(request, chains, stop, observer)
        points, record = collect_result(request, chains, recorder, evaluator, stop, faults)
        record.observed += tuple(observer.warnings(chains, record))
        if compares and chains.active:
            record.observed += tuple(warn_of_spacing(energies := chains.values(lambda state: state.energy), energies.dtype, _DECIDED))
        emit_warnings([*record.observed, *warn_of_points(record, traced=bool(trace))])
    record.seconds = time.perf_counter() - began
    return (points, record) if trace else points


def _tune(request: SampleRequest, used: Energy, report: ProgressFunction | None) -> tuple[BranchDraws | None, Sampler, PilotResult | None]:
    """Draws start points in the branches of mixtures, and tunes the sampler on pilot chains."""
    what = f"{type(request.sampler).__name__.lower()} was being tuned, by 64 pilot chains of shape {(64, *request.points.event)}."
    branches = draw_starts(request)
    with noted(lambda: what):
        return branches, *tune_sampler(request, counted(used, request.sampler, report), branches)


def _compile(request: SampleRequest) -> Energy:
    from composable_energy.sampling.compile import compiled_twin  # late: torch's compiler is slow to import

    return compiled_twin(request.owner, request.energy)


def _layout(
    request: SampleRequest, used: Energy, sampler: Sampler, pilots: PilotResult | None, branches: BranchDraws | None, compile: bool
) -> Layout:
    fuse = None
    if compile or hasattr(request.energy, "compiled_steps"):
        from composable_energy.sampling.compiled_steps import compile_steps as fuse
    noise, points = Noise(request.seed, request.chains, kind=request.noise), request.points
    starts = Starts(sampler, points.zeros(), request.init, pilots, branches)
    return Layout(used, sampler, noise, starts, points.n, request.batch_size, request.ranks, fuse)


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
        before = request.saved.trace(blank, chains.layout.start(range(first, first + 1)).state)
    return TraceRecorder(blank, steps=request.trace, every=request.every, before=before)


def _run(
    request: SampleRequest, loop: SamplingLoop, recorder: TraceRecorder, evaluator: Evaluator, faults: Faults, compares: bool
) -> Diverged | None:
    """Starts or continues the chains and takes all steps; returns what ended them earlier.

    Points are checked against others at a start, gradients against values where the draws depend on both.

    Raises:
        SamplingInterrupted: Ctrl-C, after the start.
    """
    chains, before = loop.chains, recorder.before or request.resume
    try:
        if before is not None:
            chains.resume(before)
        else:
            with recording(constant=True) as uses:
                chains.start()
            check_detached(uses)
            if chains.active and (chains.layout.starts.pilots is not None or loop.last_step >= _CHECKED_STEPS):
                check_rows(evaluator, chains.active[0].active_ids(), chains.active[0].active.x)
        if chains.active and compares and not request.energy.needs_log_densities:
            chunk = chains.active[0]
            check_own_gradients(chunk.energy, chunk.active.x, chains.sampler.final_conditions(request.energy))
        loop.run()
    except Diverged as error:
        return error
    except KeyboardInterrupt as interrupt:
        if chains.chunks and request.ranks is None:  # else before the start, or while other processes go on
            with suppress(Exception):
                raise interrupted_error(request, chains, recorder, evaluator, faults, loop.last_step) from interrupt
        raise
    return None


def _check_tails(request: SampleRequest, chains: Chains, stop: Diverged | None, observer: ConvergenceObserver) -> None:
    """Raises if chains have run far away, or diverged, because the energy has no density."""
    if not (observer.judge and chains.sampler.stationary and request.energy.has_value) or request.ranks is not None:
        return
    zeros = request.points.zeros().unsqueeze(0)
    x = chains.points() if chains.active else zeros.new_full((16, *zeros.shape[1:]), torch.inf)
    far = _FAR * (1 if request.init is None else max(1.0, request.init.abs().max().item()))
    reach = x.reshape(len(x), -1).abs().amax(1).median().item() / far
    if (stop is not None and stop.step > 0) or reach > _VERY_FAR or (reach > 1 and observer.warnings(chains)):
        from composable_energy.density import check_tails  # late: rare

        check_tails(request.energy, x, chains.sampler.final_conditions(request.energy))


def _observers(
    request: SampleRequest, recorder: TraceRecorder, evaluator: Evaluator, last_step: int, report: ProgressFunction | None
) -> list[Observer]:
    observers: list[Observer] = [recorder]
    if report is not None:
        observers.append(ProgressObserver(report, last_step))
    if request.callback is not None:
        observers.append(CallbackObserver(request.callback))
    if request.file is not None:
        start = recorder.before.reference[0] if recorder.before else None
        observers.append(CheckpointObserver(request.file, request.checkpoint_every, recorder, evaluator, start))
    return observers
