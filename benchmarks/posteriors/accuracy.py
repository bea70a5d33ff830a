"""References of targets, the errors of draws against them, the verdict on a run, and its line in the terminal."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.energies import effective, least_effective
from benchmarks.harness import read_json, write_json
from benchmarks.posteriors.target import Target

REFERENCES = Path(__file__).parent / "references"
MEAN, RATIO, ERRORS = 0.1, 0.05, 4.0  # what counts as right: sds, sd ratios, or standard errors
_RESOLUTION = 0.05  # the largest standard error of a mean, in sds, at which the mean is decided


@dataclass(frozen=True)
class Reference:
    """The moments of the statistics of a target, with their standard errors; 0 for closed forms."""

    target: str  # name of the target
    names: list[str]  # names of the statistics
    mean: list[float]  # their means
    sd: list[float]  # their standard deviations
    mean_error: list[float]  # standard errors of the means
    sd_error: list[float]  # standard errors of the standard deviations
    center: list[float]  # means of the coordinates
    scale: list[float]  # their standard deviations
    source: str  # how they were found
    quantiles: dict[str, list[float]] = field(default_factory=dict)  # quantiles of the statistics by probability, for draws
    about: dict[str, Any] = field(default_factory=dict)  # command, versions, seconds, and diagnostics

    def write(self) -> None:
        """Writes the reference to its file, with six digits."""
        write_json(REFERENCES / f"{self.target}.json", _round(asdict(self)))


def read_reference(target: Target) -> Reference:
    path = REFERENCES / f"{target.name}.json"
    if not path.exists():
        raise FileNotFoundError(f"{target.name} has no reference: run `python -m benchmarks.posteriors.references --rows {target.name}`.")
    reference = Reference(**read_json(path))
    if tuple(reference.names) != target.names:
        raise ValueError(f"{path.name} has the statistics {reference.names}, the target {list(target.names)}: draw the reference again.")
    return reference


def moments(values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns means and standard deviations, with the standard errors of both, each with shape $(k,)$.

    Standard errors come from effective sample sizes of several chains; they are NaN where all draws are equal.
    """
    mean = values.mean((0, 1))
    size, variance = effective(values)
    sizes, spread = effective((values - mean).square())
    sd = variance.sqrt()
    return mean, sd, (variance / size).sqrt(), (spread / sizes).sqrt() / (2 * sd)


@dataclass(frozen=True)
class Accuracy:
    """The largest errors of draws. A statistic is right within .1 sd or 4 standard errors, its sd within 5 % or 4 standard errors."""

    mean: float  # error of the mean that is largest, in sds of the reference
    mean_error: float | None  # its standard error; None if all draws are equal
    worst_mean: str  # statistic it belongs to
    ratio: float  # sd ratio that is farthest from 1
    ratio_error: float | None  # its standard error; None if all draws are equal
    worst_ratio: str  # statistic it belongs to
    wrong: list[str]  # statistics that are wrong
    undecided: bool  # whether a standard error is too large to tell: above .05 sds for a mean
    ess: float  # least effective sample size


def compare(values: Tensor, reference: Reference) -> Accuracy:
    """Returns the errors of draws of the statistics."""
    mean, sd, mean_error, sd_error = moments(values.double())
    truth = [torch.tensor(some, dtype=torch.float64) for some in (reference.mean, reference.sd, reference.mean_error, reference.sd_error)]
    error, ratio = (mean - truth[0]) / truth[1], sd / truth[1]
    error_se = (mean_error.nan_to_num(0.0).square() + truth[2].square()).sqrt() / truth[1]
    ratio_se = (sd_error.nan_to_num(0.0).square() + (ratio * truth[3]).square()).sqrt() / truth[1]
    wrong_mean = ~(error.abs() <= MEAN) & ~(error.abs() <= ERRORS * error_se)
    wrong_ratio = ~((ratio - 1).abs() <= RATIO) & ~((ratio - 1).abs() <= ERRORS * ratio_se)
    first, second = (int(some.abs().nan_to_num(math.inf).argmax()) for some in (error, ratio - 1))
    return Accuracy(
        mean=float(error[first]),
        mean_error=_number(mean_error[first] / truth[1][first]),
        worst_mean=reference.names[first],
        ratio=float(ratio[second]),
        ratio_error=_number(sd_error[second] / truth[1][second]),
        worst_ratio=reference.names[second],
        wrong=[name for name, bad in zip(reference.names, (wrong_mean | wrong_ratio).tolist(), strict=True) if bad],
        undecided=bool((error_se > _RESOLUTION).any()),
        ess=least_effective(values),
    )


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _round(some) for name, some in value.items()}
    return [_round(some) for some in value] if isinstance(value, list) else value


OURS, NUTS = "composable-energy", "NumPyro NUTS"
Rows = Sequence[Mapping[str, Any]]


def verdict(row: Mapping[str, Any]) -> str:
    """Returns `right`, `wrong`, `undecided` or `error`."""
    if "error" in row:
        return "error"
    return "wrong" if row["wrong"] else "undecided" if row["undecided"] else "right"


def print_row(row: Mapping[str, Any]) -> None:
    names = ("row", "sampler", "seed", "start", "mean", "ratio", "ess", "gradients_per_effective", "seconds", "error", "warnings")
    cells = (f"{name} {row[name]:.3g}" if isinstance(row[name], float) else str(row[name]) for name in names if name in row)
    print(f"{verdict(row):9}", *cells, sep="  ", flush=True)
