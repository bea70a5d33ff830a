"""The weights of separated modes by several samplers: `python -m benchmarks.multimodal --write`.

Four Gaussians of standard deviation .3 at distance 3 from the middle, with weights .4, .3, .2 and .1; all chains start in the first one.
The figure is the root mean square error of the weights, over seeds. Gradients are the points at which one was taken, during the draws;
those of the tuning, which happens once for an energy, stand in a column of their own. Figures do not depend on the machine, up to rounding.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.energies import CountingEnergy
from benchmarks.harness import RESULTS, chosen, environment, replace_rows, run_benchmark
from composable_energy_mcmc import HMC, SMC, Annealed, ChEES, Tempering

PATH = RESULTS / "multimodal.json"
F64 = torch.float64
SAMPLERS: dict[str, tuple[Any, int, int | None]] = {
    "hmc": (HMC(), 64, 480),
    "chees": (ChEES(), 64, 240),
    "annealed": (Annealed(levels=60, corrector=HMC(leapfrogs=8)), 400, None),
    "tempering": (Tempering(), 32, 300),
    "smc": (SMC(), 4096, None),
}
"""The samplers, their chains, and their steps; None for a sampler with a last step."""


class Modes(nn.Module):
    """Four Gaussians with unequal weights."""

    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
    means = 3 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self.weights.log() - (x[:, None] - self.means).square().sum(2) / (2 * 0.3**2), 1)

    def error(self, points: Tensor) -> float:
        """Returns the root mean square error of the shares of points with shape (..., 2)."""
        nearest = torch.cdist(points.reshape(-1, 2), self.means).argmin(1)
        shares = torch.bincount(nearest, minlength=4) / len(nearest)
        return (shares - self.weights).square().mean().sqrt().item()


def tune(energy: CountingEnergy, sampler: Any, start: Tensor) -> tuple[Any, int]:
    """Returns the tuned sampler and the number of gradients that tuning took."""
    energy.take_count()
    _, trace = energy.sample(len(start), sampler=sampler, steps=1, seed=0, init=start, trace=True)
    whole = energy.take_count()
    energy.sample(len(start), sampler=trace.sampler, steps=1, seed=0, init=start)
    return trace.sampler, whole - energy.take_count()


def draw(energy: CountingEnergy, sampler: Any, chains: int, steps: int | None, start: Tensor, seed: int) -> Tensor:
    """Returns the points of the last five sixths of the steps, or the end points of a sampler with a last step."""
    kept: dict[str, Any] = {"trace": True} if steps is None else {"trace": 1, "burn_in": steps // 6}
    x, trace = energy.sample(chains, sampler=sampler, steps=steps, seed=seed, init=start.expand(chains, -1).clone(), **kept)
    return x if trace.points is None else trace.points


def measure(name: str, seeds: int) -> dict[str, Any]:
    sampler, chains, steps = SAMPLERS[name]
    modes, start = Modes(), Modes.means[:1]
    energy = CountingEnergy(modes, 2)
    sampler, tuning = tune(energy, sampler, start)
    errors = torch.tensor([modes.error(draw(energy, sampler, chains, steps, start, seed)) for seed in range(seeds)])
    figures = {"error": float(errors.square().mean().sqrt()), "largest": float(errors.max())}
    figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
    counts = {"chains": chains, "gradients": energy.take_count() // seeds, "tuning_gradients": tuning}
    return {"target": "modes", "sampler": name, **counts, **figures}


def run(args: Any) -> Iterator[dict[str, Any]]:
    for name in chosen(SAMPLERS, args.only):
        row = measure(name, args.seeds)
        print(row, flush=True)
        yield {**environment(seeds=args.seeds), "rows": replace_rows(PATH, [row], ("target", "sampler"))}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, seeds=20, only=[])
