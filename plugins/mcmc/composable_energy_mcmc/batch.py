"""Operations on batches: sums and products for each point, rows of two states, and which proposals are accepted."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import pad

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import DtypeError
from composable_energy.sampling import Info, Noise, State

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
    Libraries use other kernels for few rows, and for those that remain beside whole blocks, which round differently. So the rows are filled
    up by zeros to a multiple of 16."""
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


CLAMP = "a clamped proposal has no density to accept it by; use langevin, or an energy that grows at the border."
TEMPERATURE = "the density at temperature T is that of `energy / T`: sample that. At 0 there is none; `descent` finds modes."
REFUSED = {"clamp": CLAMP, "temperature": TEMPERATURE}


def check_precision(state: State) -> None:
    """Raises if points or energies have too little precision for an acceptance ratio."""
    coarse = next((values.dtype for values in (state.energy, state.x) if torch.finfo(values.dtype).bits < 32), None)
    if coarse is not None:
        raise DtypeError(
            f"Proposals are accepted by differences of energies, which {coarse} rounds away: draw with dtype=torch.float32 from an energy "
            "of that dtype, `energy.float()`; or take a sampler that never rejects, such as langevin."
        )


def choose(state: State, proposal: State, log_ratio: Tensor, noise: Noise, leapfrogs: int | None = None) -> tuple[State, Info]:
    r"""Accepts proposals with probability $\min(1, e^r)$, see `judge`; reports the number of leapfrogs, if there is one."""
    check_precision(proposal)
    accepted, rates = judge(proposal.energy, log_ratio, noise.uniform(state.x, stream=1).log())
    return select(accepted, proposal, state), Info(rates, {} if leapfrogs is None else {"leapfrogs": leapfrogs})


def judge(energies: Tensor, log_ratio: Tensor, log_uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Returns which proposals are accepted, and their acceptance probabilities, each with shape $(B,)$.

    Proposals whose energy is infinite or not a number have density 0 and are rejected; the probability of the latter is NaN, by which the
    driver counts them, unless the ratio is known. Where the ratio alone is not a number the gradient is broken, and the proposal is
    accepted, so that the driver finds it in the state and reports it.
    """
    ratio = torch.where(energies < torch.inf, log_ratio, -torch.inf)
    rates = ratio.clamp(max=0).exp().nan_to_num_(0.0).masked_fill_(energies.isnan() & log_ratio.isnan(), torch.nan)
    return ~(ratio <= log_uniform), rates
