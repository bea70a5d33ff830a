"""Gradients per effective sample, and effective samples per second: `python -m benchmarks.quality [--peers] [--write]`.

Four targets. `gaussian` has 100 coordinates, a random rotation and variances from .1 to 10, where no diagonal metric helps. `banana` is
$x_1 \\sim N(0, 1)$, $x_2 \\mid x_1 \\sim N(x_1^2, 1/4)$. `perceptron` (64 coordinates, 107,449 weights) and `convolutions` (192
coordinates, 127,489 weights) are random networks plus a quadratic term, $E(x) = f(x) + \\lVert x \\rVert^2 / 2$, which makes them proper.

64 chains start at normal points, run a warm-up of as many steps as they take to settle, and are then recorded. The effective sample size
is the multi-chain one of Geyer and Stan, the least over all coordinates and over $x$ and $(x - \\bar x)^2$; gradients are those of the
recorded part, each trajectory with its leapfrogs. The cost of tuning is a column of its own, and so are the effective samples per second
of one processor. Several seeds, with the median. Seeds are the outer loop, so that a slow minute of the machine is slow for
all.

`--peers` adds the samplers of ebmkit, torchebm and BlackJAX (`make bench` creates the environment that has them).
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.energies import CountingEnergy, Perceptron, cost_figures
from benchmarks.harness import RESULTS, chosen, environment, replace_rows, run_benchmark
from benchmarks.peers.energies import Gaussian, Pictures
from composable_energy_mcmc import HMC, MALA, ChEES

PATH = RESULTS / "quality.json"
CHAINS = 64
PERCEPTRON, CONVOLUTIONS = 100.0, 1000.0  # scales at which the networks contribute about as much as the quadratic term
Figures = dict[str, Any]


class Banana(nn.Module):
    """A normal coordinate, and a second one around its square."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, 0].square() / 2 + 2 * (x[:, 1] - x[:, 0].square()).square()


@dataclass(frozen=True)
class Target:
    """A target, and the effort of the comparison on it."""

    name: str  # its name
    formula: nn.Module  # energy in plain torch
    size: int  # number of coordinates
    draws: int  # recorded draws of each chain; MALA takes twice as many
    steps: tuple[float, ...]  # step sizes on the grid of the samplers that do not tune themselves
    leapfrogs: tuple[int, ...]  # its numbers of leapfrogs


def targets() -> list[Target]:
    torch.manual_seed(0)
    perceptron, convolutions = Perceptron(64, 296, PERCEPTRON).requires_grad_(False), Pictures(CONVOLUTIONS).requires_grad_(False)
    return [
        Target("gaussian", Gaussian(), 100, 2000, (0.15, 0.2, 0.3, 0.4), (6, 12, 24)),
        Target("banana", Banana(), 2, 4000, (0.1, 0.18, 0.25), (5, 10, 20)),
        Target("perceptron", perceptron, 64, 500, (0.2, 0.35, 0.5, 0.7), (2, 4, 8)),
        Target("convolutions", convolutions, 192, 150, (0.15, 0.25, 0.4), (2, 4, 8)),
    ]


def measure(target: Target, sampler: Any, draws: int, seed: int, fast: ce.Energy | None = None) -> Figures:
    """Returns the figures of a sampler of this library."""
    energy = CountingEnergy(target.formula, target.size)
    _, trace = energy.sample(CHAINS, sampler=sampler, steps=1, seed=seed, trace=True)
    tuning = energy.take_count() / CHAINS
    _, trace = energy.sample(CHAINS, sampler=trace.sampler, steps=max(draws // 4, 100), seed=seed, trace=True)
    energy.take_count()
    counted = 0.0
    if fast is not None:  # a compiled energy cannot count, so the plain one does, for some draws
        energy.sample(CHAINS, resume=trace, steps=64)
        fast.sample(CHAINS, resume=trace, steps=2, compile=True)
        counted = energy.take_count() / CHAINS / 64
    began = time.process_time()
    _, trace = (fast or energy).sample(CHAINS, resume=trace, steps=draws, trace=1, compile=fast is not None)
    seconds = time.process_time() - began
    per_draw = energy.take_count() / CHAINS / draws if fast is None else counted
    points: Any = trace.points
    return cost_figures(points, seconds, per_draw) | {"tuning_gradients_per_chain": tuning}


def ours(target: Target) -> Iterator[tuple[str, Callable[[int], Figures]]]:
    """Yields the samplers of this library by name, as functions of a seed."""
    for name, sampler, draws in (("chees", ChEES(), target.draws), ("hmc", HMC(), target.draws), ("mala", MALA(), 2 * target.draws)):
        yield name, lambda seed, s=sampler, n=draws: measure(target, s, n, seed)
    fast = ce.as_energy(target.formula, event_shape=(target.size,))
    yield "chees, compiled", lambda seed: measure(target, ChEES(), target.draws, seed, fast)


def theirs(target: Target) -> Iterator[tuple[str, Callable[[int], Figures]]]:
    """Yields the samplers of other libraries by name, as functions of a seed."""
    from benchmarks.peers import blackjax_samplers, torch_samplers

    densities = {
        "gaussian": lambda: blackjax_samplers.gaussian(target.formula.get_buffer("precision").numpy()),
        "banana": lambda: blackjax_samplers.banana,
        "perceptron": lambda: blackjax_samplers.network(target.formula, PERCEPTRON),
        "convolutions": lambda: blackjax_samplers.pictures(target.formula, CONVOLUTIONS),
    }
    start = torch.randn((CHAINS, target.size), generator=torch.Generator().manual_seed(0))
    yield from torch_samplers.samplers(target.formula, start, target.draws, target.steps, target.leapfrogs)
    yield from blackjax_samplers.samplers(densities[target.name](), CHAINS, target.size, target.draws)


def one_processor() -> None:
    """Limits this process to one thread and one processor, because JAX starts threads of its own."""
    torch.set_num_threads(1)
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def run(args: Any) -> Iterator[dict[str, Any]]:
    one_processor()
    known = {
        f"{target.name} {name}": (target.name, name, run)
        for target in targets()
        for name, run in (*ours(target), *(theirs(target) if args.peers else ()))
    }
    some = list(chosen(known, args.only).values())
    for target in dict.fromkeys(target for target, _, _ in some):
        mine = [(name, run) for of, name, run in some if of == target]
        runs: dict[str, list[Figures]] = {name: [] for name, _ in mine}
        for seed in range(args.seeds):
            for name, run in mine:
                runs[name].append({key: float(f"{value:.4g}") for key, value in run(seed).items()})
        medians = {name: {key: statistics.median(run[key] for run in found) for key in found[0]} for name, found in runs.items()}
        rows = [{"target": target, "sampler": name, **medians[name], "runs": found} for name, found in runs.items()]
        for row in rows:
            print({key: value for key, value in row.items() if key != "runs"}, flush=True)
        yield {**environment(chains=CHAINS), "rows": replace_rows(PATH, rows, ("target", "sampler"))}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, seeds=3, only=[], peers=False)
