r"""What a sampler is: `init` and `step`, and for some a start, a tuning, a meeting of chains and a finish of their own.

An author writes a frozen dataclass whose fields are the options:

    @dataclass(frozen=True)
    class Walk(Sampler):
        scale: float = 0.1

        def init(self, energy, x, noise):
            return State(x, *energy_and_gradient(energy, x))

        def step(self, energy, state, noise):
            x = state.x + self.scale * noise.normal(state.x)
            return State(x, *energy_and_gradient(energy, x)), Info()

The driver calls it under `torch.no_grad()` with a twin of the energy, for some of the chains at a time, and looks after everything else.
The twin is in eval mode, and its parameters take no gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from composable_energy.conditions import rows_for
from composable_energy.energy import Energy
from composable_energy.noise import Noise

__all__ = ["Info", "Sampler", "State", "changed_options", "energy_and_gradient"]


@dataclass(frozen=True)
class State:
    """What the next step needs, and a checkpoint keeps. A sampler that needs more adds fields.

    A tensor has one row for each chain, so that the driver can advance, stop and join some of the chains. A tensor that all chains share
    is a field with the metadata `per_chain=False`:

        scales: Tensor = field(metadata={"per_chain": False})

    Tensors without axes, and anything that is no tensor, are shared as well. What is shared must not depend on the chains: where states are
    joined, that of the first is kept. The driver raises `ShapeError` for a tensor whose first axis does not fit.

    Args:
        x: The points, with shape $(B, *)$.
        energy: Their energies, with shape $(B,)$.
        grad: The gradients there, with shape $(B, *)$; zeros in a sampler that needs none.
    """

    x: Tensor
    energy: Tensor
    grad: Tensor


@dataclass(frozen=True)
class Info:
    """What people want to know of a step.

    Args:
        acceptance: The probability with which each proposal was accepted, with shape $(B,)$; None where nothing is ever rejected.
        scalars: Anything else. A number is a setting that all chains share, such as the noise level. A tensor with shape $(B,)$ has a
            number for each chain, of which the driver takes the mean, without those that are NaN. A trace and a callback get numbers that
            are of all chains, whatever `batch_size` and ranks; so a sampler takes no mean itself. Numbers that differ between batches are
            averaged with the number of chains as weights. What is no mean, such as a maximum, is the business of `Sampler.couple`.
        chains: Which of the chains the rows of the state are, counted from 0, where some have been stopped; None while all go on. The
            driver writes this, for callbacks.
    """

    acceptance: Tensor | None = None
    scalars: Mapping[str, float | Tensor] = field(default_factory=dict)
    chains: Sequence[int] | None = None


class Sampler(ABC):
    """Abstract sampler. A subclass writes `init` and `step`, and is a frozen dataclass of its options.

    Two samplers are equal if they have the same class and options of the same values, tensors and arrays among them; options that are
    fields with `compare=False` do not count. A subclass gets this `__eq__`, and a `__hash__` that fits, in place of those that
    `dataclass` would make, which cannot compare tensors. Objects in options compare by their own `__eq__`.

    Attributes:
        default_steps: How many steps are taken when nobody says.
        total_steps: After how many there is nothing left to do; None for a chain that may go on for ever.
        binds: Conditions of an energy that the sampler binds itself, such as `sigma`.
        refused: Options that people may look for, with the reason why there are none.
        needs_values: Whether the draws depend on energies, as where proposals are rejected; False for one that follows gradients alone,
            which can then draw from an energy without value.
        gradients: How many gradients each chain takes at a step; None if that changes. A sampler with trajectories tells a scalar
            `leapfrogs` instead.
        stationary: Whether the chains settle on a density, so that later points of a chain are draws as well; not if there is a last step.
    """

    default_steps: ClassVar[int] = 1000
    binds: ClassVar[frozenset[str]] = frozenset()
    refused: ClassVar[Mapping[str, str]] = {}
    needs_values: ClassVar[bool] = True
    gradients: ClassVar[int | None] = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # `dataclass` keeps methods that are in the class itself when it decorates it, which is after this.
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
            x: The points at the start, with shape $(B, *)$; the sampler may keep them.
            noise: The noise of these chains at step 0.
        """

    @abstractmethod
    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        """Returns the next state, and what happened.

        A point of infinite energy has density 0, and rejecting it is right. An energy that is not a number must not be hidden by a
        rejection: return it in the state, and the driver freezes the chain at its last finite point and reports it.

        Args:
            energy: The energy.
            state: The state that `init` or the last `step` returned; it is not changed in place.
            noise: The noise of these chains at this step; `noise.step` counts from 1.
        """

    def move(self, state: State, noise: Noise) -> Tensor | None:
        """Returns the points of the next state, for a sampler that needs nothing of the energy there to decide on them; else None.

        Who needs the points of the last step alone saves a gradient by it.

        Args:
            state: As for `step`.
            noise: As for `step`.
        """
        return None

    @property
    def total_steps(self) -> int | None:
        return None

    @property
    def stationary(self) -> bool:
        return self.total_steps is None

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        """Returns the points to start at; standard normal ones unless a sampler knows better.

        Args:
            like: Zeros with shape $(B, *)$.
            noise: The noise of the start.
        """
        return noise.normal(like)

    def tune(self, energy: Energy, x: Tensor, noise: Noise) -> Sampler:
        """Returns a sampler whose open options are settled, by a pilot run of some chains that does not depend on those that are drawn.

        Args:
            energy: The energy.
            x: The points to start at.
            noise: The noise of the pilot chains.
        """
        return self

    def couple(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Mapping[str, float]]:
        """Lets chains meet after each step, as resampling does; a sampler that does not write this has independent chains.

        Args:
            energy: The energy.
            state: The state of all chains that go on, in the order of their ids, whatever the chunks and ranks.
            noise: The noise of these chains at this step, of which `step` has drawn some streams already.

        Returns:
            A state with as many rows, the i-th for the i-th chain, and scalars of all chains that join those of the step.
        """
        return state, {}

    def bias(self, state: State) -> Tensor | None:
        r"""Returns by how much the step makes points spread too far, told from where they are, with shape $(B,)$; None if not at all.

        It is the relative excess of $\langle x \cdot \nabla E \rangle$, which is $T$ times the number of coordinates for draws of the
        density, and on a Gaussian that of the variance.
        """
        return None

    def final_conditions(self, energy: Energy) -> Mapping[str, Any]:
        """Returns the conditions under which the last points have their energy, for those that the sampler binds."""
        return {}


def changed_options(before: Sampler, after: Sampler) -> tuple[str, ...]:
    """Returns the names of the options in which two samplers of one class differ, such as those that were tuned."""
    if type(before) is not type(after) or not is_dataclass(before):
        return ()
    return tuple(f.name for f in fields(before) if not _equal(getattr(before, f.name), getattr(after, f.name)))


def _equal(one: Any, other: Any) -> bool:
    """Compares two options by value, where `==` of tensors and arrays gives one answer for each number."""
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
    except (RuntimeError, ValueError):  # an object that holds tensors, and compares them number by number
        return False


def _hash(value: Any) -> int:
    """A hash that is the same for options that are equal."""
    if isinstance(value, Tensor | np.ndarray):
        return hash((tuple(value.shape), str(value.dtype)))
    if isinstance(value, tuple):
        return hash(tuple(map(_hash, value)))
    try:
        return hash(value)
    except TypeError:  # a list or a mapping
        return hash(len(value)) if hasattr(value, "__len__") else 0


def energy_and_gradient(energy: Energy, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
    r"""Returns energies and $\nabla E$ with one pass, and keeps no graph.

    Args:
        energy: The energy.
        x: The points, with shape $(B, *)$; they stay as they are.
        **conditions: Numbers, or tensors with one row for each point.

    Returns:
        The energies, with shape $(B,)$, and the gradients, with shape $(B, *)$.

    Raises:
        ExpressionError: The energies have no gradient.
    """
    return energy.with_gradient(x, **{name: rows_for(name, value, x) for name, value in conditions.items()})
