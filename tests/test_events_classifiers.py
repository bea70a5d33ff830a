"""Classifiers and Gaussian heads: events, densities, and labels and points that are bound as conditions."""

import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.energies.conditions import CHAINS
from composable_energy.errors import ContradictionError, DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.events import ChainValues, ClassifierEnergy, Formula, GaussianHead, Interval
from composable_energy.options import Recommendation
from tests.refusals import refusals, refused


class Counting(nn.Module):
    """A network that counts its calls and may depend on a noise level."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, outputs).double()
        self.calls = 0

    def forward(self, x, sigma=None):
        self.calls += 1
        return self.linear(x) if sigma is None else self.linear(x) / (1 + sigma[:, None])


class Bowl(ce.Energy):
    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([3])
        self.recommended = Recommendation("langevin", {"steps": 10})

    def forward(self, x, sigma=None):
        return x.square().sum(1) / 2 if sigma is None else x.square().sum(1) / (1 + sigma)


@pytest.fixture
def x():
    return torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.double)


def test_evidence_is_the_log_probability_of_the_label(x):
    network, base = Counting(5), Bowl()
    log_probs = network(x).log_softmax(1)
    one, several = ClassifierEnergy(network, 3, base), ClassifierEnergy(network, {0, 4}, base)
    torch.testing.assert_close(one.evidence(x), -log_probs[:, 3])
    torch.testing.assert_close(several.evidence(x), -log_probs[:, [0, 4]].logsumexp(1))
    torch.testing.assert_close(one(x), one.evidence(x) + base(x))
    columns = ClassifierEnergy(network, 1, base, columns=slice(1, 4))
    torch.testing.assert_close(columns.evidence(x), -network(x)[:, 1:4].log_softmax(1)[:, 1])
    torch.testing.assert_close(ClassifierEnergy(network, 1, columns=-1).evidence(x), nn.functional.softplus(-network(x)[:, 4]))
    torch.testing.assert_close(ClassifierEnergy(lambda x: network(x)[:, 2], 0).evidence(x), nn.functional.softplus(network(x)[:, 2]))


def test_conditions_reach_networks_and_base(x):
    network, base = Counting(5), Bowl()
    leaf = ClassifierEnergy(network, 3, base)
    assert leaf.conditions == {"sigma"} and leaf.required_conditions == frozenset()
    expected = -(network.linear(x) / 1.5).log_softmax(1)[:, 3]
    torch.testing.assert_close(leaf.evidence(x, sigma=0.5), expected)
    torch.testing.assert_close(leaf.at(0.5).evidence(x), expected)
    torch.testing.assert_close(leaf.at(0.5)(x), expected + base(x, sigma=torch.full((6,), 0.5).double()))
    rows = torch.linspace(0.1, 1, 6, dtype=torch.double)
    bound = leaf.formula.given({"sigma": rows, "unknown": 1})
    assert bound.conditions == {CHAINS} and leaf.formula.given({"unknown": 1}) is leaf.formula
    torch.testing.assert_close(bound.energy(x[2:4], chains=slice(2, 4)), leaf.evidence(x, sigma=rows)[2:4])
    assert bound.bases[None].equals(base.at(rows)) and not bound.same_base(leaf.formula)


def test_an_expression_whose_variables_become_one_by_binding_is_that_of_bound_terms(x):
    network, base = Counting(5), ce.as_energy(lambda x: x.square().sum(1) / 2, name="base")
    zero, one = (ClassifierEnergy(network, label, base) for label in (0, 1))
    same, both = (zero.at(1.0) & zero).at(1.0), (zero.at(1.0) & one).at(1.0)
    torch.testing.assert_close(same.evidence(x), zero.at(1.0).evidence(x))
    assert not (zero.at(1.0) & one).unsatisfiable and both.unsatisfiable
    refused(ContradictionError, None, both.evidence, x)
    torch.testing.assert_close((both | zero).evidence(x, sigma=1.0), zero.at(1.0).evidence(x))


def test_a_label_as_a_condition(x):
    network, base = Counting(5), Bowl()
    free = ClassifierEnergy(network, None, base, name="digit")
    assert free.required_conditions == {"y"} and free.formula is None
    labels = torch.tensor([0, 1, 2, 3, 4, 0])
    expected = -network(x).log_softmax(1)[torch.arange(6), labels]
    torch.testing.assert_close(free.evidence(x, y=labels), expected)
    torch.testing.assert_close(free.given(y=labels).evidence(x[1:3], chains=slice(1, 3)), expected[1:3])
    torch.testing.assert_close(free.given(y=labels)(x), expected + base(x))
    event = free.given(y=3)
    assert isinstance(event, ClassifierEnergy) and event.formula is not None and str(event) == "digit=3"
    assert torch.equal(free.given(y=torch.tensor(3), sigma=0.5).evidence(x), ClassifierEnergy(network, 3).evidence(x, sigma=0.5))


FORMULAS = {
    "not": lambda a, b, c: ~a,
    "and not": lambda a, b, c: c & ~a,
    "either": lambda a, b, c: a | b,
    "neither": lambda a, b, c: ~(a | b),
    "implies": lambda a, b, c: a >> c,
    "paired": lambda a, b, c: (a & c) | (b & ~c),
    "beside a set": lambda a, b, c: a | ClassifierEnergy(a.logits, (4, 5), a.base),
    "not beside a set": lambda a, b, c: ~(a | ClassifierEnergy(a.logits, (4, 5), a.base)) & c,
}


@pytest.mark.parametrize("labels", [6, None])
@pytest.mark.parametrize("formula", FORMULAS.values(), ids=list(FORMULAS))
def test_labels_of_chains_are_for_each_what_one_label_is(x, formula, labels):
    digits, places, base = Counting(6), Counting(4), Bowl()
    free = ClassifierEnergy(digits, None, base, labels=labels)
    where = GaussianHead(places, base, dims=2)
    first, second, center = torch.tensor([0, 1, 2, 3, 0, 1]), torch.tensor([2, 0, 1, 0, 1, 3]), torch.randn(6, 2, dtype=torch.double)
    together = formula(free.given(y=first), free.given(y=second), where.near(center, 1.0))
    alone = [
        formula(ClassifierEnergy(digits, a, base), ClassifierEnergy(digits, b, base), where.near(c, 1.0))
        for a, b, c in zip(first.tolist(), second.tolist(), center, strict=True)
    ]
    point = x.clone().requires_grad_()
    expected = torch.cat([one(point[i : i + 1]) for i, one in enumerate(alone)])
    torch.testing.assert_close(together(point), expected)
    torch.testing.assert_close(torch.autograd.grad(together(point).sum(), point)[0], torch.autograd.grad(expected.sum(), point)[0])
    torch.testing.assert_close(together(x[1:4], chains=slice(1, 4)), expected[1:4].detach())
    torch.testing.assert_close(together(x[[4, 0]], chains=torch.tensor([4, 0])), expected[[4, 0]].detach())
    torch.testing.assert_close(pickle.loads(pickle.dumps(together))(x), expected.detach())
    torch.testing.assert_close((~~together)(x), expected.detach())


def test_labels_of_chains_that_make_no_formula():
    network, labels = Counting(4), torch.tensor([0, 1, 2])
    event = ClassifierEnergy(network, None, labels=4, name="digit").given(y=labels)
    assert str(event) == "digit=<3 chains>" and CHAINS in event.conditions and event.required_conditions == frozenset()
    assert str(ClassifierEnergy(network, each=labels)) == "ClassifierEnergy(each=<3 chains>)"
    assert ClassifierEnergy(network, None).given(y=torch.tensor([2])).label == {2}
    assert (event & ClassifierEnergy(network, each=labels + 1)).unsatisfiable
    assert (event & ~ClassifierEnergy(network, each=labels.clone())).unsatisfiable


PLACE, NETWORK = GaussianHead(Counting(4), dims=2), Counting(5)
LABELS, ENDS, ROWS = torch.tensor([0, 1, 2]), torch.tensor([3, 3]), torch.randn(6, 2, dtype=torch.double)
DIGIT, DIGITS = ClassifierEnergy(NETWORK, None), ClassifierEnergy(NETWORK, each=LABELS)
NO_LABELS = (torch.tensor([0, 1, 2, 3, 5, 0]), torch.full((6,), 0.5), -torch.ones(6))
NO_LABELS_OF_CHAINS = (torch.tensor([0.5, 1.0]), torch.tensor([-1, 0]), torch.zeros(2, 2), torch.zeros(0))


test_bad_heads_are_typed_errors = refusals(
    *((lambda x, label=label: ClassifierEnergy(Counting(5), label), OptionError, "whole number") for label in (-1, 0.5, "3", [0, None])),
    *((lambda x, y=y: DIGIT.evidence(x, y=y), OptionError, "labels from 0 to 4") for y in NO_LABELS),
    *((lambda x, each=each: ClassifierEnergy(NETWORK, each=each), OptionError, "Labels of chains") for each in NO_LABELS_OF_CHAINS),
    (lambda x: DIGIT(x), ExpressionError, "depends on y"),
    (lambda x: ~DIGIT, ExpressionError, "bind one label first"),
    (lambda x: DIGITS | ClassifierEnergy(NETWORK, 0), ExpressionError, "the same in 1 chains of 3"),
    (lambda x: DIGITS | ClassifierEnergy(NETWORK, each=torch.tensor([0, 2, 1])), ExpressionError, "the same in 1 chains of 3"),
    (lambda x: DIGITS & ~ClassifierEnergy(NETWORK, each=ENDS), ShapeError, "2 chains and for 3"),
    (lambda x: ClassifierEnergy(NETWORK, each=LABELS + 2, labels=4), OptionError, "Label 4 is out of range"),
    (lambda x: ClassifierEnergy(NETWORK, 1, each=LABELS), OptionError, "either"),
    (lambda x: ClassifierEnergy(lambda x, sigma: x, 0).formula.energy(x), ExpressionError, "depends on sigma, which is not bound"),
    (lambda x: ClassifierEnergy(Counting(5), [])(x), ContradictionError, r"No point fulfils ClassifierEnergy\(label=\{\}\)"),
    (lambda x: ClassifierEnergy(Counting(5), 5)(x), OptionError, "Label 5 is out of range: there are 5 labels"),
    (lambda x: ClassifierEnergy(Counting(5), 2, columns=slice(3, 4)), OptionError, "there are 2 labels"),
    (lambda x: ClassifierEnergy(Counting(5), 2, lambda x: x.sum(1)), OptionError, "as_energy"),
    (lambda x: ClassifierEnergy(torch.zeros(3), 2), OptionError, "logits must be"),
    (lambda x: ClassifierEnergy(Counting(5), 2, columns=slice(7, None))(x), ShapeError, "no columns"),
    (lambda x: ClassifierEnergy(lambda x: x[..., None], 2)(x), ShapeError, r"returned shape \(6, 3, 1\) for 6 points"),
    (lambda x: ClassifierEnergy(lambda x: x.long(), 2)(x), DtypeError, r"floating tensor, got torch\.int64"),
    (lambda x: GaussianHead(lambda x: (torch.zeros(6, 5),) * 2, dims=2).near(0.0, 1.0)(x), ShapeError, "5 means"),
    (lambda x: GaussianHead(Counting(3), dims=2)((0.0, 0.0))(x), ShapeError, "2 means and 1 log widths"),
    (lambda x: GaussianHead(Counting(3), dims=0), OptionError, "dims"),
    (lambda x: GaussianHead(None, dims=1), OptionError, "network must be"),
    (lambda x: PLACE()(x), ExpressionError, "depends on c"),
    (lambda x: ~PLACE(), ExpressionError, "no complement"),
    (lambda x: ~PLACE((0.0, 0.0)), ExpressionError, r"near\(c, r\)"),
    (lambda x: PLACE()(x, c=torch.zeros(6)), ShapeError, r"c has shape \(6, 1\) for 6 points; expected \(6, 2\)"),
    (lambda x: PLACE(ROWS)(x[:4]), ShapeError, "6 rows"),
    (lambda x: PLACE.near(ROWS, 0.3)(x[:4]), ShapeError, "6 rows"),
    (lambda x: PLACE.near((0.0, 0.0), 0.0), OptionError, "r must be positive"),
    (lambda x: PLACE.near((0.0, 0.0), float("inf")), OptionError, "r must be positive and finite"),
    (lambda x: PLACE.near((0.0, 0.0, 0.0), 1.0), ShapeError, r"c has shape \(3,\); expected \(2,\)"),
    (lambda x: PLACE.near((0.0, math.nan), 1.0), OptionError, "c is NaN"),
    (lambda x: PLACE.between(1.0, 1.0), OptionError, "must be above"),
    (lambda x: PLACE.between(torch.zeros(3, 2), torch.ones(4, 2)), ShapeError, "3 chains and high for 4"),
    (lambda x: PLACE.between(torch.full((3, 2), -math.inf), 0.0), OptionError, "must be finite"),
    (lambda x: PLACE(torch.zeros(3, 2, 2)), ShapeError, r"c has shape \(3, 2, 2\)"),
    fixture="x",
)


def test_equal_labels_and_ends_are_one_atom_whatever_tensor_holds_them(x):
    free, labels = ClassifierEnergy(Counting(5), None, Bowl(), name="digit"), torch.tensor([0, 1, 2, 3, 4, 0])
    one = free.given(y=labels)
    for again in (labels.clone(), labels.int(), labels.double(), labels.to(torch.uint8)):
        both = one & free.given(y=again)
        assert len(both.formula.nodes) == 1 and torch.equal(both(x), one(x))
    head, low = GaussianHead(Counting(4), Bowl(), dims=2, name="where"), torch.tensor([[-0.5, 0.25]]).repeat(6, 1)
    one = head.between(low, low + 1)
    for again in (low.clone(), low.double(), low.bfloat16()):
        both = one & head.between(again, again + 1)
        assert len(both.formula.nodes) == len(one.formula.nodes) and torch.equal(both(x), one(x))
    assert head.between(torch.tensor([[0.1, 0.1]]), 1.0).formula.nodes[0] != head.between(0.1, 1.0).formula.nodes[0]  # which float32 rounds


def test_what_is_bound_for_each_chain_stays_when_the_tensor_changes(x):
    network, where = Counting(5), GaussianHead(Counting(4), Bowl(), dims=2)
    labels, points = torch.tensor([0, 1, 2, 3, 4, 0]), torch.linspace(-1, 1, 12, dtype=torch.double).view(6, 2)
    low, high, ends = points - 0.5, points + 0.5, torch.linspace(-1, 1, 6, dtype=torch.double)
    each = ClassifierEnergy(network, each=labels)
    energies = [each, where.between(low, high), where.near(points, 0.5), where(points), ~each & where.between(low, high)]
    cut = Formula.atom(where.near(0.0, 1.0).formula.variables[0], Interval(ChainValues(ends), ChainValues(ends + 1)))
    before, expected = [energy(x) for energy in energies], cut.energy(x)
    labels.zero_(), points.zero_(), low.sub_(3), high.add_(3), ends.zero_()
    assert all(torch.equal(energy(x), value) for energy, value in zip(energies, before, strict=True))
    assert torch.equal(cut.energy(x), expected)
    assert each.config()["each"].tolist() == [0, 1, 2, 3, 4, 0] and not torch.equal(energies[1].config()["low"], low)


def test_a_candidate_that_makes_a_contradiction_has_the_probability_zero(x):
    network, base = Counting(5), ce.as_energy(lambda x: x.square().sum(1) / 2, name="base")
    zero, one = (ClassifierEnergy(network, label, base) for label in (0, 1))
    found = (zero.at(1.0) & one).infer(x, over={"sigma": [1.0, 2.0]})
    torch.testing.assert_close(found.probabilities, torch.tensor([[0.0, 1.0]] * 6).double())
    refused(ContradictionError, "for any candidate", (zero.at(1.0) & one).infer, x, over={"sigma": [1.0, torch.tensor(1.0)]})


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


def gaussian(network: Counting, x: torch.Tensor) -> Normal:
    output = network.linear(x)
    return Normal(output[:, :2], output[:, 2:].clamp(-5, 1).exp())


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
    either = -normal.log_prob(torch.stack([point, -point])[:, None]).sum(2).logsumexp(0)
    torch.testing.assert_close((head(point) | head(-point)).evidence(x), either)
    assert torch.equal(GaussianHead(lambda x: network(x).chunk(2, 1), dims=2).near(point, 0.3).evidence(x), near.evidence(x))
    assert str(head(point)) == "position(0.2, -0.4)" and str(head.near(0.5, 0.1)) == "position.near(0.5, 0.1)"


def test_points_for_each_chain(x):
    head, points = GaussianHead(Counting(4), dims=2), torch.randn(6, 2, dtype=torch.double)
    energy, expected = head(points), torch.cat([head(points[i])(x[i : i + 1]) for i in range(6)])
    assert CHAINS in energy.conditions and CHAINS not in energy.required_conditions | head(points[0]).conditions
    torch.testing.assert_close(energy(x), expected)
    torch.testing.assert_close(energy(x[2:5], chains=slice(2, 5)), expected[2:5])


def test_what_is_written():
    head, network = GaussianHead(Counting(4), dims=2), Counting(4)
    written = {
        "ClassifierEnergy(label={0, 1})": ClassifierEnergy(network, {1, 0}),
        "ClassifierEnergy(label=None)": ClassifierEnergy(network),
        "male": ClassifierEnergy(network, 3, name="male"),
        "DensityEnergy(c=(0, 1))": head((0.0, 1.0)),
        "IntervalEnergy(low=<3 chains>, high=<3 chains>)": head.near(torch.zeros(3, 2), 1.0),
    }
    assert [str(energy) for energy in written.values()] == list(written)
    assert repr(head.between(0.0, 1.0).formula).startswith("Formula(IntervalEnergy(low=(0, 0), high=(1, 1))[0] & ")
