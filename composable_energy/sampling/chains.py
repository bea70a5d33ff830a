"""The chains of a call: their steps, and the policies for those that diverge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.sampling.faults import Faults, noted
from composable_energy.sampling.ids import Ids, compact, join_ids, tensor_of
from composable_energy.sampling.infos import merge_infos
from composable_energy.sampling.layout import Chunk, Layout, all_finite, finite_rows, join, take
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.steps import first_block, take_steps
from composable_energy.sampling.trace import Policy, Stopped, Trace

_MAX_RESTARTS = 20


class Diverged(Exception):  # noqa: N818  (`sample` turns it into the public error, which carries the points)
    """Chains diverged, and the policy ends the sampling."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step, self.reason = step, reason


class Chains:
    """The chains of a call; with several processes, those of this one.

    Args:
        layout: Their ids, energy and noise.
        policy: What happens to a chain that diverges.
        faults: Counts the points at which the energy raises.
        single: Whether steps are taken one by one, as for a callback that may change the energy.

    Attributes:
        step: How many steps were taken.
        chunks: The active chains.
        stopped: The chains that were stopped, at their last finite points.
        diverged_at: After how many steps each chain diverged first; -1 if it did not.
        restarts: How often each chain was restarted.
        broken: The first state in which chains diverged, those chains alone; None if none did.
    """

    def __init__(self, layout: Layout, policy: Policy, faults: Faults | None = None, *, single: bool = False) -> None:
        self.layout, self.policy, self.faults = layout, policy, faults or Faults()
        self.sampler, self.own = layout.sampler, layout.own
        self.coupled = type(self.sampler).couple is not Sampler.couple
        if self.coupled and policy == "restart":
            raise OptionError(f"Chains of {self.sampler} interact, so none can start again alone: take on_divergence='drop'.")
        self.step, self.single = 0, single or self.coupled
        self.chunks: list[Chunk] = []
        self.stopped: list[Stopped] = []
        self.diverged_at = torch.full((len(self.own),), -1, dtype=torch.int64)
        self.restarts = torch.zeros(len(self.own), dtype=torch.int64)
        self.broken: State | None = None
        self._noted = noted(self._doing)

    # Steps ----------------------------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Starts all chains.

        Raises:
            Diverged: Energies at the start are not finite, for all chains or under the policy "raise".
        """
        with self._noted:
            self.chunks = [self.layout.start(ids) for ids in self.layout.batches()]
        if all(all_finite(chunk.state) for chunk in self.chunks):
            return
        good = torch.cat([finite_rows(chunk.state) for chunk in self.chunks]).cpu()
        if self.policy == "raise" or not good.any():
            self.diverged_at[~good] = 0
            self.broken = take(joined := join([chunk.state for chunk in self.chunks]), ~finite_rows(joined))
            raise Diverged(0, "at the start")
        self._apply_policy([self._split_diverged(chunk, chunk.state) for chunk in self.chunks])

    def resume(self, trace: Trace) -> None:
        """Continues the chains of a trace.

        Raises:
            OptionError: The trace lacks chains of this process.
        """
        mine, there = self.own, trace.chains
        if not (there.start <= mine.start and mine.stop <= there.stop):
            raise OptionError(
                f"The trace holds chains {there.start} to {there.stop - 1}, this process draws {mine.start} to {mine.stop - 1}: resume "
                "with as many processes, or from a trace that was gathered."
            )
        rows = slice(mine.start - there.start, mine.stop - there.start)
        self.step, self.diverged_at, self.restarts = trace.steps, trace.diverged_at[rows].clone(), trace.restarts[rows].clone()
        self.stopped = [Stopped(ids, state) for ids, state in self._own_parts((some.chains, some.state) for some in trace.stopped)]
        by_attempt: dict[int, list[tuple[Ids, State]]] = {}
        for ids, attempt, state in trace.states:
            by_attempt.setdefault(attempt, []).extend(self._own_parts([(ids, state)]))
        size = self.layout.batch_size
        for attempt, parts in by_attempt.items():
            if size != trace.batch_size and parts:  # with the same size the same chains stay together, and matrix products round alike
                parts = [(compact(join_ids(ids for ids, _ in parts)), join([state for _, state in parts]))]
            for ids, state in parts:
                for some in torch.arange(len(ids)).split(size):
                    part = state if len(some) == len(ids) else take(state, some)
                    self.chunks.append(self.layout.chunk(compact(tensor_of(ids)[some]), attempt, part))

    def advance(self, last_step: int, next_step: Callable[[int], int] | None = None) -> Iterator[Info]:
        """Takes steps up to the last, and yields one info for all chains after each; NaN for chains that were stopped before.

        Fast steps are taken in blocks that are checked as a whole. A block ends before a step that raises and at one with chains that
        diverged, so the results are those of single steps.

        Args:
            last_step: The number of the last step.
            next_step: Returns the next step after which to yield, from the number of steps taken; None yields after each. Steps in which
                chains diverge or interact are always shown.

        Raises:
            Diverged: Chains diverged, and the policy is "raise" or no chain is left.
        """
        size = first_block(self.sampler, self.chunks, None if self.coupled else self.layout.fuse, self.step + 1, single=self.single)
        while self.step < last_step:
            before = self.snapshot()
            try:
                began = time.perf_counter()
                count = min(size.steps, last_step - self.step) if len(self.chunks) == 1 else 1  # batches take turns
                with self._noted:
                    paths = [take_steps(self.sampler, chunk, self.step + 1, count, self.faults) for chunk in self.chunks]
                taken = min((len(path.infos) for path in paths), default=1)
                good = min((path.count_finite() for path in paths), default=taken)
                size.adapt(time.perf_counter() - began, taken, good)
                taken = min(taken, good + 1)
                self.faults.points -= sum(path.faults[-1] - path.faults[taken - 1] for path in paths)  # steps that are taken again
                for path in paths if self.sampler.needs_values else ():
                    self.faults.count_undefined(path.infos[:taken])
                first = self.step
                while self.step < first + taken:
                    shown = self.step + 1 if next_step is None else next_step(self.step)
                    self.step = min(shown, first + taken)
                    index, infos = self.step - first - 1, list[tuple[Ids, Info]]()
                    for chunk, path in zip(self.chunks, paths, strict=True):
                        chunk.state = path.states[index + 1]
                        infos.append((chunk.ids, path.infos[index]))
                    if index == good or self.coupled:
                        yield self._settle(merge_infos(infos, self.layout), [path.states[index] for path in paths] if index == good else ())
                    elif self.step == shown:
                        yield merge_infos(infos, self.layout)
                error = paths[0].error if paths else None
                if error is not None and taken <= good:  # else the step that raised is taken again, without the chains that diverged
                    with self._noted:
                        raise error
            except KeyboardInterrupt:  # some chains may be one step ahead of others
                vars(self).update(vars(before))
                raise

    def _settle(self, info: Info, before: Sequence[State]) -> Info:
        """Applies the policy to chains that diverged in the last step, couples all others, and returns the info.

        Args:
            info: The info of the step.
            before: The state of each chunk before the step; empty if no chain diverged.
        """
        stop = None
        try:
            if before:
                self._apply_policy([self._split_diverged(chunk, state) for chunk, state in zip(self.chunks, before, strict=True)])
        except Diverged as error:
            stop = error
        if self.coupled:
            return replace(info, scalars={**info.scalars, **self._couple(stop)})
        if stop is not None:
            raise stop
        return info

    def snapshot(self) -> Chains:
        """Returns the chains as they are now. Tensors are never changed in place, so it shares them."""
        now = copy(self)
        now.chunks, now.stopped = list(map(replace, self.chunks)), list(self.stopped)
        return now

    # Results --------------------------------------------------------------------------------------------------------------------------

    def ids(self) -> Tensor:
        """Returns the ids of the active chains, chunk by chunk."""
        return join_ids(chunk.ids for chunk in self.chunks)

    def state(self) -> State:
        """Returns the state of all active chains, in the order of their ids."""
        if len(self.chunks) == 1:
            return self.chunks[0].state
        ids = self.ids()
        in_order = bool((ids.diff() > 0).all())
        return join([chunk.state for chunk in self.chunks], None if in_order else ids.argsort().to(self.layout.starts.zeros.device))

    def values(self, of: Callable[[State], Tensor], fill: float = float("nan")) -> Tensor:
        """Returns a value of each chain of this process, with shape $(m, *)$; the filling for dropped chains."""
        parts = [(chunk.ids, of(chunk.state)) for chunk in self.chunks]
        if self.policy != "drop":
            parts += [(some.chains, of(some.state)) for some in self.stopped]
        return self.layout.scatter(parts, fill)

    def points(self) -> tuple[Tensor, Tensor]:
        """Returns the last points, with shape $(m, *)$, and which chains were not dropped, with shape $(m,)$."""
        parts = [(chunk.ids, chunk.state.x) for chunk in self.chunks] + [(some.chains, some.state.x) for some in self.stopped]
        present = torch.ones(len(self.own), dtype=torch.bool)
        for some in self.stopped if self.policy == "drop" else ():
            present[self.layout.places(some.chains)] = False
        return self.layout.scatter(parts, 0.0), present

    def _doing(self) -> str:
        shape = (min(self.layout.batch_size, len(self.own)), *self.layout.starts.zeros.shape)
        return f"{type(self.sampler).__name__.lower()} was at step {self.step + 1}, with chains of shape {shape} in a batch."

    # Divergence -----------------------------------------------------------------------------------------------------------------------

    def _split_diverged(self, chunk: Chunk, before: State) -> Chunk | None:
        """Removes the chains that diverged from a chunk, and returns them at their last finite points; None if there are none."""
        if all_finite(chunk.state):
            return None
        good = finite_rows(chunk.state)
        self.broken = self.broken or take(chunk.state, ~good)
        kept, lost = (compact(tensor_of(chunk.ids)[rows]) for rows in (good.cpu(), ~good.cpu()))
        places, self.diverged_at = self.layout.places(lost), self.diverged_at.clone()  # a snapshot may hold the old one
        at = self.diverged_at[places]
        self.diverged_at[places] = torch.where(at < 0, self.step, at)
        out = Chunk(lost, chunk.attempt, chunk.energy, chunk.noise, take(before, ~good))
        chunk.ids, chunk.state, chunk.steps = kept, take(chunk.state, good), None
        if kept:
            chunk.energy, chunk.noise = self.layout.energy_of(chunk.ids), self.layout.noise_of(chunk.ids, chunk.attempt)
        return out

    def _apply_policy(self, diverged: Sequence[Chunk | None]) -> None:
        lost = [chunk for chunk in diverged if chunk is not None]
        self.chunks = [chunk for chunk in self.chunks if chunk.ids]
        if self.policy == "restart":
            for chunk in lost:
                self._restart(chunk)
            return
        self.stopped += [Stopped(chunk.ids, chunk.state) for chunk in lost]
        if self.policy == "raise":
            raise Diverged(self.step, f"after {self.step} steps")
        if self.policy == "drop" and not self.chunks:
            raise Diverged(self.step, f"after {self.step} steps, with no chain left")

    def _restart(self, lost: Chunk) -> None:
        """Restarts chains with other noise and advances them to the current step; chains that diverge again are restarted again."""
        attempt = lost.attempt + 1
        if attempt > _MAX_RESTARTS:
            self.stopped.append(Stopped(lost.ids, lost.state))
            raise Diverged(self.step, f"after {self.step} steps, and {_MAX_RESTARTS} restarts did not help")
        self.restarts = self.restarts.clone()
        self.restarts[self.layout.places(lost.ids)] = attempt
        chunk = self.layout.start(lost.ids, attempt)
        before = chunk.state
        for step in range(self.step + 1):
            if step:
                before = chunk.state
                chunk.state, _ = self.sampler.step(chunk.energy, before, chunk.noise.at(step))
            again = self._split_diverged(chunk, before)
            if again is not None:
                self._restart(again)
            if not chunk.ids:
                return
        for place, other in enumerate(self.chunks):
            if other.attempt == attempt and len(other.ids) + len(chunk.ids) <= self.layout.batch_size:
                ids = compact(join_ids([other.ids, chunk.ids]))
                self.chunks[place] = self.layout.chunk(ids, attempt, join([other.state, chunk.state]))
                return
        self.chunks.append(chunk)

    # All chains -----------------------------------------------------------------------------------------------------------------------

    def _couple(self, stop: Diverged | None) -> Mapping[str, float]:
        """Couples all chains, also across processes, and returns scalars; a process that diverged stops all others.

        Raises:
            Diverged: Chains of this or another process diverged, and the policy ends the sampling.
        """
        state = self.state() if self.chunks else None
        ids = self.ids().sort().values
        if self.layout.ranks is not None:
            parts = self.layout.ranks.gather((ids, state, stop is not None))
            if stop is None and any(stopped for *_, stopped in parts):
                stop = Diverged(self.step, f"after {self.step} steps")
            ids = torch.cat([some for some, *_ in parts])
            states = [some for _, some, _ in parts if some is not None]
            state = join(states) if states else None
        if stop is not None:
            raise stop
        if state is None:
            return {}
        everyone = compact(ids)
        state, scalars = self.sampler.couple(self.layout.energy_of(everyone), state, self.layout.noise_of(everyone, 0).at(self.step))
        for chunk in self.chunks:
            chunk.state = state if len(chunk.ids) == len(ids) else take(state, torch.searchsorted(ids, tensor_of(chunk.ids)))
        return scalars

    def _own_parts(self, parts: Iterable[tuple[Ids, State]]) -> Iterator[tuple[Ids, State]]:
        """Yields the rows of states that belong to chains of this process."""
        for ids, state in parts:
            mine = (every := tensor_of(ids)).ge(self.own.start) & every.lt(self.own.stop)
            if mine.all():
                yield ids, state
            elif mine.any():
                yield compact(every[mine]), take(state, mine)
