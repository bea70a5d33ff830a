r"""A replay buffer: chains that continue from one training step to the next, for persistent contrastive divergence.

The $S$ slots are divided into one *lane* for each of the $B$ rows of a batch: row $i$ owns the slots from $\lfloor iS/B \rfloor$ up to
$\lfloor (i+1)S/B \rfloor$. So no slot is drawn twice in a batch or shared by processes, and chains do not depend on their number.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from torch import Tensor

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import FileFormatError, OptionError, ShapeError
from composable_energy.options import check_number
from composable_energy.sampling import Noise
from composable_energy_training.objective import RankContext

Start = Literal["uniform", "normal"] | Callable[[Tensor, Noise], Tensor]

_CHUNK = 128  # slots: keyed noise needs several words of memory for each number
_NEIGHBORS_AT_ONCE = 8


class ReplayBuffer:
    r"""Slots with one chain each, on the model's device; the slots of this process.

    A chain that is drawn from a slot is written back to the same slot, so no chain is lost or duplicated.

    Args:
        capacity: The number of slots $S$, at least the batch size; 10,000 pictures of 3 x 32 x 32 take 123 MB of float32.
        context: The part of the run that this process computes.
        start: `"uniform"` on $[0, 1]$, `"normal"`, or a function of (like, noise) to points like `like`. All slots hold starts at first.
        fresh: The probability that a row gets a new start instead of its slot's chain.
        augment: A function of (points, noise) that is applied to chains when they are drawn, such as an `Augmentation`.

    Raises:
        OptionError: The capacity is below the batch size, `fresh` is not a probability, or the start is unknown.
    """

    def __init__(
        self,
        capacity: int,
        context: RankContext,
        start: Start,
        *,
        fresh: float = 0.05,
        augment: Callable[[Tensor, Noise], Tensor] | None = None,
    ) -> None:
        if capacity < context.batch_size:
            raise OptionError(f"A buffer needs a slot for each row of a batch: capacity is {capacity}, batch size {context.batch_size}.")
        if check_number("fresh", fresh, least=0) > 1:
            raise OptionError(f"fresh is a probability and must be in [0, 1], got {fresh}.")
        self.capacity, self.context, self.fresh, self.augment = capacity, context, fresh, augment
        self._start = resolve_start(start)
        self.slot_range = range(self._lane(context.rows.start), self._lane(context.rows.stop))
        root = Noise(context.seed, self.slot_range).child("replay")
        self._slots = torch.empty(len(self.slot_range), *context.event_shape, dtype=context.dtype, device=context.device)
        for i in range(0, len(self.slot_range), _CHUNK):
            self._slots[i : i + _CHUNK] = self.starts(root.for_chains(self.slot_range[i : i + _CHUNK]))

    def draw(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Draws a slot of each row's lane uniformly; returns its number over all processes, and the point of its chain."""
        low, size = self._lanes(noise)
        like = self._slots.new_empty(len(low))
        slots = low + (noise.child("slot").uniform(like) * size).long().clamp_max(size - 1)
        x = self._slots.index_select(0, slots - self.slot_range.start)
        if self.augment is not None:
            x = self.augment(x, noise.child("augment"))
        if self.fresh:
            x = torch.where(unsqueeze_to(noise.child("fresh").uniform(like) < self.fresh, x), self.starts(noise.child("start")), x)
        return slots, x

    def write(self, slots: Tensor, x: Tensor) -> None:
        """Writes chains to slots that `draw` returned, in place."""
        self._slots.index_copy_(0, slots - self.slot_range.start, x.detach().to(self._slots.dtype))

    def starts(self, noise: Noise) -> Tensor:
        """Draws starts for the chains of a noise.

        Raises:
            ShapeError: The start function returns another shape.
        """
        like = torch.zeros(len(noise.chains), *self.context.event_shape, dtype=self.context.dtype, device=self.context.device)
        return draw_starts(self._start, like, noise)

    def nearest(self, x: Tensor, slots: Tensor, noise: Noise, among: int = 100) -> Tensor:
        """Returns the nearest chain to each point, among some other chains of its row's lane, or all if there are fewer.

        Raises:
            OptionError: A lane has no other slot.
        """
        low, size = self._lanes(noise)
        others = -(-self.capacity // self.context.batch_size) - 1
        if self.capacity < 2 * self.context.batch_size:
            raise OptionError(f"To compare chains a buffer needs two slots a row, has {self.capacity} for {self.context.batch_size} rows.")
        x = x.detach()
        first = (noise.child("neighbors").uniform(self._slots.new_empty(len(low))) * (size - 1)).long()
        best, distance = x, torch.full((len(x), 1), torch.inf, device=x.device)
        for offsets in torch.arange(min(among, others), device=x.device).split(_NEIGHBORS_AT_ONCE):
            lane = ((slots - low)[:, None] + (1 + (first[:, None] + offsets) % (size - 1)[:, None])) % size[:, None]
            neighbors = self._slots[low[:, None] + lane - self.slot_range.start]
            smallest, index = (neighbors - x[:, None]).flatten(2).square().sum(2).min(1, keepdim=True)
            closer = unsqueeze_to(smallest < distance, x)
            best = torch.where(closer, neighbors[torch.arange(len(x), device=x.device), index[:, 0]], best)
            distance = torch.minimum(smallest, distance)
        return best

    def state(self) -> Mapping[str, Tensor]:
        """Returns the slots of this process, without a copy; there is no other state, since all randomness is keyed."""
        return {"slots": self._slots}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Loads this process's share of the slots of all processes.

        Raises:
            FileFormatError: The slots have another shape.
        """
        slots, expected = state.get("slots"), (self.capacity, *self.context.event_shape)
        if slots is None or tuple(slots.shape) != expected:
            got = "none" if slots is None else f"slots of shape {tuple(slots.shape)}"
            raise FileFormatError(f"A replay buffer of shape {expected} cannot resume from {got}: use the settings of the run.")
        self._slots.copy_(slots[self.slot_range.start : self.slot_range.stop])

    def _lane(self, row: int) -> int:
        return row * self.capacity // self.context.batch_size

    def _lanes(self, noise: Noise) -> tuple[Tensor, Tensor]:
        """Returns the first slot and the size of each row's lane."""
        chains, rows = noise.chains, self.context.rows
        if chains and not (rows.start <= min(chains) and max(chains) < rows.stop):
            raise OptionError(f"This process has the rows {rows.start} to {rows.stop - 1}, got those from {min(chains)} to {max(chains)}.")
        low = torch.tensor([self._lane(row) for row in chains], device=self._slots.device)
        return low, torch.tensor([self._lane(row + 1) for row in chains], device=self._slots.device) - low


def resolve_start(start: Start) -> Callable[[Tensor, Noise], Tensor]:
    """Returns the function that draws starts."""
    if start == "uniform":
        return lambda like, noise: torch.special.ndtr(noise.normal(like))
    if start == "normal":
        return lambda like, noise: noise.normal(like)
    if not callable(start):
        raise OptionError(f"start must be 'uniform', 'normal' or a function of (like, noise), got {start!r}.")
    return start


def draw_starts(start: Callable[[Tensor, Noise], Tensor], like: Tensor, noise: Noise) -> Tensor:
    """Draws starts with the shape, dtype and device of given points."""
    if (points := start(like, noise)).shape != like.shape:
        raise ShapeError(f"start must return points of shape {tuple(like.shape)}, got {tuple(points.shape)}.")
    return points.detach().to(like)
