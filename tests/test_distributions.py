"""Torch distributions as energies: outside their support, with parameters that are learnt, and what cannot be lifted."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, ExpressionError, LiftError, OptionError, ShapeError

F64 = torch.float64


def t(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=F64)


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(t(*values))


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


@BOTH
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 10.0]))
def test_energy_and_gradient_are_those_of_log_prob_inside_and_infinity_and_zero_outside(distribution, seed, scale):
    energy = ce.as_energy(distribution)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inside = inside_points(distribution)
        moved = inside + scale * torch.randn(inside.shape, dtype=F64)
    point = inside.clone().requires_grad_()
    expected = total(distribution.log_prob(point))
    energies, gradients = energy.with_gradient(inside)
    torch.testing.assert_close(energies, expected.detach())
    slope = torch.autograd.grad(expected.sum(), point)[0] if expected.requires_grad else torch.zeros_like(point)  # flat: uniform
    torch.testing.assert_close(gradients, slope)

    energies, gradients = energy.with_gradient(moved)
    outside = energies == math.inf
    assert not energies.isnan().any()
    assert gradients.isfinite().all()
    assert (gradients[outside] == 0).all()
    if isinstance(distribution, (td.Gamma, td.LogNormal, td.Weibull, td.Kumaraswamy, td.Beta)):
        assert torch.equal(~outside, distribution.support.check(moved).all(1))


@pytest.mark.parametrize("distribution", BOUNDED.values(), ids=BOUNDED)
def test_a_mixture_has_the_gradient_of_the_other_branch_outside_the_support(distribution):
    energy = ce.as_energy(distribution)
    wide = ce.as_energy(td.Normal(torch.zeros(energy.event_shape, dtype=F64), 3.0))
    outside = torch.full((2, *energy.event_shape), -3.0, dtype=F64)
    assert (energy(outside) == math.inf).all()
    energies, gradients = (energy | wide).with_gradient(outside)
    torch.testing.assert_close(energies, wide(outside))
    torch.testing.assert_close(gradients, wide.with_gradient(outside)[1])
    assert (energy | wide).sample(5, steps=3, seed=0).isfinite().all()


@BOTH
def test_a_point_that_is_nan_has_the_energy_nan(distribution):
    energy, points = ce.as_energy(distribution), inside_points(distribution, 3)
    if points.ndim == 1:
        points[1] = math.nan
    else:
        points.flatten(1)[1, 0] = math.nan
    assert energy(points).isnan().tolist() == [False, True, False]


@pytest.mark.parametrize("name", ["Beta", "Chi2", "Exponential", "Gamma", "Kumaraswamy", "Uniform", "Dirichlet"])
def test_a_boundary_without_density_has_gradient_zero(name):
    energy = ce.as_energy(BOUNDED[name])
    edge = t(0.0, 1.0).expand(1, 2) if name != "Dirichlet" else t(0.0, 0.5, 0.5).unsqueeze(0)
    energies, gradients = energy.with_gradient(edge)
    if energies == math.inf:
        assert (gradients == 0).all()
    wide = ce.as_energy(td.Normal(torch.zeros_like(edge[0]), 1.0))
    if energies > -math.inf:
        assert (energy | wide).with_gradient(edge)[1].isfinite().all()


def test_a_class_without_known_arguments_is_safe_too():
    distribution = td.GeneralizedPareto(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 2.0]), torch.tensor([0.5, 0.2]))
    energies, gradients = ce.as_energy(distribution).with_gradient(torch.tensor([[-1.0, 2.0], [1.0, 2.0]]))
    torch.testing.assert_close(energies, torch.stack([torch.tensor(math.inf), -distribution.log_prob(torch.tensor([1.0, 2.0])).sum()]))
    assert (gradients[0] == 0).all()
    assert (gradients[1] != 0).all()


def test_components_of_a_mixture_may_have_different_supports():
    uniform = td.Uniform(t(0.0, 2.0), t(1.0, 3.0))
    energy = ce.as_energy(td.MixtureSameFamily(td.Categorical(t(0.25, 0.75)), uniform))
    torch.testing.assert_close(energy(t(0.5, 1.5, 2.5)), t(-math.log(0.25), math.inf, -math.log(0.75)))
    pareto = ce.as_energy(td.MixtureSameFamily(td.Categorical(t(0.5, 0.5)), td.Pareto(t(1.0, 3.0), t(1.0, 1.0))))
    torch.testing.assert_close(pareto(t(2.0)), -t(0.5 * 1.0 / 4.0).log())


def test_a_shifted_distribution_has_a_shifted_support():
    for base in (td.Exponential(t(1.0)), td.HalfNormal(t(1.0)), td.Uniform(t(0.0), t(2.0))):
        energy = ce.as_energy(td.TransformedDistribution(base, [td.AffineTransform(2.0, 1.0)]))
        points = t(1.0, 2.5).unsqueeze(1)
        torch.testing.assert_close(energy(points), torch.cat([t(math.inf), -base.log_prob(t(0.5))]))


def test_points_inside_follow_dtype():
    for distribution in (td.LogNormal(torch.zeros(2), 1.0), td.Dirichlet(torch.ones(3)), td.Uniform(torch.zeros(2), 1.0)):
        energy = ce.as_energy(distribution).double()
        energies, gradients = energy.with_gradient(torch.full((2, *energy.event_shape), -1.0, dtype=F64))
        assert energies.dtype == gradients.dtype == F64


# What cannot be lifted ----------------------------------------------------------------------------------------------------------------


class Decoder(nn.Module):
    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.cat([z, z], 1)


def test_a_distribution_takes_the_options_of_a_callable():
    decoder = Decoder()
    energy = ce.as_energy(td.Normal(torch.zeros(2), 1.0), decoder=decoder, name="prior", event_shape=(2,))
    assert energy.decoder is decoder
    assert str(energy) == "prior"
    assert energy.config()["decoder"] is decoder
    assert ce.as_energy(td.Normal(0.0, 1.0), decoder=decoder).decoder is decoder
    with pytest.raises(ShapeError, match=r"shape \(2,\)"):
        ce.as_energy(td.Normal(torch.zeros(2), 1.0), event_shape=(3,))


@pytest.mark.parametrize("obj", [td.Normal(torch.zeros(2), 1.0), lambda x: x.sum(1)], ids=["distribution", "callable"])
def test_an_unknown_option_is_a_typed_error(obj):
    with pytest.raises(OptionError, match="decodr"):
        ce.as_energy(obj, decodr=Decoder())


@pytest.mark.parametrize("options", [{}, {"decoder": Decoder()}], ids=["alone", "with a decoder"])
def test_a_class_is_a_typed_error_that_says_what_to_do(options):
    with pytest.raises(LiftError, match="the class Normal; make an instance") as caught:
        ce.as_energy(td.Normal, **options)
    assert isinstance(caught.value, TypeError)
    assert isinstance(caught.value, ComposableEnergyError)


DISCRETE = [
    td.Bernoulli(t(0.3)),
    td.Binomial(3, t(0.3)),
    td.Categorical(t(0.3, 0.7)),
    td.Geometric(t(0.3)),
    td.Multinomial(3, t(0.3, 0.7)),
    td.NegativeBinomial(3, t(0.3)),
    td.OneHotCategorical(t(0.3, 0.7)),
    td.Poisson(t(2.0)),
    td.Independent(td.Poisson(t(2.0, 3.0)), 1),
    td.MixtureSameFamily(td.Categorical(t(0.3, 0.7)), td.Poisson(t(1.0, 2.0))),
    td.TransformedDistribution(td.Poisson(t(2.0)), [td.AffineTransform(0.0, 2.0)]),
]


@pytest.mark.parametrize("distribution", DISCRETE, ids=lambda d: type(d).__name__)
def test_a_discrete_distribution_is_refused(distribution):
    with pytest.raises(LiftError, match="is discrete: its points are numbers without a gradient"):
        ce.as_energy(distribution)
    with pytest.raises(LiftError):
        ce.as_energy(td.Normal(0.0, 1.0)) & distribution


class Strange(td.Distribution):
    arg_constraints = {}

    def __init__(self, support: object = None) -> None:
        super().__init__(torch.Size(), torch.Size([2]))
        self.bounds = support

    @property
    def support(self):
        if self.bounds is None:
            raise NotImplementedError
        return self.bounds

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        return -value.sum(-1)


class Odd(td.constraints.Constraint):
    event_dim = 1

    def check(self, value):
        return value[..., 0] > 0


def test_a_distribution_whose_support_is_not_known_is_refused():
    with pytest.raises(LiftError, match="has no `support`"):
        ce.as_energy(Strange())
    with pytest.raises(LiftError, match=r"transform_to\.register"):
        ce.as_energy(Strange(Odd()))


# Parameters ---------------------------------------------------------------------------------------------------------------------------


def learnt():
    """Distributions with the names of their parameters."""
    p, q, matrix = parameter(0.5, 0.7), parameter(2.0, 3.0), nn.Parameter(torch.eye(2, dtype=F64))
    yield from [(cls(p, q), {"loc", "scale"}) for cls in (td.Cauchy, td.Gumbel, td.Laplace, td.LogNormal, td.Normal)]
    yield from [(cls(p, q), {"concentration", "rate"}) for cls in (td.Gamma, td.InverseGamma)]
    yield from [(cls(p, q), {"concentration1", "concentration0"}) for cls in (td.Beta, td.Kumaraswamy)]
    yield from [(cls(p), {"scale"}) for cls in (td.HalfCauchy, td.HalfNormal)]
    yield td.Chi2(p), {"df"}
    yield td.Dirichlet(p), {"concentration"}
    yield td.Exponential(p), {"rate"}
    yield td.FisherSnedecor(p, q), {"df1", "df2"}
    yield td.LowRankMultivariateNormal(p, matrix, q), {"loc", "cov_factor", "cov_diag"}
    yield td.MultivariateNormal(p, matrix), {"loc", "covariance_matrix"}
    yield td.MultivariateNormal(p, precision_matrix=matrix), {"loc", "precision_matrix"}
    yield td.MultivariateNormal(torch.zeros(3, 2, dtype=F64), scale_tril=matrix), {"scale_tril"}
    yield td.Pareto(p, q), {"scale", "alpha"}
    yield td.StudentT(q, p, 1.0), {"df", "loc"}
    yield td.Uniform(p, q), {"low", "high"}
    yield td.VonMises(p, q), {"loc", "concentration"}
    yield td.Weibull(p, q), {"scale", "concentration"}
    yield td.Normal(nn.Parameter(torch.tensor(0.5, dtype=F64)), 1.0).expand((2,)), {"loc"}
    yield td.Independent(td.Normal(p, 1.0), 1), {"base_distribution_loc"}
    components = td.MultivariateNormal(matrix, torch.eye(2, dtype=F64))
    logits = {"mixture_distribution_logits", "component_distribution_loc"}
    yield td.MixtureSameFamily(td.Categorical(logits=p), components), logits
    yield td.MixtureSameFamily(td.Categorical(q), td.Normal(t(0.0, 1.0), 1.0)), {"mixture_distribution_probs"}
    yield td.TransformedDistribution(td.Normal(p, 1.0), [td.ExpTransform()]), {"base_distribution_loc"}


LEARNT = list(learnt())


@pytest.mark.parametrize(("distribution", "names"), LEARNT, ids=[type(d).__name__ for d, _ in LEARNT])
def test_the_parameters_of_a_distribution_are_those_of_its_energy(distribution, names):
    energy = ce.as_energy(distribution)
    assert dict(energy.named_parameters()).keys() == energy.state_dict().keys() == names
    points = distribution.sample((4,))
    torch.testing.assert_close(energy(points), total(distribution.log_prob(points)))

    copies = [copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))]
    for other in copies:
        assert torch.equal(other(points), energy(points))
    energy(points).sum().backward()
    assert all(p.grad is not None for p in energy.parameters())
    for parameter_ in energy.parameters():
        parameter_.grad = None
    with torch.no_grad():
        before = energy(points)
        for parameter_ in copies[0].parameters():
            parameter_.mul_(1.01)
    assert not torch.equal(copies[0](points), before)
    assert torch.equal(energy(points), before)
    energy.load_state_dict(copies[0].state_dict())
    assert torch.equal(copies[0](points), energy(points))
    energy.load_state_dict(copies[1].state_dict())
    assert torch.equal(energy(points), before)
    assert copies[0].float()(points.float()).dtype == torch.float32


def test_a_learnt_normal_follows_its_optimizer():
    torch.manual_seed(0)
    mean, scale = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.tensor(1.0))
    energy = ce.as_energy(td.Normal(mean, scale))
    data = 2.0 + 0.5 * torch.randn(200, 2)
    optimizer = torch.optim.Adam(energy.parameters(), lr=0.05)
    for _ in range(300):
        optimizer.zero_grad()
        energy(data).mean().backward()
        optimizer.step()
    torch.testing.assert_close(mean.data, data.mean(0), rtol=0, atol=0.01)
    torch.testing.assert_close(scale.data, (data - data.mean(0)).square().mean().sqrt(), rtol=0, atol=0.01)
    torch.testing.assert_close(energy(data), -td.Normal(mean, scale).log_prob(data).sum(1))
    draws = energy.sample(200, sampler="hmc", steps=50, seed=0)
    assert (draws.mean(0) - 2).abs().max() < 5 * 0.5 / math.sqrt(100)
    assert energy(data).requires_grad


def test_parameters_move_and_are_replaced():
    energy = ce.as_energy(td.Normal(nn.Parameter(torch.zeros(2)), 1.0)).double()
    assert energy(torch.zeros(1, 2, dtype=F64)).dtype == F64
    energy.load_state_dict({"loc": t(3.0, 4.0)}, assign=True)
    torch.testing.assert_close(energy(t(3.0, 4.0).unsqueeze(0)), t(math.log(2 * math.pi)))
    shared = torch.func.functional_call(energy, {"loc": t(1.0, 1.0)}, (t(1.0, 1.0).unsqueeze(0),))
    torch.testing.assert_close(shared, t(math.log(2 * math.pi)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: td.Normal(torch.zeros(2), nn.Parameter(torch.zeros(2)).exp()),
        lambda: td.Normal(nn.Parameter(torch.zeros(2))[0], 1.0),
        lambda: td.Normal(torch.zeros(2, requires_grad=True), 1.0),
        lambda: td.Normal(nn.Linear(2, 2)(torch.zeros(2)), 1.0),
        lambda: td.Normal(nn.Parameter(torch.zeros(2)).relu(), 1.0),
        lambda: td.Gamma(nn.Parameter(torch.ones(2)) * 0.5, 0.5),
        lambda: td.TransformedDistribution(td.Normal(0.0, 1.0), [td.AffineTransform(nn.Parameter(torch.zeros(2)), 1.0)]),
        lambda: td.RelaxedBernoulli(torch.tensor(1.0), nn.Parameter(torch.tensor([0.5]))),
    ],
    ids=["exp", "row", "no parameter", "network", "relu", "product", "transform", "unknown class"],
)
def test_a_tensor_computed_from_parameters_is_refused_with_the_ways_out(make):
    with pytest.raises(LiftError, match=r"\.detach\(\).*lift a module"):
        ce.as_energy(make())


class Learnt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -td.Normal(torch.zeros(2), self.log_scale.exp()).log_prob(x).sum(1)


def test_the_ways_out_work():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
    module = Learnt()
    expected = ce.as_energy(td.Normal(torch.zeros(2), module.log_scale.exp().detach()))(x)
    torch.testing.assert_close(ce.as_energy(module)(x), expected)


@pytest.mark.parametrize(("distribution", "names"), LEARNT, ids=[type(d).__name__ for d, _ in LEARNT])
def test_parameters_are_saved(distribution, names, tmp_path):
    energy, points = ce.as_energy(distribution), distribution.sample((4,))
    if isinstance(distribution, td.TransformedDistribution) and type(distribution) is td.TransformedDistribution:
        with pytest.raises(ExpressionError, match="cannot be saved"):
            energy.save(tmp_path / "saved")
        return
    energy.save(tmp_path / "saved")
    loaded = ce.load(tmp_path / "saved")
    assert dict(loaded.named_parameters()).keys() == names
    assert torch.equal(loaded(points), energy(points))


def test_parameters_smaller_than_the_batch_are_not_saved(tmp_path):
    energy = ce.as_energy(td.Normal(nn.Parameter(torch.tensor(0.0)), nn.Parameter(torch.tensor(1.0))).expand((3,)))
    assert energy(torch.zeros(2, 3)).shape == (2,)
    with pytest.raises(ExpressionError, match="build it from parameters of the whole shape"):
        energy.save(tmp_path / "saved")


# Pins of what torch does --------------------------------------------------------------------------------------------------------------


@BOTH
def test_constants_move_with_the_energy(distribution):
    energy, points = ce.as_energy(distribution), inside_points(distribution)
    before = energy(points)
    there = copy.deepcopy(energy).float()
    assert there(points.float()).dtype == torch.float32
    torch.testing.assert_close(there.double()(points), before, rtol=1e-3, atol=1e-3)
    assert torch.equal(energy(points), before)
    assert not list(energy.parameters())


@BOTH
def test_inverse_transforms_survive_a_copy(distribution):
    energy, points = ce.as_energy(distribution), inside_points(distribution)
    for other in (copy.deepcopy(energy), pickle.loads(pickle.dumps(energy))):
        assert torch.equal(other(points), energy(points))
        assert torch.equal(other.double()(points), energy(points))


def test_the_original_distribution_stays_as_it_is():
    distribution = td.LogNormal(t(0.0, 1.0), t(1.0, 1.0), validate_args=True)  # torch.compile switches the default off
    ce.as_energy(distribution).float()
    with pytest.raises(ValueError, match="within the support"):
        distribution.log_prob(t(-1.0, -1.0))
    assert distribution.loc.dtype == F64
