"""The chains of a call, one state of all that is advanced one step at a time, the loop of steps, and the interface of its observers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import fields, replace
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from composable_energy.energies.energy import Energy
from composable_energy.errors import OptionError
from composable_energy.sampling.faults import explain_failure, is_final
from composable_energy.sampling.noise import Noise
from composable_energy.sampling.pilots import find_starts
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import Info, State
from composable_energy.sampling.states import all_finite, finite_rows, join, merge_infos, put, take, to_floats
from composable_energy.sampling.trace import Trace, Values
from composable_energy.sampling.unconstrained import plain_energy, visible_state


class Diverged(Exception):  # noqa: N818  (`sample` turns it into the public error, which carries the points)
    """Chains diverged, and the policy ends the sampling."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason


Step = Callable[[Energy, State, Noise], tuple[State, Info]]
D = TypeVar("D", State, Info)


class _Batch(NamedTuple):
    """Active chains that are evaluated together."""

    rows: slice
    plain: Energy
    guarded: Energy
    noise: Noise


class Chains:
    """The chains of a call.

    Args:
        problem: What is sampled, and how.
        step: The `step` of the sampler, if it is compiled; None for the sampler's own.

    Attributes:
        sampler: The sampler.
        energy: The energy as the sampler gets it.
        active: The number of chains that were not stopped.
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
        self.own, self.active, self.relocated = range(problem.rows), problem.rows, 0
        self._take, self._compiled = step or problem.sampler.step, step is not None
        self.step, self.last_step, self.started = 0, 0, False
        self.diverged_at = torch.full((len(self.own),), -1, dtype=torch.int64)
        self.broken: State | None = None
        self._rows: Tensor | None = None  # of the active chains; None while all are
        self._batches: list[_Batch] | None = None

    # Start ----------------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all chains.

        Raises:
            Diverged: Energies at the start are not finite, for all chains or under the policy "raise".
        """
        size = self.problem.batch_size
        starts = range(self.own.start, self.own.stop, size)
        try:
            self.state = join([self.started_at(range(first, min(first + size, self.own.stop))) for first in starts])
        except Exception as error:
            explain_failure(error, self._doing())
            raise
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
        x, relocated = find_starts(self.problem, ids, energy, noise)
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
            self.active = len(self._rows)

    # Steps ----------------------------------------------------------------------------------------------------------------------------

    def advance(self) -> Info:
        """Takes a step with all active chains, and returns its info: NaN for chains that were stopped before.

        Raises:
            Diverged: Chains diverged, and the policy is "raise".
        """
        whole, step, found = self.state, self._take, list[tuple[State, Info]]()
        active = whole if self._rows is None else take(whole, self._rows)
        batches = self._batches = self._batches or self._split(len(active.x))
        for batch in batches:
            before, noise = active if len(batches) == 1 else take(active, batch.rows), batch.noise.at(self.step + 1)
            try:
                found.append(step(batch.plain, before, noise))
            except Exception as error:
                found.append(self._take_again(batch, before, noise, error))
        after, info = found[0]
        if len(found) > 1 or info.acceptance is not None or info.scalars:
            after, info = self._merge(found)
        self.state, self.step = after if self._rows is None else put(whole, self._rows, after), self.step + 1
        if self._rows is not None and info.acceptance is not None:
            rates = info.acceptance.new_full((len(self.own),), torch.nan)
            rates[self._rows.to(rates.device)] = info.acceptance
            info = replace(info, acceptance=rates)
        if not all_finite(after):
            self._stop(whole, after)
            if self.problem.policy == "raise":
                raise Diverged(self.step, f"after {self.step} steps")
        couple = self.sampler.traits.couple
        if couple is None or not self.active:
            return info
        return replace(info, scalars={**info.scalars, **self._couple(couple)})

    def _take_again(self, batch: _Batch, before: State, noise: Noise, error: Exception) -> tuple[State, Info]:
        """Takes a step that raised again, and later ones, with the guard against exceptions at some of the points."""
        try:
            if is_final(error) or batch.plain is batch.guarded:
                raise error
            self._batches = [one._replace(plain=one.guarded) for one in self._batches or ()]
            return self._take(batch.guarded, before, noise)
        except Exception as final:
            explain_failure(final, self._doing())
            raise

    def _merge(self, found: list[tuple[State, Info]]) -> tuple[State, Info]:
        """Returns one state and info of all batches."""
        infos, counts = [info for _, info in found], [len(state.x) for state, _ in found]
        self.problem.energy.faults.count_undefined(infos)
        after = found[0][0] if len(found) == 1 else join([state for state, _ in found])
        return after, merge_infos(infos, counts, type(self.sampler).__name__)

    def _split(self, count: int) -> list[_Batch]:
        """Returns so many active chains in batches."""
        problem, batches = self.problem, list[_Batch]()
        for first in range(0, count, problem.batch_size):
            rows = slice(first, min(first + problem.batch_size, count))
            ids = self.own[rows] if self._rows is None else self.own.start + self._rows[rows]
            batches.append(_Batch(rows, problem.energy_of(ids, plain=not self._compiled), problem.energy_of(ids), problem.noise_of(ids)))
        return batches

    def _doing(self) -> str:
        shape = (min(self.problem.batch_size, len(self.own)), *self.problem.points.zeros().shape)
        return f"{type(self.sampler).__name__.lower()} was at step {self.step + 1}, with chains of shape {shape} in a batch."

    # Results --------------------------------------------------------------------------------------------------------------------------

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
        self.active = len(self._rows)
        self.state = put(before, self._rows, take(after, good))

    # All chains -----------------------------------------------------------------------------------------------------------------------

    def _couple(self, couple: Callable[..., tuple[State, Mapping[str, float]]]) -> Mapping[str, float]:
        """Couples all active chains, and returns scalars."""
        ids = self.own if self._rows is None else self._rows
        energy, noise = self.problem.energy_of(ids), self.problem.noise_of(ids).at(self.step)
        state, scalars = couple(self.sampler, energy, self.active_state(), noise)
        self.state = state if self._rows is None else put(self.state, self._rows, state)
        return scalars


class Observer:
    """What looks at the chains of a call while they run; a subclass overrides the methods it needs.

    The chains are not to be changed. They have `step` and `last_step`, the `sampler`, the `energy` as the sampler gets it, the `state` of
    all chains in the coordinates that these use, `diverged_at`, and `visible_state()`.

    Example:
        >>> import torch, composable_energy as ce
        >>> class Means(ce.sampling.Observer):
        ...     def on_step(self, chains, info):
        ...         if chains.step % 50 == 0:
        ...             print(chains.step, chains.visible_state().x.shape)
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> _ = bowl.sample((5, 2), steps=100, seed=0, observers=[Means()])
        50 torch.Size([5, 2])
        100 torch.Size([5, 2])
    """

    watches = True  # whether `on_step` is called

    def on_start(self, chains: Chains) -> None:
        """Called before the first step."""

    def on_step(self, chains: Chains, info: Info) -> bool | None:
        """Called after each step; returning True stops the loop after this step."""

    def on_end(self, chains: Chains, error: BaseException | None) -> None:
        """Called after the last step, or with the error that broke off the loop."""


def run(chains: Chains, last_step: int, observers: Sequence[Observer]) -> None:
    """Takes all steps, or fewer if an observer stops the loop or all chains of the call were stopped.

    Args:
        chains: The chains, which have started.
        last_step: The number of the last step, counted from the start of the chains.
        observers: The observers, which are called in their order.

    Raises:
        OptionError: The chains took more steps already.
        Diverged: Chains diverged, and the policy ends the sampling.
    """
    error, chains.last_step = None, last_step
    if chains.step > last_step:
        raise OptionError(f"{chains.step} steps are done already, {last_step} were asked for in all: ask for at least as many.")
    for observer in observers:
        observer.on_start(chains)
    watching = [observer for observer in observers if observer.watches]
    try:
        while chains.step < last_step and chains.active:
            info, stop = chains.advance(), False
            for observer in watching:
                stop = observer.on_step(chains, info) is True or stop
            if stop:
                break
    except BaseException as caught:
        error = caught
        raise
    finally:
        for observer in observers:
            observer.on_end(chains, error)


class Stop(Observer):
    """Calls a function after each step, which stops the sampling by True or by a tensor of True alone, such as `state.energy < 3`.

    Args:
        function: A function of the step number, counted from 1, the state of the active chains, and the sampler's info. Points and energies
            are those of the support, gradients those of its unconstrained coordinates. They are copies.

    Raises:
        OptionError: It is no function.
    """

    def __init__(self, function: Callable[[int, State, Info], object]) -> None:
        if not callable(function):
            raise OptionError(f"Stop takes a function of a step, a state and an info, got {function!r}.")
        self.function = function

    def on_step(self, chains: Chains, info: Info) -> bool:
        over = True
        if chains.active:
            state = chains.visible_state()
            info = replace(info, scalars=dict(zip(info.scalars, to_floats(list(info.scalars.values())), strict=True)))
            if len(state.x) < len(chains.own):
                info = replace(info, chains=chains.active_ids().tolist())
            over = _is_true(self.function(chains.step, _copied(state), _copied(info)))
        return over


def _copied(value: D) -> D:
    """Returns a state or an info with tensors and dicts of its own, so that a function which writes into them changes no chain."""
    own = {field.name: getattr(value, field.name) for field in fields(value)}
    kinds = {name: item.clone() for name, item in own.items() if isinstance(item, Tensor)}
    kinds |= {name: dict(item) for name, item in own.items() if isinstance(item, dict)}
    return replace(value, **kinds)


class TraceRecorder(Observer):
    """Records each step, and returns the trace.

    Args:
        blank: A trace of the call without steps.
        every: Keeps the points of every k-th step after the burn-in; None keeps none.
        before: The trace of an interrupted run of the same call.
    """

    def __init__(self, blank: Trace, *, steps: bool, every: int | None, before: Trace | None = None) -> None:
        self.blank, self.steps, self.every, self.before = blank, steps, every, before
        self.watches = steps
        self.energies: list[Tensor] = []
        self.acceptance: list[Tensor] = []
        self.points: list[Tensor] = []
        self.point_steps: list[int] = []
        self.scalars: dict[str, list[Any]] = {}
        self.first = 0
        self._energies: Callable[[State], Tensor] = lambda state: state.energy

    def on_start(self, chains: Chains) -> None:
        self.first = chains.step
        plain = plain_energy(chains.energy) is not None and chains.energy.has_value
        self._energies = (lambda state: state.energy) if plain else (lambda state: chains.visible_state(state).energy)

    def on_step(self, chains: Chains, info: Info) -> None:
        self.energies.append(self._energies(chains.state))
        if info.acceptance is not None:
            self.acceptance.append(info.acceptance)
        for name, value in info.scalars.items():
            self.scalars.setdefault(name, []).append(value)
        after = chains.step - self.blank.burn_in
        if self.every is not None and after > 0 and after % self.every == 0:
            self.points.append(chains.state.x)  # as in a checkpoint; `sample` shows the points of the support
            self.point_steps.append(chains.step)

    def trace(self, chains: Chains) -> Trace:
        """Returns the trace up to the current step of the chains; the record of a later step, which was broken off, is left out."""
        trace = replace(
            self.blank,
            steps=chains.step,
            chains=chains.own,
            state=chains.state,
            diverged_at=chains.diverged_at,
            relocated=chains.relocated,
        )
        if not self.steps:
            return trace
        done, kept = chains.step - self.first, [step for step in self.point_steps if step <= chains.step]
        energies = self._joined("energies", self.energies[:done])
        trace.energies = trace.energies if energies is None else energies
        trace.acceptance = self._joined("acceptance", self.acceptance[:done])
        trace.points = self._joined("points", self.points[: len(kept)])
        trace.point_steps = (self.before.point_steps if self.before else []) + kept
        earlier = self.before.scalars if self.before else {}
        names = dict.fromkeys([*earlier, *self.scalars])
        trace.scalars = {name: [*earlier.get(name, []), *to_floats(self.scalars.get(name, [])[:done])] for name in names}
        return trace

    def _joined(self, name: str, steps: Sequence[Tensor]) -> Tensor | None:
        """Returns the record of this run after that of the interrupted one."""
        before = None if self.before is None else getattr(self.before, name)
        parts = [] if before is None or not len(before) else [before]
        parts += [torch.stack(list(steps))] if steps else []
        return parts[0] if len(parts) == 1 else torch.cat(parts) if parts else None


def _is_true(answer: Any) -> bool:
    """Returns whether the function returned True itself or a comparison that holds for all; other values mean nothing."""
    return answer is True or (getattr(answer, "dtype", None) in (torch.bool, bool) and bool(answer.all()))
