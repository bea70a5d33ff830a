"""Parameters of distributions: they can be trained, moved, replaced and saved."""

from __future__ import annotations

import copy
import math
import pickle

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, LiftError
from tests.distribution_values import BOTH, F64, inside_points, t, total


def parameter(*values: float) -> nn.Parameter:
    return nn.Parameter(t(*values))


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


@pytest.mark.slow
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
