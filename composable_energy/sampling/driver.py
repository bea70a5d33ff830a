r"""The driver: `sample` owns the loop, and everything around a step that authors of samplers need not think of.

Chains are advanced step by step, all of them, in chunks of `batch_size` at each step; noise is keyed by chain and step, so that chunks,
ranks and stops change nothing.
"""

from __future__ import annotations

import inspect
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy.checks import check_value
from composable_energy.energy import Energy
from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy.files import digest_of
from composable_energy.lift import as_energy
from composable_energy.noise import Kind, Noise
from composable_energy.sampling.asking import Asked, ask, check_density, count, decode
from composable_energy.sampling.chains import Chains
from composable_energy.sampling.checkpoint import Checkpoint, described
from composable_energy.sampling.choosing import SamplerLike, choose, recommended_threads
from composable_energy.sampling.consistency import check_own_gradients, mixes_values
from composable_energy.sampling.pilots import tuned
from composable_energy.sampling.ranks import Ranks, Share
from composable_energy.sampling.recording import Recorder, gathered
from composable_energy.sampling.roster import Diverged, Roster
from composable_energy.sampling.running import Callback, Run
from composable_energy.sampling.sampler import changed_options
from composable_energy.sampling.settings import (
    check_call,
    check_resume,
    check_same_energy,
    last_points,
    length,
    noise_kind,
    resumed_from,
    seed_of,
    start_points,
)
from composable_energy.sampling.threads import limited_threads
from composable_energy.sampling.trace import Policy, Trace
from composable_energy.sampling.values import Evaluator
from composable_energy.twins import twin

__all__ = ["sample"]


def sample(
    energy: Energy,
    shape: int | Sequence[int],
    *,
    sampler: SamplerLike | None = None,
    steps: int | None = None,
    init: Tensor | None = None,
    seed: int | None = None,
    progress: bool = False,
    callback: Callback | None = None,
    trace: bool | int = False,
    burn_in: int = 0,
    batch_size: int | None = None,
    on_divergence: Policy | None = None,
    noise: Kind | None = None,
    best_of: int = 1,
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

    Evaluated is a twin of the energy, in eval mode and without gradients of its parameters (see `twin`). The caller's modules stay as they
    are, so that several threads may sample one energy while another trains it. Noise is the sampler's own: random numbers that an energy
    itself draws come from torch's global state.

    Args:
        energy: The energy, or what `as_energy` lifts.
        shape: $(n, *)$ with the shape of one point, or $n$ where the energy knows it. An energy in the latent space of a decoder is
            sampled there and decoded at the end: then it is the shape of decoded points.
        sampler: A name, a class or an instance. None takes what the energy recommends; else `annealed` for an energy that needs a noise
            level `sigma`, `langevin` for one without value, and `chees`, which tunes itself, for any other.
        steps: How many; the sampler's own number if None.
        init: Points to start at, with shape $(n, *)$, latent ones for a latent energy; they stay as they are.
        seed: The seed; None draws one, which the trace tells.
        progress: Whether to show a bar on stderr.
        callback: Called after each step with its number, counted from 1, the state of the chains that go on, and the sampler's
            info; it stops the sampling by returning True, or a tensor of nothing else, as `state.energy < 3` does at last.
        trace: Whether to return a `Trace` as well. A number k keeps the points of every k-th step, too.
        burn_in: How many steps pass before points are kept.
        batch_size: How many chains are evaluated together; all if None.
        on_divergence: What becomes of a chain whose point, energy or gradient is not finite: `"raise"` stops all, `"drop"` returns fewer
            points, `"restart"` starts the chain again with other noise and brings it to where the others are, `"keep"` returns its last
            finite point; None is `"raise"`, or what the call did that `resume` goes on from.
        noise: `"blocks"` or `"philox"`, see `composable_energy.noise`; None is blocks on the CPU and Philox elsewhere.
        best_of: Draws this many for each point and returns the one with the lowest evidence.
        latents: Whether to return latent points as they are.
        allow_improper: Whether to sample an energy without a lower bound.
        compile: Whether energies and gradients run through `torch.compile`: a first call takes seconds longer, each step less.
        checkpoint: A file that keeps the state of all chains. If it is there, the call goes on from it, and ends with the bits that it
            would have had; so the same line of a program may be killed and started again. It stays when all is done; with more `steps` it
            goes on. The file also keeps energies and gradients at the start of some chains and where all were when it was written. The
            energy is evaluated there again, and another one is refused.
        checkpoint_every: How many seconds lie between two writings at least; 0 writes after each step.
        ranks: Under `torchrun`, the processes share the chains: with `"gather"` each returns all points, with `"shard"` its own. All of
            them make the same call. None draws alone.
        first_chain: The id of the first chain, for a call that draws a part of many.
        resume: A trace to go on from: with as many more steps as asked for, the chains are those of one long run. The energy must have
            the same energies and gradients as before where the chains stopped.
        dtype: Of the points; that of `init`, else of the energy's tensors, else torch's default.
        device: Of the points; as for `dtype`.
        **options: The sampler's options.

    Returns:
        The points, with shape $(n, *)$, or the pair of points and `Trace`.

    Raises:
        OptionError: An option is unknown or out of range, the terms recommend different settings, or the checkpoint or the trace is of
            another call or of another energy.
        ShapeError, DtypeError, DeviceError: What is asked for, the start and the energy do not fit.
        ExpressionError: A condition is not bound, the sampler needs values that the energy does not have, or the values of an energy do
            not fit its own `with_gradient`.
        UngroundedError: The energy has no lower bound.
        FileFormatError: The checkpoint is damaged, or of another format.
        SamplingDiverged: Chains diverged; the error carries the last finite points of all chains, those of each copy with `best_of`.
        PluginNotFound: No plug-in offers the sampler.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> bowl.sample((100, 2), seed=0).shape
        torch.Size([100, 2])
    """
    began, energy = time.perf_counter(), as_energy(energy)
    owner = energy  # the caller's own, which keeps what is tuned and compiled for it
    check_call(callback, checkpoint, checkpoint_every, progress=progress, latents=latents, allow_improper=allow_improper, compile=compile)
    steps = None if steps is None else count("steps", steps)
    burn_in = count("burn_in", burn_in, least=0)
    every = None if isinstance(trace, bool) else count("trace", trace)
    policy = on_divergence or (resume.on_divergence if isinstance(resume, Trace) else "raise")
    if policy not in ("raise", "drop", "restart", "keep"):
        raise OptionError(f"on_divergence is 'raise', 'drop', 'restart' or 'keep', got {policy!r}.")
    group = Ranks.of(ranks)
    if resume is None:
        chosen = choose(energy, sampler, options, _OWN)
        copies = count("best_of", best_of)
        seed = seed_of(seed)
        first = count("first_chain", first_chain, least=0)
    else:
        check_resume(resume, {"sampler": sampler, "init": init, "seed": seed, "noise": noise, **options}, best_of, first_chain, shape)
        chosen, copies, seed, first, shape = resume.sampler, resume.best_of, resume.seed, resume.first_chain, resume.shape

    with torch.inference_mode(False), torch.no_grad(), limited_threads(recommended_threads(energy)):
        check_density(energy, chosen, allow_improper)
        if copies > 1:
            check_value(energy, "`best_of`", evidence=True)
        energy = twin(energy)
        asked = ask(energy, shape, latents, init if resume is None else last_points(resume), dtype, device)
        start = start_points(init, asked)
        kind = noise_kind(noise or (resume.noise if resume else None), asked.device)
        total = asked.n * copies
        if first + total > 2**32:
            raise OptionError(f"The ids of chains stay below 2^32; got {total} from {first}.")
        size = total if batch_size is None else count("batch_size", batch_size)
        evaluator = Evaluator(energy, chosen, asked.n, copies, size)
        file = saved = None
        if checkpoint is not None:
            call = {"sampler": described(chosen), "seed": seed, "shape": asked.shape, "best_of": copies, "noise": kind, "trace": trace}
            call |= {"burn_in": burn_in, "first_chain": first, "dtype": str(asked.dtype), "event": asked.event}
            call |= {"init": start if start is None else digest_of({"init": start}), "resumed": resumed_from(resume, group)}
            file = Checkpoint(checkpoint, checkpoint_every, call)
            saved = file.read() if group is None else group.first(file.read())
        if saved is not None:
            check_same_energy(evaluator, saved.reference(asked.device), group, checkpoint)
        elif resume is not None:
            check_same_energy(evaluator, resume.reference, group)
        key: int = secrets.randbits(63) if seed is None else seed
        if seed is None:
            key = saved.call["seed"] if saved else key if group is None else group.first(key)
        if file is not None:
            file.call["seed"] = key
        running = _compiled(owner, energy) if compile else energy
        like = torch.zeros(asked.event, dtype=asked.dtype, device=asked.device)
        given = chosen
        if resume is None:
            chosen = tuned(chosen, owner, energy, running, kind, like, start, asked.n)
        root = Noise(key, range(first, first + total), kind=kind)
        roster = Roster(energy, running, chosen, root, like, total, copies, size, start, group)
        chains = Chains(roster, policy)
        settled = resume.tuned if resume else changed_options(given, chosen)
        blank = Trace(key, kind, first, chosen, asked.shape, copies, policy, burn_in=burn_in, tuned=settled)
        before = saved.trace(blank, chains.any_state()) if saved else None
        recorder = Recorder(bool(trace), every, burn_in, before)
        done = resume.steps if resume else 0
        run = Run(chains, recorder, blank, evaluator, file, group)
        stop = None
        try:
            run.begin(before or resume)
            if (chosen.needs_values or copies > 1 or mixes_values(energy)) and chains.chunks:
                check_own_gradients(chains.chunks[0].energy, chains.chunks[0].state.x, chosen.final_conditions(energy))
            run.go(done + length(chosen, steps, done), callback, progress)
        except Diverged as error:
            stop = error
        points, here = chains.finished()
        stop = stop if group is None else next((some for some in group.objects(stop) if some is not None), None)
        if stop is not None:
            bad = chains.diverged_at >= 0
            points, bad = (points, bad) if group is None else (group.rows(points), group.rows(bad))
            raise _error(energy, stop, _seen(points, asked), bad) from None
        record = replace(run.trace(), reference=(run.reference(),) if trace else ())
        record.kept = _choose_best(chains, points, here, copies) + chains.own.start
        record.branch_shares = roster.branch_shares(points, record.kept) if trace else None
        drawn = points[(record.kept - chains.own.start).to(points.device)]
        if group is not None and group.share == "gather":
            drawn, record = group.rows(drawn), gathered(record, group)
        drawn = _seen(drawn, asked)
    record.seconds = time.perf_counter() - began
    return (drawn, record) if trace else drawn


def _compiled(energy: Energy, still: Energy) -> Energy:
    from composable_energy.sampling.compiling import compiled_twin  # late: torch's compiler is slow to import

    return compiled_twin(energy, still)


def _choose_best(chains: Chains, points: Tensor, here: Tensor, copies: int) -> Tensor:
    """Returns which chains are returned: of the copies of each point, that with the lowest evidence."""
    if copies == 1:
        return here.nonzero().squeeze(1)
    evidence = chains.roster.evidence(points).cpu()
    evidence[~here | (chains.diverged_at >= 0) & (chains.restarts == 0) | evidence.isnan()] = float("inf")
    best = evidence.view(-1, copies).argmin(1) + torch.arange(0, len(points), copies)
    return best[here.view(-1, copies).any(1)]


def _seen(points: Tensor, asked: Asked) -> Tensor:
    return points if asked.decoder is None else decode(asked.decoder, points)


def _error(energy: Energy, stop: Diverged, samples: Tensor, bad: Tensor) -> SamplingDiverged:
    ways = (
        "check the energy there, or give `init`"
        if stop.step == 0
        else "take a smaller step, or say what becomes of such chains with on_divergence='drop', 'restart' or 'keep'; if the density is 0 "
        "there, return `torch.where(inside, energy, torch.inf)`, which samplers that reject take for what it is"
    )
    return SamplingDiverged(
        f"{int(bad.sum())} of {len(bad)} chains reached a non-finite point, energy or gradient of {energy} {stop.reason}: {ways}. "
        "The error's `samples` are the last finite points.",
        samples=samples,
        diverged=bad,
        step=stop.step,
    )


_OWN = tuple(name for name, p in inspect.signature(sample).parameters.items() if p.kind is p.KEYWORD_ONLY)
