r"""The interface of samplers: `init` and `step`, and optional hooks for the start, the tuning and the coupling of chains.

A sampler is a frozen dataclass whose fields are its options:

    @dataclass(frozen=True)
    class Walk(Sampler):
        scale: float = 0.1

        def init(self, energy, x, noise):
            return State(x, *energy_and_gradient(energy, x))

        def step(self, energy, state, noise):
            x = state.x + self.scale * noise.normal(state.x)
            return State(x, *energy_and_gradient(energy, x)), Info()

The driver, the function `sample`, calls it under `torch.no_grad()` with a twin of the energy in eval mode, for some of the chains at a
time. Batches, traces, checkpoints and divergence are the driver's.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.noise import Noise

if TYPE_CHECKING:
    from composable_energy.diagnostics import SamplingWarning


@dataclass(frozen=True)
class State:
    """The state of chains, from which the next step continues and which a checkpoint keeps. A sampler that needs more adds fields.

    A tensor has one row for each chain, so that the driver can advance, stop and join some of the chains. A tensor that all chains share
    is a field with the metadata `per_chain=False`:

        scales: Tensor = field(metadata={"per_chain": False})

    Tensors without axes and objects that are no tensors are shared as well. Shared fields must not depend on the chains: joined states
    keep those of the first. The driver raises `ShapeError` for a tensor with another number of rows.

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
            reductions, such as a maximum, belong to `Sampler.couple`.
        chains: The ids, counted from 0, of the chains in the rows of the state, after some were stopped; None while all are
            active. The driver fills it in for callbacks.
    """

    acceptance: Tensor | None = None
    scalars: Mapping[str, float | Tensor] = field(default_factory=dict)
    chains: Sequence[int] | None = None


class Sampler(ABC):
    """Abstract sampler. A subclass writes `init` and `step`, and is a frozen dataclass of its options.

    Two samplers are equal if they have the same class and options of the same values, tensors and arrays included; fields with
    `compare=False` do not count. A subclass inherits this `__eq__` and a matching `__hash__`, because those of `dataclass` cannot compare
    tensors. Other objects in options compare by their own `__eq__`.

    Attributes:
        default_steps: The number of steps of a call that gives none, for a sampler without `total_steps`.
        total_steps: The length of the schedule; None for a chain without end.
        binds: Conditions of an energy that the sampler binds itself, such as `sigma`.
        refused: Names of options that users may expect, with the reason why they do not exist.
        needs_values: Whether the draws depend on energies, as where proposals are rejected. A sampler that follows gradients alone sets it
            to False, and can draw from an energy without value.
        carries_log_densities: Whether it carries the log densities of scores along noise levels, and so draws energies with
            `needs_log_densities`.
        minimizes: Whether it looks for points of low energy instead of draws of the density. Then unconstrained coordinates of a support
            do not change the energy.
        gradients: The number of gradients that each chain evaluates at a step; None if it varies. A sampler with trajectories reports a
            scalar `leapfrogs` instead.
        starts_at_pilots: Whether chains without `init` start where the pilot chains of `tune` arrived. Then `approach` has to take chains
            with the same start apart.
        stationary: Whether the chains have a stationary density, so that later points of a chain are draws as well; by default, whether
            there is no last step.
    """

    default_steps: ClassVar[int] = 1000
    binds: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}
    needs_values: ClassVar[bool] = True
    carries_log_densities: ClassVar[bool] = False
    minimizes: ClassVar[bool] = False
    gradients: ClassVar[int | None] = None
    starts_at_pilots: ClassVar[bool] = False

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # `dataclass` decorates the class after this, and keeps methods that the class itself has.
        if cls.__eq__ is Sampler.__eq__ and "__hash__" not in vars(cls):
            cls.__eq__, cls.__hash__ = Sampler.__eq__, Sampler.__hash__

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        if not is_dataclass(self):
            return self is other
        return all(_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self) if f.compare)

    def __hash__(self) -> int:
        if not is_dataclass(self):
            return object.__hash__(self)
        return hash((type(self), *(_hash(getattr(self, f.name)) for f in fields(self) if f.compare)))

    @abstractmethod
    def init(self, energy: Energy, x: Tensor, noise: Noise) -> State:
        """Returns the state at the start.

        Args:
            energy: The energy.
            x: The start points, with shape $(B, *)$; the state may hold them.
            noise: The noise of these chains at step 0.
        """

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

    def move(self, state: State, noise: Noise) -> Tensor | None:
        """Returns the points of the next state if they do not depend on the energy there; else None.

        It saves one gradient evaluation where only the final points are needed.

        Args:
            state: The state before the step.
            noise: The noise of these chains at this step.
        """
        return None

    @property
    def total_steps(self) -> int | None:
        return None

    @property
    def stationary(self) -> bool:
        return self.total_steps is None

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        """Returns the start points; standard normal ones by default.

        Args:
            like: Zeros with shape $(B, *)$.
            noise: The noise of the start.
        """
        return noise.normal(like)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[Sampler, Tensor]:
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

        A tuned sampler calls for it: steps that suit the bulk of a density are often rejected in its tails. What happens to a chain must
        not depend on the other chains.

        Args:
            energy: The energy.
            x: The start points, with shape $(B, *)$.
            noise: The noise of these chains.
            level: An energy above those of the pilot chains; points above it are in a tail. None if the energies of chains do not compare.

        Returns:
            The points, with shape $(B, *)$, and which of them reached the bulk of the density, with shape $(B,)$.
        """
        return x, torch.ones(len(x), dtype=torch.bool, device=x.device)

    def couple(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Mapping[str, float]]:
        """Couples all chains after each step, as resampling does; chains are independent if a sampler does not override it.

        Args:
            energy: The energy.
            state: The state of all active chains, in the order of their ids, over all batches and processes.
            noise: The noise of these chains at this step, of which `step` has used some streams.

        Returns:
            A state with as many rows in the same order, and scalars of all chains in addition to those of the step.
        """
        return state, {}

    def bias(self, state: State) -> Tensor | None:
        r"""Returns an estimate of the discretisation bias at the points of a state, with shape $(B,)$; None for an unbiased sampler.

        The bias is the relative excess of $\langle x \cdot \nabla E \rangle$, which is $T$ times the number of coordinates for draws of
        the density; on a Gaussian it is the excess of the variance.
        """
        return None

    def diagnose(self, state: State, exact: bool) -> Sequence[SamplingWarning]:
        """Returns warnings about the state of all chains after the last step, such as of a population that lost its ancestors.

        Args:
            state: The state.
            exact: Whether the chains started at draws of the density.
        """
        return ()

    def mean_acceptance(self, acceptance: Tensor) -> float:
        """Returns the mean of acceptances with shape (steps, chains) that the option `acceptance` is the goal of; the arithmetic one.

        Diagnostics compare it with the goal.
        """
        return acceptance.nanmean().item()

    def final_conditions(self, energy: Energy) -> Mapping[str, Any]:
        """Returns the values at the last step of the conditions that the sampler binds."""
        return {}

    def middle_conditions(self, energy: Energy) -> Mapping[str, Any]:
        """Returns the values at another step, where energies are compared, too; 1 for a condition that is not there."""
        return {}


def changed_options(before: Sampler, after: Sampler) -> tuple[str, ...]:
    """Returns the names of the options in which two samplers of one class differ, such as tuned ones."""
    if type(before) is not type(after) or not is_dataclass(before):
        return ()
    return tuple(f.name for f in fields(before) if not _equal(getattr(before, f.name), getattr(after, f.name)))


def _equal(one: Any, other: Any) -> bool:
    """Returns whether two options are equal by value; `==` of tensors and arrays compares their numbers one by one."""
    if one is other:
        return True
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Tensor | np.ndarray) or isinstance(other, Tensor | np.ndarray):
        return False
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return one.keys() == other.keys() and all(_equal(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(_equal, one, other))
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # an object that contains tensors, whose `==` has no single answer
        return False


def _hash(value: Any) -> int:
    """Returns a hash of an option; equal options have equal hashes."""
    if isinstance(value, Tensor | np.ndarray):
        return hash((tuple(value.shape), str(value.dtype)))
    if isinstance(value, tuple):
        return hash(tuple(map(_hash, value)))
    try:
        return hash(value)
    except TypeError:  # a list or a mapping
        return hash(len(value)) if hasattr(value, "__len__") else 0
