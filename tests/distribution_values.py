"""Short constructors of tensors and parameters of distributions."""

from __future__ import annotations

import pytest
import torch
from torch import distributions as td

F64 = torch.float64


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


class Checked(td.Normal):
    """A class that the library does not know; it checks its points."""

    support = td.constraints.greater_than(-1.0)


BOUNDED = {
    "Beta": td.Beta(t(2.0, 0.7), t(1.5, 3.0)),
    "Chi2": td.Chi2(t(3.0, 4.0)),
    "ContinuousBernoulli": td.ContinuousBernoulli(t(0.3, 0.8)),
    "Dirichlet": td.Dirichlet(t(2.0, 3.0, 1.5)),
    "Exponential": td.Exponential(t(1.0, 2.0)),
    "FisherSnedecor": td.FisherSnedecor(t(3.0, 4.0), t(5.0, 6.0)),
    "Gamma": td.Gamma(t(2.0, 3.0), t(1.0, 2.0)),
    "HalfCauchy": td.HalfCauchy(t(1.0, 2.0)),
    "HalfNormal": td.HalfNormal(t(1.0, 2.0)),
    "InverseGamma": td.InverseGamma(t(2.0, 3.0), t(1.0, 2.0)),
    "Kumaraswamy": td.Kumaraswamy(t(2.0, 3.0), t(1.5, 2.5)),
    "LKJCholesky": td.LKJCholesky(3, t(1.5).squeeze()),
    "LogisticNormal": td.LogisticNormal(t(0.0, 1.0), t(1.0, 2.0)),
    "LogNormal": td.LogNormal(t(0.0, 1.0), t(1.0, 0.5)),
    "Pareto": td.Pareto(t(0.5, 1.0), t(2.0, 3.0)),
    "RelaxedBernoulli": td.RelaxedBernoulli(t(0.7).squeeze(), t(0.3, 0.6)),
    "RelaxedOneHotCategorical": td.RelaxedOneHotCategorical(t(0.7).squeeze(), t(0.3, 0.6, 0.1)),
    "Uniform": td.Uniform(t(-1.0, 0.0), t(1.0, 2.0)),
    "Weibull": td.Weibull(t(1.0, 2.0), t(1.5, 2.5)),
    "Wishart": td.Wishart(t(4.0).squeeze(), torch.eye(2, dtype=F64)),
    "Independent": td.Independent(td.LogNormal(t(0.0, 1.0), t(1.0, 0.5)), 1),
    "MixtureSameFamily": td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), td.Gamma(t(2.0, 3.0), t(1.0, 2.0))),
    "MixtureOfIndependent": td.MixtureSameFamily(
        td.Categorical(t(0.3, 0.7)), td.Independent(td.Weibull(1.0 + torch.rand(2, 3, dtype=F64), t(1.5).squeeze()), 1)
    ),
    "TransformedDistribution": td.TransformedDistribution(td.Normal(t(0.0, 1.0), t(1.0, 2.0)), [td.ExpTransform()]),
    "Inverse": td.TransformedDistribution(td.Beta(t(2.0, 3.0), t(2.0, 2.0)), [td.ExpTransform(), td.AffineTransform(-1.0, 2.0)]),
    "Checked": Checked(t(9.0, 9.0), t(1.0, 1.0)),
}


EVERYWHERE = {
    "Cauchy": td.Cauchy(t(0.0, 1.0), t(1.0, 2.0)),
    "Gumbel": td.Gumbel(t(0.0, 1.0), t(1.0, 2.0)),
    "Laplace": td.Laplace(t(0.0, 1.0), t(1.0, 2.0)),
    "LowRank": td.LowRankMultivariateNormal(t(0.0, 1.0), torch.ones(2, 1, dtype=F64), t(1.0, 2.0)),
    "MultivariateNormal": td.MultivariateNormal(t(0.0, 1.0), torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)),
    "Normal": td.Normal(t(0.0, 1.0), t(1.0, 2.0)),
    "StudentT": td.StudentT(t(3.0, 4.0), t(0.0, 1.0), t(1.0, 2.0)),
    "VonMises": td.VonMises(t(0.0, 1.0), t(1.0, 2.0)),
    "Mixture": td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), td.Normal(t(-1.0, 1.0), t(0.5, 1.0))),
    "Logistic": td.TransformedDistribution(td.Uniform(t(0.0, 0.0), t(1.0, 1.0)), [td.SigmoidTransform().inv, td.AffineTransform(1.0, 2.0)]),
}


ALL = BOUNDED | EVERYWHERE


BOTH = pytest.mark.parametrize("distribution", ALL.values(), ids=ALL)


def inside_points(distribution: td.Distribution, count: int = 6) -> torch.Tensor:
    if isinstance(distribution, td.Wishart):  # whose own draws warn
        return distribution.mean + torch.eye(2, dtype=F64) * torch.rand(count, 1, 1, dtype=F64)
    return distribution.sample((count,))


def total(log_prob: torch.Tensor) -> torch.Tensor:
    return -(log_prob.flatten(1).sum(1) if log_prob.ndim > 1 else log_prob)
