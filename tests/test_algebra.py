"""Operators: values, weights, shares of mixtures, scores, what is printed; sub-networks that terms share are evaluated once."""

import copy
import math
import threading

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

import composable_energy as ce
from composable_energy.errors import CalibrationError, ExpressionError, LiftError, OperatorError, OptionError, ShapeError
from composable_energy.sampling import energy_and_gradient
from composable_energy_cli.parsing import parse
from tests.factories import DTYPE, LEAVES, Affine, Tilt, normal, points, quadratic
from tests.refusals import refusals, refused

X = points()
BASE, RED, EVENT, RING = (LEAVES[name] for name in ("distribution", "red", "event", "ring"))
OTHER = ce.as_energy(normal(1.0, 1.0))
A, B, C = Tilt(BASE, 0.5), Tilt(BASE, -0.3), Tilt(OTHER, -0.3)
Q = ce.as_energy(quadratic, name="q")
NEAR, FAR = (ce.as_energy(normal(c, 1.0), name=f"n{c}") for c in (-2.0, 2.0))
BELOW = torch.distributions.constraints.less_than(torch.full((2,), 9.0))  # an end for each coordinate
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
    "weighted events": (lambda: ce.any_of(RED, EVENT, weights=[1, 1]), lambda a, b: BASE(X) + mixed(RED.evidence(X), EVENT.evidence(X))),
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
    assert [b.energy for b in (A | B).bases] == [BASE] and (U ^ quadratic).terms and (quadratic ^ U).terms
    assert (~RING).config()["mode"] == "level" and ~ce.negate(A, "contrast", offset=1.0) is A
    assert ce.all_of(BASE) is BASE and ce.any_of(BASE) is BASE and (U ^ V).equals((U & ~V) | (~U & V))
    assert parse("a | b ^ ~a & b").build({"a": RED, "b": EVENT, "c": BASE}).equals(RED | (EVENT ^ (~RED & EVENT)))
    refused(ExpressionError, r"write `\^`", parse, "a xor b")


test_what_has_no_meaning_is_refused = refusals(
    (lambda: A.relative_to(BASE), ExpressionError, "already relative to base"),
    (lambda: ce.negate(BASE, "maybe"), OptionError, r"mode must be one of .* got 'maybe'"),
    (lambda: ce.negate(A, "complement"), ExpressionError, "not an event"),
    (lambda: ce.negate(BASE, weight=-1.0), OptionError, "positive, got -1"),
    (lambda: ce.negate(BASE, offset=1.0), OptionError, "the mode 'contrast', and the mode is 'level'"),
    (lambda: ce.negate(BASE, quantil=0.9), OptionError, "negate takes mode, weight.* got quantil"),
    *((lambda z=z: U.log_prob(X, log_z=z), ShapeError, "log_z is one number") for z in (torch.ones(len(X), 1), torch.ones(1))),
    *((lambda s=s: ce.as_energy(quadratic, event_shape=s), OptionError, "event_shape is") for s in (2, "2", (2.0,), (-1,))),
    (lambda: ce.as_energy(quadratic, modules=nn.Sequential(nn.Linear(2, 1))), OptionError, "modules is a list"),
    (lambda: ~LEAVES["density"], ExpressionError, "near"),
    (lambda: ce.any_of(BASE, Q, weights=[1.0]), OptionError, "2 terms takes 2 weights"),
    *((lambda w=w: ce.any_of(BASE, Q, weights=[1.0, w]), OptionError, "positive and finite") for w in (-1.0, math.inf)),
    (lambda: ce.any_of(BASE, Q, weights=[1.0, parameter(2.0)]), OptionError, r"for a learnable weight write `w \* A`"),
    (lambda: ce.any_of(BASE, Q, seed=0), OptionError, "calibrate=True; got seed"),
    (lambda: BASE / 0, OptionError, "not be zero"),
    *((lambda other=other: BASE & other, LiftError, "An energy is") for other in (1, "ring", None, [U])),
    (lambda: BASE & torch.nn.Linear, LiftError, "the class Linear; make an instance"),
    (lambda: BASE & torch.nn.ModuleList(), LiftError, "ModuleList, a module without `forward`"),
    *(
        (lambda w=w: BASE.sharpened(w), OptionError, "A weight must be")
        for w in (math.nan, math.inf, "two", torch.tensor(1j), torch.ones(2))
    ),
    *((write, OperatorError, "An energy has no truth value: write `A & B`") for write in (lambda: U and V, lambda: not U)),
    *(
        (write, OperatorError, r"`A & B`.*`A - B`.*`~A`.*`2 \* A`")
        for write in (lambda: U + V, lambda: 3 + U, lambda: -U, lambda: sum([U, V]), lambda: U**2, lambda: 1 - U, lambda: U - 1)
    ),
    *((lambda w=w: U * w, OperatorError, "a number or a 0-d tensor") for w in (U, True, None, "two", 2j, torch.ones(2), np.ones(2))),
)


def test_a_module_that_a_method_hides_is_refused():
    class Hidden(ce.Energy):
        def __init__(self) -> None:
            super().__init__()
            self.score = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x.sum(1)

    refused(ExpressionError, "`score` is a method of energies", Hidden)


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
    signs = torch.stack([1 - 2 * (-event.evidence(X)).exp() for event in events])
    torch.testing.assert_close((-parity.evidence(X)).exp(), (1 - signs.prod(0)) / 2)
    assert ~~parity is parity


def test_a_copy_does_not_share_the_remembered_complement():
    tree = RED.sharpened(parameter(2.0)) & EVENT
    complement, copied = ~tree, copy.deepcopy(tree)
    with torch.no_grad():
        next(p for p in copied.parameters() if p.ndim == 0).fill_(5.0)
    assert not torch.allclose((~copied)(X), complement(X)) and ~complement is tree


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
        refused(CalibrationError, r"log_z.*calibrate", energy.log_prob, X)


def test_scores_are_gradients_of_the_log_density_from_which_parameters_learn():
    torch.testing.assert_close((U | V).score(X), torch.func.vmap(torch.func.grad(lambda x: -(U | V)(x[None])[0]))(X))
    torch.testing.assert_close((ce.ScoreEnergy(lambda x: 3 - x, event_shape=(2,)) & NEAR).score(X), 3 - X - 2.0 - X)
    module, x = nn.Linear(2, 1), torch.ones(3, 2)
    energy = ce.as_energy(nn.Sequential(module, nn.Flatten(0)))
    for value in (energy.log_prob(x, log_z=0.0), energy.score(x, create_graph=True)):
        torch.testing.assert_close(torch.autograd.grad(value.sum(), module.weight)[0], torch.full((1, 2), -3.0))
    assert not energy.score(x).requires_grad
    model = nn.Linear(2, 2)
    score = ce.ScoreEnergy(model, event_shape=(2,))
    score.score(x, create_graph=True).sum().backward()
    assert model.bias.grad is not None and torch.equal(model.bias.grad, torch.full((2,), 3.0))
    refused(ExpressionError, "its score has no graph", (score & energy).score, x, create_graph=True)


def test_explain_gives_each_term_and_the_shares_of_branches():
    calls, near = [], ce.as_energy(lambda x: calls.append(x) or NEAR(x), name="n-2.0")
    branches = (explanation := ((near | FAR) & RING).explain(X)).terms[0].terms
    assert [branch.expression for branch in branches] == ["n-2.0", "n2.0"] and len(calls) == 1
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


class Passed(torch.autograd.Function):
    """The identity; tells when a gradient comes back."""

    @staticmethod
    def forward(ctx, x, counted):
        ctx.counted = counted
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        ctx.counted.backwards += 1
        return grad, None


class Counted(nn.Module):
    """A linear map that counts how often it is evaluated, and how often a gradient passes it."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs, generator=torch.Generator().manual_seed(0), dtype=DTYPE))
        self.forwards = self.backwards = 0

    def forward(self, x):
        self.forwards += 1
        return Passed.apply(x @ self.weight, self)


def counts(energy, module, x=None, **conditions):
    """Evaluates an energy with its gradient, which is that of training mode, where nothing is shared; returns how often a module ran."""
    x = points(6) if x is None else x
    plain = energy_and_gradient(energy.train(), x, **conditions)
    module.forwards = module.backwards = 0
    torch.testing.assert_close(energy_and_gradient(energy.eval(), x, **conditions), plain, rtol=1e-12, atol=1e-12)
    return module.forwards, module.backwards


def heads(module):
    """Four events over heads on a shared module, with a base on it as well."""
    base = ce.as_energy(lambda x, features: features(x).square().sum(1) / 2 + x.square().sum(1), modules=[module])
    logits = [nn.Sequential(module, nn.Linear(8, 3, dtype=DTYPE)) for _ in range(4)]
    return [ce.ClassifierEnergy(net, 1, base, name=f"h{i}") for i, net in enumerate(logits)]


EXPRESSIONS = {
    "and": lambda a, b, c, d: a & b & c & d,
    "or": lambda a, b, c, d: a | b | c | d,
    "not": lambda a, b, c, d: ~(a & b) & ~(c | d),
    "weighted": lambda a, b, c, d: 2 * a & ce.any_of(b, c.sharpened(2), weights=[1, 2]) & ce.negate(d, "contrast"),
    "bound": lambda a, b, c, d: (a & b) & (c >> d),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_features_under_a_base_and_four_heads_are_evaluated_once(name):
    features = Counted(2, 8)
    energy = EXPRESSIONS[name](*heads(ce.shared(features)))
    assert counts(energy, features) == (1, 1)
    energy.explain(points(6))
    assert features.forwards == 2
    for seed in (1, 2):  # other points are other points
        energy(points(4, seed=seed))
        assert features.forwards == 2 + seed


class Noisy(ce.Energy):
    def __init__(self):
        super().__init__()
        self.net = Counted(2, 1)

    def forward(self, x, sigma):
        return self.net(x).square().squeeze(1) / (1 + sigma)


def test_a_base_is_evaluated_once_beside_energies_that_are_measured_against_it_also_under_a_condition():
    net, base = Counted(2, 1), Noisy()
    plain = ce.as_energy(nn.Sequential(net, nn.Flatten(0)))
    a, b = (LEAVES[name].relative_to(plain) for name in ("ring", "network"))
    for energy in (a & b, (a | b) & 2 * a, ~a & b, a.sharpened(2) | b):
        assert counts(energy, net) == (1, 1)
    a, b = (LEAVES[name].relative_to(base) for name in ("ring", "network"))
    for energy in ((a & b).at(0.3), a.at(0.3) & b.at(0.3), (a & b).given(sigma=torch.rand(6, dtype=DTYPE))):
        assert counts(energy, base.net) == (1, 1)
    for value in (0.3, torch.tensor(0.3, dtype=DTYPE)):
        assert counts(a & b, base.net, sigma=value) == (1, 1) and counts(a & b, base.net, points(1), sigma=value) == (1, 1)
    assert counts(a.at(0.3) | b.at(0.4), base.net)[0] == 2


def test_networks_of_heads_and_decoders_are_evaluated_once():
    net, centre = Counted(2, 4), torch.zeros(2, dtype=DTYPE)
    head = ce.GaussianHead(net, BASE, dims=2)
    assert counts(head(centre) & head.near(centre, 1.0) & (head.near(centre, 2.0) | RING), net) == (1, 1)
    method = ce.GaussianHead(net.forward, BASE, dims=2)
    assert counts(method(centre) & method.near(centre, 1.0), net) == (1, 1)
    decoder = Counted(2, 2)
    latent = ce.energies.CallableEnergy(BASE, decoder=decoder)
    seen = [LEAVES[name].pull_back(decoder) for name in ("ring", "network", "red", "tilt")]
    energy = latent & seen[0] & seen[1] & (seen[2] | seen[3])
    assert counts(energy, decoder) == counts(energy.at(0.5), decoder) == (1, 1)
    assert counts(energy, decoder, sigma=torch.rand(6, dtype=DTYPE)) == (1, 1)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::UserWarning")  # that torch.compile looks through our caches
def test_torch_compiles_expressions_as_one_graph_which_may_be_a_term_of_another():
    energy = (LEAVES["event"] | ~LEAVES["near"]) & LEAVES["relative"] & (LEAVES["density"] | 2 * RING) & U.on(BELOW)
    expected = energy(points(6))  # the first call makes the diagrams
    torch.testing.assert_close(torch.compile(energy, fullgraph=True, backend="eager")(points(6)), expected)
    # Inside of an evaluation, whose memo no graph may read or write, each call is computed at its own points.
    inside = LEAVES["relative"] & LEAVES["event"]
    inside(points(6))
    outside = ce.as_energy(torch.compile(inside, backend="eager"), event_shape=(2,)) & RING
    for seed in (1, 2, 3):
        x = points(6, seed=seed)
        torch.testing.assert_close(energy_and_gradient(outside, x), energy_and_gradient(inside & RING, x))


def test_masks_of_training_differ():
    features = ce.shared(nn.Dropout(0.5))
    a, b = (ce.as_energy(nn.Sequential(features, nn.Flatten(0)), name=name) for name in "ab")
    assert a.relative_to(b).evidence(torch.ones(200, 1)).any() and not a.eval().relative_to(b.eval()).evidence(torch.ones(200, 1)).any()


def beside_a_base(function) -> ce.Energy:
    """An energy beside another with a base, so that its evaluation has a memo."""
    return (ce.as_energy(function) & RING.relative_to(BASE)).eval()


def test_what_differs_is_evaluated_again():
    x, features = points(3), ce.shared(Counted(2, 2)).eval()

    def moved(x):
        z = x.clone()
        first = features(z).sum(1)
        z += 1
        return features(z).sum(1) - first

    expected = features(x + 1).sum(1) - features(x).sum(1)
    torch.testing.assert_close(beside_a_base(moved)(x) - RING(x), expected)  # points that were changed in place
    weights = [torch.ones(2, 2, dtype=DTYPE), torch.zeros(2, 2, dtype=DTYPE)]
    name = next(iter(dict(features.named_parameters())))
    calls = lambda x: sum(torch.func.functional_call(features, {name: w}, (x,)) for w in weights).sum(1)
    torch.testing.assert_close(beside_a_base(calls)(x) - RING(x), 2 * x.sum(1))  # other weights

    def half(x):
        with torch.no_grad():
            features(x)
        return features(x).sum(1)

    gradient = energy_and_gradient(beside_a_base(half), x)[1] - energy_and_gradient(RING, x)[1]
    torch.testing.assert_close(gradient, next(features.parameters()).sum(1).detach().expand(3, 2))  # a value without a gradient


@pytest.mark.slow
def test_it_maps_and_runs_in_threads():
    energy = EXPRESSIONS["not"](*heads(ce.shared(Affine(8, 1)))).eval()
    x = points(6)
    each = torch.func.vmap(torch.func.grad(lambda row: energy(row.unsqueeze(0)).sum()))(x)
    torch.testing.assert_close(each.detach(), energy_and_gradient(energy, x)[1])
    results = [None] * 8

    def work(i):
        results[i] = [energy_and_gradient(energy, x + i)[0] for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, found in enumerate(results):
        assert all(torch.equal(values, energy_and_gradient(energy, x + i)[0]) for values in found)
