"""Decision diagrams of many variables: compile time, size limits and deep formulas."""

import copy
import pickle
import time

import pytest
import torch
from torch import nn

from composable_energy.errors import ExpressionError
from composable_energy.events import Categorical, Formula, Source, complement, conjoin, disjoin
from tests.formulas import value


def heads(count: int) -> list[Formula]:
    return [Formula.atom(Categorical(Source(nn.Linear(3, 1).double())), {1}, f"a{i}") for i in range(count)]


def chain(a):
    return conjoin([*a[:15], disjoin(a[15:])])


def parity(a):
    odd = a[0]
    for b in a[1:]:
        odd = disjoin([conjoin([odd, complement(b)]), conjoin([complement(odd), b])])
    return odd


def pairs(a):
    return disjoin([conjoin([a[i], a[i + 15]]) for i in range(15)])


def one_by_one(a):
    chained = a[0]
    for i, b in enumerate(a[1:]):
        chained = (conjoin if i % 2 else disjoin)([chained, b])
    return chained


@pytest.mark.slow
@pytest.mark.parametrize("make", [chain, one_by_one, parity, pairs])
def test_thirty_heads_compile_within_a_second(make):
    formula = make(heads(30))
    start = time.process_time()
    assert str(Formula(formula.variables, formula.nodes)) == str(formula)
    assert time.process_time() - start < 1
    start = time.process_time()
    assert formula.energy(torch.randn(64, 3, dtype=torch.double)).isfinite().all()
    assert time.process_time() - start < 0.5


def test_a_formula_in_a_bad_order_is_refused_with_its_size():
    a = heads(40)
    start = time.process_time()
    with pytest.raises(ExpressionError, match="more than 50000 nodes"):
        conjoin([disjoin(a), disjoin([conjoin([a[i], a[i + 20]]) for i in range(20)])])
    assert time.process_time() - start < 2


@pytest.mark.full
def test_long_chains_need_no_recursion():
    formula = heads(1)[0]
    parts = heads(1200)
    formula = conjoin([*parts[:600], disjoin(parts[600:])])
    again = pickle.loads(pickle.dumps(copy.deepcopy(formula)))
    assert torch.equal(value(again), value(formula))
    assert len(str(formula)) < 250
