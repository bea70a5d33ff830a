"""The function `sample`: resolves a call, tunes the sampler, runs the loop, and returns points and trace, or an error."""

import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import torch
from torch import Tensor

from composable_energy.algebra import warn_of_shares
from composable_energy.energies import Energy, as_energy
from composable_energy.energies.checks import check_tails
from composable_energy.energies.evaluation import evaluating
from composable_energy.errors import OptionError, SamplingInterrupted
from composable_energy.sampling.chains import Chains, Diverged, Observer, run
from composable_energy.sampling.checks import check_detached, check_gradients, check_rows, check_same_energy, mixes_values, warn_of_spacing
from composable_energy.sampling.observers import Checkpoint, CheckpointFile, TraceRecorder
from composable_energy.sampling.pilots import draw_branches, tune_sampler
from composable_energy.sampling.problem import Call, Problem, resolve
from composable_energy.sampling.results import Convergence, check_far_chains, diverged_error, finish
from composable_energy.sampling.sampler import bound_conditions, changed_options
from composable_energy.sampling.selection import SamplerLike, recommendations, warn_of_weak_evidence
from composable_energy.sampling.trace import Policy, Trace
from composable_energy.sampling.wrappers import explain_failure
from composable_energy.supports import format_support, is_full, join, split

_DECIDED = "what is accepted and the shares of branches"  # by differences of energies
_CHECKED_STEPS = 16  # the check of points that mix costs one or two gradients, much for the short chains of training


@dataclass(frozen=True)
class Latents:
    """The points of an energy as chains see them: `E.latents`; latent ones, which `sample` decodes, and vectors of named variables."""

    energy: Energy

    def sample(self, shape: int | Sequence[int], **options: Any) -> Any:
        """Draws points that are not decoded and not split into variables; see `composable_energy.sampling.sample`."""
        return sample(self, shape, **options)


@overload
def sample(
    energy: Energy | Latents,
    shape: int | Sequence[int],
    *,
    sampler: SamplerLike | None = None,
    steps: int | None = None,
    init: Tensor | Mapping[str, Tensor] | None = None,
    seed: int | None = None,
    observers: Sequence[Observer] = (),
    trace: Literal[False] = False,
    burn_in: int = 0,
    batch_size: int | None = None,
    on_divergence: Policy | None = None,
    allow_improper: bool = False,
    compile: bool = False,
    first_chain: int = 0,
    resume: Trace | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> Tensor: ...


@overload
def sample(energy: Energy | Latents, shape: int | Sequence[int], *, trace: int, **options: Any) -> tuple[Tensor, Trace]: ...


def sample(
    energy: Energy | Latents,
    shape: int | Sequence[int],
    *,
    sampler: SamplerLike | None = None,
    steps: int | None = None,
    init: Tensor | Mapping[str, Tensor] | None = None,
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
) -> Tensor | tuple[Tensor, Trace]:
    r"""Draws points from $p(x) \propto e^{-E(x)}$.

    Sampling evaluates a twin of the energy, in eval mode and without gradients of its parameters (see `twin`). The caller's modules do not
    change, so several threads may sample one energy while another trains it. The sampler's noise is keyed by chain and step, so batches,
    processes and interruptions do not change the draws; random numbers that an energy itself draws come from torch's global state.

    An energy with a support is sampled in unconstrained coordinates; points are given and returned in the support. Points at which the
    function of an energy raises have density 0, are counted (`trace.errors`) and warned about; if it raises at all points, so does this.

    Args:
        energy: The energy, or an object that `as_energy` lifts.
        shape: $(n, *)$ with the shape of one point, or $n$ where the energy knows it. An energy in the latent space of a decoder is
            sampled there and decoded at the end: then it is the shape of decoded points; `E.latents.sample` returns latent ones.
        sampler: A name, a class or an instance. None takes the energy's recommendation, with `feynman-kac` in place of `annealed` where
            evidence is weakened; else `annealed` for an energy that needs a noise level `sigma`, `langevin` for one without value, and
            `chees`, which tunes itself, for any other.
        steps: The number of steps; None takes the sampler's own number, and doubles it up to three times while the chains have not
            converged and more steps help. Calls with `init`, `resume`, `first_chain` or a `Checkpoint` are not extended.
        init: The start points, with shape $(n, *)$, in the support, latent for a latent energy, or a mapping of variables; not changed.
        seed: The seed; None draws one, which the trace reports.
        observers: Look at the chains after each step: `Progress()`, `Stop(function)`, `Checkpoint(path)`, own `sampling.Observer`s.
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
        dtype: The dtype of the points; None takes that of `init`, else of the energy's tensors, else torch's default; so for the device.
        **options: The sampler's options.

    Returns:
        The points, with shape $(n, *)$, or the pair of points and `Trace`. Named variables have a dict of points; the trace has vectors.

    Raises:
        OptionError: An option is unknown or out of range, a start point is outside the support, the terms recommend different settings, or
            the checkpoint or the trace is of another call or of another energy.
        ShapeError, DtypeError, DeviceError: The request, the start points and the energy do not fit.
        ExpressionError: A condition is not bound, the sampler needs values that the energy lacks, or they do not fit its `with_gradient`.
        UngroundedError: The energy has no density, as its structure or where its chains ran away shows.
        FileFormatError: The checkpoint is damaged, or of another format.
        StorageError: Another call, here or in another process, uses the checkpoint; or it cannot be written, and holds an earlier step.
        SamplingDiverged: Chains diverged; the error carries the last finite points of all chains.
        SamplingInterrupted: Ctrl-C; the error, a `KeyboardInterrupt`, carries the points and the trace so far.
        PluginNotFound: No plug-in offers the sampler, or none is installed.

    Example:
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> bowl.sample((100, 2), seed=0).shape
        torch.Size([100, 2])
    """
    watching = tuple(observers) if isinstance(observers, Iterable) else (observers,)
    for one in watching:
        if not isinstance(one, Observer):
            raise OptionError(f"observers is a list of observers, such as `[Progress(), Stop(f), Checkpoint(path)]`, got {one!r} in it.")
    whole = as_energy(energy.energy if isinstance(energy, Latents) else energy)
    start: Any = join(init, whole.variables) if isinstance(init, Mapping) and whole.variables else init
    chosen = (sampler, steps, start, seed, watching, trace)
    others = (burn_in, batch_size, on_divergence, allow_improper, compile, first_chain, resume, dtype)
    call = Call(whole, shape, *chosen, *others, options=options, latents=isinstance(energy, Latents))
    points, record = _draw(call)
    for warning in record.observed:
        if not trace or warning.kind != "diverged":  # `trace.diverged` shows it
            warning.emit()
    shown: Any = split(points, whole.variables) if whole.variables and not call.latents else points
    return (shown, record) if trace else shown


def _draw(call: Call) -> tuple[Tensor, Trace]:
    """Returns the points and the record of a call, and emits no warnings."""
    began = time.perf_counter()
    with evaluation_context(call.energy) as held:
        # As recommended by a trained energy, chains need not converge; as by an observation, they should.
        advice = recommendations(call.energy)
        judge = call.sampler is not None or call.steps is not None or not advice or advice[0][1].precedence > 0
        try:
            call, resume, given = (problem := resolve(call)).call, problem.call.resume, problem.sampler
            file = None
            for one in call.observers:
                if isinstance(one, Checkpoint):
                    if file is not None:
                        raise OptionError("A call has one Checkpoint, got several.")
                    file = CheckpointFile(one, problem, held)
                    problem = file.problem
            if file is None and resume is not None:
                start = "To start this energy at the points of the trace give them as `init`."
                check_same_energy(problem, resume.reference, "The trace is", start)
            warn_of_shares(call.energy)
            if "sigma" in problem.sampler.traits.binds:
                warn_of_weak_evidence(call.energy, problem.sampler)
            problem = tune_sampler(replace(problem, drawn=draw_branches(problem, lambda call: _draw(call)[0])))
        except SamplingInterrupted as interrupt:  # of a call for levels or start points, whose points are of another energy
            raise KeyboardInterrupt("Sampling was interrupted before the chains started.") from interrupt
        last_step, noise, step = problem.last_step(), problem.noise, None
        if call.compile:
            from composable_energy.sampling.compiled import CompiledStep  # late: torch's compiler is slow to import

            step = CompiledStep(problem)
        chains = Chains(problem, step)
        tuned = resume.tuned if resume else () if problem.sampler is given else changed_options(given, problem.sampler)
        blank = Trace(noise.seed, noise.kind, noise.chains[0], problem.sampler, problem.points.shape, problem.policy, tuned)
        blank.steps, blank.burn_in, blank.alike = resume.steps if resume else 0, call.burn_in, not problem.own_conditions
        blank.variables = dict(problem.whole.variables)
        before = None if file is None else file.trace(blank, chains)
        recorder = TraceRecorder(blank, call.trace, before)
        # Chains that start together at `init` may agree without having been everywhere.
        alone = call.init is None and not (resume or file or call.first_chain)
        extends = alone and judge and call.steps is None and problem.sampler.total_steps is None
        convergence = Convergence(judge, extends, kept_after=None if recorder.every is None else call.burn_in)
        observers = [recorder, *call.observers, convergence]
        if file is not None:
            file.recorder = recorder
            observers.insert(-1, file)
        compares = problem.sampler.traits.values or mixes_values(problem.plain)  # whether the draws depend on differences of energies
        stop = _run(chains, last_step, observers, before or resume, recorder, compares)
        if judge and not call.allow_improper:
            check_far_chains(chains, stop, convergence)
        if stop is not None:
            raise diverged_error(chains, stop)
        points, record = finish(chains, recorder, keep_values=bool(call.trace))
        if (warning := convergence.warning(chains, record)) is not None:
            record.observed += (warning,)
        if compares and chains.active:
            record.observed += tuple(warn_of_spacing(chains.state.energy, chains.state.energy.dtype, _DECIDED))
    record.seconds = time.perf_counter() - began
    return points, record


def _run(
    chains: Chains, last_step: int, observers: Sequence[Observer], before: Trace | None, recorder: TraceRecorder, compares: bool
) -> Diverged | None:
    """Starts or continues the chains, checks points and gradients there, and takes all steps; returns what ended them earlier."""
    problem = chains.problem
    try:
        if before is not None:
            chains.resume(before)
        else:
            with evaluating(uses=[], memo=None) as start:
                chains.start()
            check_detached(start.uses or (), alone=not problem.sampler.traits.values)
        if chains.active:
            x = chains.active_state().x[: len(ids := chains.rows[: problem.batch_size])]
            least = 1 if problem.sampler.traits.values and problem.sampler.total_steps else _CHECKED_STEPS  # few steps of smc are a run
            if before is None and (problem.pilots is not None or last_step >= least):
                check_rows(problem, ids, x)
            if compares and not problem.plain.needs_log_densities:
                check_gradients(problem.energy_of(ids), x, bound_conditions(problem.sampler, problem.plain))
        run(chains, last_step, observers)
    except Diverged as error:
        return error
    except KeyboardInterrupt as interrupt:
        with suppress(Exception):  # the chains may not have started
            last_step = max(last_step, chains.last_step)  # which may have grown
            points, trace = finish(chains, recorder, keep_values=True)
            raise SamplingInterrupted(
                f"Sampling was interrupted after {chains.step} of {last_step} steps. The error's `points` and `trace` are those of "
                f"now; `sample(..., resume=error.trace, steps={last_step - chains.step})` takes the other steps.",
                points=points,
                trace=trace,
            ) from interrupt
        raise
    except Exception as error:
        shape = (min(problem.batch_size, chains.count), *problem.points.zeros().shape)
        doing = f"{type(problem.sampler).__name__.lower()} was at step {chains.step + 1}, with chains of shape {shape} in a batch."
        explain_failure(error, doing)
        raise
    return None


_LOCK = threading.Lock()
_RUNNING: list[tuple[int, int]] = []  # the Python threads whose calls limit the threads of torch now, and the number of these before


@contextmanager
def evaluation_context(energy: Energy) -> Iterator[ExitStack]:
    """Switches off inference mode, autocast and gradients, and limits torch's threads to the fewest that a part of an energy recommends."""
    threads = 0  # all
    for _, advice in recommendations(energy):
        threads = min(threads or advice.threads, advice.threads) if advice.threads else threads
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        for kind in ("cpu", "cuda", "mps"):  # draws do not depend on autocast; an energy may switch it on inside
            try:
                on = torch.is_autocast_enabled(kind)
            except RuntimeError:  # torch 2.4 has no autocast on MPS
                continue
            if on:
                stack.enter_context(torch.autocast(kind, enabled=False))
        if threads:
            stack.enter_context(_limited_threads(threads))
        yield stack


@contextmanager
def integration(energy: Energy, shape: Sequence[int], *, unconstrained: bool = True, **arguments: Any) -> Iterator[Problem]:
    r"""Resolves a call of `sample` whose density is integrated, not drawn; inside of the context energies are evaluated as by `sample`.

    Args:
        energy: The energy; that of a latent space is integrated over latent points.
        shape: $(n, *)$ with the shape of one point.
        unconstrained: Whether to integrate over the coordinates of a support; else over $\mathbb{R}^n$, with infinite energies outside.
        **arguments: `sampler`, its `options` as a mapping, `init`, `seed`, `batch_size`, `dtype` and `device`, as for `sample`.

    Raises:
        UngroundedError: The energy has no lower bound, or grows too slowly for a finite integral.
        OptionError: The support has no volume in $\mathbb{R}^n$, and `unconstrained` is False.
        ComposableEnergyError: Any other error of `sample`.
    """
    with evaluation_context(energy):
        problem = resolve(Call(energy, shape, latents=True, integral=True, **arguments))
        if not unconstrained:
            if not is_full(energy.support):
                raise OptionError(f"{energy} lives on {format_support(energy.support)}, which has no volume: give no `base`.")
            problem = replace(problem, plain=problem.whole, points=replace(problem.points, coordinates=None))
        if energy.log_normalizer is None and problem.plain.sites is None:
            zeros = problem.points.zeros()
            check_tails(problem.plain, zeros.new_full((16, *zeros.shape), torch.inf) if problem.init is None else problem.init, {})
        yield problem


@contextmanager
def _limited_threads(threads: int) -> Iterator[None]:
    """Sets the number of threads inside an operation, which torch keeps per Python thread with one default for new threads. A Python thread
    that starts meanwhile inherits the number of the call, not the user's. So each call restores the number from before the first of several
    concurrent calls; a call inside another restores the number of the outer one."""
    own, caller = torch.get_num_threads(), threading.get_ident()
    with _LOCK:
        call = (caller, own if any(caller == other for other, _ in _RUNNING) or not _RUNNING else _RUNNING[0][1])
        _RUNNING.append(call)
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        with _LOCK:
            _RUNNING.remove(call)
            torch.set_num_threads(call[1])
