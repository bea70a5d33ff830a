r"""How well scores separate points of the data from others: area under the ROC curve, false positives, histograms."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_integer, check_number


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Returns the area under the ROC curve: the probability that a point from outside has the higher score; ties count half.

    1 is perfect and .5 is chance; below .5 the points from outside have the lower scores.

    Args:
        inside: Scores of points of the data, with shape $(n,)$; higher is more unusual.
        outside: Scores of other points, with shape $(m,)$.

    Raises:
        ShapeError: There are no scores, or they are no vectors.
        OptionError: A score is not a number.

    Example:
        >>> import torch
        >>> from composable_energy_classification import auroc
        >>> auroc(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]))
        0.875
    """
    inside, outside = _scores(inside), _scores(outside)
    known = inside.sort().values
    below, up_to = (torch.searchsorted(known, outside, right=right) for right in (False, True))
    return float((below + up_to).double().mean() / (2 * len(inside)))


def fpr_at_95(inside: Tensor, outside: Tensor, *, kept: float = 0.95) -> float:
    """Returns the share of points from outside that are accepted by a threshold that accepts 95 % of the points of the data.

    Args:
        inside: Scores of points of the data, with shape $(n,)$; higher is more unusual.
        outside: Scores of other points, with shape $(m,)$.
        kept: The share of the data that is accepted, at least.

    Raises:
        ShapeError: There are no scores, or they are no vectors.
        OptionError: A score is not a number, or `kept` is not between 0 and 1.
    """
    inside, outside = _scores(inside), _scores(outside)
    rank = math.ceil(check_number("kept", kept, above=0, below=1) * len(inside) - 1e-9)  # of the least threshold that keeps enough
    return float((outside <= inside.sort().values[rank - 1]).double().mean())


@dataclass(frozen=True)
class Histogram:
    """Shares of scores in bins of equal width.

    Attributes:
        edges: The edges of the bins, with shape $(bins + 1,)$.
        inside: The share of the points of the data in each bin, with shape $(bins,)$.
        outside: The share of the other points in each bin.
    """

    edges: Tensor
    inside: Tensor
    outside: Tensor


def histogram(inside: Tensor, outside: Tensor, bins: int = 30, *, trim: float = 0.0) -> Histogram:
    """Returns the shares of scores in common bins, for a plot of both.

    Args:
        inside: Scores of points of the data, with shape $(n,)$.
        outside: Scores of other points, with shape $(m,)$.
        bins: The number of bins.
        trim: The share of each end of all scores that is counted in the outermost bins, for a few extreme scores.

    Raises:
        ShapeError: There are no scores, or they are no vectors.
        OptionError: A score is not a number or infinite, or an option is out of range.
    """
    inside, outside = _scores(inside), _scores(outside)
    bins, trim = check_integer("bins", bins), check_number("trim", trim, least=0, below=0.5)
    both = torch.cat([inside, outside])
    if not bool(both.isfinite().all()):
        raise OptionError(f"{int((~both.isfinite()).sum())} scores are infinite, and bins of equal width cannot hold them.")
    low, high = float(torch.quantile(both, trim)), float(torch.quantile(both, 1 - trim))
    edges = torch.linspace(low, high if high > low else low + 1.0, bins + 1, dtype=torch.float64)
    shares = []
    for scores in (inside, outside):
        place = (torch.searchsorted(edges, scores.clamp(low, high), right=True) - 1).clamp(0, bins - 1)
        shares.append(torch.bincount(place, minlength=bins).double() / len(scores))
    return Histogram(edges, shares[0], shares[1])


def _scores(scores: Tensor) -> Tensor:
    """Returns scores in float64 on the CPU."""
    if not isinstance(scores, Tensor):
        raise DtypeError(f"Scores are a tensor, got {type(scores).__name__}.")
    if scores.ndim != 1 or not len(scores):
        raise ShapeError(f"Scores have shape (n,) with n > 0, got {tuple(scores.shape)}.")
    scores = scores.detach().double().cpu()
    if bool(scores.isnan().any()):
        raise OptionError(f"{int(scores.isnan().sum())} of {len(scores)} scores are not a number.")
    return scores
