r"""A replay buffer: chains that go on from step to step of training, as persistent contrastive divergence needs them.

The $S$ slots are cut into one *lane* for each of the $B$ rows of a batch: row $i$ owns the slots from $\lfloor iS/B \rfloor$ up to
$\lfloor (i+1)S/B \rfloor$. So no slot is drawn twice in a batch, processes that share a batch share no slot, and the same chains come out
whatever their number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy.noise import Noise
from composable_energy_training.objective import Place

__all__ = ["ReplayBuffer", "Start", "fresh_points", "start_of"]

Start = Literal["uniform", "normal"] | Callable[[Tensor, Noise], Tensor]

_AT_ONCE = 128  # slots: keyed noise takes several words for each number
_FEW = 8


class ReplayBuffer:
    r"""Slots that hold a chain each, on the model's device; those of this process.

    What is drawn from a slot goes back to that slot, so that no chain is lost and none is doubled: with a sampler that does not move,
    and no fresh starts, the chains are the same after any number of steps.

    Args:
        capacity: $S$, at least the size of a batch; 10,000 pictures of 3 x 32 x 32 take 123 MB of float32.
        place: Where this process stands in the run.
        start: `"uniform"` on $[0, 1]$, `"normal"`, or a function of (like, noise) that returns points with the shape of `like`. Every slot
            holds one at the beginning.
        fresh: The probability with which a row gets a new start in place of its slot's chain.
        augment: What is done to a chain before it goes on, such as an `Augmentation`; a function of (points, noise).

    Raises:
        OptionError: The capacity is below the size of a batch, `fresh` is no probability, or the start is unknown.
    """

    def __init__(
        self,
        capacity: int,
        place: Place,
        start: Start,
        *,
        fresh: float = 0.05,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
    ) -> None:
        if capacity < place.batch_size:
            raise OptionError(
                f"A buffer needs a slot for each row of a batch: its capacity is {capacity}, the batch size {place.batch_size}."
            )
        if not 0 <= fresh <= 1:
            raise OptionError(f"fresh is a probability, got {fresh}.")
        self.capacity, self.place, self.fresh, self.augment = capacity, place, fresh, augment
        self._start = start_of(start)
        self.own = range(self._lane(place.rows.start), self._lane(place.rows.stop))
        root = Noise(place.seed, self.own).child("replay")
        self._slots = torch.empty(len(self.own), *place.event_shape, dtype=place.dtype, device=place.device)
        for i in range(0, len(self.own), _AT_ONCE):
            self._slots[i : i + _AT_ONCE] = self.starts(root.for_chains(self.own[i : i + _AT_ONCE]))

    def draw(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draws a slot of each row's lane, with equal probability, and returns where its chain goes on.

        Args:
            noise: The noise of rows of this process at a step of training.

        Returns:
            The slots, counted over all processes, with shape $(B,)$, and the points, with shape $(B, *)$.
        """
        low, size = self._lanes(noise)
        like = self._slots.new_empty(len(low))
        slots = low + (noise.child("slot").uniform(like) * size).long().clamp_max(size - 1)
        x = self._slots.index_select(0, slots - self.own.start)
        if self.augment is not None:
            x = self.augment(x, noise.child("augment"))
        if self.fresh:
            new = noise.child("fresh").uniform(like) < self.fresh
            x = torch.where(new.view(-1, *[1] * (x.ndim - 1)), self.starts(noise.child("start")), x)
        return slots, x

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Puts chains into slots, in place; nothing else holds on to the old ones.

        Args:
            slots: As `draw` returned them.
            x: The points, with shape $(B, *)$.
        """
        self._slots.index_copy_(0, slots - self.own.start, x.detach().to(self._slots.dtype))

    def starts(self, noise: Noise) -> Tensor:
        """Returns fresh starts for the chains of a noise.

        Raises:
            ShapeError: The function that makes them returns another shape.
        """
        like = torch.zeros(len(noise.chains), *self.place.event_shape, dtype=self.place.dtype, device=self.place.device)
        return fresh_points(self._start, like, noise)

    def nearest(self, x: Tensor, slots: Tensor, noise: Noise, among: int = 100) -> Tensor:
        """Returns the chains that are nearest to points, each among some of its row's lane without the point's own slot.

        Args:
            x: The points, with shape $(B, *)$.
            slots: Where their chains were drawn, with shape $(B,)$.
            noise: The noise of these rows, which says among which.
            among: Among how many, or all others of the lane if there are fewer.

        Raises:
            OptionError: A lane has no other slot.
        """
        low, size = self._lanes(noise)
        others = -(-self.capacity // self.place.batch_size) - 1
        if self.capacity < 2 * self.place.batch_size:
            raise OptionError(
                f"Chains are compared with others of their lane: the buffer needs two slots for each row, has {self.capacity} slots for "
                f"{self.place.batch_size} rows."
            )
        x = x.detach()
        first = (noise.child("neighbors").uniform(self._slots.new_empty(len(low))) * (size - 1)).long()
        best, distance = x, torch.full((len(x), 1), torch.inf, device=x.device)
        for turns in torch.arange(min(among, others), device=x.device).split(_FEW):
            away = 1 + (first[:, None] + turns) % (size - 1)[:, None]
            lane = ((slots - low)[:, None] + away) % size[:, None]
            some = self._slots[low[:, None] + lane - self.own.start]
            far = (some - x[:, None]).flatten(2).square().sum(2)
            least, at = far.min(1, keepdim=True)
            closer = (least < distance).view(-1, *[1] * (x.ndim - 1))
            best = torch.where(closer, some[torch.arange(len(x), device=x.device), at[:, 0]], best)
            distance = torch.minimum(least, distance)
        return best

    def state(self) -> Mapping[str, Tensor]:
        """Returns the slots of this process themselves, no copy.

        All randomness is keyed by the run's seed, row and step, so there is nothing else to keep.
        """
        return {"slots": self._slots}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Takes over this process's share of the slots of all.

        Raises:
            FileFormatError: There are other slots than these.
        """
        slots, expected = state.get("slots"), (self.capacity, *self.place.event_shape)
        if slots is None or tuple(slots.shape) != expected:
            got = "none" if slots is None else f"slots of shape {tuple(slots.shape)}"
            raise FileFormatError(f"A replay buffer of shape {expected} cannot go on from {got}: resume with the settings of the run.")
        self._slots.copy_(slots[self.own.start : self.own.stop])

    def _lane(self, row: int) -> int:
        return row * self.capacity // self.place.batch_size

    def _lanes(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """The first slot and the size of each row's lane."""
        chains, rows = noise.chains, self.place.rows
        if chains and not (rows.start <= min(chains) and max(chains) < rows.stop):
            raise OptionError(f"This process has the rows {rows.start} to {rows.stop - 1}, got those from {min(chains)} to {max(chains)}.")
        low = torch.tensor([self._lane(row) for row in chains], device=self._slots.device)
        high = torch.tensor([self._lane(row + 1) for row in chains], device=self._slots.device)
        return low, high - low


def start_of(start: Start) -> Callable[[Tensor, Noise], Tensor]:
    """Returns the function that draws starts.

    Raises:
        OptionError: There is none such.
    """
    if start == "uniform":
        return lambda like, noise: torch.special.ndtr(noise.normal(like))
    if start == "normal":
        return lambda like, noise: noise.normal(like)
    if not callable(start):
        raise OptionError(f"start is 'uniform', 'normal' or a function of (like, noise), got {start!r}.")
    return start


def fresh_points(start: Callable[[Tensor, Noise], Tensor], like: Tensor, noise: Noise) -> Tensor:
    """Returns starts with the shape, dtype and device of points.

    Raises:
        ShapeError: The function returns another shape.
    """
    points = start(like, noise)
    if points.shape != like.shape:
        raise ShapeError(f"start must return points of shape {tuple(like.shape)}, got {tuple(points.shape)}.")
    return points.detach().to(like)
