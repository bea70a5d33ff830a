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

The driver calls it under `torch.no_grad()` with frozen parameters, for some of the chains at a time, and looks after everything else.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from torch import Tensor

from composable_energy.conditions import rows_for
from composable_energy.energy import Energy
from composable_energy.noise import Noise

__all__ = ["Info", "Sampler", "State", "energy_and_gradient"]


@dataclass(frozen=True)
class State:
    """What the next step needs, and a checkpoint keeps. A sampler that needs more adds fields.

    Tensors whose first axis is the number of chains have one row for each; anything else is shared by all.

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
        scalars: Anything else, such as the noise level.
        chains: Which of the chains the rows of the state are, counted from 0, where some have been stopped; None while all go on. The
            driver writes this, for callbacks.
    """

    acceptance: Tensor | None = None
    scalars: Mapping[str, float] = field(default_factory=dict)
    chains: Sequence[int] | None = None


class Sampler(ABC):
    """Abstract sampler. A subclass writes `init` and `step`, and is a frozen dataclass of its options.

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

    def finish(self, energy: Energy, state: State, noise: Noise) -> Tensor:
        """Returns the points that the chains have drawn."""
        return state.x

    def couple(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Mapping[str, float]]:
        """Lets chains meet after each step, as resampling does; a sampler that does not write this has independent chains.

        Args:
            energy: The energy.
            state: The state of all chains that go on, in the order of their ids, whatever the chunks and ranks.
            noise: The noise of these chains at this step, of which `step` has drawn some streams already.

        Returns:
            A state with as many rows, the i-th for the i-th chain, and scalars that join those of the step.
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
