"""The interface of samplers: `init`, `step`, and what a sampler says about itself.

A sampler is a frozen dataclass whose fields are its options, as in the docs of plug-ins. The driver, the function `sample`, calls it under
`torch.no_grad()` with a twin of the energy, for some chains at a time. Batches, traces, checkpoints and divergence are the driver's.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from composable_energy.energies.energy import Energy
from composable_energy.errors import PluginLoadError, SamplingWarning, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy.supports import Sites


@dataclass(frozen=True)
class State:
    """The state of chains, from which the next step continues and which a checkpoint keeps. A sampler that needs more adds fields.

    A tensor has one row for each chain, so that the driver can advance, stop and join some of the chains. A tensor that all chains share
    is a field with the metadata `per_chain=False`:

        scales: Tensor = field(metadata={"per_chain": False})

    Tensors without axes and objects that are no tensors are shared as well. Shared fields must not depend on the chains: joined states
    keep those of the first. With `saved=False` a checkpoint leaves a shared object out, and `init` makes it again. The driver raises
    `ShapeError` for a tensor with another number of rows.

    Args:
        x: The points, with shape $(B, *)$.
        energy: The energies of the points, with shape $(B,)$.
        grad: The gradients at the points, with shape $(B, *)$; zeros in a sampler that needs none.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor


@dataclass(frozen=True)
class Info:
    """Diagnostics of a step.

    Args:
        acceptance: The probability with which each proposal was accepted, with shape $(B,)$; None if nothing is ever rejected. NaN says
            that a proposal was rejected because its energy is not a number: the driver counts it and records 0.
        scalars: Other numbers by name. A float is a setting that all chains share, such as the noise level. A tensor with shape $(B,)$ has
            one number for each chain, and the driver takes the mean over all chains without NaN, whatever the batches and processes; so a
            sampler takes no mean itself. Floats that differ between batches are averaged with the number of chains as weights. Other
            reductions, such as a maximum, belong to `Traits.couple`.
        chains: The ids, counted from 0, of the chains in the rows of the state, after some were stopped; None while all are
            active. The driver fills it in for callbacks.
    """

    acceptance: Tensor | None = None
    scalars: Mapping[str, float | Tensor] = field(default_factory=dict)
    chains: Sequence[int] | None = None


@dataclass(frozen=True)
class Traits:
    r"""What a sampler needs, and what its chains are.

    Functions get the sampler as their first argument, so a class lists its own methods: `traits = Traits(bias=bias)` after `def bias`.

    Args:
        steps: The number of steps of a call that gives none, for a sampler without `total_steps`.
        values: Whether the draws depend on energies, as where proposals are rejected; else they can be from an energy without value.
        log_densities: Whether it carries the log densities of scores along noise levels, and so draws energies with `needs_log_densities`.
        states: Which points it draws: `"continuous"`, `"discrete"` where all numbers are, `"mixed"` where some are; its energy has `sites`.
        gradients: The number of gradients that each chain evaluates at a step; None if it varies. A sampler with trajectories reports a
            scalar `leapfrogs` instead.
        stationary: Whether the chains have a stationary density, if there is no last step.
        minimizes: Whether it looks for low energies, not draws. Then unconstrained coordinates of a support do not change the energy.
        from_pilots: Whether chains without `init` start where the pilot chains of `tune` arrived; then `approach` must part equal starts.
        refused: Names of options that users may expect, with the reason why they do not exist.
        binds: Conditions of an energy that the sampler binds itself, such as `sigma`: for each a function (sampler, energy) that returns
            its values at the last step, at another step, where energies are compared, too, and at the first step.
        start: A function (sampler, like, noise) that returns start points with the shape $(B, *)$ of `like`; None for standard normal ones.
        check_init: A function (sampler, energy, points) that raises `OptionError` where a start does not suit, or returns a sampler for it.
        move: A function (sampler, state, noise) that returns the points of the next state if they do not depend on the energy there, else
            None. It saves one gradient where only the final points are needed.
        couple: A function (sampler, energy, state, noise) that couples all chains after each step, as resampling does. It gets the state of
            all active chains, in the order of their ids, and returns one with as many rows, and scalars of all chains.
        bias: A function (sampler, state) that estimates the discretisation bias at the points of a state, with shape $(B,)$, or None: the
            relative excess of $\langle x \cdot \nabla E \rangle$, which is $T$ times the number of coordinates for draws.
        warn: A function (sampler, state, exact) that returns warnings about the state after the last step; `exact` says whether the chains
            started at draws of the density.
        check_draws: A function (sampler, energy, x) that returns warnings about the last points of some chains without `init`.
        mean_acceptance: A function of acceptances with shape (steps, chains) that returns numbers whose mean has the option `acceptance` as
            its goal; None for the acceptances themselves.
    """

    steps: int = 1000
    values: bool = True
    log_densities: bool = False
    states: Sequence[Literal["continuous", "discrete", "mixed"]] = ("continuous",)
    gradients: int | None = None
    stationary: bool = True
    minimizes: bool = False
    from_pilots: bool = False
    refused: Mapping[str, str] = field(default_factory=dict)
    binds: Mapping[str, Callable[[Any, Energy], tuple[float, float, float]]] = field(default_factory=dict)
    start: Callable[[Any, Tensor, Noise], Tensor] | None = None
    check_init: Callable[[Any, Energy, Tensor], "Sampler | None"] | None = None
    move: Callable[[Any, Any, Noise], Tensor | None] | None = None
    couple: Callable[[Any, Energy, Any, Noise], tuple[Any, Mapping[str, float]]] | None = None
    bias: Callable[[Any, Any], Tensor | None] | None = None
    warn: Callable[[Any, Any, bool], Sequence[SamplingWarning]] | None = None
    check_draws: Callable[[Any, Energy, Tensor], Sequence[SamplingWarning]] | None = None
    mean_acceptance: Callable[[Tensor], Tensor] | None = None


class Sampler(ABC):
    """Abstract sampler. A subclass writes `step`, maybe `init`, and is a frozen dataclass of its options.

    Two samplers are equal if they have the same class and options of the same values, tensors and arrays included; fields with
    `compare=False` do not count. A subclass inherits this `__eq__` and a matching `__hash__`, because those of `dataclass` cannot compare
    tensors. Other objects in options compare by their own `__eq__` if they have a hash, else by identity.

    Attributes:
        traits: What it needs, and what its chains are.
        tuned: Whether `tune` has nothing to do, as all options that it sets are given; it is not called then.
        total_steps: The length of the schedule; None for a chain without end.
    """

    traits: ClassVar[Traits] = Traits()
    tuned: bool = False
    total_steps: int | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # `dataclass` decorates the class after this, and keeps methods that the class itself has.
        if cls.__eq__ is Sampler.__eq__ and "__hash__" not in vars(cls):
            cls.__eq__, cls.__hash__ = Sampler.__eq__, Sampler.__hash__

    def __eq__(self, other: object) -> bool:
        return _key(self) == _key(other) if is_dataclass(self) and type(self) is type(other) else NotImplemented

    def __hash__(self) -> int:
        return hash(_key(self)) if is_dataclass(self) else object.__hash__(self)

    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        """Returns the state at the start; by default the points with their energies and gradients.

        Args:
            energy: The energy.
            x: The start points, with shape $(B, *)$; the state may hold them.
            noise: The noise of these chains at step 0.
        """
        return State(x, *energy.with_gradient(x))

    @abstractmethod
    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        """Returns the next state and its diagnostics.

        A point of infinite energy has density 0, and rejecting it is right. A rejection must not hide an energy that is NaN: return it in
        the state, and the driver stops the chain at its last finite point and reports it.

        Args:
            energy: The energy.
            state: The state that `init` or the last `step` returned; it must not be changed in place.
            noise: The noise of these chains at this step; `noise.step` counts from 1.
        """

    @property
    def stationary(self) -> bool:
        """Whether later points of a chain are draws as well."""
        return self.traits.stationary and self.total_steps is None

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple["Sampler", Tensor]:
        """Returns a sampler with all options set, tuned on pilot chains, and their last points.

        The pilot chains do not depend on the chains of the call.

        Args:
            energy: The energy.
            x: The start points of the pilot chains, with shape $(B, *)$.
            noise: The noise of the pilot chains.
        """
        return self, x

    def approach(self, energy: Energy, x: Tensor, noise: Noise, level: float | None) -> tuple[Tensor, Tensor]:
        """Moves start points in a tail of the density to where pilot chains arrived; by default no point moves.

        A tuned sampler calls for it: steps that suit the bulk of a density are often rejected in its tails. No chain may depend on others.

        Args:
            energy: The energy.
            x: The start points, with shape $(B, *)$.
            noise: The noise of these chains.
            level: An energy above those of the pilot chains; points above it are in a tail. None if the energies of chains do not compare.

        Returns:
            The points, with shape $(B, *)$, and which of them reached the bulk of the density, with shape $(B,)$.
        """
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device)


def check_returned(sampler: Sampler, method: str, found: Any, kinds: Sequence[type], like: Tensor) -> Any:
    """Returns what a method of a sampler returned; raises if it is not of these classes, or does not fit points like those of chains."""
    where, parts = f"`{method}` of {type(sampler).__name__}", found if isinstance(found, tuple) and len(kinds) > 1 else (found,)
    if len(parts) != len(kinds) or not all(map(isinstance, parts, kinds)):
        wanted, got = (", ".join(one.__name__ for one in some) for some in (kinds, map(type, parts)))
        raise PluginLoadError(f"{where} must return ({wanted}), got ({got}): `composable_energy.testing.check_sampler` checks samplers.")
    if isinstance(info := parts[-1], Info) and not isinstance(info.scalars, Mapping):
        raise PluginLoadError(f"{where} must return an Info whose `scalars` map names to numbers, got {type(info.scalars).__name__}.")
    values, count = dict[str, Any](), len(like)
    for part in parts:
        for own in fields(part) if isinstance(part, State) else ():
            if own.metadata.get("per_chain", True):
                values[own.name] = getattr(part, own.name)
        if isinstance(part, Tensor):
            values["which arrived" if "the points" in values else "the points"] = part
    shapes = {"energy": (count,), "which arrived": (count,)} | dict.fromkeys(("x", "grad", "the points"), tuple(like.shape))
    for name, value in values.items():
        shape = tuple(value.shape) if isinstance(value, Tensor) else None
        if name in shapes and (shape != shapes[name] or (name in ("x", "the points") and value.dtype != like.dtype)):
            got = type(value).__name__ if shape is None else f"a tensor of shape {shape} and {value.dtype}"
            raise ShapeError(f"{where} must return {name} of shape {shapes[name]} for points of {like.dtype}, got {got}.")
        if name not in shapes and shape and shape[0] != count:
            raise ShapeError(
                f"{type(parts[0]).__name__}.{name} has shape {shape} in a state of {count} chains: a tensor has one row for each chain. "
                f"If all chains share it, write `{name}: Tensor = field(metadata={{'per_chain': False}})`."
            )
    return found


def start_points(sampler: Sampler, like: Tensor, noise: Noise, sites: Sites | None = None) -> Tensor:
    """Returns the start points of a sampler, with the shape $(B, *)$ of zeros `like`; all values of discrete `sites` are equally likely."""
    start = sampler.traits.start
    x = noise.normal(like) if start is None else start(sampler, like, noise)
    return x if sites is None else sites.scatter(x)


def bound_conditions(sampler: Sampler, energy: Energy, step: int = 0) -> dict[str, float]:
    """Returns the values of the conditions that a sampler binds itself, at a step of `Traits.binds`: 0 is the last."""
    binds = sampler.traits.binds
    return {name: binds[name](sampler, energy)[step] for name in binds if name in energy.conditions} if binds else {}


def changed_options(before: Sampler, after: Sampler) -> tuple[str, ...]:
    """Returns the names of the options in which two samplers of one class differ, such as tuned ones."""
    if type(before) is not type(after) or not is_dataclass(before):
        return ()
    return tuple(f.name for f in fields(before) if _key(getattr(before, f.name)) != _key(getattr(after, f.name)))


def _key(value: Any) -> Hashable:
    """Returns a value that can be hashed and compared in place of an option, such as the numbers of a tensor."""
    if isinstance(value, Tensor | np.ndarray):
        numbers: Any = value
        if isinstance(value, Tensor):  # NumPy has no bfloat16
            numbers = value.detach().cpu().clone(memory_format=torch.contiguous_format).reshape(-1).view(torch.uint8).numpy()
        return isinstance(value, Tensor), str(getattr(value, "device", "")), str(value.dtype), tuple(value.shape), numbers.tobytes()
    if isinstance(value, Mapping):
        return Mapping, frozenset((name, _key(item)) for name, item in value.items())
    if isinstance(value, list | tuple):
        return type(value), *map(_key, value)
    if is_dataclass(value) and not isinstance(value, type):
        return type(value), *(_key(getattr(value, f.name)) for f in fields(value) if f.compare)
    return value if isinstance(value, Hashable) else id(value)
