"""Steps of a sampler in succession, before they are checked."""

from __future__ import annotations

from dataclasses import dataclass, replace

from composable_energy.sampling.faults import Faults
from composable_energy.sampling.layout import Chunk, all_finite
from composable_energy.sampling.sampler import Info, Sampler, State

__all__ = ["Path", "take_steps"]


@dataclass(frozen=True)
class Path:
    """Steps of chains in succession.

    Args:
        states: The state before the first step, and those after each.
        infos: The info of each step.
        faults: The count of points at which the energy raised, after each step.
        error: The exception that the step after them raised; None if none did.
    """

    states: list[State]
    infos: list[Info]
    faults: list[int]
    error: Exception | None = None

    def count_finite(self) -> int:
        """Returns the number of steps before one with a chain that diverged."""
        after = self.states[1:]
        if all_finite(*after):
            return len(after)
        return next((step for step, state in enumerate(after) if not all_finite(state)), len(after))


def take_steps(sampler: Sampler, chunk: Chunk, first: int, count: int, faults: Faults) -> Path:
    """Takes steps with the chains of a chunk, which itself stays at its state.

    Args:
        sampler: The sampler.
        chunk: The chains.
        first: The number of the first step.
        count: How many steps to take; fewer if a later one than the first raises, whose exception the path then holds.
        faults: Counts the points at which the energy raises.
    """
    path = Path([chunk.state], [], [])
    for step in range(first, first + count):
        try:
            state, info = sampler.step(chunk.energy, path.states[-1], chunk.noise.at(step))
        except Exception as error:
            if step == first:
                raise
            return replace(path, error=error)
        path.states.append(state)
        path.infos.append(info)
        path.faults.append(faults.points)
    return path
