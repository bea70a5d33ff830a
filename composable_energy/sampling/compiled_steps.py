"""Steps of a sampler in succession as one compiled function.

A step of few chains consists of small operations, whose calls cost more than their arithmetic. With a compiled energy, eight steps are
recorded as one graph, proposals and rejections included; their noise is drawn before. Steps of different lengths, such as trajectories,
have loops in the graph. The draws are those of single steps up to rounding, and do not depend on where a block of steps begins, which is
checked to the bit when it is compiled. Steps of large points or networks have few calls for their arithmetic, and are taken one by one.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy.sampling.compile import CompiledEnergy
from composable_energy.sampling.faults import GuardedEnergy
from composable_energy.sampling.graph import Function, close, compile_graph, first_line, record, run
from composable_energy.sampling.iteration import Repetitions
from composable_energy.sampling.layout import finite_sums
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.steps import MOST_NUMBERS

__all__ = ["CompiledSteps", "compile_steps"]

_LOGGER = logging.getLogger("composable_energy.sampling")
_STEPS = 8
_LOOPS = 3  # steps with loops: their graph takes longer to compile, and a step has more to do
_MOST_NODES = 2000  # operations of a function: the compiler takes long for more, and their steps are long enough
_MOST_SAMPLERS = 3  # who tries many step sizes shall not wait for each


@dataclass(frozen=True)
class _Draw:
    """A draw of a step: a method of `Noise`, points of its shape and dtype, and the stream."""

    method: Literal["normal", "uniform"]
    like: Tensor
    stream: int

    def of(self, noise: Noise) -> Tensor:
        return getattr(noise, self.method)(self.like, self.stream)

    def rows(self, noise: Noise, count: int) -> Tensor:
        return noise.rows(self.method, self.like, count, self.stream)


@dataclass(frozen=True)
class _Number:
    """A number that depends on the step alone."""

    function: Callable[[int], int]

    def rows(self, noise: Noise, count: int) -> Tensor:
        return torch.tensor([self.function(step) for step in range(noise.step, noise.step + count)])


class _RecordedNoise:
    """Noise that lists the draws of a step. It has no step, no seed and no children: a sampler that needs them is not compiled."""

    def __init__(self, noise: Noise) -> None:
        self.kind, self.chains, self.draws, self.noise = noise.kind, noise.chains, list[_Draw | _Number](), noise
        self.recorded: dict[Hashable, Any] = {}

    @property
    def loops(self) -> bool:
        """Whether steps repeat something as often as a number of the step says."""
        return any(isinstance(draw, _Number) for draw in self.draws)

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        return self._draw("normal", like, stream)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        return self._draw("uniform", like, stream)

    def add_normal_(self, x: Tensor, scale: float = 1.0, stream: int = 0) -> Tensor:
        return x.add_(self.normal(x, stream), alpha=scale)

    def of_step(self, function: Callable[[int], int]) -> Repetitions:
        self.draws.append(_Number(function))
        return Repetitions(torch.tensor(self.noise.of_step(function)), self.recorded)

    def _draw(self, method: Literal["normal", "uniform"], like: Tensor, stream: int) -> Tensor:
        draw = _Draw(method, torch.zeros_like(like), stream)
        self.draws.append(draw)
        return draw.of(self.noise)


class _DrawnNoise(_RecordedNoise):
    """Noise that was drawn before, in the order of the recorded draws."""

    def __init__(self, noise: _RecordedNoise, drawn: Sequence[Tensor]) -> None:
        self.kind, self.chains, self.draws, self.recorded = noise.kind, noise.chains, noise.draws, noise.recorded
        self._left = list(zip(noise.draws, drawn, strict=True))

    def of_step(self, function: Callable[[int], int]) -> Repetitions:
        draw, drawn = self._left.pop(0)
        if not isinstance(draw, _Number):
            raise _NotCompiled
        return Repetitions(drawn, self.recorded)

    def _draw(self, method: Literal["normal", "uniform"], like: Tensor, stream: int) -> Tensor:
        draw, drawn = self._left.pop(0)
        wanted = method, stream, like.shape, like.dtype
        if not isinstance(draw, _Draw) or (draw.method, draw.stream, draw.like.shape, draw.like.dtype) != wanted:
            raise _NotCompiled
        return drawn


class CompiledSteps:
    """Steps of chains as one function.

    Args:
        function: Returns the tensors of states and infos of all steps, and the sum of the `finite_sums` of all states, from the tensors of
            a state and the draws of each kind.
        count: The number of steps.
        draws: The draws of a step.
        state: A state; it has the fields that chains share.
        info: An info with the numbers that all steps share.
    """

    def __init__(self, function: Function, count: int, draws: Sequence[_Draw | _Number], state: State, info: Info) -> None:
        self.function, self.count, self.draws = function, count, draws
        self._info, self._shapes, self._of_state = replace(info, scalars=_scalars(info)), _shapes(state), list(_tensors(state))
        self._of_info = [name for name in _tensors(info) if name != "acceptance"]
        shared = {field.name: value for field in fields(state) if not isinstance(value := getattr(state, field.name), Tensor)}
        self._state = partial(type(state), **shared)  # `replace` takes longer than the arithmetic of a step

    def fits(self, state: State) -> bool:
        """Returns whether the function takes such a state."""
        return _shapes(state) == self._shapes

    def take(self, state: State, noise: Noise, first: int) -> tuple[list[tuple[State, Info]], Tensor]:
        """Takes the steps; returns them, and a number that is finite only if all states are.

        Args:
            state: The state before them.
            noise: The noise of the chains.
            first: The number of the first step.
        """
        before = [getattr(state, name) for name in self._of_state]
        *found, total = run(self.function, (*before, *_draw_all(self.draws, noise, first, self.count)))
        size, steps = len(found) // self.count, []
        for row in range(0, len(found), size):
            tensors = iter(found[row : row + size])
            state = self._state(**dict(zip(self._of_state, tensors, strict=False)))
            steps.append((state, self._info_with(tensors)))
        return steps, total

    def _info_with(self, tensors: Iterator[Tensor]) -> Info:
        """Returns the info of a step, with its tensors in the order of `_tensors`."""
        if self._info.acceptance is None and not self._of_info:
            return self._info
        acceptance = None if self._info.acceptance is None else next(tensors)
        return Info(acceptance, {**self._info.scalars, **dict(zip(self._of_info, tensors, strict=True))}, self._info.chains)


def compile_steps(sampler: Sampler, energy: Energy, state: State, noise: Noise, first: int) -> CompiledSteps | None:
    """Returns compiled steps of a sampler with a compiled energy; None where single steps are the better or the only way.

    Args:
        sampler: The sampler.
        energy: The energy of the chains, as the sampler gets it.
        state: Their state.
        noise: Their noise.
        first: The number of the next step.
    """
    energy = energy.energy if isinstance(energy, GuardedEnergy) else energy
    if not isinstance(energy, CompiledEnergy) or noise.kind != "blocks" or not state.x.is_cpu or first + _STEPS >= 2**32:
        return None
    if _STEPS * state.x.numel() > MOST_NUMBERS:
        return None
    key = sampler, _shapes(state)
    return energy.compiled_steps(key, state.x, _MOST_NODES, lambda inside: _compile(sampler, inside, state, noise, first), _MOST_SAMPLERS)


class _NotCompiled(Exception):  # noqa: N818  (it is caught here)
    """Steps cannot be recorded."""


def _compile(sampler: Sampler, energy: Energy, state: State, noise: Noise, first: int) -> CompiledSteps | None:
    """Compiles steps, and checks them against a step that is not compiled and against those that begin one step later."""
    recorded = _RecordedNoise(noise.at(first))
    try:
        after, info = sampler.step(energy, state, cast(Noise, recorded))
        count = _LOOPS if recorded.loops else _STEPS
        graph, inputs = _record(sampler, energy, state, info, recorded, count)
        if sum(len(part.graph.nodes) for part in graph.modules() if isinstance(part, torch.fx.GraphModule)) > _MOST_NODES:
            return None
        function, _ = compile_graph(graph, inputs)
        steps = CompiledSteps(function, count, recorded.draws, after, info)
        taken, _ = steps.take(state, noise, first)
        later, _ = steps.take(taken[0][0], noise, first + 1)
    except OptionError:
        raise
    except Exception as error:  # whatever a sampler does that cannot be recorded, such as to look at a number
        _LOGGER.debug("Steps of %s are taken one by one: %s", sampler, first_line(error))  # errors of the energy are raised there
        return None
    same = all(_equal(one, other) for one, other in zip(taken[1:], later[:-1], strict=True))
    near = zip(_tensors(taken[0][0]).values(), _tensors(after).values(), strict=True)
    return steps if same and all(close(new, old, math.sqrt(torch.finfo(old.dtype).eps)) for new, old in near) else None


def _record(
    sampler: Sampler, energy: Energy, state: State, info: Info, noise: _RecordedNoise, count: int
) -> tuple[torch.fx.GraphModule, tuple[Tensor, ...]]:
    """Returns the graph of the steps, and its inputs: the tensors of a state, and draws with a row for each step."""
    names = list(_tensors(state))

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        now, found, totals = replace(state, **dict(zip(names, tensors, strict=False))), [], []
        for step in range(count):
            drawn = _DrawnNoise(noise, [rows[step] for rows in tensors[len(names) :]])
            now, seen = sampler.step(energy, now, cast(Noise, drawn))
            if _shapes(now) != _shapes(state) or _shared(seen) != _shared(info):
                raise _NotCompiled
            # torch returns a part of an input by a view, which takes longer than a copy.
            found += [*_tensors(now).values(), *(value.clone() for value in _tensors(seen).values())]
            totals.append(finite_sums(now))  # by chain, which is one loop for all steps
        return *found, sum(totals[1:], totals[0]).sum()

    inputs = (*_tensors(state).values(), *_draw_all(noise.draws, noise.noise, noise.noise.step, count))
    return record(function, inputs), inputs


def _draw_all(draws: Sequence[_Draw | _Number], noise: Noise, first: int, count: int) -> list[Tensor]:
    """Returns each draw of a step as a tensor with a row for each of the steps."""
    noise = noise.at(first)
    return [draw.rows(noise, count) for draw in draws]


def _equal(one: tuple[State, Info], other: tuple[State, Info]) -> bool:
    pairs = [zip(_tensors(a).values(), _tensors(b).values(), strict=True) for a, b in zip(one, other, strict=True)]
    return all(torch.equal(a, b) for pair in pairs for a, b in pair)


def _tensors(of: State | Info) -> dict[str, Tensor]:
    """Returns the tensors of a state or an info by name."""
    if isinstance(of, Info):
        found = {"acceptance": of.acceptance, **_scalars(of)}
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}
    return {field.name: value for field in fields(of) if isinstance(value := getattr(of, field.name), Tensor)}


def _shared(info: Info) -> tuple[Any, ...]:
    """Returns what is equal in the infos of all compiled steps: the names, and the numbers that are no tensors."""
    scalars = ((name, "tensor" if isinstance(value, Tensor) else value) for name, value in _scalars(info).items())
    return tuple(scalars), info.acceptance is None


def _scalars(info: Info) -> dict[str, Any]:
    """Returns the scalars of an info, with tensors for numbers of the step."""
    return {name: value.number if isinstance(value, Repetitions) else value for name, value in info.scalars.items()}


def _shapes(state: State) -> tuple[Any, ...]:
    """Returns the class of a state, the shapes of its tensors, and its other fields."""
    values = ((field.name, getattr(state, field.name)) for field in fields(state))
    return type(state), *((name, tuple(value.shape), value.dtype) if isinstance(value, Tensor) else (name, value) for name, value in values)
