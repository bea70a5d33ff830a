"""The chains of a call: one state of all, advanced one step at a time, and the policies for chains that diverge."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy.sampling.faults import noted
from composable_energy.sampling.pilots import start_points
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.states import all_finite, finite_rows, join, merge_infos, put, take
from composable_energy.sampling.trace import Trace, Values
from composable_energy.sampling.unconstrained import visible_state


class Diverged(Exception):  # noqa: N818  (`sample` turns it into the public error, which carries the points)
    """Chains diverged, and the policy ends the sampling."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason


Step = Callable[[Energy, State, Noise], tuple[State, Info]]


class _Batch(NamedTuple):
    """Active chains that are evaluated together."""

    rows: slice
    energy: Energy
    noise: Noise


class Chains:
    """The chains of a call.

    Args:
        problem: What is sampled, and how.
        step: The `step` of the sampler, compiled or not; None for the sampler's own.

    Attributes:
        sampler: The sampler.
        energy: The energy as the sampler gets it.
        own: The chains, counted from 0.
        step: How many steps were taken.
        last_step: The number of the last step, counted from the start of the chains; 0 before the first.
        state: The state of all chains; those that diverged are at their last finite points. Its tensors are not changed in place.
        diverged_at: After how many steps each chain diverged, with shape $(m,)$; -1 if it did not.
        relocated: How many chains the sampler could not bring from `init` to the density; they started where pilot chains ended.
        broken: The first state in which chains diverged, those chains alone; None if none did.
    """

    state: State

    def __init__(self, problem: Problem, step: Step | None = None) -> None:
        self.problem, self.sampler, self.energy = problem, problem.sampler, problem.energy
        self.take_step, self.own, self.relocated = step or problem.sampler.step, range(problem.rows), 0
        self.coupled = type(self.sampler).couple is not Sampler.couple
        self.step, self.last_step, self.started = 0, 0, False
        self.diverged_at = torch.full((len(self.own),), -1, dtype=torch.int64)
        self.broken: State | None = None
        self._rows: Tensor | None = None  # of the active chains; None while all are
        self._batches: list[_Batch] | None = None
        self._noted = noted(self._doing)

    # Start ----------------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all chains.

        Raises:
            Diverged: Energies at the start are not finite, for all chains or under the policy "raise".
        """
        size = self.problem.batch_size
        with self._noted:
            starts = range(self.own.start, self.own.stop, size)
            self.state = join([self.started_at(range(first, min(first + size, self.own.stop))) for first in starts])
        self.started = True
        if all_finite(self.state):
            return
        good = finite_rows(self.state)
        if self.problem.policy == "raise" or not good.any():
            self.diverged_at[~good.cpu()] = 0
            self.broken = take(self.state, ~good)
            raise Diverged(0, "at the start")
        self._stop(self.state, self.state)

    def started_at(self, ids: range) -> State:
        """Returns the state of some chains at their start."""
        energy, noise = self.problem.energy_of(ids), self.problem.noise_of(ids)
        x, relocated = start_points(self.problem, ids, energy, noise)
        self.relocated += relocated
        return self.sampler.init(energy, x, noise)

    def resume(self, trace: Trace) -> None:
        """Continues the chains of a trace.

        Raises:
            OptionError: The trace has no states.
        """
        if trace.state is None:
            raise OptionError("The trace has no states of chains, from which a call could go on.")
        self.state, self.step, self.started, self.relocated = trace.state, trace.steps, True, 0
        self.diverged_at = trace.diverged_at.clone()
        if (self.diverged_at >= 0).any():
            self._rows = (self.diverged_at < 0).nonzero()[:, 0]

    # Steps ----------------------------------------------------------------------------------------------------------------------------

    def advance(self) -> Info:
        """Takes a step with all active chains, and returns its info: NaN for chains that were stopped before.

        Raises:
            Diverged: Chains diverged, and the policy is "raise".
        """
        whole, before = self.state, self.active_state()
        with self._noted:
            after, info = self._take(before)
        self.state, self.step = after if self._rows is None else put(self.state, self._rows, after), self.step + 1
        if self._rows is not None and info.acceptance is not None:
            rates = info.acceptance.new_full((len(self.own),), torch.nan)
            rates[self._rows.to(rates.device)] = info.acceptance
            info = replace(info, acceptance=rates)
        stop = None
        if not all_finite(after):
            self._stop(whole, after)
            stop = Diverged(self.step, f"after {self.step} steps") if self.problem.policy == "raise" else None
        if self.coupled:
            return replace(info, scalars={**info.scalars, **self._couple(stop)})
        if stop is not None:
            raise stop
        return info

    def _take(self, state: State) -> tuple[State, Info]:
        """Takes a step from the state of the active chains."""
        batches, step, found = self._batches or self._split(len(state.x)), self.step + 1, list[tuple[State, Info]]()
        self._batches = batches
        for rows, energy, noise in batches:
            found.append(self.take_step(energy, state if len(batches) == 1 else take(state, rows), noise.at(step)))
        return self._merge(found)

    def _merge(self, found: list[tuple[State, Info]]) -> tuple[State, Info]:
        """Returns one state and info of all batches."""
        states, infos = [state for state, _ in found], [info for _, info in found]
        if self.sampler.needs_values:
            self.problem.energy.faults.count_undefined(infos)
        (state, info), *others = found
        if others or info.acceptance is not None or info.scalars:
            info = merge_infos(infos, [len(one.x) for one in states], type(self.sampler).__name__)
        return join(states) if others else state, info

    def _split(self, count: int) -> list[_Batch]:
        """Returns so many active chains in batches."""
        problem, batches = self.problem, list[_Batch]()
        for first in range(0, count, problem.batch_size):
            rows = slice(first, min(first + problem.batch_size, count))
            ids = self.own[rows] if self._rows is None else self.own.start + self._rows[rows]
            batches.append(_Batch(rows, problem.energy_of(ids), problem.noise_of(ids)))
        return batches

    def _doing(self) -> str:
        shape = (min(self.problem.batch_size, len(self.own)), *self.problem.points.zeros().shape)
        return f"{type(self.sampler).__name__.lower()} was at step {self.step + 1}, with chains of shape {shape} in a batch."

    # Results --------------------------------------------------------------------------------------------------------------------------

    @property
    def active(self) -> int:
        """The number of active chains."""
        return len(self.own) if self._rows is None else len(self._rows)

    def active_ids(self) -> Tensor:
        """Returns the ids of the active chains, counted from 0."""
        return torch.arange(self.own.start, self.own.stop) if self._rows is None else self.own.start + self._rows

    def active_state(self) -> State:
        """Returns the state of the active chains."""
        return self.state if self._rows is None else take(self.state, self._rows)

    def visible_state(self, state: State | None = None) -> State:
        """Returns a state as users see it: points of the support, and energies that are NaN if the energy has no value.

        Args:
            state: A state of chains; None for that of the active ones.
        """
        state = visible_state(self.energy, self.active_state() if state is None else state)
        return state if self.energy.has_value else replace(state, energy=torch.full_like(state.energy, torch.nan))

    def values(self, most: int | None = None) -> Values:
        """Returns energies and gradients at the points of active chains, which identify the energy; `most` limits their number."""
        ids = self.active_ids()[:most]
        return self.problem.values(ids, self.state.x[ids.to(self.state.x.device)])

    def snapshot(self) -> Chains:
        """Returns the chains as they are now. Tensors are never changed in place, so it shares them."""
        return copy(self)

    # Divergence -----------------------------------------------------------------------------------------------------------------------

    def _stop(self, before: State, after: State) -> None:
        """Stops the active chains that diverged in a step, where they were in the state of all chains before it."""
        good = finite_rows(after)
        rows, bad = torch.arange(len(self.own)) if self._rows is None else self._rows, (~good).cpu()
        self.broken = self.broken or take(after, ~good)
        self.diverged_at = self.diverged_at.index_fill(0, rows[bad], self.step)  # a snapshot may hold the old one
        self._rows, self._batches = rows[~bad], None
        self.state = put(before, self._rows, take(after, good))

    # All chains -----------------------------------------------------------------------------------------------------------------------

    def _couple(self, stop: Diverged | None) -> Mapping[str, float]:
        """Couples all chains, and returns scalars.

        Raises:
            Diverged: Chains diverged, and the policy ends the sampling.
        """
        ids, state = self.active_ids(), self.active_state() if self.active else None
        if stop is not None:
            raise stop
        if state is None:
            return {}
        everyone = range(self.problem.rows) if len(ids) == self.problem.rows else ids
        energy, noise = self.problem.energy_of(everyone), self.problem.noise_of(everyone)
        state, scalars = self.sampler.couple(energy, state, noise.at(self.step))
        if self.active:
            own = state if len(ids) == self.active else take(state, torch.searchsorted(ids, self.active_ids()))
            self.state = own if self._rows is None else put(self.state, self._rows, own)
        return scalars
