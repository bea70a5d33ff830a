r"""The driver: `sample` owns the loop, and everything around a step that authors of samplers need not think of.

Chains are advanced step by step, all of them, in chunks of `batch_size` at each step; noise is keyed by chain and step, so that chunks,
ranks and stops change nothing.
"""

from __future__ import annotations

import inspect
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from composable_energy.energy import Energy
from composable_energy.errors import OptionError, SamplingDiverged, ShapeError
from composable_energy.lifting import as_energy
from composable_energy.noise import Kind, Noise
from composable_energy.sampling.asking import Asked, ask, check_density, count, decode
from composable_energy.sampling.chains import Chains, Diverged
from composable_energy.sampling.choosing import SamplerLike, choose, recommended_threads
from composable_energy.sampling.freezing import frozen
from composable_energy.sampling.rows import on_rows
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.trace import Policy, Trace

__all__ = ["sample"]

Callback = Callable[[int, State, Info], object]
_PILOTS = 64


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
    first_chain: int = 0,
    resume: Trace | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    **options: Any,
) -> Any:
    r"""Draws points from $p(x) \propto e^{-E(x)}$.

    Meanwhile the parameters of every module that the energy reaches are frozen and the modules are in eval mode; both are restored on
    every exit, and the caller's random state stays as it is.

    Args:
        energy: The energy, or what `as_energy` lifts.
        shape: $(n, *)$ with the shape of one point, or $n$ where the energy knows it. An energy in the latent space of a decoder is
            sampled there and decoded at the end: then it is the shape of decoded points.
        sampler: A name, a class or an instance. None takes what the energy recommends; else `annealed` for an energy that needs a noise
            level `sigma`, and `hmc`, which tunes itself, for any other.
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
        first_chain: The id of the first chain, for a call that draws a part of many.
        resume: A trace to go on from: with as many more steps as asked for, the chains are those of one long run.
        dtype: Of the points; that of `init`, else of the energy's tensors, else torch's default.
        device: Of the points; as for `dtype`.
        **options: The sampler's options.

    Returns:
        The points, with shape $(n, *)$, or the pair of points and `Trace`.

    Raises:
        OptionError: An option is unknown or out of range, or the terms recommend different settings.
        ShapeError, DtypeError, DeviceError: What is asked for, the start and the energy do not fit.
        ExpressionError: A condition is not bound.
        UngroundedError: The energy has no lower bound.
        SamplingDiverged: Chains diverged; the error carries what they had drawn.
        PluginNotFound: No plug-in offers the sampler.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> bowl.sample((100, 2), seed=0).shape
        torch.Size([100, 2])
    """
    energy = as_energy(energy)
    steps = None if steps is None else count("steps", steps)
    burn_in = count("burn_in", burn_in, least=0)
    every = None if isinstance(trace, bool) else count("trace", trace)
    policy = on_divergence or (resume.on_divergence if isinstance(resume, Trace) else "raise")
    if policy not in ("raise", "drop", "restart", "keep"):
        raise OptionError(f"on_divergence is 'raise', 'drop', 'restart' or 'keep', got {policy!r}.")
    if resume is None:
        chosen = choose(energy, sampler, options, _OWN)
        copies = count("best_of", best_of)
        seed = secrets.randbits(63) if seed is None else count("seed", seed, least=-(2**63)) % 2**64
        first = count("first_chain", first_chain, least=0)
    else:
        _check_resume(resume, {"sampler": sampler, "init": init, "seed": seed, "noise": noise, **options}, best_of, first_chain, shape)
        chosen, copies, seed, first, shape = resume.sampler, resume.best_of, resume.seed, resume.first_chain, resume.shape

    with torch.inference_mode(False), torch.no_grad(), frozen(energy, threads=recommended_threads(energy)):
        check_density(energy, chosen, allow_improper)
        running = _compiled(energy) if compile else energy
        asked = ask(energy, shape, latents, init if resume is None else _last_points(resume), dtype, device)
        start = _start(init, asked)
        kind = _noise_kind(noise or (resume.noise if resume else None), asked.device)
        total = asked.n * copies
        if first + total > 2**32:
            raise OptionError(f"The ids of chains stay below 2^32; got {total} from {first}.")
        root = Noise(seed, range(first, first + total), kind=kind)
        like = torch.zeros(asked.event, dtype=asked.dtype, device=asked.device)
        if resume is None:
            chosen = _tuned(chosen, running, root, like, start, asked.n)
        size = total if batch_size is None else count("batch_size", batch_size)
        chains = Chains(energy, running, chosen, root, like, total, copies, policy, size, start)
        record = Trace(seed, kind, first, chosen, asked.shape, copies, policy)
        try:
            _begin(chains, resume)
            _run(chains, _length(chosen, steps, chains.step), record if trace else None, every, burn_in, callback, progress)
        except Diverged as stop:
            points, _ = chains.finished()
            raise _error(energy, chains, stop, _seen(points[::copies], asked)) from None
        points, here = chains.finished()
        record.kept = _choose_best(chains, points, here, copies)
        record.branch_shares = chains.branch_shares(points, record.kept) if trace else None
        drawn = _seen(points[record.kept.to(points.device)], asked)
    if not trace:
        return drawn
    record.steps, record.states, record.stopped = chains.step, chains.saved(), chains.stopped
    record.diverged_at, record.diverged, record.restarts = chains.diverged_at, chains.diverged_at >= 0, chains.restarts
    return drawn, record


def _run(
    chains: Chains, steps: int, record: Trace | None, every: int | None, burn_in: int, callback: Callback | None, progress: bool
) -> None:
    energies, rates, points = [], [], []
    bar = tqdm(total=steps, file=sys.stderr, disable=not progress, desc=type(chains.sampler).__name__.lower(), leave=False)
    with bar:
        for _ in range(steps):
            info = chains.advance()
            bar.update()
            if record is not None:
                energies.append(chains.spread(lambda state: state.energy))
                if info.acceptance is not None:
                    rates.append(info.acceptance)
                for name, value in info.scalars.items():
                    record.scalars.setdefault(name, []).append(value)
                if every is not None and chains.step > burn_in and (chains.step - burn_in) % every == 0:
                    points.append(chains.spread(lambda state: state.x))
                    record.point_steps.append(chains.step)
            if not chains.chunks or (callback is not None and _is_true(callback(chains.step, chains.state(), info))):
                break
    if record is not None:
        record.energies = torch.stack(energies) if energies else record.energies
        record.acceptance = torch.stack(rates) if rates else None
        record.points = torch.stack(points) if points else None


def _compiled(energy: Energy) -> Energy:
    from composable_energy.sampling.compiling import compiled  # late: torch's compiler is slow to import

    return compiled(energy)


def _is_true(answer: Any) -> bool:
    """Whether a callback says so itself or by a comparison, which gives a tensor; any other return value means nothing."""
    return answer is True or (getattr(answer, "dtype", None) in (torch.bool, bool) and bool(answer.all()))


def _start(init: Tensor | None, asked: Asked) -> Tensor | None:
    """Returns a copy of the points to start at."""
    if init is None:
        return None
    if init.shape != (asked.n, *asked.event):
        raise ShapeError(f"init must have the shape {(asked.n, *asked.event)} of the points, got {tuple(init.shape)}.")
    return init.detach().clone()


def _last_points(resume: Trace) -> Tensor:
    return resume.states[0][2].x if resume.states else resume.stopped[0].state.x


def _begin(chains: Chains, resume: Trace | None) -> None:
    if resume is None:
        chains.begin()
        return
    chains.step, chains.stopped = resume.steps, list(resume.stopped)
    chains.diverged_at, chains.restarts = resume.diverged_at.clone(), resume.restarts.clone()
    chains.resume(resume.states)


def _tuned(sampler: Sampler, energy: Energy, noise: Noise, like: Tensor, init: Tensor | None, n: int) -> Sampler:
    """Tunes a sampler on a block of pilot chains that is the same whatever is drawn."""
    if type(sampler).tune is Sampler.tune:
        return sampler
    pilot = noise.child("pilot").for_chains(range(_PILOTS))
    rows = [i % n for i in range(_PILOTS)]
    x = sampler.start(like.expand(_PILOTS, *like.shape).contiguous(), pilot.child("start")) if init is None else init[rows]
    return sampler.tune(on_rows(energy, rows, n), x, pilot)


def _length(sampler: Sampler, steps: int | None, done: int) -> int:
    total = sampler.total_steps
    if total is None:
        return sampler.default_steps if steps is None else steps
    if steps is None:
        steps = max(1, total - done)
    if done + steps > total:
        before = f"{done} are done, and " if done else ""
        raise OptionError(f"{sampler} takes {total} steps: {before}{steps} were asked for.")
    return steps


def _noise_kind(kind: Any, device: torch.device) -> Kind:
    if kind not in (None, "blocks", "philox"):
        raise OptionError(f"noise is 'blocks' or 'philox', got {kind!r}.")
    if device.type == "cpu":
        return kind or "blocks"
    if kind == "blocks":
        raise OptionError(f"noise='blocks' is drawn on the CPU, the points are on {device}: there it is 'philox'.")
    return "philox"


def _check_resume(resume: Trace, given: dict[str, Any], best_of: int, first_chain: int, shape: int | Sequence[int]) -> None:
    if not isinstance(resume, Trace):
        raise OptionError(f"resume takes the Trace that `sample(..., trace=True)` returned, got {type(resume).__name__}.")
    wrong = [name for name, value in given.items() if value is not None and value != getattr(resume, name, None)]
    wrong += ["best_of"] * (best_of not in (1, resume.best_of)) + ["first_chain"] * (first_chain not in (0, resume.first_chain))
    wrong += ["shape"] * (tuple(shape) != resume.shape if isinstance(shape, Sequence) else shape != resume.shape[0])
    if wrong:
        raise OptionError(f"A resumed call goes on as it began, {resume}: leave out {', '.join(wrong)}.")


def _choose_best(chains: Chains, points: Tensor, here: Tensor, copies: int) -> Tensor:
    """Returns which chains are returned: of the copies of each point, that with the lowest evidence."""
    if copies == 1:
        return here.nonzero().squeeze(1)
    evidence = chains.evidence(points).cpu()
    evidence[~here | (chains.diverged_at >= 0) & (chains.restarts == 0) | evidence.isnan()] = float("inf")
    best = evidence.view(-1, copies).argmin(1) + torch.arange(0, chains.total, copies)
    return best[here.view(-1, copies).any(1)]


def _seen(points: Tensor, asked: Asked) -> Tensor:
    return points if asked.decoder is None else decode(asked.decoder, points)


def _error(energy: Energy, chains: Chains, stop: Diverged, samples: Tensor) -> SamplingDiverged:
    bad = (chains.diverged_at >= 0).view(-1, chains.per_row).any(1)
    ways = (
        "check the energy there, or give `init`"
        if stop.step == 0
        else "take a smaller step, or say what becomes of such chains with on_divergence='drop', 'restart' or 'keep'"
    )
    return SamplingDiverged(
        f"{int(bad.sum())} of {len(bad)} chains reached a non-finite point, energy or gradient of {energy} {stop.reason}: {ways}. "
        "The error's `samples` are the last finite points.",
        samples=samples,
        diverged=bad,
        step=stop.step,
    )


_OWN = tuple(name for name, p in inspect.signature(sample).parameters.items() if p.kind is p.KEYWORD_ONLY)
