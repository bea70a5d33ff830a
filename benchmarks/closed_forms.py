"""Whether samplers draw from densities whose mean and variance are known: `python -m benchmarks.closed_forms --write`.

Samplers that accept and reject run on a Gaussian whose variances differ by a factor of 1,000, and on a mixture. Langevin and underdamped
have a known bias, so their variance is compared with the formula for their step size, on another Gaussian. Each seed estimates the mean and
the variance of each coordinate; standard errors come from the effective sample size of all its chains. A row passes if

- every estimate, pooled over the seeds, is within 4 standard errors, and
- every estimate of a single seed is within 5.

`--only` measures the rows whose names have one of some texts again.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
from benchmarks.energies import CountingEnergy, effective
from benchmarks.harness import RESULTS, chosen, environment, read_options, replace_rows, write_json

PATH = RESULTS / "closed_forms.json"
POOLED, SINGLE = 4.0, 5.0  # standard errors
F64 = torch.float64


@dataclass(frozen=True)
class Target:
    """An energy with the mean and the variance of its coordinates."""

    energy: ce.Energy
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class Effort:
    """How long a sampler runs."""

    chains: int = 200
    burn_in: int = 60  # steps that are discarded
    steps: int = 120  # steps that are recorded
    every: int = 1  # steps between two points that are kept
    options: Mapping[str, Any] = field(default_factory=dict)  # options of the sampler


Row = tuple[str, str, Target, Effort]  # names of sampler and target


def gaussian(size: int = 10, condition: float = 1000.0, rotated: bool = True) -> Target:
    """A Gaussian with variances around 1 along random axes, and a mean at which no chain starts."""
    axes = torch.eye(size, dtype=F64)
    if rotated:
        axes = torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=torch.Generator().manual_seed(size)))[0]
    variances = torch.logspace(-math.log10(condition) / 2, math.log10(condition) / 2, size, dtype=F64)
    precision, mean = (axes / variances) @ axes.T, torch.full((size,), 0.5, dtype=F64)
    energy = ce.as_energy(lambda x: (((x - mean) @ precision) * (x - mean)).sum(1) / 2)
    return Target(energy, mean, ((axes * variances) @ axes.T).diagonal())


def mixture() -> Target:
    weights, means = torch.tensor([0.3, 0.7], dtype=F64), torch.tensor([[-1.5, 0.0], [1.0, 0.8]], dtype=F64)
    covariances = torch.tensor([[[0.5, 0.2], [0.2, 0.4]], [[0.8, -0.3], [-0.3, 0.3]]], dtype=F64)
    energy = ce.as_energy(MixtureSameFamily(Categorical(weights), MultivariateNormal(means, covariances)))
    mean = weights @ means
    return Target(energy, mean, weights @ (covariances.diagonal(dim1=1, dim2=2) + means.square()) - mean.square())


def rows() -> dict[str, Row]:
    """Returns the rows by `sampler: target`; efforts are long enough to forget the start."""
    wide, two, round_ = gaussian(), mixture(), gaussian(10, 10.0, rotated=False)
    found: list[Row] = [
        ("mala", "gaussian, 10", wide, Effort(128, 5500, 5000, 25)),
        ("mala", "mixture", two, Effort(400, 300, 400, 5)),
        ("hmc", "gaussian, 10", wide, Effort(200, 150, 400)),
        ("hmc", "mixture", two, Effort()),
        ("chees", "gaussian, 10", wide, Effort()),
        ("chees", "mixture", two, Effort()),
        ("tempering", "gaussian, 10", wide, Effort(64, 50, 100, 1, {"leapfrogs": 32})),
        ("tempering", "mixture", two, Effort(64, 60, 120)),
    ]
    for name, step_size, temperature in (("langevin", 0.3, 1.0), ("langevin", 0.6, 0.5), ("underdamped", 0.6, 1.0)):
        variance = temperature * round_.variance / (1 - step_size / (4 * round_.variance) if name == "langevin" else 1.0)
        effort = Effort(options={"step_size": step_size, "temperature": temperature})
        found.append((name, f"gaussian, bias of {step_size}, T {temperature}", Target(round_.energy, round_.mean, variance), effort))
    return {f"{name}: {target}": row for row in found for name, target in (row[:2],)}


def measure(row: Row, seeds: int) -> dict[str, Any]:
    name, title, target, effort = row
    began, size, sampler = time.process_time(), len(target.mean), ce.get("sampler", name)(**effort.options)
    energy, found = CountingEnergy(target.energy, size), []
    steps = {"steps": effort.burn_in + effort.steps, "burn_in": effort.burn_in, "trace": effort.every}
    for seed in range(seeds):
        torch.manual_seed(seed)
        _, trace = energy.sample(effort.chains, sampler=sampler, seed=seed, dtype=F64, **steps)
        centred = trace.points - target.mean  # pyright: ignore[reportOptionalOperand]
        numbers = torch.cat([centred, centred.square() - target.variance], 2)
        effective_size, variance = effective(numbers)
        found.append((numbers.mean((0, 1)), (variance / effective_size).sqrt(), effective_size))
    errors, widths, sizes = (torch.stack(values) for values in zip(*found, strict=True))
    pooled = (errors.mean(0) / (widths.square().sum(0).sqrt() / len(errors))).abs().max().item()
    single, gradients = (errors / widths).abs().max().item(), energy.take_count()
    return {
        "name": name,
        "target": title,
        "pooled": pooled,
        "single": single,
        "passed": pooled < POOLED and single < SINGLE,
        "least_effective": sizes.min().item(),
        "gradients_per_effective": gradients / sizes.amin(1).sum().item(),
        "seconds": time.process_time() - began,
        "seeds": seeds,
    }


def main() -> None:
    args = read_options(__doc__, PATH, seeds=20, only=[])
    done = []
    for row in chosen(rows(), args.only).values():
        done.append(measure(row, args.seeds))
        print(done[-1], flush=True)
    if args.write:
        write_json(PATH, {**environment(), "rows": replace_rows(PATH, done, ("name", "target"))})
    raise SystemExit(not all(row["passed"] for row in done))


if __name__ == "__main__":
    main()
