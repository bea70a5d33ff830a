"""Formulas of events: values equal to enumeration, contradictions, intervals, and the size of decision diagrams."""

import copy
import math
import pickle
import random
from functools import reduce

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ContradictionError, ExpressionError, OptionError, ShapeError
from composable_energy.events import Categorical, ChainValues, Continuous, Formula, Interval, Source, complement, conjoin, disjoin

ENDS = (-math.inf, -0.7, 0.1, 0.6, 1.3, math.inf)
COUNTS = (2, 2, 3, 8, 5)  # labels of each head (the first has one column), and cells of the continuous one
COMBINATIONS = torch.cartesian_prod(*map(torch.arange, COUNTS))


def truth(tree) -> torch.Tensor:
    """For which combinations of values a tree holds."""
    if tree[0] == "atom":
        return torch.isin(COMBINATIONS[:, tree[1]], torch.tensor(sorted(tree[2])))
    parts = [truth(part) for part in tree[1:]]
    return ~parts[0] if tree[0] == "not" else reduce(torch.logical_and if tree[0] == "and" else torch.logical_or, parts)


class World:
    """Four classifiers and one continuous head, with the probability of each combination of their values."""

    def __init__(self, seed: int = 0, points: int = 5) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(points, 3, generator=generator, dtype=torch.double)
        widths = (1, 2, 3, 8, 2)
        self.networks = [nn.Linear(3, width).double() for width in widths]
        for network in self.networks:
            network.weight.data = torch.randn(network.weight.shape, generator=generator, dtype=torch.double) * 2
            network.bias.data = torch.rand(network.bias.shape, generator=generator, dtype=torch.double) - 0.5
        self.networks[-1].weight.data *= 0.2
        self.variables = [*(Categorical(Source(network)) for network in self.networks[:-1]), Continuous(Source(self.networks[-1]))]
        with torch.no_grad():
            odds, *logits, gaussian = (network(self.x) for network in self.networks)
        mean, width = gaussian[:, :1], gaussian[:, 1:].clamp(-5, 1).exp()
        ends = (torch.tensor(ENDS, dtype=torch.double) - mean) / width / math.sqrt(2)
        below, above = 0.5 * torch.erfc(-ends), 0.5 * torch.erfc(ends)
        cells = torch.where(ends[:, :-1] > 0, -above.diff(dim=1), below.diff(dim=1))  # of the smaller tails, which lose fewer digits
        tables = [torch.cat([(-odds).sigmoid(), odds.sigmoid()], 1), *(raw.softmax(1) for raw in logits), cells]
        self.joint = torch.stack([table[:, column] for table, column in zip(tables, COMBINATIONS.T, strict=True)]).prod(0)

    def atom(self, head: int, values: frozenset[int]) -> Formula:
        if head < 4:
            return Formula.atom(self.variables[head], values, f"h{head}{sorted(values)}")
        return disjoin([Formula.atom(self.variables[4], Interval(ENDS[i], ENDS[i + 1]), f"cell{i}") for i in sorted(values)])

    def probability(self, tree) -> torch.Tensor:
        return self.joint[:, truth(tree)].sum(1)

    def build(self, tree) -> Formula:
        if tree[0] == "atom":
            return self.atom(*tree[1:])
        parts = [self.build(part) for part in tree[1:]]
        return complement(parts[0]) if tree[0] == "not" else (conjoin if tree[0] == "and" else disjoin)(parts)


WORLD = World()


def value(formula: Formula) -> torch.Tensor:
    """The energy; infinite for a formula that has none, because its probability is 0."""
    try:
        return formula.energy(WORLD.x)
    except ContradictionError:
        return torch.full((len(WORLD.x),), math.inf, dtype=torch.double)


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
def test_random_formulas_equal_enumeration_and_only_a_whole_that_is_impossible_raises():
    rng, raised = random.Random(1), 0
    for i in range(400):
        tree = random_tree(rng, 4) if i % 2 else ("and", *(random_tree(rng, 1) for _ in range(3)))
        formula = WORLD.build(tree)
        torch.testing.assert_close(value(formula), -WORLD.probability(tree).log(), rtol=1e-12, atol=1e-12)
        if truth(tree).any():
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
    one, other = (ce.as_energy(lambda x: x.square().sum(1), name=name) for name in ("one", "other"))
    network = WORLD.networks[2]
    left, right = (Formula.atom(Categorical(Source(network), base), {0}, "event") for base in (one, other))
    assert left.same_base(left) and not left.same_base(right)
    assert left.base is one
    with pytest.raises(ExpressionError, match="relative to one and event to other"):
        conjoin([left, right])
    with pytest.raises(ExpressionError, match="at least one"):
        disjoin([])


def heads(count: int) -> list[Formula]:
    return [Formula.atom(Categorical(Source(nn.Linear(3, 1).double())), {1}, f"a{i}") for i in range(count)]


def parity(a):
    return reduce(lambda odd, b: disjoin([conjoin([odd, complement(b)]), conjoin([complement(odd), b])]), a)


def pairs(a):
    return disjoin([conjoin([a[i], a[i + 15]]) for i in range(15)])


@pytest.mark.slow
@pytest.mark.parametrize("make", [parity, pairs])
def test_diagrams_of_thirty_heads_stay_below_the_limit_of_nodes(make):
    formula = make(heads(30))
    assert str(Formula(formula.variables, formula.nodes)) == str(formula)
    assert formula.energy(torch.randn(64, 3, dtype=torch.double)).isfinite().all()


def test_a_formula_in_a_bad_order_is_refused_with_its_size():
    a = heads(40)
    with pytest.raises(ExpressionError, match="more than 50000 nodes"):  # far fewer than the million that this order needs
        conjoin([disjoin(a), disjoin([conjoin([a[i], a[i + 20]]) for i in range(20)])])


@pytest.mark.full
def test_long_chains_need_no_recursion():
    parts = heads(1200)
    formula = conjoin([*parts[:600], disjoin(parts[600:])])
    again = pickle.loads(pickle.dumps(copy.deepcopy(formula)))
    assert torch.equal(value(again), value(formula))
    assert len(str(formula)) < 250
