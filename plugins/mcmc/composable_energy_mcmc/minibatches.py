"""Energies of many rows of data, whose gradient is estimated from some of them at each step: `minibatched`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from composable_energy import Energy, as_energy
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_integer
from composable_energy_mcmc.langevin import Descent

_CHUNK = 65_536  # rows of which a sum over all is evaluated together


class Minibatched(Energy):
    r"""The energy $\sum_i f(x, \text{row}_i)$, whose gradient is estimated from a minibatch; see `minibatched`. It has no value."""

    has_value = False
    center: Tensor
    total: Tensor

    def __init__(self, function: Callable[..., Tensor], data: Sequence[Tensor], size: int, center: Tensor) -> None:
        super().__init__()
        self.function, self.size, self.count, self.columns = function, size, len(data[0]), len(data)
        order = torch.randperm(self.count, generator=torch.Generator().manual_seed(0), device="cpu")  # rows in succession are random
        for number, rows in enumerate(data):
            self.register_buffer(f"rows_{number}", rows[order.to(rows.device)], persistent=False)
        self.event_shape, center = center.shape, center.detach().clone()
        self.register_buffer("center", center, persistent=False)
        parts = (self._slope(center[None], [some[None] for some in rows]) for rows in _chunks(data))
        self.register_buffer("total", torch.stack([part[0].double() for part in parts]).sum(0).to(center), persistent=False)

    def forward(self, x: Tensor, minibatch: Tensor) -> Tensor:
        raise ExpressionError(f"{self} is estimated from some of its rows, and has no value.")

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        if conditions.get("minibatch") is None:
            raise ExpressionError(f"{self} needs a number in [0, 1) for each point that chooses its rows: give `minibatch=`.")
        chosen = torch.as_tensor(conditions["minibatch"], device=x.device).double().expand(len(x))
        places = ((chosen * self.count).long().clamp(0, self.count - 1)[:, None] + torch.arange(self.size, device=x.device)) % self.count
        rows = [getattr(self, f"rows_{number}")[places] for number in range(self.columns)]
        change = self._slope(x, rows) - self._slope(self.center.expand_as(x), rows)
        return x.new_zeros(len(x)), self.total + self.count / self.size * change

    def _slope(self, x: Tensor, rows: Sequence[Tensor]) -> Tensor:
        """Returns the gradients of the sums of energies of rows, with shape $(B, m, *)$, at points with shape $(B, *)$."""
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            return torch.autograd.grad(_energies(self.function, point, rows).sum(), point)[0]


def minibatched(
    function: Callable[..., Tensor],
    data: Tensor | Sequence[Tensor],
    size: int,
    *,
    center: Tensor | None = None,
    event_shape: Sequence[int] | None = None,
) -> Energy:
    r"""Returns the energy $U(x) = \sum_i f(x, r_i)$ of many rows $r_i$, whose gradient `langevin` and `underdamped` estimate from some.

    Other terms, such as a prior, are joined by `&`. With the sum over a random minibatch of $m$ of the $N$ rows, anew at each step of each
    chain, and a mode $c$ as control variate (Baker et al., 2019) the gradient is

    $$\hat g(x) = \sum_i \nabla f(c, r_i) + \tfrac{N}{m} \sum_{i \in \text{batch}} \left(\nabla f(x, r_i) - \nabla f(c, r_i)\right)$$

    Rows are chosen by the noise of chain and step: draws do not depend on `batch_size`. All rows are read once, at $c$.

    The draws are biased. The estimate is right on average, but its variance $V$ adds to that of the step: on a Gaussian with variance
    $s^2$ and the step size $\lambda$ the variance is $s^2 (1 + \lambda V / 4) / (1 - \lambda / 4 s^2)$. $V$ is proportional to
    $N^2 / m$, and to the squared distance from $c$. `sample` warns (`bias`) where both excesses, as measured, are more than a tenth; so it
    does where the noise of the gradient exceeds that of the step, $\lambda V / 4 > 1$.

    Args:
        function: `f(x, rows)` of points with shape $(B, *)$ and rows with shape $(B, m, *)$, or `f(x, rows, others)` of two data, returns
            energies with shape $(B, m)$.
        data: Tensors with one row for each datum, of one length.
        size: $m$, from 1 to $N$.
        center: $c$, with the shape of a point, close to the mode of all terms; None finds that of this one by `descent`.
        event_shape: The shape of a point, where there is no `center`.

    Raises:
        OptionError: There is neither a `center` nor an `event_shape`, or the size is not from 1 to $N$.
        ShapeError: Data have other lengths, or the function returns another shape.

    Example:
        >>> a = torch.linspace(-1, 1, 1000)
        >>> fit = minibatched(lambda x, a, y: (y - x * a).square() / 2, [a, 3 * a], 50, event_shape=(1,))
        >>> fit.sample(64, step_size=1e-3, steps=100, seed=0, init=torch.full((64, 1), 3.0)).mean().round()
        tensor(3.)

    References:
        Control variates for stochastic gradient MCMC (Baker et al., 2019), https://doi.org/10.1007/s11222-018-9826-2
    """
    tensors = (data,) if isinstance(data, Tensor) else tuple(data) if isinstance(data, Sequence) else ()
    if not all(isinstance(some, Tensor) and some.ndim for some in tensors or [data]):
        raise OptionError(f"Data are one tensor or several, with a row for each datum: write `torch.as_tensor(data)`, got {data!r:.60}.")
    lengths = {len(some) for some in tensors}
    if len(lengths) != 1:
        raise ShapeError(f"Data have one row for each datum, got {', '.join(str(len(some)) for some in tensors) or 'no'} rows.")
    if check_integer("size", size) > min(lengths):
        raise OptionError(f"size is at most the number of rows, {min(lengths)}, got {size}.", ["size"])
    if center is None:
        if event_shape is None:
            raise OptionError("Give `event_shape`, the shape of a point, or a `center` near the mode.", ["center", "event_shape"])
        center = _mode(function, tensors, torch.Size(event_shape))
    return Minibatched(function, tensors, size, center)


def _energies(function: Callable[..., Tensor], x: Tensor, rows: Sequence[Tensor]) -> Tensor:
    """Returns the energies of rows, with shape $(B, m)$."""
    if (energies := function(x, *rows)).shape != rows[0].shape[:2]:
        found = f"{tuple(energies.shape)} for {len(x)} points with {rows[0].shape[1]} rows each"
        raise ShapeError(f"The function of a minibatch returns one number for each row of each point, got the shape {found}.")
    return energies


def _chunks(data: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    yield from zip(*(rows.split(_CHUNK) for rows in data), strict=True)


def _mode(function: Callable[..., Tensor], data: Sequence[Tensor], event: torch.Size) -> Tensor:
    """Returns where the mean energy of all rows is least."""

    def mean(x: Tensor) -> Tensor:
        parts = [_energies(function, x, [some.expand(len(x), *some.shape) for some in rows]).sum(1) for rows in _chunks(data)]
        return torch.stack(parts).sum(0) / len(data[0])

    like = next((some for some in data if some.is_floating_point()), torch.empty(0))
    return as_energy(mean, event_shape=event).sample((1, *event), sampler=Descent(), seed=0, init=like.new_zeros((1, *event)))[0]
