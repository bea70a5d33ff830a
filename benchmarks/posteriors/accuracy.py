"""References of targets, and the errors of draws against them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.effective import effective
from benchmarks.harness import read_json, write_json
from benchmarks.posteriors.target import Target

REFERENCES = Path(__file__).parent / "references"
MEAN, RATIO, ERRORS = 0.1, 0.05, 4.0  # what counts as right: sds, sd ratios, or standard errors
_RESOLUTION = 0.05  # the largest standard error of a mean, in sds, at which the mean is decided


@dataclass(frozen=True)
class Reference:
    """The moments of the statistics of a target, with their standard errors; 0 for closed forms.

    Args:
        target: The name of the target.
        names: The names of the statistics.
        mean: Their means.
        sd: Their standard deviations.
        mean_error: The standard errors of the means.
        sd_error: The standard errors of the standard deviations.
        center: The means of the coordinates.
        scale: Their standard deviations.
        source: How they were found.
        quantiles: Quantiles of the statistics by probability, for draws.
        about: Command, versions, seconds, and diagnostics.
    """

    target: str
    names: list[str]
    mean: list[float]
    sd: list[float]
    mean_error: list[float]
    sd_error: list[float]
    center: list[float]
    scale: list[float]
    source: str
    quantiles: dict[str, list[float]] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    def write(self) -> None:
        """Writes the reference to its file, with six digits."""
        write_json(REFERENCES / f"{self.target}.json", _round(asdict(self)))


def read_reference(target: Target) -> Reference:
    """Returns the committed reference of a target.

    Raises:
        FileNotFoundError: There is none.
        ValueError: Its statistics are not those of the target.
    """
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

    Args:
        values: The draws in float64, with shape (draws, chains, k).
    """
    mean = values.mean((0, 1))
    size, variance = effective(values)
    sizes, spread = effective((values - mean).square())
    sd = variance.sqrt()
    return mean, sd, (variance / size).sqrt(), (spread / sizes).sqrt() / (2 * sd)


def least_effective(values: Tensor) -> float:
    """Returns the least effective sample size over the statistics and their squared distances from the mean; NaN counts as 0."""
    sizes = torch.cat([effective(some)[0] for some in (values, (values - values.mean((0, 1))).square())])
    return float(sizes.nan_to_num(0.0).min())


@dataclass(frozen=True)
class Accuracy:
    """The largest errors of draws. A statistic is right within .1 sd or 4 standard errors, its sd within 5 % or 4 standard errors.

    Args:
        mean: The error of the mean that is largest, in sds of the reference.
        mean_error: Its standard error; None if all draws are equal.
        worst_mean: The statistic it belongs to.
        ratio: The sd ratio that is farthest from 1.
        ratio_error: Its standard error; None if all draws are equal.
        worst_ratio: The statistic it belongs to.
        wrong: The statistics that are wrong.
        undecided: Whether a standard error is too large to tell: above .05 sds for a mean.
        ess: The least effective sample size.
    """

    mean: float
    mean_error: float | None
    worst_mean: str
    ratio: float
    ratio_error: float | None
    worst_ratio: str
    wrong: list[str]
    undecided: bool
    ess: float


def compare(values: Tensor, reference: Reference) -> Accuracy:
    """Returns the errors of draws of the statistics.

    Args:
        values: The draws, with shape (draws, chains, k).
        reference: The truth.
    """
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
        ess=least_effective(values.double()),
    )


def _number(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: _round(some) for name, some in value.items()}
    return [_round(some) for some in value] if isinstance(value, list) else value
