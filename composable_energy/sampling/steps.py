"""Steps of a sampler in succession, before they are checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from composable_energy.sampling.faults import Faults
from composable_energy.sampling.layout import Chunk, Step, all_finite
from composable_energy.sampling.sampler import Info, State

MOST_NUMBERS = 2**16
"""The largest number of coordinates of all points of a block on the CPU, which its cache holds."""
_MOST_ON_DEVICE, _MOST_STEPS = 2**23, 128  # numbers, which take 64 MB with the gradients
_SECONDS = 0.1  # observers see the steps when the block is done


@dataclass
class BlockSize:
    """The number of steps in a block: as many as take a tenth of a second.

    A check of a block waits for the device once, so a hundred steps have one wait.

    Args:
        largest: The largest number.
        steps: The number.
        fastest: The seconds of a step, where a pause of the machine does not count.
    """

    largest: int
    steps: int = 1
    fastest: float = math.inf

    @classmethod
    def for_points(cls, points: Tensor) -> BlockSize:
        """Returns the size of the first block of chains at points of this shape and device."""
        most = MOST_NUMBERS if points.is_cpu else _MOST_ON_DEVICE
        return cls(max(1, min(_MOST_STEPS, most // max(1, points.numel()))))

    def adapt(self, seconds: float, taken: int, good: int) -> None:
        """Chooses the next size.

        Args:
            seconds: How long the last block took.
            taken: Its steps.
            good: Its steps before one with a chain that diverged; the others were taken in vain, so small blocks follow.
        """
        self.fastest = min(seconds / taken, 1.1 * self.fastest)
        if good < taken:
            self.steps = 1
            return
        self.steps = max(1, min(2 * self.steps, self.largest, int(_SECONDS / self.fastest)))


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


def first_block(chunks: Sequence[Chunk], *, single: bool) -> BlockSize:
    """Returns the size of the first block: several steps in succession with one chunk, unless steps are taken one by one."""
    return BlockSize(1) if single or len(chunks) != 1 else BlockSize.for_points(chunks[0].state.x)


def take_steps(take: Step, chunk: Chunk, first: int, count: int, faults: Faults) -> Path:
    """Takes steps with the active chains of a chunk, which itself stays at its state.

    Args:
        take: The `step` of the sampler, compiled or not.
        chunk: The chains.
        first: The number of the first step.
        count: How many steps to take; fewer if a later one than the first raises, whose exception the path then holds.
        faults: Counts the points at which the energy raises.
    """
    path = Path([chunk.active], [], [])
    for step in range(first, first + count):
        try:
            state, info = take(chunk.energy, path.states[-1], chunk.noise.at(step))
        except Exception as error:
            if step == first:
                raise
            return replace(path, error=error)
        path.states.append(state)
        path.infos.append(info)
        path.faults.append(faults.points)
    return path
