"""Operators: values, negation, weights, shares of mixtures, log densities, scores, and what is printed."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal
from torch.nn.functional import softplus

import composable_energy as ce
from composable_energy.errors import CalibrationError, ExpressionError, OperatorError, OptionError
from composable_energy_cli.parsing import parse
from tests.factories import DTYPE, LEAVES, Affine, Tilt, normal, points, quadratic
from tests.refusals import refusals

X = points()
BASE, RED, EVENT, RING = (LEAVES[name] for name in ("distribution", "red", "event", "ring"))
OTHER = ce.as_energy(normal(1.0, 1.0))
A, B, C = Tilt(BASE, 0.5), Tilt(BASE, -0.3), Tilt(OTHER, -0.3)
Q = ce.as_energy(quadratic, name="q")
NEAR, FAR = (ce.as_energy(normal(c, 1.0), name=f"n{c}") for c in (-2.0, 2.0))
U, V = (ce.as_energy(lambda x, c=c: (x - c).square().sum(1) / 2, name=name, event_shape=(2,)) for c, name in ((-1.0, "u"), (1.0, "v")))
LEVEL = ce.as_energy(lambda x, sigma: x.square().sum(1) / (1 + sigma), name="level")
OVER = [Tilt(LEVEL, slope) for slope in (0.5, -0.3)]


def mixed(*values: Tensor) -> Tensor:
    return -torch.logsumexp(torch.stack([-value for value in values]), 0)


def parameter(value: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(value, dtype=DTYPE))


VALUES = {
    "a shared base counts once": (lambda: A & B, lambda a, b: BASE(X) + a + b),
    "and beside itself": (lambda: A & B & BASE, lambda a, b: BASE(X) + a + b),
    "and before a term": (lambda: BASE & A, lambda a, b: A(X)),
    "a weight beside another sharpens its evidence alone": (lambda: A & 2 * B, lambda a, b: BASE(X) + a + 2 * b),
    "equal weights": (lambda: 2 * A & 2 * B, lambda a, b: 2 * (BASE(X) + a + b)),
    "sharpened": (lambda: A.sharpened(2), lambda a, b: BASE(X) + 2 * a),
    "branches over two bases": (lambda: A | C, lambda a, b: mixed(A(X), C(X))),
    "a branch without base": (lambda: A | OTHER, lambda a, b: mixed(A(X), OTHER(X))),
    "one base under equal conditions": (lambda: OVER[0].at(0.5) & OVER[1].at(0.5), lambda a, b: (OVER[0] & OVER[1]).at(0.5)(X)),
    "two under others": (lambda: OVER[0].at(0.5) & OVER[1].at(0.7), lambda a, b: OVER[0].at(0.5)(X) + OVER[1].at(0.7)(X)),
    "relative to": (lambda: OTHER.relative_to(BASE) & Q.relative_to(BASE), lambda a, b: OTHER(X) + Q(X) - BASE(X)),
    "not an event": (lambda: ~RED, lambda a, b: BASE(X) - torch.log1p(-(-RED.evidence(X)).exp())),
    "not a relative energy": (lambda: ~A, lambda a, b: BASE(X) + softplus(-a)),
    "not a density": (lambda: ce.negate(RING, level=1.5), lambda a, b: softplus((1.5 - RING(X)) / 0.1)),
    "power": (lambda: ce.negate(RING, "power"), lambda a, b: -0.01 * RING(X)),
    "power of evidence": (lambda: ce.negate(A, "power", weight=0.5), lambda a, b: BASE(X) - 0.5 * a),
    "contrast": (lambda: ce.negate(A, "contrast", offset=1.0, weight=2.0), lambda a, b: BASE(X) + 2 * softplus(1.0 - a)),
    "all of": (lambda: ce.all_of(BASE, quadratic, RING), lambda a, b: BASE(X) + Q(X) + RING(X)),
    "weights": (lambda: ce.any_of(BASE, quadratic, weights=[1.0, 3.0]), lambda a, b: mixed(BASE(X), Q(X) - math.log(3))),
    "normalisers": (lambda: ce.Disjunction(BASE, Q, log_z=[0.0, 2.0]), lambda a, b: mixed(BASE(X), Q(X) + 2)),
    "events with weights are densities": (
        lambda: ce.any_of(RED, EVENT, weights=[1, 1]),
        lambda a, b: BASE(X) + mixed(RED.evidence(X), EVENT.evidence(X)),
    ),
    "exclusive or": (
        lambda: ce.negate(U, level=3.0) & V | U & ce.negate(V, level=3.0),
        lambda a, b: mixed(U(X) + softplus((3 - V(X)) / 0.1), V(X) + softplus((3 - U(X)) / 0.1)),
    ),
}


@pytest.mark.parametrize("name", VALUES)
def test_an_expression_has_the_value_of_its_formula(name):
    expression, expected = VALUES[name]
    torch.testing.assert_close(expression()(X), expected(A.evidence(X), B.evidence(X)))


def test_what_operators_return():
    assert [b.energy for b in (A | B).bases] == [BASE]
    assert (~RING).config()["mode"] == "level" and ~ce.negate(A, "contrast", offset=1.0) is A
    assert ce.all_of(BASE) is BASE and ce.any_of(BASE) is BASE
    assert (U ^ V).equals((U & ~V) | (~U & V))
    names = {"a": RED, "b": EVENT, "c": BASE}
    assert parse("a | b ^ ~a & b").build(names).equals(RED | (EVENT ^ (~RED & EVENT)))
    assert (U ^ quadratic).terms and (quadratic ^ U).terms
    with pytest.raises(ExpressionError, match=r"write `\^`"):
        parse("a xor b").build(names)


test_what_has_no_meaning_is_refused = refusals(
    (lambda: A.relative_to(BASE), ExpressionError, "already relative to base"),
    (lambda: ce.negate(BASE, "maybe"), OptionError, r"mode must be one of .* got 'maybe'"),
    (lambda: ce.negate(A, "complement"), ExpressionError, "not an event"),
    (lambda: ce.negate(BASE, weight=-1.0), OptionError, "positive, got -1"),
    (lambda: ~LEAVES["density"], ExpressionError, "near"),
    (lambda: ce.any_of(BASE, Q, weights=[1.0]), OptionError, "2 terms takes 2 weights"),
    (lambda: ce.any_of(BASE, Q, weights=[1.0, -1.0]), OptionError, "positive"),
    (lambda: ce.any_of(BASE, Q, weights=[1, math.inf]), OptionError, "positive and finite"),
    (lambda: ce.any_of(BASE, Q, weights=[1.0, parameter(2.0)]), OptionError, r"for a learnable weight write `w \* A`"),
    (lambda: ce.any_of(BASE, Q, seed=0), OptionError, "calibrate=True; got seed"),
    (lambda: BASE / 0, OptionError, "not be zero"),
    (lambda: BASE * torch.ones(2), TypeError, None),
    (lambda: BASE * True, TypeError, None),
    *(
        (lambda w=w: BASE.sharpened(w), OptionError, "A weight must be")
        for w in (math.nan, math.inf, "two", torch.tensor(1j), torch.ones(2))
    ),
    *((write, OperatorError, "An energy has no truth value: write `A & B`") for write in (lambda: U and V, lambda: not U)),
    *(
        (write, OperatorError, r"`A & B`.*`A - B`.*`~A`.*`2 \* A`")
        for write in (lambda: U + V, lambda: 3 + U, lambda: -U, lambda: sum([U, V]), lambda: U**2)
    ),
)


def test_a_module_that_a_method_hides_is_refused():
    class Hidden(ce.Energy):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    with pytest.raises(ExpressionError, match="`score` is a method of energies"):
        Hidden()


def test_what_is_learnt_counts_at_every_call_wherever_it_stands():
    for weight in (2, np.float64(2), np.float32(2), torch.tensor(2.0)):
        torch.testing.assert_close((weight * BASE)(X), 2 * BASE(X))
    weight, temperature = parameter(2.0), parameter(4.0)
    tree = weight * (3 * (A / temperature)) & weight * (3 * (B / temperature))
    for value in (2.0, 5.0):
        with torch.no_grad():
            weight.fill_(value)
        torch.testing.assert_close(tree(X), 3 * value / 4 * (A & B)(X))
        torch.testing.assert_close(copy.deepcopy(tree)(X), tree(X))
        tree(X).sum().backward()  # a graph that is kept since the tree was made would be gone at the second time
    assert str(A / temperature) == "Tilt / 4" and {id(p) for p in tree.parameters()} >= {id(weight), id(temperature)}
    first, second = parameter(2.0), parameter(2.0)
    (first * A - second * A)(X).sum().backward()  # weights that happen to be equal
    torch.testing.assert_close(first.grad, A(X).sum())


@pytest.mark.slow
def test_a_complement_is_remembered_so_that_a_parity_of_many_events_stays_small():
    events = [ce.ClassifierEnergy(Affine(1, seed), 1, BASE) for seed in range(16)]
    parity = events[0]
    for event in events[1:]:
        parity = (parity & ~event) | (~parity & event)
    signs = [1 - 2 * (-event.evidence(X)).exp() for event in events]
    torch.testing.assert_close((-parity.evidence(X)).exp(), (1 - torch.stack(signs).prod(0)) / 2)
    assert ~~parity is parity


def test_a_copy_does_not_share_the_remembered_complement():
    tree = RED.sharpened(parameter(2.0)) & EVENT
    complement = ~tree
    copied = copy.deepcopy(tree)
    with torch.no_grad():
        next(p for p in copied.parameters() if p.ndim == 0).fill_(5.0)
    assert not torch.allclose((~copied)(X), complement(X))
    assert ~complement is tree


@pytest.mark.parametrize(
    ("mixture", "shares"),
    [
        (lambda: RED | EVENT, "exact"),
        (lambda: NEAR ^ FAR, "known"),
        (lambda: (U & ~V) | (U & ~NEAR), "known"),
        (lambda: ~U | ~V, "known"),
        (lambda: U ^ V, "unknown"),
        (lambda: NEAR | 2 * FAR, "unknown"),
        (lambda: RED | U, "unknown"),
        (lambda: ce.any_of(U, V, weights=[1, 1]), "chosen"),
        (lambda: ce.Disjunction(U, V, log_z=[0.0, 0.0]), "calibrated"),
    ],
)
def test_what_is_known_of_shares(mixture, shares):
    assert mixture().shares == shares
    assert "shares" in mixture().explain(X).note if shares in ("chosen", "calibrated") else True


def test_log_prob_where_the_normaliser_is_known():
    mixture = ce.any_of(NEAR, FAR, weights=[1, 3])
    torch.testing.assert_close(NEAR.log_prob(X), normal(-2.0, 1.0).log_prob(X))
    torch.testing.assert_close(mixture.log_prob(X), -mixture(X) - math.log(4))
    torch.testing.assert_close(NEAR.relative_to(BASE).log_prob(X), NEAR.log_prob(X))
    torch.testing.assert_close(U.log_prob(X, log_z=math.log(2 * math.pi)), -U(X) - math.log(2 * math.pi))
    for energy in (U, U & V, NEAR & FAR, 2 * NEAR, RED):
        assert energy.log_normalizer is None
        with pytest.raises(CalibrationError, match=r"log_z.*calibrate"):
            energy.log_prob(X)


class Learnt(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(2))

    def forward(self, x):
        return -Normal(self.mean, 1.0).log_prob(x).sum(1)


def test_scores_are_gradients_of_the_log_density_from_which_parameters_learn():
    torch.testing.assert_close((U | V).score(X), torch.func.vmap(torch.func.grad(lambda x: -(U | V)(x[None])[0]))(X))
    torch.testing.assert_close((ce.ScoreEnergy(lambda x: 3 - x, event_shape=(2,)) & NEAR).score(X), 3 - X - 2.0 - X)
    module, x = Learnt(), torch.ones(3, 2)
    energy = ce.as_energy(module)
    for value in (energy.log_prob(x, log_z=0.0), energy.score(x, create_graph=True)):
        torch.testing.assert_close(torch.autograd.grad(value.sum(), module.mean)[0], torch.full((2,), 3.0))
    assert not energy.score(x).requires_grad
    model = nn.Linear(2, 2)
    score = ce.ScoreEnergy(model, event_shape=(2,))
    score.score(x, create_graph=True).sum().backward()
    assert model.bias.grad is not None and torch.equal(model.bias.grad, torch.full((2,), 3.0))
    with pytest.raises(ExpressionError, match="its score has no graph"):
        (score & energy).score(x, create_graph=True)


def test_explain_gives_each_term_and_the_shares_of_branches():
    explanation = ((NEAR | FAR) & RING).explain(X)
    branches = explanation.terms[0].terms
    assert [branch.expression for branch in branches] == ["n-2.0", "n2.0"]
    torch.testing.assert_close(branches[0].share, torch.sigmoid(FAR(X) - NEAR(X)))
    torch.testing.assert_close(branches[0].energy, NEAR(X))
    assert "share" in str(explanation) and "n-2.0 | n2.0" in str(explanation) and "arbitrary" in (RED | U).explain(X).note
    explanation = A.explain(X)
    assert [term.expression for term in explanation.terms] == ["base", "Tilt"]
    torch.testing.assert_close(explanation.terms[0].energy + explanation.terms[1].energy, explanation.energy)


def test_str_is_the_expression_and_repr_the_tree():
    a, b, c = (ce.as_energy(quadratic, name=name) for name in "abc")
    written = {
        "a & ~b | c": a & ~b | c,
        "a & (~b | c)": a & (~b | c),
        "2 * (a | b)": 2 * (a | b),
        "~(2 * a)": ~(2 * a),
        "a - (b - c)": a - (b - c),
        "(a & b).sharpened(2)": (a & b).sharpened(2),
        "a.relative_to(b)": a.relative_to(b),
        "~a | b": a >> b,
        "a & ~b | ~a & b": a ^ b,
        "any_of(a, b, weights=[1, 1])": ce.any_of(a, b, weights=[1, 1]),
    }
    assert [str(energy) for energy in written.values()] == list(written)
    assert repr(a & ~b) == "Conjunction\n├─ CallableEnergy(a)\n└─ Negation(mode='level')\n   └─ CallableEnergy(b)"
