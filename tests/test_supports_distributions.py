"""Every distribution of `torch.distributions` is sampled by default with the right moments, or refused with a reason."""

from __future__ import annotations

import inspect
import math
import warnings

import pytest
import torch
from torch import distributions as td

import composable_energy as ce
from composable_energy.errors import LiftError
from tests.distribution_values import F64, t

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

CONTINUOUS = {
    td.Beta: td.Beta(t(2.0, 0.7), t(1.5, 3.0)),
    td.Cauchy: td.Cauchy(t(0.0), t(1.0)),
    td.Chi2: td.Chi2(t(3.0, 4.0)),
    td.ContinuousBernoulli: td.ContinuousBernoulli(t(0.3, 0.8)),
    td.Dirichlet: td.Dirichlet(torch.tensor([[2.0, 3.0, 1.5], [0.3, 0.5, 0.4]], dtype=F64)),
    td.Exponential: td.Exponential(t(1.0, 5.0)),
    td.FisherSnedecor: td.FisherSnedecor(t(3.0, 4.0), t(9.0, 12.0)),
    td.Gamma: td.Gamma(t(2.0, 0.5), t(1.0, 2.0)),
    td.Gumbel: td.Gumbel(t(0.0, 1.0), t(1.0, 2.0)),
    td.HalfCauchy: td.HalfCauchy(t(1.0, 2.0)),
    td.HalfNormal: td.HalfNormal(t(1.0, 3.0)),
    td.Independent: td.Independent(td.LogNormal(t(0.0, 1.0), t(1.0, 0.5)), 1),
    td.InverseGamma: td.InverseGamma(t(3.0, 5.0), t(1.0, 2.0)),
    td.Kumaraswamy: td.Kumaraswamy(t(2.0, 3.0), t(1.5, 2.5)),
    td.Laplace: td.Laplace(t(0.0, 1.0), t(1.0, 2.0)),
    td.LKJCholesky: td.LKJCholesky(3, t(1.5).squeeze()),
    td.LogisticNormal: td.LogisticNormal(t(0.0, 1.0), t(1.0, 2.0)),
    td.LogNormal: td.LogNormal(t(0.0, 1.0), t(1.0, 0.5)),
    td.LowRankMultivariateNormal: td.LowRankMultivariateNormal(t(0.0, 1.0), torch.ones(2, 1, dtype=F64), t(1.0, 2.0)),
    td.MixtureSameFamily: td.MixtureSameFamily(
        td.Categorical(t(0.3, 0.7)), td.Independent(td.Gamma(2 * torch.eye(2, dtype=F64) + 1, t(1.0, 2.0)), 1)
    ),
    td.MultivariateNormal: td.MultivariateNormal(t(0.0, 1.0), torch.tensor([[2.0, 0.9], [0.9, 1.0]], dtype=F64)),
    td.Normal: td.Normal(t(0.0, 1.0), t(1.0, 2.0)),
    td.Pareto: td.Pareto(t(0.5, 1.0), t(3.0, 5.0)),
    td.RelaxedBernoulli: td.RelaxedBernoulli(t(0.7).squeeze(), t(0.3, 0.6)),
    td.RelaxedOneHotCategorical: td.RelaxedOneHotCategorical(t(0.7).squeeze(), t(0.3, 0.6, 0.1)),
    td.StudentT: td.StudentT(t(3.0, 5.0), t(0.0, 1.0), t(1.0, 2.0)),
    td.TransformedDistribution: td.TransformedDistribution(td.Uniform(t(0.0, 0.0), t(1.0, 2.0)), [td.AffineTransform(2.0, -3.0)]),
    td.Uniform: td.Uniform(t(-1.0, 5.0), t(1.0, 5.5)),
    td.VonMises: td.VonMises(t(3.0, 0.0, 1.0), t(4.0, 0.5, 50.0)),
    td.Weibull: td.Weibull(t(1.0, 2.0), t(1.5, 2.5)),
    td.Wishart: td.Wishart(t(5.0).squeeze(), torch.tensor([[1.0, 0.3], [0.3, 0.5]], dtype=F64)),
}
if hasattr(td, "GeneralizedPareto"):  # since torch 2.7
    pairs = ((0.0, 1.0), (1.0, 2.0), (0.1, -0.5))
    CONTINUOUS[td.GeneralizedPareto] = td.GeneralizedPareto(*(t(*pair).float() for pair in pairs))  # torch's takes float32 only
DISCRETE = {
    td.Bernoulli: td.Bernoulli(t(0.3)),
    td.Binomial: td.Binomial(5, t(0.3)),
    td.Categorical: td.Categorical(t(0.3, 0.7)),
    td.Geometric: td.Geometric(t(0.3)),
    td.Multinomial: td.Multinomial(5, t(0.3, 0.7)),
    td.NegativeBinomial: td.NegativeBinomial(5, t(0.3)),
    td.OneHotCategorical: td.OneHotCategorical(t(0.3, 0.7)),
    td.OneHotCategoricalStraightThrough: td.OneHotCategoricalStraightThrough(t(0.3, 0.7)),
    td.Poisson: td.Poisson(t(3.0)),
}
COMPOSED = (
    td.Independent(td.Poisson(t(2.0, 3.0)), 1),
    td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), td.Poisson(t(1.0, 2.0))),
    td.TransformedDistribution(td.Poisson(t(2.0)), [td.AffineTransform(0.0, 2.0)]),
)
ABSTRACT = {td.Distribution, td.ExponentialFamily}
HEAVY = (td.Cauchy, td.HalfCauchy)  # without a mean
DRAWS, REFERENCE = 1000, 50_000


def test_all_classes_of_torch_are_listed():
    found = {cls for cls in vars(td).values() if inspect.isclass(cls) and issubclass(cls, td.Distribution)}
    assert found == {*CONTINUOUS, *DISCRETE, *ABSTRACT}


@pytest.mark.parametrize("distribution", [*DISCRETE.values(), *COMPOSED], ids=lambda some: type(some).__name__)
def test_a_discrete_distribution_is_refused(distribution):
    with pytest.raises(LiftError, match="is discrete: its points are numbers without a gradient"):
        ce.as_energy(distribution)
    with pytest.raises(LiftError):
        ce.as_energy(td.Normal(0.0, 1.0)) & distribution


@pytest.mark.full
@pytest.mark.parametrize("distribution", CONTINUOUS.values(), ids=lambda some: type(some).__name__)
def test_default_draws_have_the_quantiles_and_moments_of_the_distribution(distribution):
    drawn = ce.as_energy(distribution).sample(DRAWS, seed=1)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Wishart warns of singular matrices
        torch.manual_seed(0)
        if isinstance(distribution, td.LKJCholesky):  # torch draws its third row from another density
            drawn = (drawn @ drawn.mT)[:, [1, 2, 2], [0, 0, 1]]
            # Each correlation has a closed form.
            reference = 2 * td.Beta(t(2.0, 2.0, 2.0), t(2.0, 2.0, 2.0)).sample((REFERENCE,)) - 1
        else:
            reference = distribution.sample((REFERENCE,))
    drawn, reference = drawn.flatten(1), reference.flatten(1)
    for share in (0.1, 0.5, 0.9):
        below = (drawn < reference.quantile(share, 0)).double().mean(0)
        error = math.sqrt(share * (1 - share) * (1 / DRAWS + 1 / REFERENCE))
        assert ((below - share).abs() < 4 * error).all(), (share, below)
    if not isinstance(distribution, HEAVY):
        errors = reference.std(0) * math.sqrt(1 / DRAWS + 1 / REFERENCE)
        assert ((drawn.mean(0) - reference.mean(0)).abs() < 4 * errors).all(), (drawn.mean(0), reference.mean(0))
