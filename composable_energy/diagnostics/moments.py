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

_BUFFERED_NUMBERS, _BUFFERED_STEPS = 65_536, 32  # several steps are added at once, as small operations cost more than small energies
_FIELDS = ("burn_in", "every", "count", "event")
_TENSORS = ("_mean", "_square", "_energy_mean", "_energy_square")


class RunningMoments(Observer):
    r"""Running mean and variance of the points of all chains: an observer of `sample`.

    After $n$ points with mean $\mu$ and sum of squares $S$ about it, $b$ more points with $y_i = x_i - \mu$ change them to
    $\mu + \sum_i y_i / (n + b)$ and $S + \sum_i y_i^2 - (\sum_i y_i)^2 / (n + b)$, exactly (Welford, 1962; Chan et al., 1979). This is
    computed in float64 (float32 on devices without it), on the device of the points, several steps at once, without synchronization.

    Chains that diverge count until then. To continue a run, pass the same object again.

    Args:
        burn_in: The number of steps before points count.
        every: Only every so many steps count.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> moments = ce.diagnostics.RunningMoments(burn_in=20)
        >>> _ = bowl.sample((500, 2), steps=100, seed=0, observers=[moments])
        >>> moments
        RunningMoments(40000 points of shape (2,))

    References:
        Note on a method for calculating corrected sums of squares and products (Welford, 1962),
        https://doi.org/10.1080/00401706.1962.10490022
    """

    def __init__(self, *, burn_in: int = 0, every: int = 1) -> None:
        self.burn_in = check_integer("burn_in", burn_in, least=0)
        self.every = check_integer("every", every)
        self.count = 0
        self.event: tuple[int, ...] | None = None
        self._buffer: list[tuple[Tensor, Tensor]] = []
        self._mean = self._square = self._energy_mean = self._energy_square = torch.empty(0)

    def on_step(self, chains: Chains, info: Info) -> None:
        if chains.active:
            self.add(chains.step, chains.visible_state())

    def add(self, step: int, state: State) -> None:
        """Adds the points of a step."""
        if step <= self.burn_in or (step - self.burn_in) % self.every or not len(state.x):
            return
        if self.event is None:
            self._initialize(state)
        elif self.event != tuple(state.x.shape[1:]):
            raise ShapeError(f"These are the moments of points of shape {self.event}, got {tuple(state.x.shape[1:])}; make new ones.")
        self.count += len(state.x)
        self._buffer.append((state.x, state.energy))  # without the gradient, whose memory is reused
        if len(self._buffer) >= min(_BUFFERED_STEPS, max(1, _BUFFERED_NUMBERS // state.x.numel())):
            self._flush()

    # Results --------------------------------------------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """The mean, with the shape of a point."""
        return self._mean.reshape(self._event())

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with the shape of a point."""
        return (self._square / (self.count - 1)).reshape(self._event())

    @property
    def energy_mean(self) -> float:
        """The mean of the energies."""
        self._event()
        return self._energy_mean.item()

    @property
    def energy_variance(self) -> float:
        """The variance of the energies."""
        self._event()
        return self._energy_square.item() / (self.count - 1) if self.count > 1 else math.nan

    # Merging and saving ---------------------------------------------------------------------------------------------------------------

    def merge(self, other: RunningMoments) -> RunningMoments:
        """Returns the moments of the points of both, such as those of two processes with different chains.

        Raises:
            ShapeError: The shapes of points differ.
        """
        self._flush()
        other._flush()
        if other.event is None or self.event is None:
            return _copy(self if other.event is None else other)
        if self.event != other.event:
            raise ShapeError(f"Moments of points of shape {self.event} do not go with those of points of shape {other.event}.")
        both, total = _copy(self), self.count + other.count
        for mean, square in (("_energy_mean", "_energy_square"), ("_mean", "_square")):
            shift = getattr(other, mean).to(self._mean.device) - getattr(self, mean)
            setattr(both, mean, getattr(self, mean) + shift * (other.count / total))
            between = shift.square() * (self.count * (other.count / total))
            setattr(both, square, getattr(self, square) + getattr(other, square).to(self._mean.device) + between)
        both.count = total
        return both

    def state_dict(self) -> dict[str, Any]:
        """Returns the state, for `load_state_dict` and `torch.save`."""
        self._flush()
        return {**{name: getattr(self, name) for name in _FIELDS}, **{name: getattr(self, name).clone() for name in _TENSORS}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads the result of `state_dict`."""
        self._buffer = []
        for name in _FIELDS:
            setattr(self, name, state[name])
        for name in _TENSORS:
            setattr(self, name, state[name].clone())

    def __repr__(self) -> str:
        return f"RunningMoments({self.count} points" + (f" of shape {self.event})" if self.event is not None else ")")

    # Updates --------------------------------------------------------------------------------------------------------------------------

    def _initialize(self, state: State) -> None:
        dtype = torch.float32 if state.x.device.type == "mps" else torch.float64
        self.event = tuple(state.x.shape[1:])
        self._mean = state.x[0].reshape(-1).to(dtype, copy=True)  # sums about a point lose no digits
        self._square = torch.zeros_like(self._mean)
        self._energy_mean = state.energy[0].to(dtype, copy=True)
        self._energy_square = torch.zeros_like(self._energy_mean)

    def _flush(self) -> None:
        """Adds the buffered points."""
        if not self._buffer:
            return
        buffer, self._buffer = self._buffer, []
        x = torch.cat([x.reshape(len(x), -1) for x, _ in buffer])
        _add(self._mean, self._square, x, self.count)
        _add(self._energy_mean, self._energy_square, torch.cat([energy for _, energy in buffer]), self.count)

    def _event(self) -> tuple[int, ...]:
        self._flush()
        if self.event is None:
            raise OptionError(f"No point was counted yet: take more than burn_in={self.burn_in} steps, with this as the `callback`.")
        return self.event


def _add(mean: Tensor, square: Tensor, x: Tensor, total: int) -> None:
    """Updates a mean and a sum of squares about it in place, given new rows, which are overwritten, and the new total."""
    y = x.to(mean.dtype).sub_(mean)
    first = y.sum(0)
    change = first / total
    mean.add_(change)
    square.add_(y.square_().sum(0)).sub_(change.mul_(first))


def _copy(moments: RunningMoments) -> RunningMoments:
    copied = RunningMoments()
    copied.load_state_dict(moments.state_dict())
    return copied
