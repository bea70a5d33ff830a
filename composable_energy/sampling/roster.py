"""The roster of a call: which chains there are, and the energy, the noise and the start of each of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.algebra import Disjunction
from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.noise import Noise
from composable_energy.sampling.ranks import Ranks
from composable_energy.sampling.rows import on_rows
from composable_energy.sampling.sampler import Sampler, State
from composable_energy.sampling.states import per_chain

__all__ = ["Chunk", "Diverged", "Ids", "Roster", "compact"]

Ids = tuple[int, ...] | range


class Diverged(Exception):  # noqa: N818  (the driver turns it into the public error, which carries what was drawn)
    """Chains diverged, and the policy does not go on."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(step, reason)
        self.step = step
        self.reason = reason


@dataclass
class Chunk:
    """Some of the chains: their ids from 0, how often they were started again, and where they are."""

    ids: Ids
    attempt: int
    energy: Energy
    noise: Noise
    state: State


@dataclass(frozen=True)
class Roster:
    """Who the chains of a call are; they have ids from 0.

    Args:
        energy: The energy.
        running: The energy as the sampler sees it, compiled or not.
        sampler: The sampler.
        noise: The noise of all chains at the start.
        like: Zeros with the shape of one point.
        total: How many chains there are.
        per_row: How many chains share a row of the bound conditions.
        size: How many chains are advanced together.
        init: The points to start at, one for each row of conditions; None lets the sampler choose.
        ranks: The processes that share the chains.
    """

    energy: Energy
    running: Energy
    sampler: Sampler
    noise: Noise
    like: Tensor
    total: int
    per_row: int
    size: int
    init: Tensor | None = None
    ranks: Ranks | None = None

    @property
    def own(self) -> range:
        """The chains of this process."""
        rows = range(self.total // self.per_row) if self.ranks is None else self.ranks.own(self.total // self.per_row)
        return range(rows.start * self.per_row, rows.stop * self.per_row)

    def pieces(self) -> list[range]:
        """Returns the chains of this process, as many together as are advanced together."""
        return [range(first, min(first + self.size, self.own.stop)) for first in range(self.own.start, self.own.stop, self.size)]

    def places(self, ids: Sequence[int]) -> list[int]:
        """Returns where chains are among those of this process."""
        return [i - self.own.start for i in ids]

    def start(self, ids: Ids, attempt: int = 0) -> Chunk:
        """Returns chains at their start."""
        noise = self.noise_of(ids, attempt)
        like = self.like.expand(len(ids), *self.like.shape).contiguous()
        if self.init is None:
            x = self.sampler.start(like, noise.child("start"))
        else:
            x = self.init[[i // self.per_row for i in ids]]
        energy = self.energy_of(ids)
        state = self.sampler.init(energy, x, noise)
        per_chain(state)  # raises where the rows do not fit, with one batch as with many
        return Chunk(ids, attempt, energy, noise, state)

    def chunk(self, ids: Ids, attempt: int, state: State) -> Chunk:
        """Returns chains in a state."""
        return Chunk(ids, attempt, self.energy_of(ids), self.noise_of(ids, attempt), state)

    def energy_of(self, ids: Sequence[int]) -> Energy:
        """Returns the energy for some chains, with their rows of bound conditions."""
        if self.per_row == 1:
            return on_rows(self.running, ids, self.total)
        return on_rows(self.running, [i // self.per_row for i in ids], self.total // self.per_row)

    def noise_of(self, ids: Sequence[int], attempt: int) -> Noise:
        """Returns the noise of some chains, another one for each time that they were started again."""
        noise, first = self.noise.child(f"restart {attempt}") if attempt else self.noise, self.noise.chains[0]
        return noise.for_chains(range(ids.start + first, ids.stop + first) if isinstance(ids, range) else tuple(i + first for i in ids))

    def spread(self, parts: Sequence[tuple[Sequence[int], Tensor]], fill: float) -> Tensor:
        """Returns a tensor of the chains of this process, with shape $(m, *)$, of parts with their ids; others hold a filling."""
        own = self.own
        if len(parts) == 1 and len(parts[0][0]) == len(own):
            return parts[0][1]
        out = parts[0][1].new_full((len(own), *parts[0][1].shape[1:]), fill)
        for ids, values in parts:
            out[slice(ids.start - own.start, ids.stop - own.start) if isinstance(ids, range) else self.places(ids)] = values
        return out

    def evidence(self, points: Tensor) -> Tensor:
        """Returns the evidence of the chains of this process at points with shape $(m, *)$."""
        conditions, parts = self.sampler.final_conditions(self.energy), []
        for ids in self.pieces():
            some = points[ids.start - self.own.start : ids.stop - self.own.start]
            rows = {name: some.new_full((len(some),), value) for name, value in conditions.items()}
            parts.append(self.energy_of(ids).evidence(some, **rows))
        return torch.cat(parts)

    def branch_shares(self, points: Tensor, kept: Tensor) -> Tensor | None:
        """Returns the mean share of each branch of a mixture at the points of chains `kept`, with shape $(K,)$; None for another energy."""
        if not isinstance(self.energy, Disjunction) or not len(kept):
            return None
        conditions, parts = self.sampler.final_conditions(self.energy), []
        for ids in kept.split(self.size):
            some = points[(ids - self.own.start).to(points.device)]
            bound = {name: some.new_full((len(some),), value) for name, value in conditions.items()}
            bound[CHAINS] = ids // self.per_row
            parts.append(torch.softmax(-self.energy.branches(some, **bound), 0))
        return torch.cat(parts, 1).mean(1)


def compact(ids: list[int]) -> Ids:
    """Returns consecutive ids as a range."""
    if ids and ids == list(range(ids[0], ids[-1] + 1)):
        return range(ids[0], ids[-1] + 1)
    return tuple(ids)
