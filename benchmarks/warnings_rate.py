"""How often right runs warn, and wrong ones do not: the warnings of `sample` and of `trace.warnings()`.

Right runs draw closed forms with default settings, 64 chains, several seeds. A right run is one whose mean and standard deviation of the
final points are within 4.5 standard errors of the truth; others are counted apart. Wrong runs have far modes, chains that stand still, a
funnel, a start far away, or a step that does not fit.

    python -m benchmarks.warnings_rate --seeds 20 --write
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, Independent, MixtureSameFamily, MultivariateNormal, Normal, StudentT

import composable_energy as ce
from benchmarks.harness import RESULTS, argument_parser, environment, write_json
from composable_energy import SamplingWarning

CHAINS = 64
FILE = RESULTS / "warnings_rate.json"
FAR = 4.5  # standard errors; one of thousands of right figures is that far out


@dataclass(frozen=True)
class Run:
    """A run: the energy, the number of coordinates, the options of `sample`, and for right runs mean and standard deviation."""

    energy: ce.Energy
    size: int
    options: dict[str, Any] = field(default_factory=dict)
    mean: float = 0.0
    deviation: float | None = None


def lifted(distribution: torch.distributions.Distribution) -> ce.Energy:
    return ce.as_energy(distribution)


def mixture(modes: Tensor, scale: float) -> ce.Energy:
    """Returns a mixture of normals of equal weight."""
    return lifted(MixtureSameFamily(Categorical(torch.ones(len(modes))), Independent(Normal(modes, scale), 1)))


def correlated(size: int, correlation: float) -> ce.Energy:
    covariance = torch.full((size, size), correlation) + (1 - correlation) * torch.eye(size)
    return lifted(MultivariateNormal(torch.zeros(size), covariance))


def funnel(x: Tensor) -> Tensor:
    """Neal's funnel in ten dimensions."""
    v, rest = x[:, 0], x[:, 1:]
    return v.square() / 18 + (rest.square().sum(1) * (-v).exp() + 9 * v) / 2


def normal(*deviations: float) -> ce.Energy:
    return lifted(Independent(Normal(torch.zeros(len(deviations)), torch.tensor(deviations)), 1))


RIGHT: dict[str, Callable[[], Run]] = {
    "normal, 2": lambda: Run(normal(1.0, 1.0), 2, deviation=1.0),
    "normal, 20": lambda: Run(normal(*[1.0] * 20), 20, deviation=1.0),
    "correlated .9, 2": lambda: Run(correlated(2, 0.9), 2, deviation=1.0),
    "overlapping mixture, 2": lambda: Run(mixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 1.0), 2),
    "student-t 5, 2": lambda: Run(lifted(Independent(StudentT(torch.full((2,), 5.0)), 1)), 2, deviation=math.sqrt(5 / 3)),
}


def wrong_runs() -> dict[str, Run]:
    angles = torch.arange(8) * (2 * math.pi / 8)
    ring = 10 * torch.stack([angles.cos(), angles.sin()], 1)
    far, thin = torch.full((CHAINS, 2), 20.0), torch.zeros(CHAINS, 2)
    one = torch.randn(CHAINS, 2, generator=torch.Generator().manual_seed(0))
    one[:3] = 9.0
    narrow = normal(1.0, 1.0) | lifted(Independent(Normal(torch.full((2,), 9.0), 1e-3), 1))
    return {
        "two far modes": Run(mixture(torch.tensor([[-6.0, 0.0], [6.0, 0.0]]), 1.0), 2),
        "eight far modes": Run(mixture(ring, 0.5), 2),
        "two far modes, hmc": Run(mixture(torch.tensor([[-6.0, 0.0], [6.0, 0.0]]), 1.0), 2, {"sampler": "hmc"}),
        "funnel": Run(ce.as_energy(funnel), 10),
        "funnel, mala": Run(ce.as_energy(funnel), 10, {"sampler": "mala"}),
        "three stuck chains": Run(narrow, 2, {"sampler": "mala", "step_size": 1.0, "init": one, "steps": 200}),
        "all chains stuck": Run(normal(1e-6, 1e-6), 2, {"sampler": "mala", "step_size": 1.0, "init": thin}),
        "all chains stuck, 5 steps": Run(normal(1e-6, 1e-6), 2, {"sampler": "mala", "step_size": 1.0, "init": thin, "steps": 5}),
        "step too short": Run(normal(0.2, 1.0), 2, {"sampler": "mala", "step_size": 5e-4, "steps": 400}),
        "step too long": Run(normal(0.2, 1.0), 2, {"sampler": "mala", "step_size": 20.0, "steps": 400}),
        "langevin step too long": Run(normal(1.0, 1.0), 2, {"sampler": "langevin", "step_size": 2.0, "steps": 400}),
        "start far away": Run(normal(1.0, 1.0), 2, {"sampler": "langevin", "step_size": 0.005, "steps": 400, "init": far}),
        "ill-conditioned, langevin": Run(normal(0.01, 10.0), 2, {"sampler": "langevin", "step_size": 1e-5, "steps": 500}),
    }


def warned(run: Run, seed: int, **options: Any) -> tuple[Tensor, list[str], list[str]]:
    """Returns the final points, and the kinds of warnings that `sample` emits and that the trace has."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        x, trace = run.energy.sample((CHAINS, run.size), seed=seed, trace=True, **{**run.options, **options})
    emitted = [some.message.kind for some in found if isinstance(some.message, SamplingWarning)]
    return x, emitted, [warning.kind for warning in trace.warnings()]


def is_right(run: Run, x: Tensor) -> bool:
    """Returns whether means and standard deviations of the final points are those of the closed form, within their errors."""
    deviation = x.std(0) if run.deviation is None else torch.full((run.size,), run.deviation)
    off = (x.mean(0) - run.mean).abs() / (deviation / CHAINS**0.5)
    if run.deviation is None:
        return bool((off < FAR).all())
    squares = (x - run.mean).square()
    spread = (squares.mean(0) - run.deviation**2).abs() / (squares.std(0) / CHAINS**0.5)
    return bool((off < FAR).all() and (spread < FAR).all())


def main() -> None:
    parser = argument_parser(__doc__, FILE, whole=True)
    parser.add_argument("--seeds", type=int, default=20, help="right runs for each density; wrong ones have three")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    right = []
    for name, make in RIGHT.items():
        rows = [
            (is_right(run := make(), x), emitted, kept) for x, emitted, kept in (warned(make(), seed) for seed in range(arguments.seeds))
        ]
        good = [row for row in rows if row[0]]
        right.append(
            {
                "density": name,
                "runs": len(rows),
                "right": len(good),
                "sample warns": sum(bool(row[1]) for row in good),
                "trace warns": sum(bool(row[2]) for row in good),
                "kinds": sorted({kind for row in good for kind in (*row[1], *row[2])}),
            }
        )
        print(right[-1], flush=True)
    wrong = []
    for name, run in wrong_runs().items():
        rows = [warned(run, seed) for seed in range(3)]
        wrong.append(
            {
                "run": name,
                "runs": len(rows),
                "sample warns": sum(bool(row[1]) for row in rows),
                "either warns": sum(bool(row[1] or row[2]) for row in rows),
                "kinds of sample": sorted({kind for row in rows for kind in row[1]}),
                "kinds of trace": sorted({kind for row in rows for kind in row[2]}),
            }
        )
        print(wrong[-1], flush=True)
    total = sum(row["right"] for row in right)
    rates = {
        "false alarms of sample": sum(row["sample warns"] for row in right) / total,
        "false alarms of the trace": sum(row["trace warns"] for row in right) / total,
        "sensitivity of sample": sum(row["sample warns"] for row in wrong) / sum(row["runs"] for row in wrong),
        "sensitivity of either": sum(row["either warns"] for row in wrong) / sum(row["runs"] for row in wrong),
    }
    print(rates)
    if arguments.write:
        settings = environment("torch", "arviz-stats", chains=CHAINS, seeds=arguments.seeds)
        write_json(FILE, {"settings": settings, "rates": rates, "right": right, "wrong": wrong})


if __name__ == "__main__":
    main()
