"""Operations on batches: sums and products for each point, rows of two states."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.sampling import State

_BLOCK = 16
_BOUND, _GROWTH = 3.0, 1.5  # of kicks: above those of a Gaussian of one and of many coordinates, at a tuned step


def sum_of_each(values: Tensor) -> Tensor:
    """Returns sums over all axes but the first, with shape $(B,)$; in float32 at least."""
    return values.reshape(len(values), -1).sum(1, dtype=torch.promote_types(values.dtype, torch.float32))


def flatten_points(x: Tensor) -> Tensor:
    """Returns points as vectors, with shape $(B, d)$; a point that is a single number becomes a vector of one."""
    return x.flatten(1) if x.ndim > 1 else x[:, None]


def map_points(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Returns what a product with a matrix, or a solution by one, makes of points, to the same bits for each of them in any batch.

    Libraries use other kernels for few rows, and for those that remain beside whole blocks, which round differently. So the rows are
    filled up by zeros to a multiple of 16.
    """
    rows = flatten_points(x)
    if missing := -len(rows) % _BLOCK:
        return function(pad(rows, (0, 0, 0, missing)))[: len(rows)].view_as(x)
    return function(rows).view_as(x)


def select(mask: Tensor, proposal: State, state: State) -> State:
    """Returns the rows of `proposal` where the mask, with shape $(B,)$, is true, and those of `state` elsewhere."""
    wide = unsqueeze_to(mask, state.x)
    x, grad = torch.where(wide, proposal.x, state.x), torch.where(wide, proposal.grad, state.grad)
    return State(x, torch.where(mask, proposal.energy, state.energy), grad)


def bound_kicks(slopes: Tensor, step_size: float = 1.0) -> Tensor:
    r"""Returns gradients of whitened points with norms of at most $(3 + 1.5\, d^{1/3}) / \varepsilon$, for a step of length $\varepsilon$.

    On a wall that is thin beside the step, the kick of the whole gradient would throw each proposal far away, where no reverse proposal
    leads back, so a chain that begins there would never leave. The kick is a function of the point alone, so a leapfrog with it is
    reversible and preserves volume. It is that of the gradient, to the bit, where gradients are those of smooth energies.
    """
    largest = torch.finfo(slopes.dtype).max
    rows = flatten_points(slopes).clamp(-largest, largest)
    return torch.renorm(rows, 2, 0, (_BOUND + _GROWTH * rows.shape[1] ** (1 / 3)) / step_size).view_as(slopes)


def finite_rows(state: State) -> Tensor:
    """Returns which chains have a finite point, energy and gradient, with shape $(B,)$."""
    return state.energy.isfinite() & (state.grad.isfinite() & state.x.isfinite()).reshape(len(state.x), -1).all(1)
