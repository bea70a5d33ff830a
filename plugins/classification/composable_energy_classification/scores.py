r"""Scores of how unusual points are, for the detection of points that are not from the data; a higher score is more unusual."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy_classification.classifier import Classifier


def energy_score(energy: Energy | Classifier, x: Tensor) -> Tensor:
    r"""Returns the energy $E(x)$, with shape $(B,)$; of a classifier that of points of any class.

    Args:
        energy: The energy.
        x: The points, with shape $(B, *)$.
    """
    return _checked(_values(energy, x), energy)


def relative_score(energy: Energy | Classifier, background: Energy | Classifier, x: Tensor) -> Tensor:
    r"""Returns the energy relative to that of a background, $E(x) - E_0(x)$, with shape $(B,)$ (Ren et al., 2019).

    What both find unusual, such as few dark pixels, cancels; what is left tells whether the point fits the data.

    Args:
        energy: The energy $E$ of the data.
        background: The energy $E_0$ of a wider set, such as of data with much noise.
        x: The points, with shape $(B, *)$.

    References:
        Likelihood ratios for out-of-distribution detection (Ren et al., 2019), https://arxiv.org/abs/1906.02845
    """
    return _checked(_values(energy, x) - _values(background, x), energy)


def gradient_score(energy: Energy | Classifier, x: Tensor) -> Tensor:
    r"""Returns $\lVert \nabla E(x) \rVert$, with shape $(B,)$; for energies without values too (Grathwohl et al., 2020).

    Args:
        energy: The energy.
        x: The points, with shape $(B, *)$.

    References:
        Your classifier is secretly an energy based model and you should treat it like one (Grathwohl et al., 2020), section 5.3.3,
        https://arxiv.org/abs/1912.03263
    """
    own = energy.marginal if isinstance(energy, Classifier) else energy
    return _checked(own.with_gradient(x)[1].flatten(1).norm(dim=1), energy)


def uncertainty_score(classifier: Classifier, x: Tensor) -> Tensor:
    r"""Returns $-\log \max_y p(y \mid x)$, with shape $(B,)$ (Hendrycks & Gimpel, 2017).

    Args:
        classifier: The classifier.
        x: The points, with shape $(B, *)$.

    References:
        A baseline for detecting misclassified and out-of-distribution examples (Hendrycks & Gimpel, 2017),
        https://arxiv.org/abs/1610.02136
    """
    with torch.no_grad():
        logs = classifier(x)
        # Where the greatest is 1 up to rounding, the others tell points apart.
        return _checked(torch.log1p(logs.topk(logs.shape[1] - 1, 1, largest=False).values.exp().sum(1) / logs.amax(1).exp()), classifier)


def typicality_score(energy: Energy | Classifier, reference: Tensor, x: Tensor) -> Tensor:
    r"""Returns $\lvert E(x) - \langle E \rangle \rvert$ with the mean over points of the data, with shape $(B,)$ (Nalisnick et al., 2019).

    Points of lower energy than the data are unusual too: in many dimensions the most probable point is not a typical one.

    Args:
        energy: The energy.
        reference: Points of the data that no training used, with shape $(n, *)$.
        x: The points, with shape $(B, *)$.

    References:
        Detecting out-of-distribution inputs to deep generative models using typicality (Nalisnick et al., 2019),
        https://arxiv.org/abs/1906.02994
    """
    if not len(reference):
        raise ShapeError("Typicality needs points of the data as a reference, got none.")
    mean = _values(energy, reference).double().mean()
    if not bool(mean.isfinite()):
        raise ExpressionError(f"The mean energy of the {len(reference)} reference points is {float(mean):g}.")
    return _checked((_values(energy, x).double() - mean).abs().to(x), energy)


def _values(energy: Energy | Classifier, x: Tensor) -> Tensor:
    with torch.no_grad():
        return energy.energy(x) if isinstance(energy, Classifier) else energy(x)


def _checked(scores: Tensor, energy: object) -> Tensor:
    """Returns scores that are numbers; infinite ones order points, others do not."""
    if bool(scores.isnan().any()):
        raise ExpressionError(f"The score of {int(scores.isnan().sum())} of {len(scores)} points under {energy} is not a number.")
    return scores
