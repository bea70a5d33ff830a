r"""Points that are not from the data: scores of how unusual points are, a higher score is more unusual, and how well scores separate."""

import math

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy_classification.classifier import Classifier


@torch.no_grad()
def energy_score(energy: Energy | Classifier, x: Tensor) -> Tensor:
    r"""Returns the energy $E(x)$ of points, with shape $(B,)$; of a classifier that of points of any class."""
    return _checked(energy.energy(x) if isinstance(energy, Classifier) else energy(x), energy)


def uncertainty_score(classifier: Classifier, x: Tensor) -> Tensor:
    r"""Returns $-\log \max_y p(y \mid x)$ of a classifier, with shape $(B,)$ (Hendrycks & Gimpel, 2017).

    References:
        A baseline for detecting misclassified and out-of-distribution examples (Hendrycks & Gimpel, 2017),
        https://arxiv.org/abs/1610.02136
    """
    with torch.no_grad():
        logs = classifier(x)
        # Where the greatest is 1 up to rounding, the others tell points apart.
        return _checked(torch.log1p(logs.topk(logs.shape[1] - 1, 1, largest=False).values.exp().sum(1) / logs.amax(1).exp()), classifier)


def _checked(scores: Tensor, energy: object) -> Tensor:
    """Returns scores that are numbers; infinite ones order points, others do not."""
    if bool(scores.isnan().any()):
        raise ExpressionError(f"The score of {int(scores.isnan().sum())} of {len(scores)} points under {energy} is not a number.")
    return scores


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Returns the area under the ROC curve: the probability that a point from outside has the higher score; ties count half.

    1 is perfect and .5 is chance; below .5 the points from outside have the lower scores.

    Args:
        inside: Scores of points of the data, with shape $(n,)$; higher is more unusual.
        outside: Scores of other points, with shape $(m,)$.

    Raises:
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


def fpr_at_95(inside: Tensor, outside: Tensor) -> float:
    """Returns the share of points from outside that are accepted by a threshold that accepts 95 % of the points of the data.

    Arguments and errors are those of `auroc`.
    """
    inside, outside = _scores(inside), _scores(outside)
    return float((outside <= inside.sort().values[math.ceil(0.95 * len(inside) - 1e-9) - 1]).double().mean())


def _scores(scores: Tensor) -> Tensor:
    """Returns scores in float64 on the CPU."""
    if not isinstance(scores, Tensor) or scores.is_complex():
        raise DtypeError(f"Scores are a tensor of real numbers, got {getattr(scores, 'dtype', type(scores).__name__)}.")
    if scores.ndim != 1 or not len(scores):
        raise ShapeError(f"Scores have shape (n,) with n > 0, got {tuple(scores.shape)}.")
    scores = scores.detach().double().cpu()
    if bool(scores.isnan().any()):
        raise OptionError(f"{int(scores.isnan().sum())} of {len(scores)} scores are not a number.")
    return scores
