"""The layout of a call's chains: their ids, their energy and noise, and the rows of a state that belong to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from composable_energy.conditions import CHAINS
from composable_energy.energy import Energy
from composable_energy.errors import ShapeError
from composable_energy.noise import Noise
from composable_energy.sampling.ranks import Ranks
from composable_energy.sampling.sampler import Info, Sampler, State
from composable_energy.sampling.starts import Starts
from composable_energy.sampling.wrappers import select_rows

S = TypeVar("S", bound=State)


Step = Callable[[Energy, State, Noise], tuple[State, Info]]


@dataclass
class Chunk:
    """Chains that are advanced together.

    Args:
        ids: Their ids.
        energy: The energy of the active ones.
        noise: The noise of the active ones.
        active: The state of the active ones.
        rows: The rows of the active ones among all; None while all are.
        whole: A state of all, in which those that were stopped are at their last finite points; None while all are active.
    """

    ids: range
    energy: Energy
    noise: Noise
    active: State
    rows: Tensor | None = None
    whole: State | None = None

    @property
    def state(self) -> State:
        """The state of all chains; the last finite one of those that were stopped."""
        return self.active if self.whole is None or self.rows is None else _put(self.whole, self.rows, self.active)

    def active_ids(self) -> Tensor:
        """Returns the ids of the active chains, with shape $(k,)$."""
        return self.ids.start + (torch.arange(len(self.ids)) if self.rows is None else self.rows)


@dataclass(frozen=True)
class Layout:
    """The chains of a call, with ids from 0, and what each of them gets.

    Args:
        energy: The energy that the sampler gets, compiled or not.
        sampler: The sampler.
        noise: The noise of all chains at step 0.
        starts: The start points.
        rows: The number of chains of all processes, which is that of the rows of bound conditions.
        batch_size: How many chains are advanced together.
        ranks: The processes that share the chains.
        step: The `step` of the sampler, compiled or not.
    """

    energy: Energy
    sampler: Sampler
    noise: Noise
    starts: Starts
    rows: int
    batch_size: int
    step: Step
    ranks: Ranks | None = None

    @cached_property
    def own(self) -> range:
        """The chains of this process."""
        return range(self.rows) if self.ranks is None else self.ranks.own(self.rows)

    def batches(self) -> list[range]:
        """Returns the chains of this process in batches."""
        starts = range(self.own.start, self.own.stop, self.batch_size)
        return [range(first, min(first + self.batch_size, self.own.stop)) for first in starts]

    def start(self, ids: range) -> Chunk:
        """Returns chains at their start.

        Raises:
            ShapeError: The sampler's state does not have one row for each chain.
        """
        energy, noise = self.energy_of(ids), self.noise_of(ids)
        state = self.sampler.init(energy, self.starts.points(ids, energy, noise), noise)
        _per_chain(state)  # raises where the rows do not fit, with one chunk as with many
        return Chunk(ids, energy, noise, state)

    def chunk(self, ids: range, state: State, active: Tensor) -> Chunk:
        """Returns chains in a state, of which those in a mask with shape $(B,)$ are active."""
        chunk = Chunk(ids, self.energy_of(ids), self.noise_of(ids), state)
        if not active.all():
            self.stop(chunk, active, state)
        return chunk

    def stop(self, chunk: Chunk, others: Tensor, before: State) -> None:
        """Stops active chains of a chunk, all but those in a mask with shape $(k,)$, in their state of before."""
        after, rows = chunk.active, torch.arange(len(chunk.ids)) if chunk.rows is None else chunk.rows
        chunk.active = before
        chunk.whole, chunk.rows = chunk.state, rows[others.cpu()]
        chunk.active, ids = take(after, others), chunk.active_ids()
        chunk.energy, chunk.noise = self.energy_of(ids), self.noise_of(ids)

    def energy_of(self, ids: range | Tensor) -> Energy:
        """Returns the energy of some chains, with their rows of bound conditions."""
        if CHAINS not in self.energy.conditions:
            return self.energy
        return select_rows(self.energy, ids, self.rows)

    def noise_of(self, ids: range | Tensor) -> Noise:
        """Returns the noise of some chains."""
        first = self.noise.chains[0]
        if isinstance(ids, range):
            return self.noise.for_chains(range(ids.start + first, ids.stop + first))
        return self.noise.for_chains((ids + first).tolist())


def take(state: S, rows: Tensor) -> S:
    """Returns some rows of a state, given by their places or by a mask."""
    rows = rows.to(state.x.device)
    return replace(state, **{name: value[rows] for name, value in _per_chain(state).items()})


def join(states: Sequence[S]) -> S:
    """Returns states one after another; shared fields come from the first state."""
    if len(states) == 1:
        return states[0]
    return replace(states[0], **{name: torch.cat([getattr(state, name) for state in states]) for name in _per_chain(states[0])})


def _put(state: S, rows: Tensor, new: S) -> S:
    """Returns a state with other rows in some places; shared fields come from the new one."""
    rows = rows.to(state.x.device)
    return replace(new, **{name: value.index_copy(0, rows, getattr(new, name)) for name, value in _per_chain(state).items()})


def all_finite(*states: State) -> bool:
    """Returns whether points, energies and gradients are finite; where they are it takes one pass and one synchronisation."""
    if states[0].x.dtype in (torch.float32, torch.float64):
        state = join(states)
        products = torch.dot(state.x.reshape(-1), state.grad.reshape(-1))  # as in `finite_sums`
        if math.isfinite(products.add_(state.energy.sum()).item()):
            return True
    return all(bool(finite_rows(state).all()) for state in states)


def finite_sums(state: State) -> Tensor:
    """Returns numbers with shape $(B,)$, finite only for chains whose point, energy and gradient are; large ones may overflow."""
    dtype = torch.promote_types(state.x.dtype, torch.float32)
    products = state.x.to(dtype) * state.grad.to(dtype)  # 0 times infinity is not finite either
    return products.reshape(len(products), -1).sum(1) + state.energy.to(dtype)


def finite_rows(state: State) -> Tensor:
    """Returns which chains have a finite point, energy and gradient, with shape $(B,)$."""
    both = state.x.isfinite() & state.grad.isfinite()
    return both.flatten(1).all(1) & state.energy.isfinite() if both.ndim > 1 else both & state.energy.isfinite()


def _per_chain(state: State) -> dict[str, Tensor]:
    """Returns the tensors of a state that have one row for each chain.

    Raises:
        ShapeError: A tensor has another number of rows, and is not declared as shared.
    """
    found, count = {}, len(state.x)
    for field in fields(state):
        value = getattr(state, field.name)
        if not isinstance(value, Tensor) or not value.ndim or not field.metadata.get("per_chain", True):
            continue
        if len(value) != count:
            raise ShapeError(
                f"{type(state).__name__}.{field.name} has shape {tuple(value.shape)} in a state of {count} chains: a tensor has one row "
                f"for each chain. If all chains share it, write `{field.name}: Tensor = field(metadata={{'per_chain': False}})`."
            )
        found[field.name] = value
    return found
