"""Running moments of the points of chains, without a trace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy.sampling.chains import Observer

if TYPE_CHECKING:
    from composable_energy.sampling.chains import Chains
    from composable_energy.sampling.sampler import Info, State

BUFFERED_NUMBERS, BUFFERED_STEPS = 65_536, 32  # several steps are added at once, as small operations cost more than small energies


class Moments:
    """The number, the mean, and the sum of squares about it, of tensors that are added several at a time (Chan et al., 1979)."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = self.square = torch.empty(0)

    def add(self, values: Tensor) -> None:
        """Adds tensors, stacked along the first axis."""
        mean = values.mean(0)
        self.merge(len(values), mean, (values - mean).square().sum(0))

    def merge(self, count: int, mean: Tensor, square: Tensor) -> None:
        """Adds the tensors of other moments."""
        if before := self.count:
            shift, total = mean - self.mean, before + count
            mean = self.mean + shift * (count / total)
            square = self.square + square + shift.square() * (before * count / total)
        self.count, self.mean, self.square = before + count, mean, square


class RunningMoments(Observer):
    r"""Running mean and variance of the points of all chains: an observer of `sample`.

    They are exact (Chan et al., 1979), and computed in float64 (float32 on devices without it), on the device of the points, several steps
    at once, without synchronization. Chains that diverge count until then. To continue a run, pass the same object again.

    Args:
        burn_in: The number of steps before points count.
        every: Only every so many steps count.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> moments = ce.sampling.RunningMoments(burn_in=20)
        >>> _ = bowl.sample((500, 2), steps=100, seed=0, observers=[moments])
        >>> moments
        RunningMoments(40000 points of shape (2,))

    References:
        Updating formulae and a pairwise algorithm for computing sample variances (Chan et al., 1979),
        http://i.stanford.edu/pub/cstr/reports/cs/tr/79/773/CS-TR-79-773.pdf
    """

    def __init__(self, *, burn_in: int = 0, every: int = 1) -> None:
        self.burn_in = check_integer("burn_in", burn_in, least=0)
        self.every = check_integer("every", every)
        self.event: tuple[int, ...] | None = None
        self._moments = Moments()  # of the energy, and of coordinates
        self._buffer: list[tuple[Tensor, Tensor]] = []

    def on_step(self, chains: Chains, info: Info) -> None:
        if chains.active:
            self.add(chains.step, chains.visible_state())

    def add(self, step: int, state: State) -> None:
        """Adds the points of a step."""
        if step <= self.burn_in or (step - self.burn_in) % self.every or not len(state.x):
            return
        event = tuple(state.x.shape[1:])
        if self.event not in (None, event):
            raise ShapeError(f"These are the moments of points of shape {self.event}, got {event}; make new ones.")
        self.event = event
        self._buffer.append((state.x, state.energy))  # without the gradient, whose memory is reused
        if len(self._buffer) >= min(BUFFERED_STEPS, max(1, BUFFERED_NUMBERS // state.x.numel())):
            self._flush()

    @property
    def count(self) -> int:
        """The number of points."""
        return self._flush().count

    @property
    def mean(self) -> Tensor:
        """The mean, with the shape of a point."""
        return self._known().mean[1:].reshape(self.event or ())

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with the shape of a point."""
        return (self._known().square[1:] / (self.count - 1)).reshape(self.event or ())

    @property
    def energy_mean(self) -> float:
        """The mean of the energies."""
        return self._known().mean[0].item()

    @property
    def energy_variance(self) -> float:
        """The variance of the energies."""
        return self._known().square[0].item() / (self.count - 1) if self.count > 1 else math.nan

    def merge(self, other: RunningMoments) -> RunningMoments:
        """Returns the moments of the points of both, such as those of two processes with different chains.

        Raises:
            ShapeError: The shapes of points differ.
        """
        if self.event is not None and other.event not in (None, self.event):
            raise ShapeError(f"Moments of points of shape {self.event} do not go with those of points of shape {other.event}.")
        both, added = RunningMoments(), other._flush()
        both.load_state_dict((other if self.event is None else self).state_dict())
        if self.event is not None and added.count:
            device = both._moments.mean.device
            both._moments.merge(added.count, added.mean.to(device), added.square.to(device))
        return both

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, for `load_state_dict` and `torch.save`."""
        moments = self._flush()
        own = {"burn_in": self.burn_in, "every": self.every, "event": self.event, "count": moments.count}
        return {**own, "mean": moments.mean.clone(), "square": moments.square.clone()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads the result of `state_dict`."""
        self._buffer, self._moments = [], Moments()
        self.burn_in, self.every, self.event = state["burn_in"], state["every"], state["event"]
        self._moments.merge(state["count"], state["mean"].clone(), state["square"].clone())

    def __repr__(self) -> str:
        return f"RunningMoments({self.count} points" + (f" of shape {self.event})" if self.event is not None else ")")

    def _flush(self) -> Moments:
        """Adds the buffered points, and returns the moments."""
        if self._buffer:
            dtype = torch.float32 if self._buffer[0][0].device.type == "mps" else torch.float64
            rows = [torch.cat([energy[:, None].to(dtype), x.reshape(len(x), -1).to(dtype)], 1) for x, energy in self._buffer]
            self._moments.add(torch.cat(rows))
            self._buffer = []
        return self._moments

    def _known(self) -> Moments:
        if self.event is None:
            raise OptionError(f"No point was counted yet: take more than burn_in={self.burn_in} steps, with this as an observer.")
        return self._flush()
