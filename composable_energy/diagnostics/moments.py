"""Running moments of the points of chains, without a trace."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer

if TYPE_CHECKING:
    from composable_energy.sampling.sampler import Info, State

_BUFFERED_NUMBERS, _BUFFERED_STEPS = 65_536, 32  # several steps are added at once, as small operations cost more than small energies
_FIELDS = ("burn_in", "every", "chains", "count", "event")
_TENSORS = ("_mean", "_square", "_energy_mean", "_energy_square", "_counts", "_ids")


class RunningMoments:
    r"""Running mean and variance of the points of all chains: a `callback` of `sample`.

    After $n$ points with mean $\mu$ and sum of squares $S$ about it, $b$ more points with $y_i = x_i - \mu$ change them to
    $\mu + \sum_i y_i / (n + b)$ and $S + \sum_i y_i^2 - (\sum_i y_i)^2 / (n + b)$, exactly (Welford, 1962; Chan et al., 1979). This is
    computed in float64 (float32 on devices without it), on the device of the points, several steps at once, without synchronization.

    Chains that diverge count until then. To continue a run, pass the same object again.

    Args:
        burn_in: The number of steps before points count.
        every: Only every so many steps count.
        chains: Whether to keep the moments of each chain, too; they give a standard error and an R-hat, and need as much memory as four
            copies of the points.

    Example:
        >>> import torch, composable_energy as ce
        >>> bowl = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        >>> moments = ce.diagnostics.RunningMoments(burn_in=20)
        >>> _ = bowl.sample((500, 2), steps=100, seed=0, callback=moments)
        >>> moments
        RunningMoments(40000 points of shape (2,))

    References:
        Note on a method for calculating corrected sums of squares and products (Welford, 1962),
        https://doi.org/10.1080/00401706.1962.10490022
    """

    def __init__(self, *, burn_in: int = 0, every: int = 1, chains: bool = False) -> None:
        self.burn_in = check_integer("burn_in", burn_in, least=0)
        self.every = check_integer("every", every)
        self.chains = chains
        self.count = 0
        self.event: tuple[int, ...] | None = None
        self._buffer: list[tuple[Tensor, Tensor]] = []
        self._rows: slice | Tensor = slice(None)
        self._mean = self._square = self._energy_mean = self._energy_square = self._counts = self._ids = torch.empty(0)

    def __call__(self, step: int, state: State, info: Info) -> None:
        """Adds the points of a step."""
        if step <= self.burn_in or (step - self.burn_in) % self.every or not len(state.x):
            return
        if self._buffer and len(self._buffer[0][0]) != len(state.x):
            self._flush()
        if self.event is None:
            self._initialize(state)
        elif self.event != tuple(state.x.shape[1:]):
            raise ShapeError(f"These are the moments of points of shape {self.event}, got {tuple(state.x.shape[1:])}; make new ones.")
        if not self._buffer:
            self._rows = self._rows_of(len(state.x), info)
        self.count += len(state.x)
        self._buffer.append((state.x, state.energy))  # without the gradient, whose memory is reused
        if len(self._buffer) >= min(_BUFFERED_STEPS, max(1, _BUFFERED_NUMBERS // state.x.numel())):
            self._flush()

    # Results --------------------------------------------------------------------------------------------------------------------------

    @property
    def mean(self) -> Tensor:
        """The mean, with the shape of a point."""
        return self._pooled()[0].reshape(self._event())

    @property
    def variance(self) -> Tensor:
        """The variance of each coordinate, with the shape of a point."""
        return (self._pooled()[1] / (self.count - 1)).reshape(self._event())

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

    @property
    def chain_means(self) -> Tensor:
        """The mean of each chain with all steps, with shape $(m, *)$."""
        return self._whole()[0].reshape(-1, *self._event())

    @property
    def chain_variances(self) -> Tensor:
        """The variance of each chain with all steps, with shape $(m, *)$."""
        return self._whole()[1].reshape(-1, *self._event())

    @property
    def standard_error(self) -> Tensor:
        """The standard error of the mean, with the shape of a point, from the means of independent chains."""
        means = self.chain_means
        return means.std(0) / math.sqrt(len(means))

    @property
    def r_hat(self) -> Tensor:
        """The R-hat of Gelman and Rubin (1992), with the shape of a point; without splitting chains or ranking values."""
        within, between, steps = self.chain_variances.mean(0), self.chain_means.var(0), self._counts.max()
        return ((steps - 1) / steps + between / within).sqrt()

    # Merging and saving ---------------------------------------------------------------------------------------------------------------

    def merge(self, other: RunningMoments) -> RunningMoments:
        """Returns the moments of the points of both, such as those of two processes with different chains.

        Raises:
            ShapeError: The shapes of points differ.
            OptionError: Only one of them has the moments of each chain.
        """
        if self.chains != other.chains:
            raise OptionError("One of these has the moments of each chain, the other has not: give both the same `chains`.")
        self._flush()
        other._flush()
        if other.event is None or self.event is None:
            return _copy(self if other.event is None else other)
        if self.event != other.event:
            raise ShapeError(f"Moments of points of shape {self.event} do not go with those of points of shape {other.event}.")
        both, total = _copy(self), self.count + other.count
        pairs = [("_energy_mean", "_energy_square")] + [("_mean", "_square")] * (not self.chains)
        for mean, square in pairs:
            shift = getattr(other, mean).to(self._mean.device) - getattr(self, mean)
            setattr(both, mean, getattr(self, mean) + shift * (other.count / total))
            between = shift.square() * (self.count * (other.count / total))
            setattr(both, square, getattr(self, square) + getattr(other, square).to(self._mean.device) + between)
        if self.chains:
            for name in ("_mean", "_square", "_counts"):
                setattr(both, name, torch.cat([getattr(self, name), getattr(other, name).to(self._mean.device)]))
            both._ids = torch.arange(len(both._mean))
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
        first = state.x.reshape(len(state.x), -1).to(dtype, copy=True)  # sums about a point lose no digits
        self.event = tuple(state.x.shape[1:])
        self._mean = first if self.chains else first[0].clone()
        self._square = torch.zeros_like(self._mean)
        self._energy_mean = state.energy[0].to(dtype, copy=True)
        self._energy_square = torch.zeros_like(self._energy_mean)

    def _rows_of(self, chains: int, info: Info) -> slice | Tensor:
        """Returns the rows of the current chains among all chains."""
        if not self.chains:
            return slice(None)
        if not len(self._counts):
            self._counts = self._mean.new_zeros((chains, 1))
            self._ids = torch.arange(chains) if info.chains is None else torch.tensor(info.chains)
        if chains == len(self._counts):
            return slice(None)
        if info.chains is None:
            raise OptionError(f"There were {len(self._counts)} chains, now there are {chains}: a new run takes new RunningMoments.")
        return torch.searchsorted(self._ids, torch.tensor(info.chains)).to(self._mean.device)

    def _flush(self) -> None:
        """Adds the buffered points."""
        if not self._buffer:
            return
        buffer, self._buffer = self._buffer, []
        steps, chains = len(buffer), len(buffer[0][0])
        x = torch.stack([x.reshape(-1) for x, _ in buffer])
        energies = torch.stack([energy for _, energy in buffer]).reshape(-1).to(self._mean.dtype, copy=True)
        _add(self._energy_mean, self._energy_square, *_sums(energies, self._energy_mean), self.count)
        if not self.chains:
            sums = _sums(x.to(self._mean.dtype, copy=True), self._mean.repeat(chains))
            first, second = (some.view(chains, -1).sum(0) for some in sums)
            _add(self._mean, self._square, first, second, self.count)
            return
        counts, mean, square = (some[self._rows] for some in (self._counts, self._mean, self._square))
        counts = counts + steps
        _add(mean, square, *_sums(x.view(steps, chains, -1).to(mean.dtype, copy=True), mean), counts)
        self._counts[self._rows], self._mean[self._rows], self._square[self._rows] = counts, mean, square

    def _event(self) -> tuple[int, ...]:
        self._flush()
        if self.event is None:
            raise OptionError(f"No point was counted yet: take more than burn_in={self.burn_in} steps, with this as the `callback`.")
        return self.event

    def _pooled(self) -> tuple[Tensor, Tensor]:
        self._event()
        if not self.chains:
            return self._mean, self._square
        mean = (self._counts * self._mean).sum(0) / self.count
        return mean, self._square.sum(0) + (self._counts * (self._mean - mean).square()).sum(0)

    def _whole(self) -> tuple[Tensor, Tensor]:
        self._event()
        if not self.chains:
            raise OptionError("Moments of single chains need RunningMoments(chains=True).")
        whole = (self._counts == self._counts.max()).squeeze(1)
        return self._mean[whole], self._square[whole] / (self._counts[whole] - 1)


def _sums(x: Tensor, mean: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the sums of differences from a mean, and of their squares, over the first axis; in place."""
    y = x.sub_(mean)
    return y.sum(0), y.square_().sum(0)


def _add(mean: Tensor, square: Tensor, first: Tensor, second: Tensor, total: int | Tensor) -> None:
    """Updates a mean and a sum of squares about it in place, given the sums of new numbers and the new total."""
    change = first / total
    mean.add_(change)
    square.add_(second).sub_(change.mul_(first))


def _copy(moments: RunningMoments) -> RunningMoments:
    copied = RunningMoments()
    copied.load_state_dict(moments.state_dict())
    return copied
