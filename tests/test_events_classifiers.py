"""Classifier events: evidence, shared networks, and labels bound as conditions."""

import copy
import pickle

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.energies.conditions import CHAINS
from composable_energy.errors import ContradictionError, DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.events import ChainValues, ClassifierEnergy, Formula, GaussianHead, Interval, conjoin, disjoin
from tests.heads import Bowl, Counting


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


def test_a_leaf_takes_after_its_base(x):
    base = Bowl()
    leaf = ClassifierEnergy(Counting(5), 3, base)
    assert (leaf.event_shape, leaf.recommended, leaf.grounded) == (base.event_shape, base.recommended, True)
    assert [b.energy for b in leaf.bases] == [base] and leaf.decoder is None
    alone = ClassifierEnergy(Counting(5), 3)
    assert not alone.grounded and alone.bases == () and alone.event_shape is None
    torch.testing.assert_close(alone(x), alone.evidence(x))


def test_networks_are_evaluated_once(x):
    network, base = Counting(9), Bowl()
    leaves = [ClassifierEnergy(network, i, base, columns=slice(5)) for i in range(3)] + [ClassifierEnergy(network, 1, base, columns=5)]
    box = GaussianHead(network, base, dims=1, columns=slice(7, 9)).near(0.0, 0.5)
    formula = disjoin([conjoin([leaves[0].formula, leaves[3].formula]), conjoin([leaves[1].formula, box.formula]), leaves[2].formula])
    formula.energy(x)
    assert network.calls == 1
    assert len(formula.variables) == 3
    alone = [ClassifierEnergy(network, i, columns=slice(5)).formula for i in range(3)]
    bound = disjoin([alone[0].given({"sigma": 0.5}), alone[1].given({"sigma": torch.tensor(0.5)}), alone[2]])
    assert len(bound.variables) == 2
    bound.energy(x)
    assert network.calls == 3  # equal conditions once, and once without


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
    assert bound.base.equals(base.at(rows)) and not bound.same_base(leaf.formula)
    with pytest.raises(ExpressionError, match="depends on sigma, which is not bound"):
        ClassifierEnergy(lambda x, sigma: x, 0).formula.energy(x)


def test_binding_that_makes_variables_equal_finds_a_contradiction():
    network = Counting(5)
    one = ClassifierEnergy(network, 0).formula
    formula = conjoin([one.given({"sigma": 1.0}), ClassifierEnergy(network, 1).formula])
    assert formula.constant is None and formula.given({"sigma": 1.0}).constant is False


def test_an_expression_whose_variables_become_one_by_binding_is_that_of_bound_terms(x):
    network, base = Counting(5), ce.as_energy(lambda x: x.square().sum(1) / 2, name="base")
    zero, one = (ClassifierEnergy(network, label, base) for label in (0, 1))
    same, both = (zero.at(1.0) & zero).at(1.0), (zero.at(1.0) & one).at(1.0)
    torch.testing.assert_close(same.evidence(x), zero.at(1.0).evidence(x))
    assert not (zero.at(1.0) & one).unsatisfiable and both.unsatisfiable
    with pytest.raises(ContradictionError):
        both.evidence(x)
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
    with pytest.raises(ExpressionError, match="depends on y"):
        free(x)
    with pytest.raises(ExpressionError, match="bind one label first"):
        _ = ~free
    for bad in (torch.tensor([0, 1, 2, 3, 5, 0]), torch.full((6,), 0.5), -torch.ones(6)):
        with pytest.raises(OptionError, match="labels from 0 to 4"):
            free.evidence(x, y=bad)


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
    gradient = torch.autograd.grad(together(point).sum(), point)[0]
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), point)[0])
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
    with pytest.raises(ExpressionError, match="the same in 1 chains of 3"):
        _ = event | ClassifierEnergy(network, 0)
    with pytest.raises(ExpressionError, match="the same in 1 chains of 3"):
        _ = event | ClassifierEnergy(network, each=torch.tensor([0, 2, 1]))
    with pytest.raises(ShapeError, match="2 chains and for 3"):
        _ = event & ~ClassifierEnergy(network, each=torch.tensor([3, 3]))
    assert (event & ClassifierEnergy(network, each=labels + 1)).unsatisfiable
    assert (event & ~ClassifierEnergy(network, each=labels.clone())).unsatisfiable
    with pytest.raises(OptionError, match="Label 4 is out of range"):
        ClassifierEnergy(network, each=labels + 2, labels=4)
    with pytest.raises(OptionError, match="either"):
        ClassifierEnergy(network, 1, each=labels)
    for bad in (torch.tensor([0.5, 1.0]), torch.tensor([-1, 0]), torch.zeros(2, 2), torch.zeros(0)):
        with pytest.raises(OptionError, match="Labels of chains"):
            ClassifierEnergy(network, each=bad)


@pytest.mark.parametrize("label", [-1, 0.5, "3", [0, 1.5], "x", None])
def test_labels_are_whole_numbers(label):
    with pytest.raises(OptionError, match="whole number"):
        ClassifierEnergy(Counting(5), [label] if label is None else label)


def test_bad_heads_are_typed_errors(x):
    with pytest.raises(ContradictionError, match=r"No point fulfils ClassifierEnergy\(label=\{\}\)"):
        ClassifierEnergy(Counting(5), [])(x)
    with pytest.raises(OptionError, match="Label 5 is out of range: there are 5 labels"):
        ClassifierEnergy(Counting(5), 5)(x)
    with pytest.raises(OptionError, match="there are 2 labels"):
        ClassifierEnergy(Counting(5), 2, columns=slice(3, 4))
    with pytest.raises(OptionError, match="as_energy"):
        ClassifierEnergy(Counting(5), 2, lambda x: x.sum(1))  # pyright: ignore[reportArgumentType]
    with pytest.raises(OptionError, match="logits must be"):
        ClassifierEnergy(torch.zeros(3), 2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ShapeError, match="no columns"):
        ClassifierEnergy(Counting(5), 2, columns=slice(7, None))(x)
    with pytest.raises(ShapeError, match=r"returned shape \(6, 3, 1\) for 6 points"):
        ClassifierEnergy(lambda x: x[..., None], 2)(x)
    with pytest.raises(DtypeError, match=r"floating tensor, got torch\.int64"):
        ClassifierEnergy(lambda x: x.long(), 2)(x)
    with pytest.raises(ShapeError, match="5 means"):
        GaussianHead(lambda x: (torch.zeros(6, 5), torch.zeros(6, 5)), dims=2).near(0.0, 1.0)(x)
    with pytest.raises(ShapeError, match="2 means and 1 log widths"):
        GaussianHead(Counting(3), dims=2)((0.0, 0.0))(x)
    with pytest.raises(OptionError, match="dims"):
        GaussianHead(Counting(3), dims=0)
    with pytest.raises(OptionError, match="network must be"):
        GaussianHead(None, dims=1)  # pyright: ignore[reportArgumentType]


def test_equal_labels_of_chains_are_one_atom_whatever_tensor_holds_them(x):
    free, labels = ClassifierEnergy(Counting(5), None, Bowl(), name="digit"), torch.tensor([0, 1, 2, 3, 4, 0])
    one = free.given(y=labels)
    for again in (labels.clone(), labels.int(), labels.double(), labels.to(torch.uint8)):
        both = one & free.given(y=again)
        assert len(both.formula.nodes) == 1
        assert torch.equal(both(x), one(x))
    for copied in (copy.deepcopy(ChainValues(labels)), pickle.loads(pickle.dumps(ChainValues(labels.short())))):
        assert copied == ChainValues(labels) and hash(copied) == hash(ChainValues(labels))
    assert len({ChainValues(labels), ChainValues(labels + 1), ChainValues(labels[:5])}) == 3


def test_what_is_bound_for_each_chain_stays_when_the_tensor_changes(x):
    network = Counting(5)
    free, where = ClassifierEnergy(network, None, Bowl(), labels=5), GaussianHead(Counting(4), Bowl(), dims=2)
    labels, points = torch.tensor([0, 1, 2, 3, 4, 0]), torch.linspace(-1, 1, 12, dtype=torch.double).view(6, 2)
    low, high, ends = points - 0.5, points + 0.5, torch.linspace(-1, 1, 6, dtype=torch.double)
    cut = Interval(ChainValues(ends), ChainValues(ends + 1))
    energies = [
        free.given(y=labels),
        ~free.given(y=labels) & where.between(low, high),
        where.between(low, high),
        where.near(points, 0.5),
        where(points),
        ClassifierEnergy(network, each=labels),
    ]
    before, kept = [energy(x) for energy in energies], Formula.atom(where.near(0.0, 1.0).formula.variables[0], cut)
    expected = kept.energy(x)
    labels.zero_(), points.zero_(), low.sub_(3), high.add_(3), ends.zero_()
    for energy, value in zip(energies, before, strict=True):
        assert torch.equal(energy(x), value)
    assert torch.equal(kept.energy(x), expected)
    assert energies[0].config()["each"].tolist() == [0, 1, 2, 3, 4, 0]
    assert not torch.equal(energies[2].config()["low"], low)


def test_a_candidate_that_makes_a_contradiction_has_the_probability_zero(x):
    network, base = Counting(5), ce.as_energy(lambda x: x.square().sum(1) / 2, name="base")
    zero, one = (ClassifierEnergy(network, label, base) for label in (0, 1))
    found = (zero.at(1.0) & one).infer(x, over={"sigma": [1.0, 2.0]})
    torch.testing.assert_close(found.probabilities, torch.tensor([[0.0, 1.0]] * 6).double())
    with pytest.raises(ContradictionError, match="for any candidate"):
        (zero.at(1.0) & one).infer(x, over={"sigma": [1.0, torch.tensor(1.0)]})
