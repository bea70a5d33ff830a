"""Gaussian heads: densities, intervals, points bound as conditions, copies."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

from composable_energy.energies.conditions import CHAINS
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.events import ChainValues, ClassifierEnergy, DensityEnergy, GaussianHead, Interval, IntervalEnergy, disjoin
from tests.heads import Bowl, Counting


@pytest.fixture
def x():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def test_a_point_as_a_condition(x):
    network, base = Counting(4), Bowl()
    where = GaussianHead(network, base, dims=2, name="where")
    free, points = where(), torch.randn(6, 2, dtype=torch.double)
    assert free.required_conditions == {"c"} and CHAINS not in free.conditions and str(free) == "where"
    torch.testing.assert_close(free(x, c=points), where(points)(x))
    torch.testing.assert_close(free.given(c=points)(x[1:3], chains=slice(1, 3)), where(points)(x)[1:3])
    torch.testing.assert_close(free.given(c=points[:1])(x), where(points[0])(x))
    single = GaussianHead(Counting(2), base, dims=1)
    torch.testing.assert_close(single().given(c=0.3)(x), single(0.3)(x))
    with pytest.raises(ExpressionError, match="depends on c"):
        free(x)
    with pytest.raises(ExpressionError, match="no complement"):
        _ = ~free
    with pytest.raises(ShapeError, match=r"c has shape \(6, 1\) for 6 points; expected \(6, 2\)"):
        free(x, c=torch.zeros(6))


@pytest.mark.full
def test_which_point_fits_given_ones_is_the_heads_gaussian_and_costs_one_evaluation(x):
    network = Counting(4).eval()
    axis = torch.linspace(-8, 8, 61, dtype=torch.double)
    found = GaussianHead(network, Bowl(), dims=2)().infer(x, over={"c": torch.cartesian_prod(axis, axis)})
    assert network.calls == 1 and found.log_probabilities.shape == (6, 61**2)
    with torch.no_grad():
        mean, width = network(x).split(2, 1)
    assert (width.exp() > 0.2).all() and (mean.abs() + 5 * width.exp().clamp(max=math.e) < 8).any()
    inside = (mean.abs() + 5 * width.exp().clamp(max=math.e) < 8).all(1)
    torch.testing.assert_close(found.mean("c")[inside], mean[inside], atol=1e-4, rtol=0)
    with pytest.raises(OptionError, match="y was not inferred; there is c"):
        found.mean("y")


def gaussian(network: Counting, x: torch.Tensor) -> torch.distributions.Normal:
    output = network.linear(x)
    return torch.distributions.Normal(output[:, :2], output[:, 2:].clamp(-5, 1).exp())


def test_a_head_has_densities_and_events(x):
    network, base = Counting(4), Bowl()
    head, normal = GaussianHead(network, base, dims=2, name="position"), gaussian(network, x)
    point = torch.tensor([0.2, -0.4], dtype=torch.double)
    torch.testing.assert_close(head(point).evidence(x), -normal.log_prob(point).sum(1))
    near = head.near(point, 0.3)
    expected = (normal.cdf(point + 0.3) - normal.cdf(point - 0.3)).prod(1)
    torch.testing.assert_close(near.evidence(x), -expected.log())
    torch.testing.assert_close((~near).evidence(x), -(1 - expected).log())
    torch.testing.assert_close(near(x), base(x) - expected.log())
    half = head.between(-math.inf, (0.1, 0.5))
    torch.testing.assert_close(half.evidence(x), -normal.cdf(torch.tensor([0.1, 0.5])).double().log().sum(1), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        (head(point) | head(-point)).evidence(x), -normal.log_prob(torch.stack([point, -point])[:, None]).sum(2).logsumexp(0)
    )
    with pytest.raises(ExpressionError, match=r"near\(c, r\)"):
        _ = ~head(point)
    pair = GaussianHead(lambda x: network(x).chunk(2, 1), dims=2)
    assert torch.equal(pair.near(point, 0.3).evidence(x), near.evidence(x))
    assert str(head(point)) == "position(0.2, -0.4)" and str(head.near(0.5, 0.1)) == "position.near(0.5, 0.1)"


def test_points_for_each_chain(x):
    network = Counting(4)
    head = GaussianHead(network, dims=2)
    points = torch.randn(6, 2, dtype=torch.double)
    for energy, alone in ((head(points), head), (head.near(points, 0.3), lambda c: head.near(c, 0.3))):
        assert CHAINS in energy.conditions and CHAINS not in energy.required_conditions
        expected = torch.cat([alone(points[i])(x[i : i + 1]) for i in range(6)])
        torch.testing.assert_close(energy(x), expected)
        torch.testing.assert_close(energy(x[2:5], chains=slice(2, 5)), expected[2:5])
        with pytest.raises(ShapeError, match="6 rows"):
            energy(x[:4])
    torch.testing.assert_close((~head.near(points, 0.3))(x[2:5], chains=slice(2, 5)), (~head.near(points[2:5], 0.3))(x[2:5]))
    assert CHAINS not in head(points[0]).conditions


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda h: h.near((0.0, 0.0), 0.0), OptionError, "r must be positive"),
        (lambda h: h.near((0.0, 0.0), float("inf")), OptionError, "r must be positive and finite"),
        (lambda h: h.near((0.0, 0.0, 0.0), 1.0), ShapeError, r"c has shape \(3,\); expected \(2,\)"),
        (lambda h: h.near((0.0, math.nan), 1.0), OptionError, "c is NaN"),
        (lambda h: h.between(1.0, 1.0), OptionError, "must be above"),
        (lambda h: h.between(torch.zeros(3, 2), torch.ones(4, 2)), ShapeError, "3 chains and high for 4"),
        (lambda h: h.between(torch.full((3, 2), -math.inf), 0.0), OptionError, "must be finite"),
        (lambda h: h(torch.zeros(3, 2, 2)), ShapeError, r"c has shape \(3, 2, 2\)"),
    ],
)
def test_bad_intervals_are_typed_errors(make, error, message):
    with pytest.raises(error, match=message):
        make(GaussianHead(Counting(4), dims=2))


def test_every_value_is_certain_and_needs_no_network(x):
    network = Counting(4)
    everywhere = GaussianHead(network, dims=2).between(-math.inf, math.inf)
    assert torch.equal(everywhere(x), torch.zeros(6).double()) and network.calls == 0


def test_copies_and_pickles_keep_values_and_shared_variables(x):
    network, base = Counting(4), Bowl()
    head = GaussianHead(network, base, dims=2, name="p")
    leaves = [
        ClassifierEnergy(network, 1, base),
        ClassifierEnergy(network, None, base).given(y=2),
        head((0.1, 0.2)),
        head.near((0.1, 0.2), 0.3),
    ]
    tree = nn.ModuleList(leaves)
    for again in (copy.deepcopy(tree), pickle.loads(pickle.dumps(tree))):
        for new, old in zip(again, tree, strict=True):
            assert torch.equal(new(x), old(x)) and str(new) == str(old)
        assert len(disjoin([again[0].formula, again[1].formula]).variables) == 1
        assert again[0].formula.variables[0].source.network is again[0].logits
        assert again[0].formula.base is again[0].base


def test_a_leaf_follows_its_network_to_another_dtype(x):
    leaf = GaussianHead(Counting(4), dims=2).near(torch.tensor([[0.1, 0.2]] * 6), 0.3)
    expected = leaf(x)
    leaf.float()
    torch.testing.assert_close(leaf(x.float()), expected.float())


def test_what_is_written():
    network = Counting(4)
    assert str(ClassifierEnergy(network, 3)) == "ClassifierEnergy(label=3)"
    assert str(ClassifierEnergy(network, {1, 0})) == "ClassifierEnergy(label={0, 1})"
    assert str(ClassifierEnergy(network)) == "ClassifierEnergy(label=None)"
    assert str(ClassifierEnergy(network, 3, name="male")) == "male"
    head = GaussianHead(network, dims=2)
    assert str(head((0.0, 1.0))) == "DensityEnergy(c=(0, 1))"
    assert str(head.near(torch.zeros(3, 2), 1.0)) == "IntervalEnergy(low=<3 chains>, high=<3 chains>)"
    assert isinstance(head((0.0, 1.0)), DensityEnergy) and isinstance(head.near(0.0, 1.0), IntervalEnergy)
    assert repr(head.between(0.0, 1.0).formula).startswith("Formula(IntervalEnergy(low=(0, 0), high=(1, 1))[0] & ")


def test_equal_ends_are_one_atom_whatever_tensor_holds_them(x):
    head = GaussianHead(Counting(4), Bowl(), dims=2, name="where")
    low = torch.tensor([[-0.5, 0.25]]).repeat(6, 1)
    one = head.between(low, low + 1)
    for again in (low.clone(), low.double(), low.bfloat16()):
        both = one & head.between(again, again + 1)
        assert len(both.formula.nodes) == len(one.formula.nodes)
        assert torch.equal(both(x), one(x))
    ends = torch.tensor([0.0, 0.5])
    interval = Interval(ChainValues(ends), 1.0)
    again = Interval(ChainValues(-ends.double().neg()), 1.0)
    for copied in (copy.deepcopy(interval), pickle.loads(pickle.dumps(interval)), again):
        assert copied == interval and hash(copied) == hash(interval)
    assert Interval(ChainValues(ends + 1), 1.0) != interval != Interval(0.0, 1.0)
    assert ChainValues(-ends * 0) == ChainValues(ends * 0)  # -0 and 0
    assert head.between(torch.tensor([[0.1, 0.1]]), 1.0).formula.nodes[0] != head.between(0.1, 1.0).formula.nodes[0]  # which float32 rounds
