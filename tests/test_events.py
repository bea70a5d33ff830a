"""Formulas of events: values equal to enumeration, contradictions, intervals, sizes of diagrams, and probabilities near 0 and 1."""

import copy
import math
import pickle
import random
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import nn

import composable_energy as ce
from composable_energy import events
from composable_energy.errors import ContradictionError, ExpressionError, OptionError, ShapeError
from tests.refusals import refused

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
        self.networks = [nn.Linear(3, width).double() for width in (1, 2, 3, 8, 2)]
        for network in self.networks:
            network.weight.data = torch.randn(network.weight.shape, generator=generator, dtype=torch.double) * 2
            network.bias.data = torch.rand(network.bias.shape, generator=generator, dtype=torch.double) - 0.5
        self.networks[-1].weight.data *= 0.2
        *labels, last = map(events.Source, self.networks)
        self.variables = [*map(events.Categorical, labels), events.Continuous(last)]
        with torch.no_grad():
            odds, *logits, gaussian = (network(self.x) for network in self.networks)
        mean, width = gaussian[:, :1], gaussian[:, 1:].clamp(-5, 1).exp()
        ends = (torch.tensor(ENDS, dtype=torch.double) - mean) / width / math.sqrt(2)
        below, above = 0.5 * torch.erfc(-ends), 0.5 * torch.erfc(ends)
        cells = torch.where(ends[:, :-1] > 0, -above.diff(dim=1), below.diff(dim=1))  # of the smaller tails, which lose fewer digits
        tables = [torch.cat([(-odds).sigmoid(), odds.sigmoid()], 1), *(raw.softmax(1) for raw in logits), cells]
        self.joint = torch.stack([table[:, column] for table, column in zip(tables, COMBINATIONS.T, strict=True)]).prod(0)

    def atom(self, head: int, values: frozenset[int]) -> events.Formula:
        if head < 4:
            return events.Formula.atom(self.variables[head], values, f"h{head}{sorted(values)}")
        cells = {i: events.Interval(ENDS[i], ENDS[i + 1]) for i in sorted(values)}
        return events.disjoin([events.Formula.atom(self.variables[4], cell, f"cell{i}") for i, cell in cells.items()])

    def probability(self, tree) -> torch.Tensor:
        return self.joint[:, truth(tree)].sum(1)

    def build(self, tree) -> events.Formula:
        if tree[0] == "atom":
            return self.atom(*tree[1:])
        parts = [self.build(part) for part in tree[1:]]
        return events.complement(parts[0]) if tree[0] == "not" else (events.conjoin if tree[0] == "and" else events.disjoin)(parts)


WORLD = World()


def value(formula: events.Formula) -> torch.Tensor:
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


def same(left: events.Formula, right: events.Formula) -> None:
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
    certain = events.disjoin([WORLD.atom(0, frozenset({1})), events.complement(WORLD.atom(0, frozenset({1})))])
    for points in (torch.full((3, 2, 2), 1e38), torch.tensor([[math.nan], [math.inf]]), torch.zeros(0, 3), torch.zeros(4)):
        x = points.requires_grad_()
        energy = certain.energy(x)
        assert torch.equal(energy, torch.zeros(len(x))) and torch.equal(torch.autograd.grad(energy.sum(), x)[0], torch.zeros_like(x))


def test_labels_that_are_all_there_are():
    zero, one = (WORLD.atom(1, frozenset({label})) for label in (0, 1))
    neither = events.conjoin([events.complement(zero), events.complement(one)])  # there might be a third
    assert neither.constant is None
    refused(ContradictionError, None, neither.energy, WORLD.x)
    same(events.disjoin([neither, zero]), zero)
    assert torch.equal(value(events.complement(neither)), torch.zeros(5).double())
    assert torch.equal(value(events.disjoin([zero, one])), torch.zeros(5).double())
    known = events.Categorical(events.Source(WORLD.networks[1]), labels=2)
    assert events.conjoin([events.complement(events.Formula.atom(known, {label})) for label in (0, 1)]).constant is False
    assert (
        events.conjoin([events.complement(zero), events.complement(events.Formula.atom(known, {1}))]).constant is False
    )  # one variable: what one knows, both know
    assert events.Formula.atom(known, {0, 1}).constant is True and events.Formula.atom(known, ()).constant is False
    refused(OptionError, "Label 5 is out of range: there are 2 labels", events.Formula.atom, known, {5})
    refused(OptionError, "there are 2 labels", value, WORLD.atom(1, frozenset({5})))
    with pytest.raises(ExpressionError, match="with 2 and with 3 labels"):
        other = events.Categorical(events.Source(WORLD.networks[1]), labels=3)
        events.conjoin([events.Formula.atom(variable, {0}) for variable in (known, other)])
    with pytest.raises(ShapeError, match="logits of 2 labels; expected 3"):
        value(events.Formula.atom(events.Categorical(events.Source(WORLD.networks[1]), labels=3), {0}))


def test_intervals_that_do_not_meet_exclude_each_other():
    left, right = (events.Formula.atom(WORLD.variables[4], events.Interval(low, low + 1.0)) for low in (0.0, 1.0))
    assert events.conjoin([left, right]).constant is False
    same(events.disjoin([left, right]), events.Formula.atom(WORLD.variables[4], events.Interval(0.0, 2.0)))


def test_ends_for_each_chain_need_one_order():
    def interval(*ends):
        return events.Formula.atom(WORLD.variables[4], events.Interval(*(events.ChainValues(torch.tensor(end)) for end in ends)))

    first, second = interval([0.0, 0.1], [1.0, 1.1]), interval([0.5, 0.2], [2.0, 2.0])
    assert len(events.conjoin([first, second]).nodes) == 3
    refused(ExpressionError, "below another in 1 chains of 2", events.conjoin, [first, interval([-0.5, 0.2], [2.0, 2.0])])
    refused(ShapeError, "chains and for", events.conjoin, [first, interval([0.5, 0.2, 0.1], [2.0, 2.0, 2.0])])
    assert events.conjoin([first, events.complement(interval([0.0, 0.1], [1.0, 1.1]))]).constant is False  # equal numbers in other tensors


def test_what_bases_differ_makes_no_formula():
    one, other = (ce.as_energy(lambda x: x.square().sum(1), name=name) for name in ("one", "other"))
    network = WORLD.networks[2]
    left, right = (events.Formula.atom(events.Categorical(events.Source(network), base), {0}, "event") for base in (one, other))
    assert left.same_base(left) and not left.same_base(right) and left.bases == {None: one}
    refused(ExpressionError, "relative to one and event to other", events.conjoin, [left, right])
    refused(ExpressionError, "at least one", events.disjoin, [])


def heads(count: int) -> list[events.Formula]:
    return [events.Formula.atom(events.Categorical(events.Source(nn.Linear(3, 1).double())), {1}, f"a{i}") for i in range(count)]


def parity(a):
    no, both = events.complement, lambda *parts: events.conjoin(parts)
    return reduce(lambda odd, b: events.disjoin([both(odd, no(b)), both(no(odd), b)]), a)


def pairs(a):
    return events.disjoin([events.conjoin([a[i], a[i + 15]]) for i in range(15)])


@pytest.mark.slow
@pytest.mark.parametrize("make", [parity, pairs])
def test_diagrams_of_thirty_heads_stay_below_the_limit_of_nodes(make):
    formula = make(heads(30))
    assert str(events.Formula(formula.variables, formula.nodes)) == str(formula)
    assert formula.energy(torch.randn(64, 3, dtype=torch.double)).isfinite().all()


def test_a_formula_in_a_bad_order_is_refused_with_its_size():
    a = heads(40)
    with pytest.raises(ExpressionError, match="more than 50000 nodes"):  # far fewer than the million that this order needs
        events.conjoin([events.disjoin(a), events.disjoin([events.conjoin([a[i], a[i + 20]]) for i in range(20)])])


@pytest.mark.full
def test_long_chains_need_no_recursion():
    parts = heads(1200)
    formula = events.conjoin([*parts[:600], events.disjoin(parts[600:])])
    assert torch.equal(value(pickle.loads(pickle.dumps(copy.deepcopy(formula)))), value(formula)) and len(str(formula)) < 250


LOGITS = (-1e4, -100.0, -1.0, 0.0, 20.0, 1e4)
BOUNDS = (-math.inf, -0.7, 0.1, 0.1001, 0.6, math.inf)
IDENTITY = nn.Identity()  # the points are the outputs, so gradients in points are gradients in outputs
HEADS = [
    events.Categorical(events.Source(IDENTITY), columns=slice(*ends), labels=labels)
    for *ends, labels in ((0, 1, 2), (1, 2, 2), (2, 3, 2), (3, 5, 2), (5, 8, 3), (8, 16, 8))
]
LINE = events.Continuous(events.Source(IDENTITY), columns=slice(16, 18))


def random_formula(rng: random.Random, depth: int) -> events.Formula:
    """A formula that can be fulfilled; parts of it may be contradictions."""
    while (formula := any_formula(rng, depth)).constant is False:
        pass
    return formula


def any_formula(rng: random.Random, depth: int) -> events.Formula:
    if depth == 0 or rng.random() < 0.12:
        if isinstance(head := rng.choice([*HEADS, LINE]), events.Continuous):
            return events.Formula.atom(head, events.Interval(*sorted(rng.sample(BOUNDS, 2))))
        return events.Formula.atom(head, rng.sample(range(head.labels), rng.randint(1, head.labels - 1)))
    if rng.random() < 0.2:
        return events.complement(any_formula(rng, depth - 1))
    return rng.choice([events.conjoin, events.disjoin])([any_formula(rng, depth - 1) for _ in range(2)])


def extremes(rng: random.Random, rows: int = 16) -> torch.Tensor:
    return torch.tensor([rng.choices(LOGITS, k=18) for _ in range(rows)], requires_grad=True)


@pytest.mark.full
@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.integers(0, 10**9))
def test_formulas_stay_finite(seed):
    rng = random.Random(seed)
    formula, x = random_formula(rng, 4), extremes(rng)
    energy = formula.energy(x)
    gradient = torch.autograd.grad(energy.sum(), x)[0]
    assert energy.dtype == torch.float32 and energy.isfinite().all() and gradient.isfinite().all()
    assert energy.min() >= -1e-5 and gradient[:, :16].abs().max() <= 1 + 1e-5


def test_leaves_stay_finite():
    x = extremes(random.Random(0), 200)
    energy = events.ClassifierEnergy(IDENTITY, None, columns=slice(8, 16))(x, y=torch.arange(200) % 8)
    gradient = torch.autograd.grad(energy.sum(), x)[0]
    assert energy.isfinite().all() and gradient.isfinite().all() and gradient.abs().max() <= 1 + 1e-6
    density = events.DensityEnergy(IDENTITY, dims=9, c=torch.zeros(1, 9))(x)
    assert density.isfinite().all() and torch.autograd.grad(density.sum(), x)[0].isfinite().all()


@pytest.mark.slow
def test_second_derivatives_stay_finite():
    rng = random.Random(5)
    for _ in range(100):
        formula, x = random_formula(rng, 3), extremes(rng)
        if (first := torch.autograd.grad(formula.energy(x).sum(), x, create_graph=True)[0]).requires_grad:
            assert torch.autograd.grad(first[:, :16].sum(), x, allow_unused=True, materialize_grads=True)[0].isfinite().all()


@pytest.mark.parametrize("ends", [(-0.2, 0.3), (2, 2.5), (-9, -8.9), (30, 31), (-1e-3, 1e-3), (40, 41), (5, 5.0001), (-50, 60)])
def test_an_interval_equals_its_integral(ends):
    low, high = ends
    mean, width = torch.zeros(1, dtype=torch.double), torch.ones(1, dtype=torch.double)
    nearest = min(max(0.0, low), high)  # the density there is taken out, as it underflows far away
    tail = integrate.quad(lambda v: math.exp(nearest**2 / 2 - v**2 / 2), low, high, points=[nearest], epsabs=0, epsrel=1e-13)[0]
    expected = math.log(tail) - nearest**2 / 2 - math.log(2 * math.pi) / 2
    assert events.log_probability(mean, width, low, high).item() == pytest.approx(expected, rel=1e-11, abs=1e-13)
    single = events.log_probability(mean.float(), width.float(), low, high).item()
    assert single == pytest.approx(expected, rel=2e-4 if high - low < 1e-3 else 2e-6, abs=1e-6)


def test_half_lines_equal_the_distribution_function():
    mean = torch.linspace(-40, 40, 81, dtype=torch.double)
    width = torch.full_like(mean, 1.5)
    expected = torch.from_numpy(stats.norm.logcdf(0.3, mean.numpy(), 1.5))
    torch.testing.assert_close(events.log_probability(mean, width, None, 0.3), expected, rtol=1e-12, atol=1e-15)
    expected = torch.from_numpy(stats.norm.logsf(0.3, mean.numpy(), 1.5))
    torch.testing.assert_close(events.log_probability(mean, width, 0.3, None), expected, rtol=1e-12, atol=1e-15)
    assert torch.equal(events.log_probability(mean, width, None, None), torch.zeros_like(mean))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("span", [0.4, 1e-3, 1e-9])
def test_an_interval_pulls_towards_itself_however_far(dtype, span):
    """Far away the log probability has the slope of the density's own at the near end; narrow ones and touching ends stay finite."""
    mean = torch.tensor([-1e4, -100.0, -3.0, 0.1, 0.3, 3.0, 100.0, 1e4], dtype=dtype, requires_grad=True)
    for log_width in (-5.0, 0.0, 1.0):
        width = torch.full_like(mean, math.exp(log_width))
        value = events.log_probability(mean, width, 0.1, 0.1 + span)
        slope = torch.autograd.grad(value.sum(), mean)[0]
        assert value.isfinite().all() and slope.isfinite().all() and value.max() <= 0 and slope[:3].min() > 0 and slope[5:].max() < 0
        far = torch.tensor([0, 1, 6, 7])
        expected = (torch.tensor([0.1, 0.1, 0.1 + span, 0.1 + span]).to(dtype) - mean.detach()[far]) / width[far].square()
        torch.testing.assert_close(slope[far], expected, rtol=2e-2, atol=0)
