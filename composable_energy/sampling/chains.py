"""The chains of a call: advanced in chunks, and what becomes of those that diverge."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling.roster import Chunk, Diverged, Ids, Roster, compact
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.states import all_finite, finite_rows, join, take, weighted_mean
from composable_energy.sampling.trace import Policy, Stopped, Trace

__all__ = ["Chains"]

_ATTEMPTS = 20


@dataclass(frozen=True)
class _Snapshot:
    """Where all chains were; states are not changed in place, so that this costs nothing."""

    step: int
    chunks: list[Chunk]
    stopped: list[Stopped]
    diverged_at: Tensor
    restarts: Tensor


@dataclass
class Chains:
    """The chains of a call, those of this process if several share them.

    Args:
        roster: Who they are, and what each of them gets.
        policy: What becomes of a chain that diverges.
    """

    roster: Roster
    policy: Policy
    step: int = 0
    chunks: list[Chunk] = field(default_factory=list)
    stopped: list[Stopped] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sampler, self.size, self.own = self.roster.sampler, self.roster.size, self.roster.own
        self.diverged_at = torch.full((len(self.own),), -1, dtype=torch.int64)
        self.restarts = torch.zeros(len(self.own), dtype=torch.int64)
        self.coupled = type(self.sampler).couple is not Sampler.couple
        if self.coupled and self.policy == "restart":
            raise OptionError(f"Chains of {self.sampler} meet, so none can start again alone: take on_divergence='drop'.")

    # Going ----------------------------------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Starts all chains.

        Raises:
            Diverged: Energies at the start are not finite, for all chains or under a policy that raises.
        """
        for ids in self.roster.pieces():
            self.chunks.append(self.roster.start(ids, attempt=0))
        if all(all_finite(chunk.state) for chunk in self.chunks):
            return
        good = torch.cat([finite_rows(chunk.state) for chunk in self.chunks]).cpu()
        if self.policy == "raise" or not good.any():
            self.diverged_at[~good] = 0
            raise Diverged(0, "at the start")
        self._settle([self._take_out(chunk, chunk.state) for chunk in self.chunks])

    def resume(self, trace: Trace) -> None:
        """Takes up chains where a trace left them.

        Raises:
            OptionError: The trace does not tell of all chains of this process.
        """
        mine, there = self.own, trace.chains
        if not (there.start <= mine.start and mine.stop <= there.stop):
            raise OptionError(
                f"The trace tells of chains {there.start} to {there.stop - 1}, this process draws {mine.start} to {mine.stop - 1}: resume "
                "with as many processes, or from a trace that was gathered."
            )
        rows = slice(mine.start - there.start, mine.stop - there.start)
        self.step, self.diverged_at, self.restarts = trace.steps, trace.diverged_at[rows].clone(), trace.restarts[rows].clone()
        self.stopped = [Stopped(ids, state) for ids, state in self._mine((some.chains, some.state) for some in trace.stopped)]
        groups: dict[int, list[tuple[Ids, State]]] = {}
        for ids, attempt, state in trace.states:
            groups.setdefault(attempt, []).extend(self._mine([(ids, state)]))
        for attempt, group in groups.items():
            if self.size != trace.batch_size and group:  # else the same chains stay together, and products of matrices round as they did
                group = [(tuple(i for ids, _ in group for i in ids), join([state for _, state in group]))]
            for ids, state in group:
                for some in torch.arange(len(ids)).split(self.size):
                    part = state if len(some) == len(ids) else take(state, some.to(state.x.device))
                    self.chunks.append(self.roster.chunk(compact([ids[row] for row in some.tolist()]), attempt, part))

    def advance(self) -> Info:
        """Takes one step with all chains, and returns what happened; not a number for chains that were stopped before.

        Raises:
            Diverged: Chains diverged, and the policy raises or no chain is left.
        """
        self.step += 1
        infos: list[tuple[Ids, Info]] = []
        lost: list[Chunk | None] = []
        for chunk in self.chunks:
            before, ids = chunk.state, chunk.ids
            chunk.state, info = self.sampler.step(chunk.energy, before, chunk.noise.at(self.step))
            infos.append((ids, info))
            lost.append(self._take_out(chunk, before))
        stop = None
        try:
            if any(lost):
                self._settle(lost)
        except Diverged as error:
            stop = error
        info = self._joined(infos) if infos else Info()
        if self.coupled:
            info = replace(info, scalars={**info.scalars, **self._couple(stop)})
        elif stop is not None:
            raise stop
        return info

    def any_state(self) -> State:
        """Returns a state of one chain, which shows what states of this sampler hold."""
        return self.roster.start(range(self.own.start, self.own.start + 1), attempt=0).state

    def snapshot(self) -> _Snapshot:
        """Returns where the chains are, for `restore`."""
        chunks = [replace(chunk) for chunk in self.chunks]
        return _Snapshot(self.step, chunks, list(self.stopped), self.diverged_at, self.restarts)

    def restore(self, snapshot: _Snapshot) -> None:
        """Puts the chains back to where they were."""
        self.step, self.chunks, self.stopped = snapshot.step, snapshot.chunks, snapshot.stopped
        self.diverged_at, self.restarts = snapshot.diverged_at, snapshot.restarts

    # Reading --------------------------------------------------------------------------------------------------------------------------

    def state(self) -> State:
        """Returns the state of all chains that go on, in the order of their ids."""
        if len(self.chunks) == 1:
            return self.chunks[0].state
        ids = torch.tensor([i for chunk in self.chunks for i in chunk.ids])
        sorted_already = bool((ids.diff() > 0).all())
        return join([chunk.state for chunk in self.chunks], None if sorted_already else ids.argsort().to(self.roster.like.device))

    def spread(self, of: Callable[[State], Tensor], fill: float = float("nan")) -> Tensor:
        """Returns a tensor of the chains of this process, with shape $(m, *)$: dropped ones hold a filling, kept ones what they had."""
        parts = [(chunk.ids, of(chunk.state)) for chunk in self.chunks]
        if self.policy != "drop":
            parts += [(some.chains, of(some.state)) for some in self.stopped]
        return self.roster.spread(parts, fill)

    def finished(self) -> tuple[Tensor, Tensor]:
        """Returns the points that were drawn, with shape $(m, *)$, and which chains have one."""
        parts = [(chunk.ids, chunk.state, chunk.energy, chunk.noise) for chunk in self.chunks]
        parts += [
            (some.chains, some.state, self.roster.energy_of(some.chains), self.roster.noise_of(some.chains, 0)) for some in self.stopped
        ]
        done = []
        for ids, state, energy, noise in parts:
            done.append((ids, self.sampler.finish(energy, state, noise.at(self.step + 1)) if self.step else state.x))
        here = torch.ones(len(self.own), dtype=torch.bool)
        if self.policy == "drop":
            here[self.roster.places([i for some in self.stopped for i in some.chains])] = False
        return self.roster.spread(done, 0.0), here

    def saved(self) -> list[tuple[tuple[int, ...], int, State]]:
        """Returns the chunks as a trace keeps them: ids, how often they were started again, and the state."""
        return [(tuple(chunk.ids), chunk.attempt, chunk.state) for chunk in self.chunks]

    # Inside ---------------------------------------------------------------------------------------------------------------------------

    def _couple(self, stop: Diverged | None) -> Mapping[str, float]:
        """Lets all chains meet, those of other processes too; a process that stops tells the others."""
        state = self.state() if self.chunks else None
        ids = sorted(i for chunk in self.chunks for i in chunk.ids)
        if self.roster.ranks is not None:
            parts = self.roster.ranks.objects((ids, state, stop is not None))
            if stop is None and any(stopped for *_, stopped in parts):
                stop = Diverged(self.step, f"after {self.step} steps")
            ids = [i for some, *_ in parts for i in some]
            states = [some for _, some, _ in parts if some is not None]
            state = join(states) if states else None
        if stop is not None:
            raise stop
        if state is None:
            return {}
        everybody = compact(ids)
        state, scalars = self.sampler.couple(self.roster.energy_of(everybody), state, self.roster.noise_of(everybody, 0).at(self.step))
        for chunk in self.chunks:
            rows = torch.tensor([bisect_left(ids, i) for i in chunk.ids], device=self.roster.like.device)
            chunk.state = state if len(rows) == len(ids) else take(state, rows)
        return scalars

    def _mine(self, groups: Iterable[tuple[Ids, State]]) -> Iterator[tuple[Ids, State]]:
        """Yields the chains of this process."""
        for ids, state in groups:
            rows = [row for row, i in enumerate(ids) if i in self.own]
            if len(rows) == len(ids):
                yield ids, state
            elif rows:
                yield tuple(ids[row] for row in rows), take(state, torch.tensor(rows, device=state.x.device))

    def _take_out(self, chunk: Chunk, before: State) -> Chunk | None:
        """Takes the chains that diverged out of a chunk, and returns them at their last finite points; None if there are none."""
        if all_finite(chunk.state):
            return None
        good = finite_rows(chunk.state)
        fine = good.tolist()
        out = tuple(i for i, ok in zip(chunk.ids, fine, strict=True) if not ok)
        places, self.diverged_at = self.roster.places(out), self.diverged_at.clone()  # a snapshot may hold the old one
        at = self.diverged_at[places]
        self.diverged_at[places] = torch.where(at < 0, self.step, at)
        lost = Chunk(out, chunk.attempt, chunk.energy, chunk.noise, take(before, ~good))
        chunk.ids, chunk.state = compact([i for i, ok in zip(chunk.ids, fine, strict=True) if ok]), take(chunk.state, good)
        if chunk.ids:
            chunk.energy, chunk.noise = self.roster.energy_of(chunk.ids), self.roster.noise_of(chunk.ids, chunk.attempt)
        return lost

    def _settle(self, taken: Sequence[Chunk | None]) -> None:
        """Does with chains that diverged what the policy says."""
        lost = [chunk for chunk in taken if chunk is not None]
        self.chunks = [chunk for chunk in self.chunks if chunk.ids]
        if self.policy == "restart":
            for chunk in lost:
                self._restart(chunk)
            return
        self.stopped += [Stopped(tuple(chunk.ids), chunk.state) for chunk in lost]
        if self.policy == "raise":
            raise Diverged(self.step, f"after {self.step} steps")
        if self.policy == "drop" and not self.chunks:
            raise Diverged(self.step, f"after {self.step} steps, with no chain left")

    def _restart(self, lost: Chunk) -> None:
        """Starts chains again with other noise, and brings them to where the others are; chains that fail again, once more."""
        attempt = lost.attempt + 1
        if attempt > _ATTEMPTS:
            self.stopped.append(Stopped(tuple(lost.ids), lost.state))
            raise Diverged(self.step, f"after {self.step} steps, and {_ATTEMPTS} restarts did not help")
        self.restarts = self.restarts.clone()
        self.restarts[self.roster.places(lost.ids)] = attempt
        chunk = self.roster.start(lost.ids, attempt)
        before = chunk.state
        for step in range(self.step + 1):
            if step:
                before = chunk.state
                chunk.state, _ = self.sampler.step(chunk.energy, before, chunk.noise.at(step))
            again = self._take_out(chunk, before)
            if again is not None:
                self._restart(again)
            if not chunk.ids:
                return
        self._add(chunk)

    def _add(self, chunk: Chunk) -> None:
        for other in self.chunks:
            if other.attempt == chunk.attempt and len(other.ids) + len(chunk.ids) <= self.size:
                ids = compact([*other.ids, *chunk.ids])
                self.chunks[self.chunks.index(other)] = self.roster.chunk(ids, chunk.attempt, join([other.state, chunk.state]))
                return
        self.chunks.append(chunk)

    def _joined(self, infos: list[tuple[Ids, Info]]) -> Info:
        """Returns one info of all chains from those of chunks."""
        rates = [(ids, info.acceptance) for ids, info in infos if info.acceptance is not None]
        names = dict.fromkeys(name for _, info in infos for name in info.scalars)
        scalars = {
            name: self._scalar(name, [(len(ids), info.scalars[name]) for ids, info in infos if name in info.scalars]) for name in names
        }
        return Info(self.roster.spread(rates, float("nan")) if rates else None, scalars)

    def _scalar(self, name: str, parts: list[tuple[int, float | Tensor]]) -> float:
        """Returns one number from those of chunks with so many chains each: of rows their mean, of a number for all that number.

        Raises:
            ShapeError: A tensor has not one number for each chain.
        """
        rows: list[Tensor] = []
        numbers: list[tuple[int, float]] = []
        for count, value in parts:
            if isinstance(value, Tensor) and value.ndim:
                if value.shape != (count,):
                    raise ShapeError(
                        f"The scalar {name!r} of {type(self.sampler).__name__} has shape {tuple(value.shape)} for {count} chains: give a "
                        f"number, or a tensor of shape ({count},), of which the mean is taken."
                    )
                rows.append(value.double())
            else:
                numbers.append((count, float(value) if isinstance(value, Tensor) else value))
        if rows:
            return torch.cat(rows).nanmean().item()
        return weighted_mean(numbers)
