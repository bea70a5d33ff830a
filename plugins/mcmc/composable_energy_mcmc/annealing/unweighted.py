r"""Chains that anneal one by one, without resampling: where they start, and whether the weights of their paths contradict the draws."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.sampling import Noise, State, has_rows
from composable_energy_mcmc.annealing.path import Gaussian, evaluate
from composable_energy_mcmc.batch import select

_CANDIDATES = 8
_FROZEN = 0.03  # a mean acceptance at the last level
_FEWEST, _ERRORS, _BIASED = 64, 4.5, 2.0  # chains, and the standard errors of a correlation and of the bias that it makes


@dataclass(frozen=True)
class Weighted(State):
    """A state with the log weights of paths, with shape $(B,)$. Draws that follow the density do not depend on them."""

    log_weight: Tensor


def log_density_ratio(state: State, base: Gaussian, temperature: float) -> Tensor:
    r"""Returns $E_0 - E / T$, with shape $(B,)$ in float64; $-\infty$ where the density is 0 or not a number."""
    log_ratio = base.energy(state.x).double() - state.energy.double() / temperature
    return log_ratio.nan_to_num(-torch.inf, posinf=torch.inf, neginf=-torch.inf)


def first_points(energy: Energy, like: Tensor, noise: Noise, base: Gaussian, level: float, temperature: float) -> Weighted:
    """Returns points near the density of the first level: for each chain one of several draws of the Gaussian, taken by their weights.

    So few chains start where a steep energy would keep them.
    """
    states, weights, scores = [], [], []
    for number in range(1, _CANDIDATES + 1):
        own = noise.at(number)
        states.append(evaluate(energy, base.from_standard(own.normal(like))))
        weights.append(level * log_density_ratio(states[-1], base, temperature))
        scores.append(weights[-1] - (-own.uniform(like, stream=1).double().log()).log())
    taken, best = states[0], torch.stack(scores).argmax(0)
    for number, state in enumerate(states[1:], start=1):
        taken = select(best == number, state, taken)
    return Weighted(taken.x, taken.energy, taken.grad, torch.stack(weights).logsumexp(0) - math.log(_CANDIDATES))


def warn_of_last_level(energy: Energy, state: State, rates: Tensor | None, log_weight: Tensor | None) -> None:
    """Warns if the corrector leaves chains where they are, or if the weights of paths depend on where the chains have ended."""
    if rates is not None and rates.mean() < _FROZEN:
        seen = f"The corrector accepts {rates.mean():.1%} of its steps at the last level, so the draws are those of a higher one."
        SamplingWarning("acceptance", seen, "Leave out its step size, so that it is tuned, or give a shorter one.").emit()
    if log_weight is None or len(log_weight) < _FEWEST or has_rows(energy):
        return
    weight = torch.softmax(log_weight, 0) * len(log_weight)
    correlation, spread = _dependence(state, weight).max().item(), weight.std().item()
    if correlation * math.sqrt(len(weight)) > _ERRORS and correlation * spread * math.sqrt(len(weight)) > _BIASED:
        seen = (
            f"Chains of `annealed` are not weighed against each other, and by the weights of their paths draws of {energy} are "
            f"{correlation * spread:.2f} standard deviations off along a coordinate."
        )
        SamplingWarning("weak", seen, "Use `tempering` or `smc`, or take more `levels` and `corrector_steps`.").emit()


def _dependence(state: State, weight: Tensor) -> Tensor:
    """Returns correlations of weights with bounded functions of the coordinates, their sizes, and the energy."""
    values = torch.cat([state.x.reshape(len(weight), -1), state.energy[:, None]], 1).double()
    values = values[:, values.isfinite().all(0)]
    low, middle, high = values.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=values.dtype, device=values.device), 0)
    standard = (values - middle) / (high - low).clamp_min(torch.finfo(values.dtype).tiny)
    bounded = torch.cat([standard.tanh(), (standard.square() / 2).tanh()], 1)
    bounded = bounded - bounded.mean(0)
    norms = bounded.norm(dim=0).clamp_min(torch.finfo(values.dtype).tiny)
    return (((weight - weight.mean()) / (weight - weight.mean()).norm()) @ bounded / norms).abs()
