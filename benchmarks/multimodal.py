"""What samplers make of modes that lie far apart, and of a funnel: `python benchmarks/multimodal.py`.

Three targets. `modes`: four Gaussians of standard deviation .3 at distance 3 from the middle, with weights .4, .3, .2 and .1; all chains
start in the first one, and the figure is the root mean square error of the weights. `funnel`: $v \\sim N(0, 9)$ and nine $x_i \\mid v \\sim
N(0, e^v)$, whose neck has another scale than its mouth; the figures are mean and standard deviation of $v$, truly 0 and 3. `log_z`: the
error of the logarithm of the normaliser of `modes`, and of a Gaussian with 32 coordinates, a random rotation and condition number 100.
Gradients are points that got one: those of the draws, and beside them those of the tuning, which is done once for an energy. Figures do not
depend on the machine, up to rounding; several seeds, with the root mean square or the mean and the largest.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
from abc import abstractmethod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy_mcmc import HMC, SMC, Annealed, ChEES, Tempering

RESULTS = Path(__file__).parent / "results" / "multimodal.json"
F64 = torch.float64


class Counted(ce.Energy):
    """Counts how many points got a gradient."""

    count = 0
    log_z = math.nan

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x) * x.requires_grad
        return self.value(x)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Returns the energies."""

    def counted(self) -> int:
        """Returns how many there were since the last time."""
        count, self.count = self.count, 0
        return count


class Modes(Counted):
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
    means = 3 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=F64)
    log_z = math.log(2 * math.pi * 0.3**2)

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([2])

    def value(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self.weights.log() - (x[:, None] - self.means).square().sum(2) / (2 * 0.3**2), 1)

    def error(self, points: Tensor) -> float:
        """The root mean square error of the shares of points with shape (..., 2)."""
        nearest = torch.cdist(points.reshape(-1, 2), self.means).argmin(1)
        shares = torch.bincount(nearest, minlength=4) / len(nearest)
        return (shares - self.weights).square().mean().sqrt().item()


class Funnel(Counted):
    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([10])

    def value(self, x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return v.square() / 18 + (rest.square().sum(1) * (-v).exp() + 9 * v) / 2


class Rotated(Counted):
    log_z = 16 * math.log(2 * math.pi)  # the logarithms of the variances add up to 0

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([32])
        axes = torch.linalg.qr(torch.randn(32, 32, dtype=F64, generator=torch.Generator().manual_seed(0)))[0]
        self.precision = (axes / torch.logspace(-1, 1, 32, dtype=F64)) @ axes.T

    def value(self, x: Tensor) -> Tensor:
        return (x @ self.precision * x).sum(1) / 2


def tuned(energy: Counted, sampler: Any, start: Tensor) -> tuple[Any, int]:
    """Returns the sampler that was tuned, and what that cost."""
    energy.counted()
    _, trace = energy.sample(len(start), sampler=sampler, steps=1, seed=0, init=start, trace=True)
    whole = energy.counted()
    energy.sample(len(start), sampler=trace.sampler, steps=1, seed=0, init=start)
    return trace.sampler, whole - energy.counted()


def run(energy: Counted, sampler: Any, chains: int, steps: int | None, start: Tensor, seed: int) -> tuple[Tensor, Any]:
    """Returns the points of the last five sixths of the steps, or those at the end of a sampler that has one; and the trace."""
    burn_in = 0 if steps is None else steps // 6
    every = True if steps is None else 1
    x, trace = energy.sample(
        chains, sampler=sampler, steps=steps, seed=seed, init=start.expand(chains, -1).clone(), trace=every, burn_in=burn_in
    )
    return x if trace.points is None else trace.points, trace


def of_modes(seeds: int) -> list[dict[str, Any]]:
    cases = [
        ("hmc", HMC(), 64, 480),
        ("chees", ChEES(), 64, 240),
        ("annealed", Annealed(levels=60, corrector=HMC(leapfrogs=8)), 400, None),
        ("tempering", Tempering(), 32, 300),
        ("smc", SMC(), 4096, None),
    ]
    rows = []
    for name, sampler, chains, steps in cases:
        energy, start = Modes(), Modes.means[:1]
        sampler, tuning = tuned(energy, sampler, start)
        errors = [energy.error(run(energy, sampler, chains, steps, start, seed)[0]) for seed in range(seeds)]
        rows.append(_row("modes", name, chains, energy.counted() // seeds, tuning, error=_rms(errors), largest=max(errors)))
    return rows


def of_funnel(seeds: int) -> list[dict[str, Any]]:
    cases = [
        ("hmc", HMC(acceptance=0.95), 64, 1200),
        ("chees", ChEES(acceptance=0.9), 64, 400),
        ("tempering", Tempering(acceptance=0.95), 32, 600),
        ("smc", SMC(), 8192, None),
    ]
    rows = []
    for name, sampler, chains, steps in cases:
        energy = Funnel()
        start = torch.randn(chains, 10, dtype=F64, generator=torch.Generator().manual_seed(0))
        sampler, tuning = tuned(energy, sampler, start)
        drawn = [run(energy, sampler, chains, steps, start, seed)[0][..., 0] for seed in range(seeds)]
        means, spreads = ([f(v).item() for v in drawn] for f in (torch.mean, torch.std))
        narrow = sum((v < -5).double().mean().item() for v in drawn) / seeds  # truly .048
        figures = {"mean": sum(means) / seeds, "mean_error": _rms(means), "sd": sum(spreads) / seeds, "below_minus_5": narrow}
        rows.append(_row("funnel", name, chains, energy.counted() // seeds, tuning, **figures))
    return rows


def of_log_z(seeds: int) -> list[dict[str, Any]]:
    samplers, chains, rows = (SMC(), SMC(kept=0.98, moves=2)), 4096, []
    for energy, sampler in ((energy, sampler) for energy in (Modes(), Rotated()) for sampler in samplers):
        start = torch.zeros(1, *(energy.event_shape or ()), dtype=F64)
        sampler, tuning = tuned(energy, sampler, start)
        errors, scores = [], []
        for seed in range(seeds):
            told = run(energy, sampler, chains, None, start, seed)[1].scalars
            errors.append(told["log_z"][-1] - energy.log_z)
            scores.append(errors[-1] / told["log_z_se"][-1])
        spread = torch.tensor(scores).std().item() if seeds > 1 else math.nan
        figures = {"error": _rms(errors), "sd_of_z": spread, "largest_z": max(map(abs, scores)), "levels": len(sampler.schedule.levels) - 1}
        name = f"smc, kept={sampler.kept}, moves={sampler.moves}"
        rows.append(_row(f"log_z {type(energy).__name__.lower()}", name, chains, energy.counted() // seeds, tuning, **figures))
    return rows


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def _row(target: str, name: str, chains: int, gradients: int, tuning: int, **figures: float) -> dict[str, Any]:
    figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
    print(f"{target:15}{name:28}{chains:6}{gradients:10}{tuning:10}  {figures}", flush=True)
    return {"target": target, "sampler": name, "chains": chains, "gradients": gradients, "tuning_gradients": tuning, **figures}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="targets whose name has this")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'target':15}{'sampler':28}{'chains':>6}{'gradients':>10}{'tuning':>10}")
    measures = {"modes": of_modes, "funnel": of_funnel, "log_z": of_log_z}
    rows = [row for name, measure in measures.items() if arguments.only in name for row in measure(arguments.seeds)]
    if arguments.write:
        about = {"python": platform.python_version(), "torch": torch.__version__, "seeds": arguments.seeds}
        command = f"python benchmarks/multimodal.py {' '.join(sys.argv[1:])}"
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"command": command, **about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
