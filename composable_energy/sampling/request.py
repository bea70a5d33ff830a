"""The request of a call of `sample`: every argument checked and resolved before the first gradient, in one frozen object."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from composable_energy.algebra import Branch, fill_levels, known_branches, subtracts
from composable_energy.energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.files import digest_of, expanded
from composable_energy.noise import Kind
from composable_energy.options import check_flag, check_integer
from composable_energy.sampling.checkpoint import CheckpointFile, Saved, describe
from composable_energy.sampling.checkpoint_observer import Checkpoint
from composable_energy.sampling.loop import Observer
from composable_energy.sampling.points import PointSpec, resolve_points
from composable_energy.sampling.sampler import Sampler, bound_conditions
from composable_energy.sampling.selection import SamplerLike, check_density, resolve_sampler
from composable_energy.sampling.trace import Policy, Trace
from composable_energy.sampling.unconstrained import UnconstrainedEnergy, coordinates_of_start
from composable_energy.sampling.values import Values
from composable_energy.sampling.wrappers import check_rows, has_rows
from composable_energy.twins import twin

_MOST_TAILS = 32  # coordinates of points for which tails are looked at before sampling


@dataclass(frozen=True)
class Call:
    """The arguments of `sample`, and two that calls inside of the library need: whether points stay latent, and the device."""

    energy: Energy
    shape: int | Sequence[int]
    sampler: SamplerLike | None = None
    steps: int | None = None
    init: Tensor | None = None
    seed: int | None = None
    observers: Sequence[Observer] = ()
    trace: bool | int = False
    burn_in: int = 0
    batch_size: int | None = None
    on_divergence: Policy | None = None
    noise: Kind | None = None
    allow_improper: bool = False
    compile: bool = False
    first_chain: int = 0
    resume: Trace | None = None
    dtype: torch.dtype | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    latents: bool = False
    device: torch.device | None = None


@dataclass(frozen=True)
class SampleRequest:
    """A checked call of `sample`. Fields not listed here are the arguments of that name with their defaults filled in.

    Args:
        owner: The caller's energy, for which tunings and compiled functions are kept.
        energy: Its twin, which is evaluated, in unconstrained coordinates if it has a support.
        sampler: The sampler with its options, before it is tuned.
        points: The requested points.
        chains: The ids of all chains, which key the noise.
        every: Keeps the points of every k-th step; None keeps none.
        file: The checkpoint file; None without one.
        saved: The content of the checkpoint file, if it exists.
        density: The expression whose density the draws should have; None for other draws, as at another temperature.
        branches: The branches of a mixture whose known shares the draws should have.
    """

    owner: Energy
    energy: Energy
    sampler: Sampler
    points: PointSpec
    init: Tensor | None
    batch_size: int
    chains: range
    seed: int
    noise: Kind
    on_divergence: Policy
    steps: int | None
    trace: bool
    burn_in: int
    every: int | None
    resume: Trace | None
    observers: Sequence[Observer]
    file: CheckpointFile | None = None
    saved: Saved | None = None
    density: Energy | None = None
    branches: Sequence[Branch] = ()

    @property
    def checkpoint(self) -> Checkpoint | None:
        """The checkpoint among the observers."""
        return next((one for one in self.observers if isinstance(one, Checkpoint)), None)

    @property
    def reference(self) -> Sequence[Values]:
        """The values of the energy in the call that is continued; none for a new call."""
        if self.saved is not None:
            return self.saved.reference(self.points.device)
        return () if self.resume is None else self.resume.reference

    def last_step(self, sampler: Sampler) -> int:
        """Returns the number of the last step, counted from the start of the chains.

        Raises:
            OptionError: The schedule of the tuned sampler is shorter.
        """
        done, steps, total = self.resume.steps if self.resume else 0, self.steps, sampler.total_steps
        if total is None:
            return done + (sampler.traits.steps if steps is None else steps)
        steps = max(1, total - done) if steps is None else steps
        if done + steps > total:
            before = f"{done} are done, and " if done else ""
            raise OptionError(f"{sampler} takes {total} steps: {before}{steps} were asked for.")
        return done + steps


def resolve_request(call: Call, held: ExitStack) -> SampleRequest:
    """Checks and resolves the arguments of `sample`, and reads its checkpoint.

    Args:
        call: The arguments of `sample`.
        held: Takes the lock of the checkpoint, for the time of the call.

    Raises:
        ComposableEnergyError: An argument is wrong; `sample` lists the classes.
    """
    _check_types(call)
    steps = None if call.steps is None else check_integer("steps", call.steps)
    burn_in, observers = check_integer("burn_in", call.burn_in, least=0), _check_observers(call.observers)
    every = None if isinstance(call.trace, bool) else check_integer("trace", call.trace)
    policy = _resolve_policy(call)
    sampler, seed, first, shape = _resolve_chains(call)
    check_density(call.energy, sampler, call.allow_improper)
    energy = whole = twin(call.energy)
    resume = call.resume
    known = call.init if resume is None or resume.state is None else resume.state.x
    if resume is not None and known is not None and energy.support is not None:  # the trace has the coordinates of its points
        known = known.new_empty((0, *(resume.shape[1:] if energy.event_shape is None else energy.event_shape)))
    points = resolve_points(energy, shape, latents=call.latents, start=known, dtype=call.dtype, device=call.device)
    fill_levels(energy, torch.zeros((1, *points.event), dtype=points.dtype, device=points.device), frozenset(sampler.traits.binds))
    rows = has_rows(energy)
    if rows:
        check_rows(energy, points.n)
    init = _start_points(energy, call.init, points)
    if points.coordinates is not None:
        energy = UnconstrainedEnergy(energy, points.coordinates, volume=not sampler.traits.minimizes)
    if call.energy._signed and sampler.stationary and not call.allow_improper and resume is None:
        _check_differences(call.energy, energy, points, sampler)
    asked = call.noise or (resume.noise if resume else None)
    if first + points.n > 2**32:
        raise OptionError(f"The ids of chains stay below 2^32; got {points.n} from {first}.")
    points.check_memory(points.n)
    changed = getattr(sampler, "temperature", 1.0) != 1 or getattr(sampler, "clamp", None) is not None or sampler.traits.minimizes
    changed = changed or rows or whole.needs_log_densities or not whole.has_value or bool(sampler.traits.binds.keys() & whole.conditions)
    density = None if changed else whole
    request = SampleRequest(
        owner=call.energy,
        energy=energy,
        sampler=sampler,
        points=points,
        init=init,
        batch_size=points.n if call.batch_size is None else check_integer("batch_size", call.batch_size),
        chains=range(first, first + points.n),
        seed=secrets.randbits(63) if seed is None else seed,
        noise=resolve_noise(asked, points.device),
        on_divergence=policy,
        steps=steps,
        burn_in=burn_in,
        trace=bool(call.trace),
        every=every,
        resume=resume,
        observers=observers,
        density=density,
        branches=() if density is None else known_branches(density),
    )
    return request if request.checkpoint is None else _restore(request, request.checkpoint, call, seed, held)


def resolve_noise(kind: Any, device: torch.device) -> Kind:
    """Returns the requested kind of noise, or the default of a device.

    Raises:
        OptionError: The kind is unknown, or not available on the device.
    """
    if kind not in (None, "blocks", "philox"):
        raise OptionError(f"noise is 'blocks' or 'philox', got {kind!r}.")
    if device.type == "cpu":
        return kind or "blocks"
    if kind == "blocks":
        raise OptionError(f"noise='blocks' is drawn on the CPU, the points are on {device}: there it is 'philox'.")
    return "philox"


def _check_differences(owner: Energy, energy: Energy, points: PointSpec, sampler: Sampler) -> None:
    """Raises if the tails of a sum with negative weights show that it has no density, though a term is grounded."""
    if points.event.numel() > _MOST_TAILS or not energy.has_value or not subtracts(owner):
        return
    from composable_energy.density import check_tails  # late: rare

    zeros = points.zeros()
    check_tails(energy, zeros.new_full((16, *zeros.shape), math.inf), bound_conditions(sampler, energy))


def _restore(request: SampleRequest, checkpoint: Checkpoint, call: Call, seed: int | None, held: ExitStack) -> SampleRequest:
    """Reads the checkpoint, and takes its seed where none was requested."""
    resume = request.resume
    resumed = None if resume is None or resume.state is None else digest_of({"state": resume.state.x})
    described = {
        "sampler": describe(request.sampler),
        "seed": seed,
        "shape": request.points.shape,
        "noise": request.noise,
        "trace": call.trace,
        "burn_in": request.burn_in,
        "first_chain": request.chains.start,
        "dtype": str(request.points.dtype),
        "event": request.points.event,
        "init": None if request.init is None else digest_of({"init": request.init}),
        "resumed": None if resume is None else f"{resume.steps} steps, {resumed}",
    }
    file = CheckpointFile(expanded(checkpoint.path), described)
    held.enter_context(file.locked())
    saved = file.read()
    seed = seed if seed is not None else saved.call["seed"] if saved else request.seed
    return replace(request, seed=seed, file=replace(file, call={**file.call, "seed": seed}), saved=saved)


def _check_types(call: Call) -> None:
    for name in ("allow_improper", "compile"):
        check_flag(name, getattr(call, name))


def _check_observers(observers: Any) -> tuple[Observer, ...]:
    found = tuple(observers) if isinstance(observers, Iterable) else (observers,)
    for one in found:
        if not isinstance(one, Observer):
            raise OptionError(f"observers is a list of observers, such as `[Progress(), Stop(f), Checkpoint(path)]`, got {one!r} in it.")
    if sum(isinstance(one, Checkpoint) for one in found) > 1:
        raise OptionError("A call has one Checkpoint, got several.")
    return found


def _resolve_policy(call: Call) -> Policy:
    policy = call.on_divergence or (call.resume.on_divergence if isinstance(call.resume, Trace) else "raise")
    if policy not in ("raise", "keep"):
        raise OptionError(
            f"on_divergence is 'raise' or 'keep', got {policy!r}. To drop chains that diverged: "
            '`x, trace = E.sample(..., on_divergence="keep", trace=True); x = x[~trace.diverged]`.'
        )
    return policy


def _resolve_chains(call: Call) -> tuple[Sampler, int | None, int, int | Sequence[int]]:
    """Returns the sampler, the seed, the first chain and the shape, of the call or of the resumed trace."""
    resume, shape = call.resume, call.shape
    names = [field.name for field in fields(call) if field.name not in ("energy", "options", "latents", "device")]
    if resume is None:
        sampler = resolve_sampler(call.energy, call.sampler, call.options, names)
        return sampler, _resolve_seed(call.seed), check_integer("first_chain", call.first_chain, least=0), shape
    if not isinstance(resume, Trace):
        raise OptionError(f"resume takes the Trace that `sample(..., trace=True)` returned, got {type(resume).__name__}.")
    given = {"sampler": call.sampler, "init": call.init, "seed": call.seed, "noise": call.noise, **call.options}
    wrong = [name for name, value in given.items() if value is not None and value != getattr(resume, name, None)]
    wrong += ["first_chain"] * (call.first_chain not in (0, resume.first_chain))
    wrong += ["shape"] * (tuple(shape) != resume.shape if isinstance(shape, Sequence) else shape != resume.shape[0])
    if wrong:
        raise OptionError(f"A resumed call goes on as it began, {resume}: leave out {', '.join(wrong)}.")
    return resume.sampler, resume.seed, resume.first_chain, resume.shape


def _resolve_seed(seed: Any) -> int | None:
    """Returns a seed as 64 bits without sign, as torch takes negative seeds."""
    if seed is None:
        return None
    number = check_integer("seed", seed, least=-(2**63))
    if number >= 2**64:
        raise OptionError(f"seed must be below 2^64, got {number}: another seed would draw the same.")
    return number % 2**64


def _start_points(energy: Energy, init: Tensor | None, points: PointSpec) -> Tensor | None:
    if init is None:
        return None
    if init.shape != (points.n, *points.event):
        raise ShapeError(f"init must have the shape {(points.n, *points.event)} of the points, got {tuple(init.shape)}.")
    return coordinates_of_start(energy, points.coordinates, init.detach().clone())
