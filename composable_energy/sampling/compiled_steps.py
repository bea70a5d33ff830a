"""Steps of a sampler in succession as one compiled function.

A step of few chains consists of small operations, whose calls cost more than their arithmetic. With a compiled energy, eight steps are
recorded as one graph, with their noise, proposals and rejections; of many chains, one. Steps of different lengths, such as trajectories,
have loops in the graph. The draws are those of single steps up to rounding, and do not depend on where a block of steps begins, which is
checked to the bit when it is compiled. Steps of large points have few calls for their arithmetic, and only their energy is compiled.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy.sampling.compile import CompiledEnergy
from composable_energy.sampling.compiled_noise import (
    MOST_COORDINATES,
    DrawnNoise,
    GraphDraw,
    NotRecordedError,
    RecordedDraw,
    RecordedNoise,
    draws_in_graph,
    noise_inputs,
)
from composable_energy.sampling.faults import GuardedEnergy
from composable_energy.sampling.graph import Function, close, compile_graph, first_line, record, run
from composable_energy.sampling.iteration import MOST_NUMBERS, Repetitions
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.states import finite_sums

_LOGGER = logging.getLogger("composable_energy.sampling")
_STEPS = 8
_LOOPS = 3  # steps with loops: their graph takes longer to compile, and a step has more to do
_MOST_FLOPS = 2**29  # of gradients in succession: more save nothing that can be measured, and take the compiler longer
_MOST_NODES = 2000  # operations of a function: the compiler takes long for more, and their steps are long enough
_MOST_SAMPLERS = 3  # who tries many step sizes shall not wait for each


class CompiledSteps:
    """Steps of chains as one function.

    Args:
        function: Returns the tensors of states and infos of all steps, and the sum of the `finite_sums` of all states, from the tensors of
            a state and `noise_inputs`.
        count: The number of steps.
        draws: The draws of a step.
        state: A state; it has the fields that chains share.
        info: An info with the numbers that all steps share.
    """

    def __init__(self, function: Function, count: int, draws: Sequence[RecordedDraw], state: State, info: Info) -> None:
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
        *found, total = run(self.function, (*before, *noise_inputs(self.draws, noise, first, self.count)))
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


def compile_steps(sampler: Sampler, energy: Energy, state: State, noise: Noise, first: int, several: bool) -> CompiledSteps | None:
    """Returns compiled steps of a sampler with a compiled energy; None where single steps are the better or the only way.

    Args:
        sampler: The sampler.
        energy: The energy of the chains, as the sampler gets it.
        state: Their state.
        noise: Their noise.
        first: The number of the next step.
        several: Whether steps in succession may be one function: batches of chains take turns.
    """
    energy = energy.energy if isinstance(energy, GuardedEnergy) else energy
    if not isinstance(energy, CompiledEnergy) or not draws_in_graph(noise) or not state.x.is_cpu or first + _STEPS >= 2**32:
        return None
    if not 0 < state.x.numel() <= len(state.x) * MOST_COORDINATES:
        return None
    several = several and _STEPS * state.x.numel() <= MOST_NUMBERS
    key = sampler, _shapes(state), several

    def make(inside: Energy) -> CompiledSteps | None:
        most = max(1, _MOST_FLOPS // max(1, energy.count_flops(state.x))) if several else 1
        return _compile(sampler, inside, state, noise, first, most)

    return energy.compiled_steps(key, state.x, _MOST_NODES, make, _MOST_SAMPLERS)


def _compile(sampler: Sampler, energy: Energy, state: State, noise: Noise, first: int, most: int) -> CompiledSteps | None:
    """Compiles at most so many steps, and checks them against one that is not compiled and against those that begin one step later."""
    recorded = RecordedNoise(noise.at(first))
    try:
        after, info = sampler.step(energy, state, cast(Noise, recorded))
        for count in dict.fromkeys((min(_LOOPS if recorded.loops else _STEPS, most), 1)):
            graph, inputs = _record(sampler, energy, state, info, recorded, count)
            if sum(len(part.graph.nodes) for part in graph.modules() if isinstance(part, torch.fx.GraphModule)) <= _MOST_NODES:
                break
        else:
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
    sampler: Sampler, energy: Energy, state: State, info: Info, noise: RecordedNoise, count: int
) -> tuple[torch.fx.GraphModule, tuple[Tensor, ...]]:
    """Returns the graph of the steps, and its inputs: the tensors of a state, and draws with a row for each step."""
    names = list(_tensors(state))

    def function(*tensors: Tensor) -> tuple[Tensor, ...]:
        now, found, totals = replace(state, **dict(zip(names, tensors, strict=False))), [], []
        key, *numbers = tensors[len(names) :]
        left = iter(numbers)
        rows = [draw.rows(key, count) if isinstance(draw, GraphDraw) else next(left) for draw in noise.draws]
        for step in range(count):
            drawn = DrawnNoise(noise, [row[step] for row in rows])
            now, seen = sampler.step(energy, now, cast(Noise, drawn))
            if _shapes(now) != _shapes(state) or _shared(seen) != _shared(info):
                raise NotRecordedError
            # torch returns a part of an input by a view, which takes longer than a copy.
            found += [*_tensors(now).values(), *(value.clone() for value in _tensors(seen).values())]
            totals.append(finite_sums(now))  # by chain, which is one loop for all steps
        return *found, sum(totals[1:], totals[0]).sum()

    inputs = (*_tensors(state).values(), *noise_inputs(noise.draws, noise.noise, noise.noise.step, count))
    return record(function, inputs), inputs


def _equal(one: tuple[State, Info], other: tuple[State, Info]) -> bool:
    pairs = [zip(_tensors(a).values(), _tensors(b).values(), strict=True) for a, b in zip(one, other, strict=True)]
    return all(torch.allclose(a, b, rtol=0, atol=0, equal_nan=True) for pair in pairs for a, b in pair)


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
