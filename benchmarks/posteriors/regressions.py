"""Regressions: on generated data, and on data that come with scikit-learn, on which no default of the library was chosen."""

import math

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor

from benchmarks.posteriors.target import Target, log_normal, numbered


def standardize(values: np.ndarray) -> np.ndarray:
    return (values - values.mean(0)) / values.std(0)


def columns(random: np.random.RandomState, rows: int, count: int, correlation: float) -> np.ndarray:
    """Returns standardised features; neighbours have the given correlation."""
    x = random.randn(rows, count)
    for j in range(1, count):
        x[:, j] = correlation * x[:, j - 1] + np.sqrt(1 - correlation**2) * x[:, j]
    return standardize(x)


def logistic_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 400 rows of 30 features with correlation .8 between neighbours, and labels."""
    random = np.random.RandomState(1)
    x = columns(random, 400, 30, 0.8)
    coefficients = random.randn(30)
    return x, (random.rand(400) < 1 / (1 + np.exp(-(x @ coefficients + 0.5)))).astype(float)


def breast_cancer_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 569 rows of 30 standardised features, many of them nearly collinear, and labels."""
    features, labels = load_breast_cancer(return_X_y=True)
    return standardize(features), labels.astype(float)


def logistic(name: str, title: str, data: tuple[np.ndarray, np.ndarray]) -> Target:
    """Logistic regression with prior N(0, 2.5) on the intercept and on 30 coefficients."""
    features, labels = (torch.from_numpy(values) for values in data)

    def log_density(x: Tensor) -> Tensor:
        logits = x[:, :1] + x[:, 1:] @ features.to(x).T
        likelihood = labels.to(x) * logits - torch.nn.functional.softplus(logits)
        return likelihood.sum(1) + log_normal(x, sd=2.5).sum(1)

    return Target(name, title, 31, log_density, ("intercept", *numbered("beta", 30)), lambda x: x)


def poisson_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 200 rows of 8 features with correlation .95 between neighbours, and counts."""
    random = np.random.RandomState(2)
    x = columns(random, 200, 8, 0.95)
    return x, random.poisson(np.exp(1.0 + x @ (0.4 * random.randn(8)))).astype(float)


def poisson() -> Target:
    """Poisson regression with a log link and prior N(0, 1) on the intercept and on 8 coefficients."""
    features, counts = (torch.from_numpy(values) for values in poisson_data())

    def log_density(x: Tensor) -> Tensor:
        rates = x[:, :1] + x[:, 1:] @ features.to(x).T
        return (counts.to(x) * rates - rates.exp()).sum(1) + log_normal(x).sum(1)

    return Target("poisson", "Poisson regression", 9, log_density, ("intercept", *numbered("beta", 8)), lambda x: x)


def horseshoe_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 60 rows of 12 features, and outcomes that depend on three of them with noise of sd .5."""
    random = np.random.RandomState(3)
    x = columns(random, 60, 12, 0.3)
    coefficients = np.zeros(12)
    coefficients[[1, 5, 9]] = 1.5, -1.0, 0.6
    return x, x @ coefficients + 0.5 * random.randn(60)


def _coefficients(x: Tensor) -> Tensor:
    """Returns coefficients $z \\tau \\tilde\\lambda$, with a slab of scale 2 (Piironen & Vehtari, 2017)."""
    z, local, scale = x[:, :12], x[:, 12:24].exp(), x[:, 24:25].exp()
    return z * scale * local * 2 / (4 + (scale * local).square()).sqrt()


def horseshoe() -> Target:
    """Regression with a regularised horseshoe, in non-centred coordinates.

    The coordinates are $z$ (12), $\\log\\lambda$ (12), $\\log\\tau$ and $\\log\\sigma$; $\\lambda_j \\sim C^+(1)$, $\\tau \\sim C^+(.1)$,
    $\\sigma \\sim N^+(1)$.
    """
    features, outcomes = (torch.from_numpy(values) for values in horseshoe_data())

    def log_density(x: Tensor) -> Tensor:
        log_local, log_scale, log_noise = x[:, 12:24], x[:, 24], x[:, 25]
        prior = log_normal(x[:, :12]).sum(1) + _log_half_cauchy(log_local).sum(1) + _log_half_cauchy(log_scale - np.log(0.1))
        prior = prior - log_noise.exp().square() / 2 + log_noise
        residuals = outcomes.to(x) - _coefficients(x) @ features.to(x).T
        return prior - residuals.square().sum(1) / (2 * (2 * log_noise).exp()) - len(outcomes) * log_noise

    def statistics(x: Tensor) -> Tensor:
        return torch.cat([_coefficients(x), x[:, 12:]], 1)

    names = (*numbered("beta", 12), *numbered("log_lambda", 12), "log_tau", "log_sigma")
    return Target("horseshoe", "horseshoe regression", 26, log_density, names, statistics)


def _log_half_cauchy(log_x: Tensor) -> Tensor:
    """Returns the log density of the logarithm of a half-Cauchy variable of scale 1, up to a constant."""
    return log_x - torch.nn.functional.softplus(2 * log_x)


def diabetes_data() -> tuple[np.ndarray, np.ndarray]:
    """Returns 442 rows of 10 standardised features, and standardised outcomes."""
    features, outcomes = load_diabetes(return_X_y=True)
    return standardize(features), standardize(outcomes)


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
