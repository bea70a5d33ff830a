"""Regressions on measured data that come with scikit-learn. No default of the library was chosen on them."""

from __future__ import annotations

import math

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor

from benchmarks.posteriors.target import Target, log_normal, numbered


def standardize(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def breast_cancer_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 569 rows of 30 standardised features, many of them nearly collinear, and labels."""
    data = load_breast_cancer()
    return standardize(data.data), data.target.astype(float)


def breast_cancer() -> Target:
    """Logistic regression with prior N(0, 2.5) on the intercept and on 30 coefficients."""
    features, labels = (torch.from_numpy(values) for values in breast_cancer_data())

    def log_density(x: Tensor) -> Tensor:
        logits = x[:, :1] + x[:, 1:] @ features.to(x).T
        likelihood = labels.to(x) * logits - torch.nn.functional.softplus(logits)
        return likelihood.sum(1) + log_normal(x, sd=2.5).sum(1)

    return Target("breast-cancer", "breast cancer, logistic", 31, log_density, ("intercept", *numbered("beta", 30)), lambda x: x)


def diabetes_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 442 rows of 10 standardised features, and standardised outcomes."""
    data = load_diabetes()
    return standardize(data.data), standardize(data.target)


def diabetes() -> Target:
    r"""Robust regression: Student-t errors of unknown scale and degrees of freedom.

    The coordinates are the intercept and 10 coefficients with prior N(0, 1), $\log\sigma$ with $\sigma \sim N^+(1)$, and $\log\nu$ with
    $\nu \sim \mathrm{Gamma}(2, .1)$ (Juarez & Steel, 2010).
    """
    features, outcomes = (torch.from_numpy(values) for values in diabetes_data())

    def log_density(x: Tensor) -> Tensor:
        log_scale, log_freedom = x[:, 11:12], x[:, 12:13]
        scale, freedom = log_scale.exp(), log_freedom.exp()
        prior = log_normal(x[:, :11]).sum(1) + (log_scale - scale.square() / 2 + 2 * log_freedom - 0.1 * freedom).squeeze(1)
        z = (outcomes.to(x) - x[:, :1] - x[:, 1:11] @ features.to(x).T) / scale
        constant = torch.lgamma((freedom + 1) / 2) - torch.lgamma(freedom / 2) - (freedom * math.pi).log() / 2 - log_scale
        return prior + (constant - (freedom + 1) / 2 * (z.square() / freedom).log1p()).sum(1)

    def statistics(x: Tensor) -> Tensor:
        return torch.cat([x[:, :11], x[:, 11:12].exp(), x[:, 12:13]], 1)

    names = ("intercept", *numbered("beta", 10), "sigma", "log_nu")
    return Target("diabetes", "diabetes, Student-t errors", 13, log_density, names, statistics)
