"""Samplers on separated modes and on a funnel, and the error of `log_z`: `python -m benchmarks.multimodal --write`.

Three targets. `modes`: four Gaussians of standard deviation .3 at distance 3 from the middle, with weights .4, .3, .2 and .1; all chains
start in the first one, and the figure is the root mean square error of the weights. `funnel`: $v \\sim N(0, 9)$ and nine $x_i \\mid v \\sim
N(0, e^v)$, whose neck has a much smaller scale than its mouth; the figures are mean and standard deviation of $v$, truly 0 and 3. `log_z`:
the error of the logarithm of the normalizer of `modes`, and of a Gaussian with 32 coordinates, a random rotation and condition number 100.
Gradients are the points at which one was taken, during the draws; those of the tuning, which happens once for an energy, stand in a column
of their own. Figures do not depend on the machine, up to rounding; over the seeds, they are root mean squares or means, and maxima.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.energies import CountingEnergy
from benchmarks.harness import RESULTS, argument_parser, chosen, environment, replace_rows, write_json
from composable_energy_mcmc import HMC, SMC, Annealed, ChEES, Tempering

PATH = RESULTS / "multimodal.json"
F64 = torch.float64


class Modes(nn.Module):
    """Four Gaussians with unequal weights."""

    size = 2
    weights = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=F64)
    means = 3 * torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=F64)
    log_z = math.log(2 * math.pi * 0.3**2)

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(self.weights.log() - (x[:, None] - self.means).square().sum(2) / (2 * 0.3**2), 1)

    def error(self, points: Tensor) -> float:
        """Returns the root mean square error of the shares of points with shape (..., 2)."""
        nearest = torch.cdist(points.reshape(-1, 2), self.means).argmin(1)
        shares = torch.bincount(nearest, minlength=4) / len(nearest)
        return (shares - self.weights).square().mean().sqrt().item()


class Funnel(nn.Module):
    """A coordinate that sets the scale of nine others."""

    size = 10

    def forward(self, x: Tensor) -> Tensor:
        v, rest = x[:, 0], x[:, 1:]
        return v.square() / 18 + (rest.square().sum(1) * (-v).exp() + 9 * v) / 2


class Rotated(nn.Module):
    """A Gaussian along random axes."""

    size = 32
    log_z = 16 * math.log(2 * math.pi)  # the logarithms of the variances add up to 0

    def __init__(self) -> None:
        super().__init__()
        axes = torch.linalg.qr(torch.randn(32, 32, dtype=F64, generator=torch.Generator().manual_seed(0)))[0]
        self.precision = (axes / torch.logspace(-1, 1, 32, dtype=F64)) @ axes.T

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.precision * x).sum(1) / 2


def tune(energy: CountingEnergy, sampler: Any, start: Tensor) -> tuple[Any, int]:
    """Returns the tuned sampler and the number of gradients that tuning took."""
    energy.take_count()
    _, trace = energy.sample(len(start), sampler=sampler, steps=1, seed=0, init=start, trace=True)
    whole = energy.take_count()
    energy.sample(len(start), sampler=trace.sampler, steps=1, seed=0, init=start)
    return trace.sampler, whole - energy.take_count()


def draw(energy: ce.Energy, sampler: Any, chains: int, steps: int | None, start: Tensor, seed: int) -> tuple[Tensor, Any]:
    """Returns points and the trace: the last five sixths of the steps, or the end points of a sampler with a last step."""
    burn_in = 0 if steps is None else steps // 6
    every = True if steps is None else 1
    x, trace = energy.sample(
        chains, sampler=sampler, steps=steps, seed=seed, init=start.expand(chains, -1).clone(), trace=every, burn_in=burn_in
    )
    return x if trace.points is None else trace.points, trace


def measure_modes(seeds: int) -> list[dict[str, Any]]:
    cases = [
        ("hmc", HMC(), 64, 480),
        ("chees", ChEES(), 64, 240),
        ("annealed", Annealed(levels=60, corrector=HMC(leapfrogs=8)), 400, None),
        ("tempering", Tempering(), 32, 300),
        ("smc", SMC(), 4096, None),
    ]
    rows = []
    for name, sampler, chains, steps in cases:
        modes, start = Modes(), Modes.means[:1]
        energy = CountingEnergy(modes, modes.size)
        sampler, tuning = tune(energy, sampler, start)
        errors = [modes.error(draw(energy, sampler, chains, steps, start, seed)[0]) for seed in range(seeds)]
        rows.append(_row("modes", name, chains, energy.take_count() // seeds, tuning, error=_rms(errors), largest=max(errors)))
    return rows


def measure_funnel(seeds: int) -> list[dict[str, Any]]:
    cases = [
        ("hmc", HMC(acceptance=0.95), 64, 1200),
        ("chees", ChEES(acceptance=0.9), 64, 400),
        ("tempering", Tempering(acceptance=0.95), 32, 600),
        ("smc", SMC(), 8192, None),
    ]
    rows = []
    for name, sampler, chains, steps in cases:
        energy = CountingEnergy(Funnel(), Funnel.size)
        start = torch.randn(chains, 10, dtype=F64, generator=torch.Generator().manual_seed(0))
        sampler, tuning = tune(energy, sampler, start)
        drawn = [draw(energy, sampler, chains, steps, start, seed)[0][..., 0] for seed in range(seeds)]
        means, spreads = ([f(v).item() for v in drawn] for f in (torch.mean, torch.std))
        narrow = sum((v < -5).double().mean().item() for v in drawn) / seeds  # truly .048
        figures = {"mean": sum(means) / seeds, "mean_error": _rms(means), "sd": sum(spreads) / seeds, "below_minus_5": narrow}
        rows.append(_row("funnel", name, chains, energy.take_count() // seeds, tuning, **figures))
    return rows


def measure_log_z(seeds: int) -> list[dict[str, Any]]:
    samplers, chains, rows = (SMC(), SMC(kept=0.98, moves=2)), 4096, []
    for target, sampler in ((target, sampler) for target in (Modes(), Rotated()) for sampler in samplers):
        energy, start = CountingEnergy(target, target.size), torch.zeros(1, target.size, dtype=F64)
        sampler, tuning = tune(energy, sampler, start)
        errors, scores = [], []
        for seed in range(seeds):
            scalars = draw(energy, sampler, chains, None, start, seed)[1].scalars
            errors.append(scalars["log_z"][-1] - target.log_z)
            scores.append(errors[-1] / scalars["log_z_se"][-1])
        spread = torch.tensor(scores).std().item() if seeds > 1 else math.nan
        figures = {"error": _rms(errors), "sd_of_z": spread, "largest_z": max(map(abs, scores)), "levels": len(sampler.schedule.levels) - 1}
        name = f"smc, kept={sampler.kept}, moves={sampler.moves}"
        rows.append(_row(f"log_z {type(target).__name__.lower()}", name, chains, energy.take_count() // seeds, tuning, **figures))
    return rows


def _rms(values: list[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))


def _row(target: str, name: str, chains: int, gradients: int, tuning: int, **figures: float) -> dict[str, Any]:
    figures = {key: float(f"{value:.4g}") for key, value in figures.items()}
    print(f"{target:15}{name:28}{chains:6}{gradients:10}{tuning:10}  {figures}", flush=True)
    return {"target": target, "sampler": name, "chains": chains, "gradients": gradients, "tuning_gradients": tuning, **figures}


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="targets whose names have one of these")
    args = parser.parse_args()
    measures = chosen(parser, {"modes": measure_modes, "funnel": measure_funnel, "log_z": measure_log_z}, args.only)
    torch.set_num_threads(1)
    print(f"{'target':15}{'sampler':28}{'chains':>6}{'gradients':>10}{'tuning':>10}")
    rows = [row for measure in measures.values() for row in measure(args.seeds)]
    if args.write:
        command = f"python -m benchmarks.multimodal {' '.join(sys.argv[1:])}"
        write_json(PATH, {**environment(seeds=args.seeds), "command": command, "rows": replace_rows(PATH, rows, ("target", "sampler"))})


if __name__ == "__main__":
    main()
