"""Formulas of events: Boolean laws, values equal to enumeration, contradictions, copies."""

import math
import random

import pytest
import torch

from composable_energy.errors import ContradictionError, ExpressionError, OptionError, ShapeError
from composable_energy.events import Categorical, ChainValues, Formula, Interval, Source, complement, conjoin, disjoin
from tests.formulas import COUNTS, WORLD, truth, value


def possible(tree) -> bool:
    return truth(tree) != 0


def random_tree(rng: random.Random, depth: int):
    """A tree, parts of which may be impossible or certain, sometimes on purpose."""
    if depth == 0 or rng.random() < 0.12:
        head = rng.randrange(len(COUNTS))
        return ("atom", head, frozenset(rng.sample(range(COUNTS[head]), rng.randint(1, COUNTS[head] - 1))))
    kind = rng.choice(["not", "and", "and", "or", "or", "never", "always"])
    if kind in ("never", "always"):
        part = random_tree(rng, depth - 1)
        return ("and" if kind == "never" else "or", part, ("not", part))
    return (kind, *(random_tree(rng, depth - 1) for _ in range(1 if kind == "not" else 2)))


def same(left: Formula, right: Formula) -> None:
    torch.testing.assert_close(value(left), value(right), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_random_formulas_equal_enumeration():
    rng = random.Random(1)
    for _ in range(300):
        tree = random_tree(rng, 4)
        formula = WORLD.build(tree)
        torch.testing.assert_close(value(formula), -WORLD.probability(tree).log(), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_only_a_whole_that_is_impossible_raises():
    rng, raised = random.Random(2), 0
    for _ in range(300):
        tree = ("and", *(random_tree(rng, 1) for _ in range(3)))
        formula = WORLD.build(tree)
        if possible(tree):
            assert formula.constant is not False
            continue
        raised += 1
        with pytest.raises(ContradictionError, match=r"No point fulfils .*(h\d|cell\d)"):
            formula.energy(WORLD.x)  # also where it takes the number of labels to see it
    assert raised > 10


def test_a_certain_formula_has_zero_energy_and_gradient_for_any_points():
    certain = disjoin([WORLD.atom(0, frozenset({1})), complement(WORLD.atom(0, frozenset({1})))])
    for points in (torch.full((3, 2, 2), 1e38), torch.tensor([[math.nan], [math.inf]]), torch.zeros(0, 3), torch.zeros(4)):
        x = points.requires_grad_()
        energy = certain.energy(x)
        assert torch.equal(energy, torch.zeros(len(x)))
        assert torch.equal(torch.autograd.grad(energy.sum(), x)[0], torch.zeros_like(x))


def test_labels_that_are_all_there_are():
    zero, one = (WORLD.atom(1, frozenset({label})) for label in (0, 1))
    neither = conjoin([complement(zero), complement(one)])  # there might be a third
    assert neither.constant is None
    with pytest.raises(ContradictionError):
        neither.energy(WORLD.x)
    same(disjoin([neither, zero]), zero)
    assert torch.equal(value(complement(neither)), torch.zeros(5).double())
    assert torch.equal(value(disjoin([zero, one])), torch.zeros(5).double())
    known = Categorical(Source(WORLD.networks[1]), labels=2)
    assert conjoin([complement(Formula.atom(known, {label})) for label in (0, 1)]).constant is False
    assert conjoin([complement(zero), complement(Formula.atom(known, {1}))]).constant is False  # one variable: what one knows, both know
    assert Formula.atom(known, {0, 1}).constant is True and Formula.atom(known, ()).constant is False
    with pytest.raises(OptionError, match="Label 5 is out of range: there are 2 labels"):
        Formula.atom(known, {5})
    with pytest.raises(OptionError, match="there are 2 labels"):
        value(WORLD.atom(1, frozenset({5})))
    with pytest.raises(ExpressionError, match="with 2 and with 3 labels"):
        conjoin([Formula.atom(known, {0}), Formula.atom(Categorical(Source(WORLD.networks[1]), labels=3), {0})])
    with pytest.raises(ShapeError, match="logits of 2 labels; expected 3"):
        value(Formula.atom(Categorical(Source(WORLD.networks[1]), labels=3), {0}))


def test_intervals_that_do_not_meet_exclude_each_other():
    left, right = (Formula.atom(WORLD.variables[4], Interval(low, low + 1.0)) for low in (0.0, 1.0))
    assert conjoin([left, right]).constant is False
    whole = Formula.atom(WORLD.variables[4], Interval(0.0, 2.0))
    same(disjoin([left, right]), whole)


def test_ends_for_each_chain_need_one_order():
    def interval(*ends):
        return Formula.atom(WORLD.variables[4], Interval(*(ChainValues(torch.tensor(end)) for end in ends)))

    first, second = interval([0.0, 0.1], [1.0, 1.1]), interval([0.5, 0.2], [2.0, 2.0])
    assert len(conjoin([first, second]).nodes) == 3
    with pytest.raises(ExpressionError, match="below another in 1 chains of 2"):
        conjoin([first, interval([-0.5, 0.2], [2.0, 2.0])])
    with pytest.raises(ShapeError, match="chains and for"):
        conjoin([first, interval([0.5, 0.2, 0.1], [2.0, 2.0, 2.0])])
    assert conjoin([first, complement(interval([0.0, 0.1], [1.0, 1.1]))]).constant is False  # equal numbers in other tensors


def test_what_bases_differ_makes_no_formula():
    import composable_energy as ce

    one, other = (ce.as_energy(lambda x: x.square().sum(1), name=name) for name in ("one", "other"))
    network = WORLD.networks[2]
    left, right = (Formula.atom(Categorical(Source(network), base), {0}, "event") for base in (one, other))
    assert left.same_base(left) and not left.same_base(right)
    assert left.base is one
    with pytest.raises(ExpressionError, match="relative to one and event to other"):
        conjoin([left, right])
    with pytest.raises(ExpressionError, match="at least one"):
        disjoin([])
