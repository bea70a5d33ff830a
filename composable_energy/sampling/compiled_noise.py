"""The noise of compiled steps: Philox as a part of their graph, where it takes less time than `torch.randn`."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from composable_energy.noise import Noise
from composable_energy.philox import PHILOX_LEAST, box_muller, key_of, philox, to_unit
from composable_energy.sampling.iteration import Repetitions

MOST_COORDINATES = 2**10
"""Compiled steps of larger points gain little, and would take long to compile."""
RecordedDraw: TypeAlias = "GraphDraw | StepNumber"

_LANES = 16  # counters of a vector of the processor: all numbers have the same bits at any place if there is no remainder


class NotRecordedError(Exception):
    """Steps cannot be recorded."""


@dataclass(frozen=True)
class GraphDraw:
    """A draw of a step: a method of `Noise`, points of its shape and dtype, and the stream."""

    method: Literal["normal", "uniform"]
    like: Tensor
    stream: int

    def of(self, noise: Noise) -> Tensor:
        return getattr(noise, self.method)(self.like, self.stream)

    def rows(self, key: Tensor, count: int) -> Tensor:
        """Returns the draws of steps in succession as a part of a graph, one row for each step."""
        return (graph_normal if self.method == "normal" else graph_uniform)(key, self.like, self.stream, count)


@dataclass(frozen=True)
class StepNumber:
    """A number that depends on the step alone."""

    function: Callable[[int], int]

    def rows(self, first: int, count: int) -> Tensor:
        return torch.tensor([self.function(step) for step in range(first, first + count)])


class RecordedNoise:
    """Noise that lists the draws of a step. It has no step, no seed and no children: a sampler that needs them is not compiled."""

    def __init__(self, noise: Noise) -> None:
        self.kind, self.chains, self.draws, self.noise = noise.kind, noise.chains, list[RecordedDraw](), noise
        self.recorded: dict[Hashable, Any] = {}

    @property
    def loops(self) -> bool:
        """Whether steps repeat something as often as a number of the step says."""
        return any(isinstance(draw, StepNumber) for draw in self.draws)

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        return self._draw("normal", like, stream)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self._draw("uniform", like, stream)

    def add_normal_(self, x: Tensor, scale: float = 1.0, stream: int = 0) -> Tensor:
        return x.add_(self.normal(x, stream), alpha=scale)

    def of_step(self, function: Callable[[int], int]) -> Repetitions:
        self.draws.append(StepNumber(function))
        return Repetitions(torch.tensor(self.noise.of_step(function)), self.recorded)

    def _draw(self, method: Literal["normal", "uniform"], like: Tensor, stream: int) -> Tensor:
        draw = GraphDraw(method, torch.zeros_like(like), stream)
        self.draws.append(draw)
        return draw.of(self.noise)


class DrawnNoise(RecordedNoise):
    """Noise that was drawn before, in the order of the recorded draws."""

    def __init__(self, noise: RecordedNoise, drawn: Sequence[Tensor]) -> None:
        self.kind, self.chains, self.draws, self.recorded = noise.kind, noise.chains, noise.draws, noise.recorded
        self._left = list(zip(noise.draws, drawn, strict=True))

    def of_step(self, function: Callable[[int], int]) -> Repetitions:
        draw, drawn = self._left.pop(0)
        if not isinstance(draw, StepNumber):
            raise NotRecordedError
        return Repetitions(drawn, self.recorded)

    def _draw(self, method: Literal["normal", "uniform"], like: Tensor, stream: int) -> Tensor:
        draw, drawn = self._left.pop(0)
        wanted = method, stream, like.shape, like.dtype
        if not isinstance(draw, GraphDraw) or (draw.method, draw.stream, draw.like.shape, draw.like.dtype) != wanted:
            raise NotRecordedError
        return drawn


def noise_inputs(draws: Sequence[RecordedDraw], noise: Noise, first: int, count: int) -> list[Tensor]:
    """Returns what a graph of steps needs beside a state: the key of their noise, and a row for each step of each number."""
    return [key_tensor(noise, first), *(draw.rows(first, count) for draw in draws if isinstance(draw, StepNumber))]


def draws_in_graph(noise: Noise) -> bool:
    """Returns whether the noise can be drawn in a graph: it is Philox, for consecutive chains."""
    return noise.kind == "philox" and isinstance(noise.chains, range) and noise.chains.step == 1


def key_tensor(noise: Noise, step: int) -> Tensor:
    """Returns what the functions below need of the noise of consecutive chains: two words of the seed, a step and the first chain."""
    return torch.tensor([*key_of(noise.seed), step, noise.chains[0] if noise.chains else 0])


def graph_normal(key: Tensor, like: Tensor, stream: int, count: int) -> Tensor:
    """Returns the numbers of `Noise.normal` of kind `"philox"` at steps in succession, with shape $(S, B, *)$, up to rounding.

    Args:
        key: The result of `key_tensor`.
        like: Points, with shape $(B, *)$.
        stream: The number of the draw at a step.
        count: $S$.
    """
    size, chains = like[0].numel(), len(like)
    quads = -(-size // 4)
    total = count * chains * quads
    place = torch.arange(-(-total // _LANES) * _LANES) % total
    quad, chain, step = place % quads, key[3] + place // quads % chains, key[2] + place // (chains * quads)
    words = philox((key[0], key[1]), (quad, step, chain, stream))
    numbers = box_muller(words[: 2 if size <= 2 else 4])[:total].view(count, chains, -1)[..., :size]
    return numbers.reshape(count, *like.shape).to(like.dtype)


def graph_uniform(key: Tensor, like: Tensor, stream: int, count: int) -> Tensor:
    """Returns the numbers of `Noise.uniform` of kind `"philox"` at steps in succession, with shape $(S, B)$; see `graph_normal`."""
    row, step = torch.arange(len(like)), torch.arange(count)[:, None]
    word = philox((key[0], key[1]), (torch.zeros_like(row), key[2] + step, key[3] + row, stream))[0]
    return to_unit(word).clamp_min(PHILOX_LEAST).to(torch.float64 if like.dtype == torch.float64 else torch.float32)
