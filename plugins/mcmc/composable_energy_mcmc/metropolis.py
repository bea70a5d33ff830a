"""Accepts and rejects proposals."""

import torch
from torch import Tensor

from composable_energy.errors import DtypeError
from composable_energy.sampling import Info, Noise, State
from composable_energy_mcmc.batch import select

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
