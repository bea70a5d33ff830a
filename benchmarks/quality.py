"""How many gradients an effective sample costs, and how many a second draws: `python benchmarks/quality.py [--peers] [--write]`.

Four targets. `gaussian` has 100 coordinates, a random rotation and variances from .1 to 10, where no diagonal metric helps. `banana` is
$x_1 \\sim N(0, 1)$, $x_2 \\mid x_1 \\sim N(x_1^2, 1/4)$. `perceptron` (64 coordinates, 107,449 weights) and `convolutions` (192
coordinates, 127,489 weights) are random networks and a bowl, $E(x) = f(x) + \\lVert x \\rVert^2 / 2$, so proper densities.

64 chains start at normal points, are forgotten for as many steps as they take to settle, and are then followed. The effective sample size
is the multi-chain one of Geyer and Stan, the least over all coordinates and over $x$ and $(x - \\bar x)^2$; gradients are those of the
chains that are followed, each trajectory counted with its leapfrogs. What tuning costs is told beside it, and so is how many effective
samples come in a second of one processor. Several seeds, with the median and the range. Seeds are the outer loop, so that a machine whose
speed drifts drifts for all.

`--peers` adds the samplers of ebmkit, torchebm and BlackJAX (`make bench` makes the environment that has them).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peers.effective import least_effective
from peers.energies import Gaussian, Network, Pictures
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.sampling import compiled
from composable_energy_mcmc import HMC, MALA, ChEES

RESULTS = Path(__file__).parent / "results" / "quality.json"
CHAINS = 64
PERCEPTRON, CONVOLUTIONS = 100.0, 1000.0  # at which the networks count about as much as the bowl
Figures = dict[str, Any]


class Banana(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].square() / 2 + 2 * (x[:, 1] - x[:, 0].square()).square()


class Counted(ce.Energy):
    """Counts how many points got a gradient."""

    count = 0

    def __init__(self, formula: nn.Module, size: int) -> None:
        super().__init__()
        self.net, self.event_shape = formula, (size,)

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x) * x.requires_grad
        return self.net(x)


@dataclass(frozen=True)
class Target:
    """A target, and how much work the comparison does on it.

    Args:
        name: Its name.
        formula: The energy in plain torch.
        size: The number of coordinates.
        draws: How many of each chain are followed; of MALA twice as many.
        steps: The step sizes on the grid of the samplers that do not tune themselves.
        leapfrogs: Its numbers of leapfrogs.
    """

    name: str
    formula: nn.Module
    size: int
    draws: int
    steps: tuple[float, ...]
    leapfrogs: tuple[int, ...]


def targets() -> list[Target]:
    torch.manual_seed(0)
    perceptron, convolutions = Network(PERCEPTRON).requires_grad_(False), Pictures(CONVOLUTIONS).requires_grad_(False)
    return [
        Target("gaussian", Gaussian(), 100, 2000, (0.15, 0.2, 0.3, 0.4), (6, 12, 24)),
        Target("banana", Banana(), 2, 4000, (0.1, 0.18, 0.25), (5, 10, 20)),
        Target("perceptron", perceptron, 64, 500, (0.2, 0.35, 0.5, 0.7), (2, 4, 8)),
        Target("convolutions", convolutions, 192, 150, (0.15, 0.25, 0.4), (2, 4, 8)),
    ]


def measure(target: Target, sampler: Any, draws: int, seed: int, fast: ce.Energy | None = None) -> Figures:
    """Returns the figures of one of our samplers."""
    energy = Counted(target.formula, target.size)
    _, trace = energy.sample(CHAINS, sampler=sampler, steps=1, seed=seed, trace=True)
    tuning = energy.count / CHAINS
    _, trace = energy.sample(CHAINS, sampler=trace.sampler, steps=max(draws // 4, 100), seed=seed, trace=True)
    energy.count = 0
    if fast is not None:  # a compiled energy cannot be counted, so the plain one is, for some draws
        energy.sample(CHAINS, resume=trace, steps=64)
        fast.sample(CHAINS, resume=trace, steps=2)
    counted, began = energy.count / CHAINS / 64, time.process_time()
    _, trace = (energy if fast is None else fast).sample(CHAINS, resume=trace, steps=draws, trace=1)
    seconds = time.process_time() - began
    per_draw = energy.count / CHAINS / draws if fast is None else counted
    samples = least_effective(trace.points.transpose(0, 1).numpy())
    figures = {
        "gradients_per_effective_sample": per_draw * draws * CHAINS / samples,
        "effective_samples": samples,
        "effective_samples_per_second": samples / seconds,
        "gradients_per_draw": per_draw,
        "tuning_gradients_per_chain": tuning,
        "acceptance": float(trace.acceptance.mean()),
        "step_size": trace.sampler.step_size,
    }
    if isinstance(trace.sampler, ChEES):
        figures |= {"trajectory": trace.sampler.trajectory, "metric": trace.sampler.metric.kind}
    return figures


def ours(target: Target) -> Iterator[tuple[str, Callable[[int], Figures]]]:
    """Yields our samplers by name, as functions of a seed."""
    for name, sampler, draws in (
        ("chees, metric='identity'", ChEES(metric="identity"), target.draws),
        ("chees", ChEES(), target.draws),
        ("hmc", HMC(), target.draws),
        ("mala", MALA(), 2 * target.draws),
    ):
        yield name, lambda seed, s=sampler, n=draws: measure(target, s, n, seed)
    fast = compiled(Counted(target.formula, target.size))
    yield "chees, compiled", lambda seed: measure(target, ChEES(), target.draws, seed, fast)


def theirs(target: Target) -> Iterator[tuple[str, Callable[[int], Figures]]]:
    """Yields the samplers of others by name, as functions of a seed."""
    from peers import jax_rivals, torch_rivals

    densities = {
        "gaussian": lambda: jax_rivals.gaussian(target.formula.get_buffer("precision").numpy()),
        "banana": lambda: jax_rivals.banana,
        "perceptron": lambda: jax_rivals.network(target.formula, PERCEPTRON),
        "convolutions": lambda: jax_rivals.pictures(target.formula, CONVOLUTIONS),
    }
    start = torch.randn((CHAINS, target.size), generator=torch.Generator().manual_seed(0))
    yield from torch_rivals.rivals(target.formula, start, target.draws, target.steps, target.leapfrogs)
    yield from jax_rivals.rivals(densities[target.name](), CHAINS, target.size, target.draws)


def one_processor() -> None:
    """Holds the libraries that start threads of their own to one processor, as the others are."""
    torch.set_num_threads(1)
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--only", default="", help="rows whose target and sampler have this")
    parser.add_argument("--peers", action="store_true", help="add the samplers of other libraries")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    one_processor()
    print(f"{'target':14}{'sampler':28}{'g/ESS':>9}{'least':>9}{'most':>9}{'ESS/s':>10}{'least':>10}{'most':>10}{'g/draw':>8}{'tuning':>8}")
    for target in targets():
        chosen = [*ours(target), *(theirs(target) if arguments.peers else ())]
        chosen = [(name, run) for name, run in chosen if arguments.only in f"{target.name} {name}"]
        runs: dict[str, list[Figures]] = {name: [] for name, _ in chosen}
        for seed in range(arguments.seeds):
            for name, run in chosen:
                runs[name].append({key: float(f"{v:.4g}") if not isinstance(v, str) else v for key, v in run(seed).items()})
        rows = [{"target": target.name, "sampler": name, **summary(found), "runs": found} for name, found in runs.items()]
        for row in rows:
            print(line(row), flush=True)
        if arguments.write and rows:
            write(rows)


def write(rows: list[Figures]) -> None:
    """Writes rows in the place of those of the same name, so that a target may be measured again by itself."""
    known = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    new = {(row["target"], row["sampler"]): row for row in rows}
    kept = [row for row in known if (row["target"], row["sampler"]) not in new]
    about = {"python": platform.python_version(), "torch": torch.__version__, "chains": CHAINS}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(
        json.dumps({"command": "python benchmarks/quality.py --peers --write", **about, "rows": [*kept, *rows]}, indent=1) + "\n"
    )


def summary(runs: list[Figures]) -> Figures:
    """Returns medians, and the range of the two figures that matter."""
    found: Figures = {key: statistics.median(run[key] for run in runs) for key, v in runs[0].items() if not isinstance(v, str)}
    for key, name in (("gradients_per_effective_sample", ""), ("effective_samples_per_second", "_per_second")):
        values = [run[key] for run in runs]
        found |= {f"least{name}": min(values), f"most{name}": max(values)}
    return found


def line(row: Figures) -> str:
    cost = f"{row['gradients_per_effective_sample']:9.1f}{row['least']:9.1f}{row['most']:9.1f}"
    speed = f"{row['effective_samples_per_second']:10.0f}{row['least_per_second']:10.0f}{row['most_per_second']:10.0f}"
    rest = f"{row['gradients_per_draw']:8.1f}{row.get('tuning_gradients_per_chain', float('nan')):8.0f}"
    return f"{row['target']:14}{row['sampler']:28}{cost}{speed}{rest}"


if __name__ == "__main__":
    main()
