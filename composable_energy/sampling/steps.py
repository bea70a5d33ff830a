"""Steps of a sampler in succession, before they are checked."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from composable_energy.sampling.faults import Faults
from composable_energy.sampling.layout import Chunk, Fuse, all_finite
from composable_energy.sampling.sampler import Info, Sampler, State

MOST_NUMBERS = 2**16
"""The largest number of coordinates of all points of a block on the CPU, which its cache holds."""
_MOST_ON_DEVICE, _MOST_STEPS = 2**23, 128  # numbers, which take 64 MB with the gradients
_MOST_COMPILED = 2**18  # numbers of a block of compiled steps
_SECONDS = 0.1  # observers see the steps when the block is done


@dataclass
class BlockSize:
    """The number of steps in a block: as many as take a tenth of a second.

    A check of a block waits for the device once, so a hundred steps have one wait.

    Args:
        largest: The largest number.
        together: It is a multiple of this.
        steps: The number.
        fastest: The seconds of a step, where a pause of the machine does not count.
    """

    largest: int
    together: int = 1
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
            self.steps = self.together
            return
        steps = max(self.together, min(2 * self.steps, self.largest, int(_SECONDS / self.fastest)))
        self.steps = max(1, steps // self.together * self.together)


@dataclass(frozen=True)
class Path:
    """Steps of chains in succession.

    Args:
        states: The state before the first step, and those after each.
        infos: The info of each step.
        faults: The count of points at which the energy raised, after each step.
        totals: Numbers that are finite only if the first states after the first one are, with how many states each covers.
        error: The exception that the step after them raised; None if none did.
    """

    states: list[State]
    infos: list[Info]
    faults: list[int]
    totals: list[tuple[Tensor, int]]
    error: Exception | None = None

    def count_finite(self) -> int:
        """Returns the number of steps before one with a chain that diverged."""
        after = self.states[1:]
        others = after[sum(count for _, count in self.totals) :]
        if all(math.isfinite(total.item()) for total, _ in self.totals) and (not others or all_finite(*others)):
            return len(after)
        return next((step for step, state in enumerate(after) if not all_finite(state)), len(after))


def first_block(sampler: Sampler, chunks: Sequence[Chunk], fuse: Fuse | None, step: int, *, single: bool) -> BlockSize:
    """Returns the size of the first block, and gets steps as one function, if there is one: several in succession with one chunk.

    Args:
        sampler: The sampler.
        chunks: The batches with active chains.
        fuse: Returns steps in succession as one function, see `Layout`; None if there is none.
        step: The number of the next step.
        single: Whether steps are taken one by one.
    """
    for chunk in chunks:
        chunk.steps = None if fuse is None else fuse(sampler, chunk.energy, chunk.active, chunk.noise, step, len(chunks) == 1)
    if len(chunks) != 1:
        return BlockSize(1)
    (chunk,) = chunks
    if chunk.steps is not None:
        together = chunk.steps.count
        most = _MOST_COMPILED // max(1, together * chunk.state.x.numel())
        return BlockSize(together * max(4, min(16, most)), together, together)
    return BlockSize(1) if single else BlockSize.for_points(chunk.state.x)


def take_steps(sampler: Sampler, chunk: Chunk, first: int, count: int, faults: Faults) -> Path:
    """Takes steps with the active chains of a chunk, which itself stays at its state.

    Args:
        sampler: The sampler.
        chunk: The chains.
        first: The number of the first step.
        count: How many steps to take; fewer if a later one than the first raises, whose exception the path then holds.
        faults: Counts the points at which the energy raises.
    """
    path = Path([chunk.active], [], [], [])
    while chunk.steps is not None and len(path.infos) < count and chunk.steps.fits(path.states[-1]):
        steps, total = chunk.steps.take(path.states[-1], chunk.noise, first + len(path.infos))
        path.totals.append((total, len(steps)))
        for state, info in steps[: count - len(path.infos)]:
            path.states.append(state)
            path.infos.append(info)
            path.faults.append(faults.points)
    for step in range(first + len(path.infos), first + count):
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
