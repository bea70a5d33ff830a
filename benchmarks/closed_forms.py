"""Whether samplers draw from densities that are known: `python -m benchmarks.closed_forms --write`.

The whole benchmark takes some 20 minutes of one core, a quarter of them for `mala` on 100 coordinates; `--only` measures some rows again.

Every sampler of the registry that accepts and rejects runs on every target with 20 seeds. Chains start where `sample` starts them by
default (except on the half-line, where that could be outside), run a warm-up, and are then recorded. Each seed estimates the mean and the
variance of each coordinate; the variance is about the true mean. Standard errors come from the effective sample size of all chains of a
seed, the truth from a formula or from a sum over a fine grid. A row passes if

- every estimate, pooled over the seeds, is within 4 standard errors, and
- every estimate of a single seed is within 5.

The largest of n independent normal numbers has a typical size, `expected`: 3.7 for 4,000 of them, as on 100 coordinates. `sd` is the root
mean square of the single estimates' z; it is 1 if the standard errors are right. `se` is the largest pooled standard error of a variance,
relative to the variance: the resolution of the test. Langevin and underdamped have a known bias, so their variance is compared with the
formula for their step size. The funnel is reported, and no sampler has to pass it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.closed_form_targets import F64, TARGETS, Target, gaussian, mixture
from benchmarks.effective import effective
from benchmarks.energies import CountingEnergy
from benchmarks.harness import RESULTS, environment, read_options, replace_rows, write_json
from composable_energy.errors import ExpressionError, OptionError, PluginLoadError
from composable_energy.sampling import Sampler

__all__ = ["EFFORT", "EFFORTS", "TARGETS", "Effort", "effective", "estimates", "measure", "mixture", "rows", "unadjusted"]

PATH = RESULTS / "closed_forms.json"
POOLED, SINGLE = 4.0, 5.0  # standard errors


@dataclass(frozen=True)
class Effort:
    """How long a sampler runs."""

    chains: int
    burn_in: int  # steps that are discarded
    steps: int  # steps that are recorded
    every: int = 1  # steps between two points that are kept
    options: dict[str, Any] = field(default_factory=dict)  # options of the sampler


# Long enough to forget the start, and for some hundred effective draws of each seed. Steps are shorter than by default where a chain can
# stay in a narrow part for long: the arms of the banana, the end of the half-line.
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


def estimates(draws: Tensor, target: Target) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the errors of mean and variance of each coordinate, their standard errors, and the effective sample sizes."""
    centred = draws[..., : len(target.mean)] - target.mean
    numbers = torch.cat([centred, centred.square() - target.variance], 2)
    size, variance = effective(numbers)
    return numbers.mean((0, 1)), (variance / size).sqrt(), size


def expected_largest(n: int) -> float:
    """Returns the median of the largest absolute value of n independent standard normal numbers."""
    return torch.special.ndtri(torch.tensor((1 + 0.5 ** (1 / n)) / 2, dtype=F64)).item()


def measure(sampler: Sampler, target: Target, effort: Effort, seeds: int) -> dict[str, Any]:
    """Returns the figures of a row."""
    began, known = time.process_time(), len(target.mean)
    size = target.size or known
    energy = CountingEnergy(target.energy, size)
    found = []
    for seed in range(seeds):
        torch.manual_seed(seed)
        _, trace = energy.sample(
            effort.chains,
            sampler=sampler,
            steps=effort.burn_in + effort.steps,
            burn_in=effort.burn_in,
            trace=effort.every,
            init=None if target.start is None else target.start((effort.chains, size)),
            seed=seed,
            dtype=F64,
        )
        found.append(estimates(trace.points, target))
    errors, widths, sizes = (torch.stack(values) for values in zip(*found, strict=True))
    gradients = energy.take_count()
    return {
        **scores(errors, widths, target),
        "least_effective": sizes.min().item(),
        "gradients": gradients / (effort.chains * seeds),
        "gradients_per_effective": gradients / sizes.amin(1).sum().item(),
        "acceptance": float(trace.acceptance.mean()) if trace.acceptance is not None else None,
        "seconds": time.process_time() - began,
        "required": target.required,
        "sampler": repr(trace.sampler),
        "effort": vars(effort),
        "means": (errors.mean(0)[:known] + target.mean).tolist()[:10],
        "variances": (errors.mean(0)[known:] + target.variance).tolist()[:10],
        "seeds": seeds,
    }


def scores(errors: Tensor, widths: Tensor, target: Target) -> dict[str, Any]:
    """Returns the largest errors in standard errors, pooled and of single seeds, and whether they pass."""
    z, width = errors / widths, widths.square().sum(0).sqrt() / len(errors)
    pooled = errors.mean(0) / width
    worst, single = pooled.abs().max().item(), z.abs().max().item()
    return {
        "pooled": worst,
        "pooled_expected": expected_largest(pooled.numel()),
        "single": single,
        "single_expected": expected_largest(z.numel()),
        "sd": z.square().mean().sqrt().item(),
        "se": (width[len(target.mean) :] / target.variance).max().item(),
        "passed": worst < POOLED and single < SINGLE,
    }


def adjusted() -> Iterator[str]:
    """Yields the names of the samplers that accept and reject and have no last step."""
    bowl = ce.as_energy(lambda x: x.square().sum(1) / 2)
    for record in ce.plugins():
        if record.group != "composable_energy.samplers":
            continue
        try:
            _, trace = bowl.sample((2, 2), sampler=record.name, steps=1, seed=0, trace=True)
        except (ExpressionError, OptionError, PluginLoadError):  # it needs noise levels or an option, or cannot run here
            continue
        if trace.acceptance is not None and trace.sampler.total_steps is None:
            yield record.name


def unadjusted() -> Iterator[tuple[str, str, Sampler, Target, Effort]]:
    """Yields Langevin and underdamped samplers with the variances that follow from their step sizes."""
    target = gaussian(10, 10.0, rotated=False)
    for name, step_size, temperature in (("langevin", 0.3, 1.0), ("langevin", 0.6, 0.5), ("underdamped", 0.6, 1.0)):
        sampler = ce.get("sampler", name)(step_size=step_size, temperature=temperature)
        variance = temperature * target.variance / (1 - step_size / (4 * target.variance) if name == "langevin" else 1.0)
        yield name, f"gaussian, bias of {step_size}, T {temperature}", sampler, Target(target.energy, target.mean, variance), EFFORT


def rows(seeds: int, only: str) -> Iterator[dict[str, Any]]:
    """Yields the rows whose `sampler: target` matches a pattern."""
    for name in adjusted():
        for what, make in TARGETS.items():
            effort = EFFORTS.get((name, what), EFFORT)
            if re.search(only, f"{name}: {what}"):
                sampler = ce.get("sampler", name)(**effort.options)
                yield {"name": name, "target": what, **measure(sampler, make(), effort, seeds)}
    for name, what, sampler, target, effort in unadjusted():
        if re.search(only, f"{name}: {what}"):
            yield {"name": name, "target": what, **measure(sampler, target, effort, seeds)}


def main() -> None:
    args = read_options(__doc__, PATH, seeds=20, only="")
    done = []
    for row in rows(args.seeds, args.only):
        done.append(row)
        shown = ("name", "target", "pooled", "single", "sd", "se", "least_effective", "gradients_per_effective", "passed", "required")
        print({key: round(row[key], 4) if isinstance(row[key], float) else row[key] for key in shown}, flush=True)
    if not done:
        raise SystemExit(f"no row matches {args.only!r}; rows are `sampler: target`, with the targets {', '.join(TARGETS)}")
    required = [row for row in done if row["required"]]
    failed = [row for row in required if not row["passed"]]
    print(f"{len(required) - len(failed)} of {len(required)} within {POOLED} pooled and {SINGLE} single.")
    if args.write:
        table = sorted(replace_rows(PATH, done, ("name", "target")), key=lambda row: (row["name"], row["target"]))
        write_json(PATH, {**environment(), "command": "python -m benchmarks.closed_forms --write", "rows": table})
    raise SystemExit(bool(failed))


if __name__ == "__main__":
    main()
