"""The samplers of ebmkit and torchebm in the comparison of quality.

They do not tune the step size and the number of leapfrogs of HMC, so both are chosen on a grid by effective samples per second; the search
is not counted. `ebmkit`'s NUTS and MALA tune themselves; their warm-up is not counted.
"""

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from ebm.samplers import HMC, NUTS, AdaptiveMALA
from torch import Tensor
from torchebm.samplers import HamiltonianMonteCarlo

from benchmarks.energies import cost_figures
from benchmarks.peers.implementations import Torchebm

Energy = Callable[[Tensor], Tensor]
Draw = Callable[[Energy, Tensor, int], Tensor]  # the draws of every step, with shape (steps, chains, d)


def samplers(energy: Energy, start: Tensor, draws: int, steps: Sequence[float], leapfrogs: Sequence[int]) -> Iterator[tuple[str, Any]]:
    """Yields samplers by name, as functions of a seed that return figures."""
    compiled = torch.compile(energy, dynamic=False)
    for suffix, evaluate in (("", energy), (", compiled", compiled)):
        yield f"ebmkit HMC{suffix}", lambda seed, e=evaluate: _best(_ebmkit_hmc, e, energy, start, draws, steps, leapfrogs, seed)
        yield (
            f"ebmkit NUTS{suffix}",
            lambda seed, e=evaluate: _tuned(NUTS(0.1, warmup=150, max_depth=7), e, energy, start, draws // 4, seed),
        )
        yield f"ebmkit MALA{suffix}", lambda seed, e=evaluate: _tuned(AdaptiveMALA(0.01, warmup=500), e, energy, start, draws * 2, seed)
        yield f"torchebm HMC{suffix}", lambda seed, e=evaluate: _best(_torchebm_hmc, e, energy, start, draws, steps, leapfrogs, seed)


def _ebmkit_hmc(step: float, leapfrogs: int) -> Draw:
    sampler = HMC(step, leapfrogs)
    return lambda energy, x, n: sampler.sample(energy, x, steps=n, return_trajectory=True)[1:]


def _torchebm_hmc(step: float, leapfrogs: int) -> Draw:
    def draw(energy: Energy, x: Tensor, n: int) -> Tensor:
        sampler = HamiltonianMonteCarlo(Torchebm(energy, tuple(x.shape)), step_size=step, n_leapfrog_steps=leapfrogs)
        return sampler.sample(x=x, n_steps=n, return_trajectory=True).transpose(0, 1)

    return draw


def _best(
    make: Callable[[float, int], Draw],
    fast: Energy,
    plain: Energy,
    start: Tensor,
    draws: int,
    steps: Sequence[float],
    leapfrogs: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    torch.manual_seed(seed)
    settled, tried = make(min(steps), max(leapfrogs))(plain, start, 100)[-1], min(draws, max(200, draws // 4))
    found = {
        (step, count): _record(make(step, count), fast, plain, settled, tried)["effective_samples_per_second"]
        for step, count in itertools.product(steps, leapfrogs)
    }
    step, count = max(found, key=lambda key: found[key])
    return _record(make(step, count), fast, plain, settled, draws) | {"step_size": step, "leapfrogs": count}


def _tuned(sampler: Any, fast: Energy, plain: Energy, start: Tensor, draws: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    settled = sampler.sample(plain, start, steps=50)
    sampler.warmup = 0

    def draw(energy: Energy, x: Tensor, n: int) -> Tensor:
        return sampler.sample(energy, x, steps=n, return_trajectory=True)[1:]

    return _record(draw, fast, plain, settled, draws) | {"step_size": sampler.step_size}


def _record(draw: Draw, fast: Energy, plain: Energy, start: Tensor, draws: int) -> dict[str, Any]:
    """Returns the figures: gradients counted over some draws, and the time of all of them."""
    gradients, counted = 0, 20

    def counting(x: Tensor) -> Tensor:
        nonlocal gradients
        gradients += x.requires_grad
        return plain(x)

    draw(counting, start, counted)
    draw(fast, start, 2)
    began = time.process_time()
    points = draw(fast, start, draws)
    seconds = time.process_time() - began
    return cost_figures(points, seconds, gradients / counted)
