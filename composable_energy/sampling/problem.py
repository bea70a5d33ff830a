"""The problem of a call of `sample`: every argument checked and resolved before the first gradient, in one frozen object."""

import math
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from operator import index
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from composable_energy.algebra import Branch, Conditioned, fill_levels, known_branches
from composable_energy.energies.checks import check_tails, check_weights, weights_of
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import tensors_of, twin
from composable_energy.errors import DeviceError, DtypeError, OptionError, SamplingWarning, ShapeError
from composable_energy.files import memory_of
from composable_energy.options import check_flag, check_integer, written_bytes
from composable_energy.sampling.kernels import forced_kernel
from composable_energy.sampling.noise import Noise
from composable_energy.sampling.sampler import Sampler, bound_conditions
from composable_energy.sampling.selection import SamplerLike, check_density, resolve_sampler
from composable_energy.sampling.trace import Policy, Trace
from composable_energy.sampling.wrappers import GuardedEnergy, UnconstrainedEnergy, coordinates_of_start, select_rows
from composable_energy.supports import Coordinates, contains, coordinates_of, format_support

_MOST_TAILS = 32  # coordinates of points for which tails are looked at before sampling
_FIRST_DECODED, _DECODED_NUMBERS, _DECODED_ON_DEVICE = 32, 2**19, 2**23  # points; numbers of a batch of decoded points
_LITTLE = 2**24  # bytes, which every device has


@dataclass(frozen=True)
class PointSpec:
    """The number, shape, dtype and device of the requested points."""

    n: int
    event: torch.Size  # of one point of the energy
    shape: tuple[int, ...]  # of the result, decoded if there is a decoder
    decoder: nn.Module | None  # of the points at the end; None where latents are requested
    dtype: torch.dtype
    device: torch.device
    coordinates: Coordinates | None = None  # that chains use; None for those of the points themselves

    def zeros(self) -> Tensor:
        """Returns zeros, with the shape of one point of a chain."""
        return torch.zeros(self.event if self.coordinates is None else self.coordinates.shape, dtype=self.dtype, device=self.device)

    def constrain(self, points: Tensor) -> Tensor:
        """Returns the points of the support for points of chains, with any number of first axes."""
        if self.coordinates is None:
            return points
        first = points.shape[: points.ndim - len(self.coordinates.shape)]
        return self.coordinates.points(points.reshape(-1, *self.coordinates.shape))[0].reshape(*first, *self.event)

    def decode(self, points: Tensor) -> Tensor:
        """Returns the points that the caller sees, for points of chains: in the support, and decoded if there is a decoder."""
        points = points if self.coordinates is None else self.constrain(points)
        return points if self.decoder is None else decode(self.decoder, points)


def decode(decoder: nn.Module, points: Tensor) -> Tensor:
    """Returns decoded points, computed without a graph in batches that the cache of the processor holds."""
    with torch.no_grad():
        try:
            first = decoder(points[:_FIRST_DECODED])
        except RuntimeError:
            check_weights(type(decoder).__name__, decoder, points)
            raise
        if not isinstance(first, Tensor) or len(first) != len(points[:_FIRST_DECODED]):
            got = f"shape {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
            raise ShapeError(
                f"The decoder {type(decoder).__name__} gave {got} for points of shape {tuple(points[:_FIRST_DECODED].shape)}; expected a "
                "tensor with a decoded point for each. Wrap it in a module whose `forward` returns that alone."
            )
        size = max(_FIRST_DECODED, (_DECODED_NUMBERS if points.is_cpu else _DECODED_ON_DEVICE) // max(1, first.shape[1:].numel()))
        rest = points[_FIRST_DECODED:]
        return torch.cat([first, *(decoder(some) for some in rest.split(size))]).detach() if len(rest) else first.detach()


def resolve_points(
    energy: Energy,
    shape: int | Sequence[int],
    *,
    latents: bool = False,
    start: Tensor | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | None = None,
    once: bool = False,
) -> PointSpec:
    """Checks a requested shape, dtype and device against the energy, the start points and the memory of the device.

    The shape is $(n, *)$ or $n$. A dtype or device of None is that of `start`, else of the energy's tensors, else torch's default. With
    `latents`, points of a latent space stay as they are; with `once`, each angle of a circle has one coordinate, as integrals need.

    Raises:
        ShapeError, DtypeError, DeviceError: The request, the start and the energy do not fit.
        OptionError: Points with a gradient each, and the result, do not fit into memory. What an energy needs itself is not counted.
    """
    try:
        sizes = tuple(map(index, shape)) if isinstance(shape, Sequence) else (index(shape),)
    except TypeError:
        raise ShapeError(f"shape is a number of points or (n, *shape), got {shape!r}.") from None
    if isinstance(shape, bool) or not sizes or min(sizes) < 1:
        raise ShapeError(f"shape is a positive number of points or (n, *shape), all positive, got {shape!r}.")
    dtype, device = _tensor_options(energy, start, dtype, device)
    n, *given = sizes
    decoder = None if latents else energy.decoder
    if (event := energy.event_shape if energy.event_shape is not None or start is None else start.shape[1:]) is None:
        if decoder is not None:
            raise ShapeError(f"{energy} does not say the shape of its latent points; set its `event_shape`, or give `init`.")
        if not isinstance(shape, Sequence):
            raise ShapeError(f"{energy} does not say the shape of its points: ask for (n, *shape), got {n}.")
        event = torch.Size(given)
    visible = event = torch.Size(event)  # a class may set a tuple
    if decoder is not None:
        known = getattr(decoder, "event_shape", None)
        visible = decode(decoder, torch.zeros((1, *event), dtype=dtype, device=device)).shape[1:] if known is None else torch.Size(known)
    if isinstance(shape, Sequence) and tuple(given) != tuple(visible):
        owner = f"{type(decoder).__name__} decodes to" if decoder is not None else f"{'init' if energy.event_shape is None else energy} has"
        hint = "; `.latents.sample` returns the points before they are decoded" if decoder is not None else ""
        raise ShapeError(f"{owner} points of shape {tuple(visible)}: ask for {(n, *visible)} or {n}, got {(n, *given)}{hint}.")
    needed = n * (2 * math.prod(event) + (0 if decoder is None else math.prod(visible))) * dtype.itemsize
    memory = None if needed < _LITTLE else memory_of(device)  # to look takes a tenth of the cost of a short call
    if memory is not None and needed > memory:
        need, has = written_bytes(needed), written_bytes(memory)
        raise OptionError(f"{n:,} points of shape {tuple(visible)} need at least {need} of memory, {device} has {has}: draw in parts.")
    if (coordinates := coordinates_of(energy.support, event, dtype, device, once)) is not None and not coordinates.shape.numel():
        raise ShapeError(f"{energy} has a single point, nothing to draw: {format_support(energy.support)} of shape {tuple(event)}.")
    spec = PointSpec(n, event, (n, *visible), decoder, dtype, device, coordinates)
    if coordinates is None or not coordinates.within or contains(energy.support, spec.constrain(coordinates.inner(spec.zeros()))).all():
        return spec
    raise DtypeError(f"No {dtype} is inside the support {format_support(energy.support)}: use dtype=torch.float64, or another unit.")


def _tensor_options(energy: Energy, start: Any, dtype: torch.dtype | None, device: torch.device | None) -> tuple[torch.dtype, torch.device]:
    """Returns the dtype and the device of the points."""
    if torch.get_default_device().type == "meta":
        raise DeviceError("torch's default device is meta, whose tensors have no values: set another by `torch.set_default_device('cpu')`.")
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise DtypeError(f"dtype must be a dtype of torch, such as torch.float32, got {dtype!r}.")
    if start is not None:
        if not isinstance(start, Tensor) or not start.is_floating_point():
            raise DtypeError(f"init must be a floating tensor, got {start.dtype if isinstance(start, Tensor) else type(start).__name__}.")
        if start.layout != torch.strided:
            raise DtypeError(f"init must be a dense tensor, got {start.layout}; use `.to_dense()`.")
        if dtype not in (None, start.dtype):
            raise DtypeError(f"init is {start.dtype}, requested is {dtype}; convert it with `.to(...)`.")
        if device is not None and device.type != start.device.type:
            raise DeviceError(f"init is on {start.device}, requested is {device}; move it with `.to(...)`.")
        dtype, device = start.dtype, start.device
    if dtype is None or device is None:  # those of a parameter, else of a buffer, else of what functions and distributions hold
        if (like := next(filter(Tensor.is_floating_point, chain(weights_of(energy), energy.buffers())), None)) is None:
            for tensor in filter(Tensor.is_floating_point, tensors_of(energy)):
                if like is None or (isinstance(tensor, nn.Parameter) and not isinstance(like, nn.Parameter)):
                    like = tensor
        dtype = dtype or (torch.get_default_dtype() if like is None else like.dtype)
        like = next(tensors_of(energy), None) if like is None else like
        device = device or (torch.get_default_device() if like is None else like.device)
    if device.type == "meta":
        raise DeviceError("Points on the device meta have no values; ask for another device, and move the energy there by `.to(...)`.")
    if not dtype.is_floating_point:
        raise DtypeError(f"Points need a floating dtype, got {dtype}.")
    return dtype, device


@dataclass(frozen=True)
class Call:
    """The arguments of `sample`, and those of calls inside of the library: whether points stay latent, the device, and for an integral."""

    energy: Energy
    shape: int | Sequence[int]
    sampler: SamplerLike | None = None
    steps: int | None = None
    init: Tensor | None = None
    seed: int | None = None
    observers: Sequence[Any] = ()
    trace: bool | int = False
    burn_in: int = 0
    batch_size: int | None = None
    on_divergence: Policy | None = None
    allow_improper: bool = False
    compile: bool = False
    first_chain: int = 0
    resume: Trace | None = None
    dtype: torch.dtype | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    latents: bool = False
    device: torch.device | None = None
    integral: bool = False


_NAMES = tuple(one.name for one in fields(Call) if one.name not in ("energy", "options", "latents", "device", "integral"))


class PilotResult(NamedTuple):
    """Where pilot chains arrived: points $(m, *)$, and an energy above theirs, which marks a tail; None if energies do not compare."""

    points: Tensor
    level: float | None


class BranchDraws(NamedTuple):
    """Draws of branches in the coordinates of chains, $(K, m, *)$, their shares $(K,)$, and whether the draws of all are exact."""

    points: Tensor
    shares: Tensor
    exact: bool


@dataclass(frozen=True)
class Problem:
    """What is sampled, and how. Phases of a call take it, and return it with what they found."""

    call: Call  # its energy is the caller's
    whole: Energy  # the twin of that energy
    plain: Energy  # the twin, in unconstrained coordinates if it has a support
    energy: GuardedEnergy  # what the sampler gets: the same, with a count of exceptions at single points
    sampler: Sampler  # tuned or not
    points: PointSpec
    noise: Noise  # of all chains at step 0
    init: Tensor | None  # the coordinates of the start points; None lets the sampler choose
    batch_size: int  # how many chains are evaluated together
    policy: Policy
    own_conditions: bool  # whether chains have bound conditions of their own, so that no point of one may become that of another
    density: Energy | None  # the expression whose density the draws should have; None for other draws, as at another temperature
    branches: Sequence[Branch]  # of a mixture, whose known shares the draws should have
    drawn: BranchDraws | None = None  # where chains without `init` start
    pilots: PilotResult | None = None  # None leaves all start points as they are

    def energy_of(self, ids: range | Tensor, *, plain: bool = False) -> Energy:
        """Returns the energy of some chains, counted from 0, with their rows of bound conditions; `plain` leaves out the guard."""
        energy = self.plain if plain else self.energy
        return select_rows(energy, ids, self.points.n) if self.own_conditions else energy

    def noise_of(self, ids: range | Tensor) -> Noise:
        """Returns the noise of some chains, counted from 0."""
        first = self.noise.chains[0]
        return self.noise.for_chains(range(ids.start + first, ids.stop + first) if isinstance(ids, range) else (ids + first).tolist())

    def conditions_at(self, points: Tensor, chains: Tensor) -> dict[str, Tensor]:
        """Returns the conditions of the energy at points of chains after the last step: the noise level, and the rows."""
        conditions = bound_conditions(self.sampler, self.energy)
        return {name: points.new_full((), value).expand(len(points)) for name, value in conditions.items()} | {CHAINS: chains}

    def last_step(self) -> int:
        """Returns the number of the last step from the start of the chains; raises if the sampler's schedule or `burn_in` leaves none."""
        steps, total, done = self.call.steps, self.sampler.total_steps, self.call.resume.steps if self.call.resume else 0
        if steps is None:
            steps = self.sampler.traits.steps if total is None else max(1, total - done)
        if total is not None and done + steps > total:
            raise OptionError(f"{self.sampler} takes {total} steps: {done} are done, and {steps} were asked for.")
        if done + steps < (total or 0) and not (self.call.trace or self.call.observers):  # which may be for the other steps
            seen = f"{done + steps} of the {total} steps of {type(self.sampler).__name__} are taken, so the points are no draws yet."
            SamplingWarning("drift", seen, "Leave out `steps`: the sampler's own options, such as `levels`, say how many it takes.").emit()
        if self.call.burn_in >= done + steps:
            raise OptionError(f"burn_in={self.call.burn_in} keeps no point of {done + steps} steps: take fewer, or more `steps`.")
        return done + steps


def resolve(call: Call) -> Problem:
    """Checks and resolves the arguments of `sample`, which lists the errors."""
    call = _checked(call if call.resume is None else _resumed(call, call.resume))
    resume, sampler = call.resume, resolve_sampler(call.energy, call.sampler, call.options, _NAMES)
    check_density(call.energy, sampler, call.allow_improper)
    whole = twin(call.energy)
    start = call.init if resume is None or resume.state is None else resume.state.x
    if resume is not None and start is not None and whole.support is not None:  # a trace has the coordinates of points of a support
        start = start.new_empty((0, *(resume.shape[1:] if whole.event_shape is None else whole.event_shape)))
    once = call.integral or sampler.traits.couple is not None
    points = resolve_points(whole, call.shape, latents=call.latents, start=start, dtype=call.dtype, device=call.device, once=once)
    if (chains := range(call.first_chain, call.first_chain + points.n)).stop > 2**32:
        raise OptionError(f"The ids of chains stay below 2^32; got {points.n} from {call.first_chain}.")
    fill_levels(whole, torch.zeros((1, *points.event), dtype=points.dtype, device=points.device), frozenset(sampler.traits.binds))
    rows, init = CHAINS in whole.conditions, call.init
    for part in whole.modules() if rows else ():
        for name, value in part.values.items() if isinstance(part, Conditioned) else ():
            if isinstance(value, Tensor) and value.ndim > 0 and len(value) not in (1, points.n):
                raise ShapeError(
                    f"{part} has {len(value)} rows of {name}, each of shape {tuple(value.shape[1:])} and for one point, and {points.n} "
                    f"points were asked for. Ask for {len(value)}; or, if it is one condition of all points, bind `{name}[None]`."
                )
    if init is not None:
        if init.shape != (points.n, *points.event):
            raise ShapeError(f"init must have the shape {(points.n, *points.event)} of the points, got {tuple(init.shape)}.")
        init = coordinates_of_start(whole, points.coordinates, init.detach().clone())
        if sampler.traits.check_init is not None:
            sampler = sampler.traits.check_init(sampler, whole, init) or sampler
    temperature = 0.0 if sampler.traits.minimizes else getattr(sampler, "temperature", 1.0)
    plain = whole if (at := points.coordinates) is None else UnconstrainedEnergy(whole, at, volume=temperature)
    few = points.event.numel() <= _MOST_TAILS and plain.sites is None
    if call.energy._signed and few and plain.has_value and sampler.stationary and not call.allow_improper and resume is None:
        check_tails(plain, torch.stack([points.zeros() + math.inf] * 16), bound_conditions(sampler, plain))
    changed = temperature != 1 or getattr(sampler, "clamp", None) is not None or rows or whole.needs_log_densities
    changed = changed or not whole.has_value or not whole.conditions.isdisjoint(sampler.traits.binds)
    forced_kernel.cache_clear()  # the environment may have changed since the last call
    own = points.device.type == "cpu" and forced_kernel() in (None, "", "torch")  # kernels draw Philox noise
    kind = resume.noise if resume else "numpy" if own else "philox"
    noise = Noise(secrets.randbits(63) if call.seed is None else call.seed, chains, kind=kind)
    energy, size, policy = GuardedEnergy(plain), call.batch_size or points.n, call.on_divergence or "raise"
    density, branches = (None, ()) if changed else (whole, known_branches(whole))
    return Problem(call, whole, plain, energy, sampler, points, noise, init, size, policy, rows, density, branches)


def _checked(call: Call) -> Call:
    """Returns a call whose numbers are of Python's type `int`, and whose seed has 64 bits without sign, as torch takes negative seeds."""
    check_flag("allow_improper", call.allow_improper)
    check_flag("compile", call.compile)
    found: dict[str, Any] = {} if isinstance(call.trace, bool) else {"trace": check_integer("trace", call.trace)}
    for name, least in (("steps", 1), ("batch_size", 1), ("burn_in", 0), ("first_chain", 0)):
        if getattr(call, name) is not None or least == 0:
            found[name] = check_integer(name, getattr(call, name), least=least)
    if call.seed is not None:
        found["seed"] = check_integer("seed", call.seed, least=-(2**63))
        if found["seed"] >= 2**64:
            raise OptionError(f"seed must be below 2^64, got {found['seed']}: another seed would draw the same.")
        found["seed"] %= 2**64
    if call.on_divergence not in (None, "raise", "keep"):
        raise OptionError(f"on_divergence is 'raise' or 'keep', got {call.on_divergence!r}; drop chains by `x[~trace.diverged]`.")
    return replace(call, **found)


def _resumed(call: Call, resume: Any) -> Call:
    """Returns a call with what its trace decides; raises if it does not go on as the trace began."""
    if not isinstance(resume, Trace):
        raise OptionError(f"resume takes the Trace that `sample(..., trace=True)` returned, got {type(resume).__name__}.")
    given, shape = {"sampler": call.sampler, "init": call.init, "seed": call.seed, **call.options}, call.shape
    wrong = [name for name, value in given.items() if value is not None and value != getattr(resume, name, None)]
    wrong += ["first_chain"] * (call.first_chain not in (0, resume.first_chain))
    wrong += ["shape"] * (tuple(shape) != resume.shape if isinstance(shape, Sequence) else shape != resume.shape[0])
    if list((now := call.energy.variables).items()) != list((before := resume.variables).items()):
        raise OptionError(f"The trace has the variables {list(before)}, and {call.energy} has {list(now)}: give that of the trace.")
    if wrong:
        raise OptionError(f"A resumed call goes on as it began, {resume}: leave out {', '.join(wrong)}.")
    settled = {name: getattr(resume, name) for name in ("sampler", "shape", "seed", "first_chain")}
    return replace(call, **settled, options={}, on_divergence=call.on_divergence or resume.on_divergence)
