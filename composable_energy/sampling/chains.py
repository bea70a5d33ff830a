"""The chains of a call: their steps, and the policies for those that diverge."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from operator import attrgetter

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.sampling.faults import Faults, noted
from composable_energy.sampling.infos import merge_infos
from composable_energy.sampling.layout import Chunk, Layout, all_finite, finite_rows, join, take
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.steps import first_block, take_steps
from composable_energy.sampling.trace import Policy, Trace


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
        chunks: The chains in batches; chains that diverged are stopped at their last finite points.
        diverged_at: After how many steps each chain diverged; -1 if it did not.
        broken: The first state in which chains diverged, those chains alone; None if none did.
    """

    def __init__(self, layout: Layout, policy: Policy, faults: Faults | None = None, *, single: bool = False) -> None:
        self.layout, self.policy, self.faults = layout, policy, faults or Faults()
        self.sampler, self.own = layout.sampler, layout.own
        self.coupled = type(self.sampler).couple is not Sampler.couple
        self.step, self.single = 0, single or self.coupled
        self.chunks: list[Chunk] = []
        self.diverged_at = torch.full((len(self.own),), -1, dtype=torch.int64)
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
        for chunk in self.chunks:
            self._stop_diverged(chunk, chunk.state)

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
        state = join(trace.states)
        self.step, self.diverged_at = trace.steps, trace.diverged_at[mine.start - there.start : mine.stop - there.start].clone()
        for ids in self.layout.batches():
            rows = torch.arange(ids.start, ids.stop) - there.start
            self.chunks.append(self.layout.chunk(ids, take(state, rows), trace.diverged_at[rows] < 0))

    def advance(self, last_step: int, next_step: Callable[[int], int] | None = None) -> Iterator[Info]:
        """Takes steps up to the last, while some chains are active, and yields one info for all; NaN for those that were stopped before.

        Fast steps are taken in blocks that are checked as a whole. A block ends before a step that raises and at one with chains that
        diverged, so the results are those of single steps.

        Args:
            last_step: The number of the last step.
            next_step: Returns the next step after which to yield, from the number of steps taken; None yields after each. Steps in which
                chains diverge or interact are always shown.

        Raises:
            Diverged: Chains diverged, and the policy is "raise".
        """
        size = first_block(self.active, single=self.single)
        while self.step < last_step:
            before, active = self.snapshot(), self.active
            if not active and self.layout.ranks is None:
                return
            try:
                began = time.perf_counter()
                count = min(size.steps, last_step - self.step) if len(active) == 1 else 1  # batches take turns
                with self._noted:
                    paths = [take_steps(self.layout.step, chunk, self.step + 1, count, self.faults) for chunk in active]
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
                    index, infos = self.step - first - 1, list[tuple[Chunk, Info]]()
                    for chunk, path in zip(active, paths, strict=True):
                        chunk.active = path.states[index + 1]
                        infos.append((chunk, path.infos[index]))
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
        """Stops chains that diverged in the last step, couples all others, and returns the info.

        Args:
            info: The info of the step.
            before: The state of the active chains of each chunk before the step; empty if no chain diverged.
        """
        for chunk, state in zip(self.active, before, strict=False):
            self._stop_diverged(chunk, state)
        stop = Diverged(self.step, f"after {self.step} steps") if before and self.policy == "raise" else None
        if self.coupled:
            return replace(info, scalars={**info.scalars, **self._couple(stop)})
        if stop is not None:
            raise stop
        return info

    def snapshot(self) -> Chains:
        """Returns the chains as they are now. Tensors are never changed in place, so it shares them."""
        now = copy(self)
        now.chunks = list(map(replace, self.chunks))
        return now

    # Results --------------------------------------------------------------------------------------------------------------------------

    @property
    def active(self) -> list[Chunk]:
        """The batches with active chains."""
        return [chunk for chunk in self.chunks if chunk.active.x.shape[0]]

    def ids(self) -> Tensor:
        """Returns the ids of the active chains."""
        return torch.cat([chunk.active_ids() for chunk in self.chunks])

    def state(self) -> State:
        """Returns the state of all active chains."""
        return join([chunk.active for chunk in self.active])

    def values(self, of: Callable[[State], Tensor]) -> Tensor:
        """Returns a value of each chain of this process, with shape $(m, *)$."""
        parts = [of(chunk.state) for chunk in self.chunks]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def points(self) -> Tensor:
        """Returns the last points, with shape $(m, *)$."""
        return self.values(attrgetter("x"))

    def _doing(self) -> str:
        shape = (min(self.layout.batch_size, len(self.own)), *self.layout.starts.zeros.shape)
        return f"{type(self.sampler).__name__.lower()} was at step {self.step + 1}, with chains of shape {shape} in a batch."

    # Divergence -----------------------------------------------------------------------------------------------------------------------

    def _stop_diverged(self, chunk: Chunk, before: State) -> None:
        """Stops the chains that diverged in a chunk at their last finite points, those of the active chains before the step."""
        after = chunk.active
        if all_finite(after):
            return
        good = finite_rows(after)
        self.broken = self.broken or take(after, ~good)
        self.diverged_at = self.diverged_at.clone()  # a snapshot may hold the old one
        self.diverged_at[chunk.active_ids()[~good.cpu()] - self.own.start] = self.step
        self.layout.stop(chunk, good, before)

    # All chains -----------------------------------------------------------------------------------------------------------------------

    def _couple(self, stop: Diverged | None) -> Mapping[str, float]:
        """Couples all chains, also across processes, and returns scalars; a process that diverged stops all others.

        Raises:
            Diverged: Chains of this or another process diverged, and the policy ends the sampling.
        """
        ids, state = self.ids(), self.state() if self.active else None
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
        everyone = range(self.layout.rows) if len(ids) == self.layout.rows else ids
        state, scalars = self.sampler.couple(self.layout.energy_of(everyone), state, self.layout.noise_of(everyone).at(self.step))
        for chunk in self.active:
            chunk.active = state if len(chunk.active.x) == len(ids) else take(state, torch.searchsorted(ids, chunk.active_ids()))
        return scalars
