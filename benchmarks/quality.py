"""How many gradients an effective sample costs: `python benchmarks/quality.py`.

Two targets: `gaussian`, with 100 coordinates, a random rotation and variances from .1 to 10, where no diagonal metric helps; and `banana`,
$x_1 \\sim N(0, 1)$, $x_2 \\mid x_1 \\sim N(x_1^2, 1/4)$. 64 chains start at normal points, are forgotten for as many steps as they take to
settle, and are then followed. The effective sample size is the multi-chain one of Geyer and Stan, the least over all coordinates and over
$x$ and $(x - \\bar x)^2$; gradients are those of the chains that are followed, each trajectory counted with its leapfrogs. What tuning
costs is told beside it. The figures do not depend on the machine, up to rounding; several seeds, with the median and the range.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composable_energy_mcmc import HMC, MALA, ChEES
from torch import Tensor

import composable_energy as ce

RESULTS = Path(__file__).parent / "results" / "quality.json"
CHAINS = 64


class Counted(ce.Energy):
    """Counts how many points got a gradient."""

    count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x) * x.requires_grad
        return self.value(x)

    @abstractmethod
    def value(self, x: Tensor) -> Tensor:
        """Returns the energies."""


class Gaussian(Counted):
    def __init__(self) -> None:
        super().__init__()
        axes, _ = np.linalg.qr(np.random.RandomState(0).randn(100, 100))
        self.precision = torch.tensor((axes / np.logspace(-1, 1, 100)) @ axes.T, dtype=torch.float32)
        self.event_shape = torch.Size([100])

    def value(self, x: Tensor) -> Tensor:
        return (x @ self.precision * x).sum(1) / 2


class Banana(Counted):
    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([2])

    def value(self, x: Tensor) -> Tensor:
        return x[:, 0].square() / 2 + 2 * (x[:, 1] - x[:, 0].square()).square()


def effective(draws: np.ndarray) -> float:
    """The effective sample size of one number, with shape (chains, draws): Geyer's monotone pairs, as in Stan."""
    chains, n = draws.shape
    means = draws.mean(1, keepdims=True)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(draws - means, size, axis=1)
    covariance = np.fft.irfft(spectrum * spectrum.conj(), size, axis=1)[:, :n].mean(0) / n
    within = covariance[0] * n / (n - 1)
    correlation = 1 - (within - covariance) / (covariance[0] + means.var(ddof=1))
    correlation[0] = 1
    pairs = correlation[: n // 2 * 2].reshape(-1, 2).sum(1)
    last = int(np.argmax(pairs < 0)) if (pairs < 0).any() else len(pairs)
    time_between = 2 * np.minimum.accumulate(pairs[: max(last, 1)]).sum() - 1
    return chains * n / max(time_between, 1 / np.log10(chains * n))


def least_effective(points: Tensor) -> float:
    """The least over coordinates, and over x and its squared distance from the mean; points have the shape (draws, chains, d)."""
    x = points.double().transpose(0, 1).numpy()
    squares = (x - x.mean((0, 1))) ** 2
    return min(effective(values[..., axis]) for values in (x, squares) for axis in range(x.shape[-1]))


def measure(energy: Counted, sampler: Any, draws: int, seed: int) -> dict[str, Any]:
    energy.count = 0
    _, trace = energy.sample(CHAINS, sampler=sampler, steps=1, seed=seed, trace=True)
    tuning = energy.count / CHAINS
    _, trace = energy.sample(CHAINS, sampler=trace.sampler, steps=draws // 4, seed=seed, trace=True)
    energy.count, began = 0, time.process_time()
    _, trace = energy.sample(CHAINS, resume=trace, steps=draws, trace=1)
    seconds = time.process_time() - began
    samples = least_effective(trace.points)
    figures = {
        "gradients_per_effective_sample": energy.count / samples,
        "effective_samples": samples,
        "effective_samples_per_second": samples / seconds,
        "gradients_per_draw": energy.count / (CHAINS * draws),
        "tuning_gradients_per_chain": tuning,
        "acceptance": float(trace.acceptance.mean()),
        "step_size": trace.sampler.step_size,
    }
    if isinstance(trace.sampler, ChEES):
        figures |= {"trajectory": trace.sampler.trajectory, "metric": trace.sampler.metric.kind}
    return {name: float(f"{value:.4g}") if isinstance(value, float) else value for name, value in figures.items()}


def cases() -> list[tuple[str, Counted, str, Any, int]]:
    gaussian, banana = Gaussian(), Banana()
    return [
        ("gaussian", gaussian, "chees, metric='identity'", ChEES(metric="identity"), 4000),
        ("gaussian", gaussian, "chees", ChEES(), 2000),
        ("gaussian", gaussian, "hmc", HMC(), 2000),
        ("gaussian", gaussian, "mala", MALA(), 4000),
        ("banana", banana, "chees, metric='identity'", ChEES(metric="identity"), 2000),
        ("banana", banana, "chees", ChEES(), 2000),
        ("banana", banana, "hmc", HMC(), 2000),
        ("banana", banana, "mala", MALA(), 8000),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose name has this")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    print(f"{'target':10}{'sampler':42}{'g/ESS':>8}{'least':>8}{'most':>8}{'g/draw':>8}{'tuning':>8}{'accept':>8}")
    for target, energy, name, sampler, draws in cases():
        if arguments.only not in f"{target} {name}":
            continue
        runs = [measure(energy, sampler, draws, seed) for seed in range(arguments.seeds)]
        costs = [run["gradients_per_effective_sample"] for run in runs]
        middle = {key: statistics.median(run[key] for run in runs) for key, value in runs[0].items() if isinstance(value, float)}
        rows.append({"target": target, "sampler": name, **middle, "least": min(costs), "most": max(costs), "runs": runs})
        print(
            f"{target:10}{name:42}{statistics.median(costs):8.1f}{min(costs):8.1f}{max(costs):8.1f}{middle['gradients_per_draw']:8.1f}"
            f"{middle['tuning_gradients_per_chain']:8.0f}{middle['acceptance']:8.2f}",
            flush=True,
        )
    if arguments.write:
        about = {"python": platform.python_version(), "torch": torch.__version__, "chains": CHAINS, "seeds": arguments.seeds}
        command = f"python benchmarks/quality.py {' '.join(sys.argv[1:])}"
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"command": command, **about, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
