"""Whether samplers draw from densities that are known: `python benchmarks/closed_forms.py --write`.

It took 20 minutes of one core on a busy machine, a quarter of them `mala` on 100 coordinates; `--only` measures some rows anew.

Every sampler of the registry that accepts and rejects, on every target, with 20 seeds. Chains start where `sample` starts them by itself
(the half-line excepted, where that would be outside), are forgotten for a burn-in, and followed. Each seed estimates the mean and the
variance of each coordinate; the variance about the true mean. Standard errors come from the effective sample size of all chains of a seed
(Geyer's monotone pairs, as in Stan), the truth from a formula or a sum over a fine grid. Required:

- pooled over the seeds every estimate is within 4 standard errors;
- no estimate of a single seed is beyond 5.

Of n independent normal numbers the largest is about `expected` in size; 4,000 of them, as for 100 coordinates, 3.7. `sd` is the root mean
square of the single estimates' z: 1, if the standard errors are what they say. `se` is the largest pooled standard error of a variance,
relative to it: what the test can see. Langevin and underdamped are held to the variance that their step gives on a Gaussian, by a formula,
as an equality. The funnel is reported and required of nobody.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

import composable_energy as ce
from composable_energy.errors import OptionError, PluginLoadError
from composable_energy.sampling import Sampler
from composable_energy.testing import Banana

RESULTS = Path(__file__).parent / "results" / "closed_forms.json"
POOLED, SINGLE = 4.0, 5.0  # standard errors
F64 = torch.float64


@dataclass(frozen=True)
class Target:
    """An energy with the mean and the variance of its coordinates, or of the first of them.

    `size` is how many there are, if more; `start` draws points inside the support from a shape.
    """

    energy: ce.Energy
    mean: Tensor
    variance: Tensor
    start: Callable[..., Tensor] | None = None
    size: int = 0
    required: bool = True


@dataclass(frozen=True)
class Effort:
    """How long a sampler runs; `every` is how many steps lie between points that are kept."""

    chains: int
    burn_in: int
    steps: int
    every: int = 1
    options: dict[str, Any] = field(default_factory=dict)


class Counted(ce.Energy):
    """Counts how often points got a gradient."""

    def __init__(self, energy: ce.Energy) -> None:
        super().__init__()
        self.energy, self.count = energy, 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += len(x) * x.requires_grad
        return self.energy(x)


# Targets ---------------------------------------------------------------------------------------------------------------------------------


def gaussian(size: int, condition: float = 1000.0, rotated: bool = True) -> Target:
    """Variances about 1 in random directions, and a mean that no chain starts at."""
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


def half_line() -> Target:
    r"""$E = u^{1.5} - \tfrac12 \log u$ with $u = x + \tfrac12$, which is not a number for $u < 0$; there the density is 0."""

    def energy(x: Tensor) -> Tensor:
        u = x[:, 0] + 0.5
        return torch.where(u > 0, u**1.5 - u.log() / 2, torch.inf)

    first, second = math.gamma(5 / 3), math.gamma(7 / 3)
    mean, variance = torch.tensor([first - 0.5], dtype=F64), torch.tensor([second - first**2], dtype=F64)
    return Target(ce.as_energy(energy), mean, variance, lambda shape: torch.rand(shape, dtype=F64))


def expression() -> Target:
    """Either of two, and not a third, which is told from the two."""

    def normal(mean: list[float], covariance: list[list[float]]) -> ce.Energy:
        return ce.as_energy(MultivariateNormal(torch.tensor(mean, dtype=F64), torch.tensor(covariance, dtype=F64)))

    either = normal([-1.0, 0.0], [[1.0, 0.5], [0.5, 0.8]]) | 2 * normal([1.5, 0.5], [[1.2, 0.0], [0.0, 1.0]])
    energy = either & ~normal([0.0, 0.5], [[0.6, 0.1], [0.1, 0.5]]).relative_to(either)
    axis = torch.linspace(-10, 10, 1001, dtype=F64)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        weight = torch.softmax(-energy(points), 0)
    return Target(energy, weight @ points, weight @ (points - weight @ points).square())


def banana() -> Target:
    return Target(Banana(), torch.tensor([0.0, 1.0], dtype=F64), torch.tensor([1.0, 2.25], dtype=F64))


def funnel() -> Target:
    r"""$v \sim N(0, 9)$ and nine coordinates of variance $e^v$, which are too heavy in their tails to be looked at."""
    energy = ce.as_energy(lambda x: x[:, 0].square() / 18 + 4.5 * x[:, 0] + (x[:, 1:].square().sum(1) * (-x[:, 0]).exp()) / 2)
    return Target(energy, torch.zeros(1, dtype=F64), torch.full((1,), 9.0, dtype=F64), size=10, required=False)


TARGETS: dict[str, Callable[[], Target]] = {
    "gaussian, 2": lambda: gaussian(2),
    "gaussian, 10": lambda: gaussian(10),
    "gaussian, 100": lambda: gaussian(100),
    "mixture": mixture,
    "banana": banana,
    "half-line": half_line,
    "a | b & ~c": expression,
    "funnel": funnel,
}

# Short, where nothing else is said; long enough to forget the start, and for some hundred effective draws of each seed. Where a chain can
# stay for long in a narrow part (the arms of the banana, the end of the half-line) steps are shorter than by default.
EFFORT = Effort(200, 60, 120)
EFFORTS: dict[tuple[str, str], Effort] = {
    ("mala", "gaussian, 2"): Effort(128, 5000, 5000, 25),
    ("mala", "gaussian, 10"): Effort(128, 5500, 5000, 25),
    ("mala", "gaussian, 100"): Effort(64, 9000, 24000, 120),
    ("mala", "mixture"): Effort(400, 300, 400, 5),
    ("mala", "banana"): Effort(400, 3000, 3000, 15, {"acceptance": 0.98}),
    ("mala", "half-line"): Effort(800, 500, 1000, 5, {"acceptance": 0.95}),
    ("mala", "a | b & ~c"): Effort(400, 200, 300, 5),
    ("mala", "funnel"): Effort(200, 1000, 2000, 20, {"acceptance": 0.9}),
    ("hmc", "gaussian, 2"): Effort(200, 150, 400),
    ("hmc", "gaussian, 10"): Effort(200, 150, 400),
    ("hmc", "gaussian, 100"): Effort(64, 250, 500, 2),
    ("hmc", "banana"): Effort(600, 150, 250, 1, {"acceptance": 0.98, "leapfrogs": 32}),
    ("chees", "gaussian, 100"): Effort(100, 60, 150),
    ("chees", "banana"): Effort(400, 60, 120, 1, {"acceptance": 0.9}),
    ("chees", "half-line"): Effort(400, 100, 200, 1, {"acceptance": 0.9}),
    **{("tempering", target): Effort(64, 60, 120) for target in TARGETS},
    ("tempering", "gaussian, 2"): Effort(64, 50, 100, 1, {"leapfrogs": 32}),
    ("tempering", "gaussian, 10"): Effort(64, 50, 100, 1, {"leapfrogs": 32}),
    ("tempering", "gaussian, 100"): Effort(32, 40, 80, 1, {"leapfrogs": 32}),
    ("tempering", "banana"): Effort(100, 100, 200, 1, {"acceptance": 0.98, "leapfrogs": 24}),
}


# Measuring -------------------------------------------------------------------------------------------------------------------------------


def effective(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the effective sample sizes and the variances of some numbers, with shape (k,), of draws with shape (draws, chains, k)."""
    n, chains, _ = draws.shape
    means = draws.mean(0)
    spectrum = torch.fft.rfft(draws - means, 1 << (2 * n - 1).bit_length(), dim=0)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), dim=0)[:n].mean(1) / n
    within, total = covariance[0] * n / (n - 1), covariance[0] + means.var(0)
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    pairs = torch.where((pairs < 0).cumsum(0) > 0, 0.0, pairs).cummin(0).values  # Geyer's: positive, and falling
    between = (2 * pairs.sum(0) - 1).clamp_min(1 / math.log10(chains * n))
    return chains * n / between, total


def estimates(draws: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the errors of mean and variance of each coordinate, their standard errors, and the effective sample sizes."""
    centred = draws[..., : len(target.mean)] - target.mean
    numbers = torch.cat([centred, centred.square() - target.variance], 2)
    size, variance = effective(numbers)
    return numbers.mean((0, 1)), (variance / size).sqrt(), size


def expected_largest(n: int) -> float:
    """The median of the largest of some independent normal numbers, in size."""
    return torch.special.ndtri(torch.tensor((1 + 0.5 ** (1 / n)) / 2, dtype=F64)).item()


def measure(sampler: Sampler, target: Target, effort: Effort, seeds: int) -> dict[str, Any]:
    began, known = time.process_time(), len(target.mean)
    energy, size = Counted(target.energy), target.size or known
    energy.event_shape = (size,)
    errors, widths, sizes = [], [], []
    for seed in range(seeds):
        torch.manual_seed(seed)
        init = None if target.start is None else target.start((effort.chains, size))
        _, trace = energy.sample(
            effort.chains,
            sampler=sampler,
            steps=effort.burn_in + effort.steps,
            burn_in=effort.burn_in,
            trace=effort.every,
            init=init,
            seed=seed,
            dtype=F64,
        )
        found = estimates(trace.points, target)
        for values, value in zip((errors, widths, sizes), found, strict=True):
            values.append(value)
    errors, widths, sizes = torch.stack(errors), torch.stack(widths), torch.stack(sizes)
    z = errors / widths
    width = widths.square().sum(0).sqrt() / seeds
    pooled = errors.mean(0) / width
    worst = {"pooled": pooled.abs().max().item(), "single": z.abs().max().item()}
    return {
        "pooled": worst["pooled"],
        "pooled_expected": expected_largest(pooled.numel()),
        "single": worst["single"],
        "single_expected": expected_largest(z.numel()),
        "sd": z.square().mean().sqrt().item(),
        "se": (width[known:] / target.variance).max().item(),
        "least_effective": sizes.min().item(),
        "gradients": energy.count / (effort.chains * seeds),
        "gradients_per_effective": energy.count / sizes.amin(1).sum().item(),
        "acceptance": float(trace.acceptance.mean()) if trace.acceptance is not None else None,
        "seconds": time.process_time() - began,
        "required": target.required,
        "passed": worst["pooled"] < POOLED and worst["single"] < SINGLE,
        "sampler": repr(trace.sampler),
        "effort": vars(effort),
        "means": (errors.mean(0)[:known] + target.mean).tolist()[:10],
        "variances": (errors.mean(0)[known:] + target.variance).tolist()[:10],
        "seeds": seeds,
    }


def adjusted() -> Iterator[str]:
    """The names of the samplers that accept and reject, and whose chains go on."""
    bowl = ce.as_energy(lambda x: x.square().sum(1) / 2)
    for record in ce.plugins():
        if record.group != "composable_energy.samplers":
            continue
        try:
            _, trace = bowl.sample((2, 2), sampler=record.name, steps=1, seed=0, trace=True)
        except (OptionError, PluginLoadError):  # it has options that must be said, or cannot be used here
            continue
        if trace.acceptance is not None and trace.sampler.total_steps is None:
            yield record.name


def unadjusted() -> Iterator[tuple[str, str, Sampler, Target, Effort]]:
    """Langevin and underdamped with the variances that their steps give."""
    target = gaussian(10, 10.0, rotated=False)
    for name, step_size, temperature in (("langevin", 0.3, 1.0), ("langevin", 0.6, 0.5), ("underdamped", 0.6, 1.0)):
        sampler = ce.get_sampler(name)(step_size=step_size, temperature=temperature)
        variance = temperature * target.variance / (1 - step_size / (4 * target.variance) if name == "langevin" else 1.0)
        yield name, f"gaussian, bias of {step_size}, T {temperature}", sampler, Target(target.energy, target.mean, variance), EFFORT


def rows(seeds: int, only: str) -> Iterator[dict[str, Any]]:
    for name in adjusted():
        for what, make in TARGETS.items():
            effort = EFFORTS.get((name, what), EFFORT)
            if re.search(only, f"{name}: {what}"):
                sampler = ce.get_sampler(name)(**effort.options)
                yield {"name": name, "target": what, **measure(sampler, make(), effort, seeds)}
    for name, what, sampler, target, effort in unadjusted():
        if re.search(only, f"{name}: {what}"):
            yield {"name": name, "target": what, **measure(sampler, target, effort, seeds)}


def write(done: list[dict[str, Any]]) -> None:
    """Replaces the rows that were measured, and keeps the others."""
    measured = {(row["name"], row["target"]): row for row in done}
    before = json.loads(RESULTS.read_text())["rows"] if RESULTS.exists() else []
    kept = [row for row in before if (row["name"], row["target"]) not in measured]
    about = {"command": "python benchmarks/closed_forms.py --write", "python": platform.python_version(), "torch": torch.__version__}
    rows = sorted(kept + done, key=lambda row: (row["name"], row["target"]))
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps({**about, "rows": rows}, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--only", default="", help="rows whose `sampler: target` matches this pattern")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'sampler':13}{'target':30}{'pooled':>14}{'single':>14}{'sd':>6}{'se':>8}{'ESS':>8}{'gradients':>11}{'g/ESS':>8}{'s':>6}")
    done = []
    for row in rows(arguments.seeds, arguments.only):
        done.append(row)
        verdict = "" if row["passed"] else "  FAILS"
        if not row["required"]:
            verdict = f"  reported: v has mean {row['means'][0]:.2f} (0), variance {row['variances'][0]:.2f} (9)"
        print(
            f"{row['name']:13}{row['target']:30}{row['pooled']:7.2f} ({row['pooled_expected']:.1f})"
            f"{row['single']:8.2f} ({row['single_expected']:.1f}){row['sd']:6.2f}{row['se']:8.4f}{row['least_effective']:8.0f}"
            f"{row['gradients']:11.0f}{row['gradients_per_effective']:8.1f}{row['seconds']:6.0f}{verdict}",
            flush=True,
        )
    required = [row for row in done if row["required"]]
    failed = [row for row in required if not row["passed"]]
    seconds = sum(row["seconds"] for row in done)
    print(f"{len(required) - len(failed)} of {len(required)} within {POOLED} pooled and {SINGLE} single; {seconds:.0f} s.")
    if arguments.write:
        write(done)
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
