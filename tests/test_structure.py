"""Nodes and their operands: a table of all classes, classes of third parties, what can be lifted and bound, shapes, and inference."""

import copy
import gc
import inspect
import weakref
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal, constraints

import composable_energy as ce
from composable_energy import algebra, errors
from composable_energy.algebra import Node, complement, to_common_space, value_of
from composable_energy.registry import names
from composable_energy.sampling import Info, Sampler, State
from tests.factories import LEAVES, Affine, needs_compiler, normal, points, quadratic
from tests.refusals import refusals, refused


class Decoder(nn.Module):
    event_shape = (3,)

    def forward(self, z: Tensor) -> Tensor:
        return torch.cat([z, z[:, :1]], 1)


NORMAL = ce.as_energy(Normal(torch.zeros(2), 1.0), name="normal")
NOISY = ce.as_energy(lambda x, sigma: (x.square() / (1 + sigma[:, None] ** 2)).sum(1) / 2, name="noisy", event_shape=(2,))
MODES = ce.as_energy(
    lambda x, sigma: -torch.logsumexp(-torch.stack([(x - c).square().sum(1) / (1 + sigma**2) for c in (-2, 2)]), 0),
    name="modes",
    event_shape=(2,),
)
PLAIN = ce.as_energy(lambda x: (x - 0.5).square().sum(1), name="plain", event_shape=(2,))
PICTURE = ce.as_energy(lambda x: x.square().sum(1), name="picture", event_shape=(3,))
SCORE = ce.ScoreEnergy(lambda x, sigma: -x / (1 + sigma[:, None] ** 2), name="score", event_shape=(2,))
WALL = ce.inside(constraints.interval(0, 1), (2,))
EVENT = ce.ClassifierEnergy(lambda x: x, 1, NORMAL, labels=2, name="event")

# What a property is where a row does not say otherwise: the default of `Node`, for terms of two numbers.
YES = dict.fromkeys(("grounded", "has_value", "evidence_has_value", "sums"), True)
NO = dict.fromkeys(("needs_log_densities", "unsatisfiable", "formula"), False)
NONE = dict.fromkeys(("decoded_shape", "decoder", "support", "log_normalizer"))
DEFAULTS = {**YES, **NO, **NONE, "conditions": set(), "required_conditions": set(), "event_shape": (2,), "bases": 0}
SIGMA = {"conditions": {"sigma"}, "required_conditions": {"sigma"}}
SILENT = {"has_value": False, "evidence_has_value": False}
SEEN = {"conditions": {"sigma"}, "event_shape": None, "decoded_shape": (3,), "decoder": Decoder}
FALLING = algebra.Weighted(PLAIN, -1.0)
ROWS = [
    (algebra.Conjunction(NOISY, WALL), {**SIGMA, "support": "interval"}),
    (algebra.Conjunction(EVENT, EVENT), {"bases": 1, "formula": True}),
    (algebra.Disjunction(NOISY, NORMAL), {**SIGMA, "sums": False}),
    (algebra.Disjunction(SCORE, NOISY), {**SIGMA, **SILENT, "sums": False, "needs_log_densities": True}),
    (algebra.Disjunction(NORMAL, NORMAL, weights=[1, 3]), {"sums": False, "log_normalizer": 1.386}),
    (algebra.Negation(NORMAL), {"grounded": False, "sums": False}),
    (algebra.Negation(EVENT), {"bases": 1, "formula": True, "sums": False}),
    (algebra.Weighted(NOISY, 2.0), SIGMA),
    (algebra.Weighted(NOISY, -2.0), {**SIGMA, "grounded": False}),
    (algebra.Weighted(EVENT, 2.0, of_evidence=True), {"bases": 1}),
    (algebra.Difference(NOISY, NORMAL), {**SIGMA, "grounded": False}),
    (algebra.Relative(NOISY, NORMAL), {**SIGMA, "bases": 1}),
    (algebra.Relative(NORMAL, NOISY), {**SIGMA, "bases": 1, "log_normalizer": 0.0}),
    (algebra.Conditioned(NOISY, {"sigma": 1.0}), {}),
    (algebra.Conditioned(SCORE, {"sigma": 1.0}), SILENT),
    (algebra.Factor(NOISY, {"x": (2,)}, ["x"]), SIGMA),
    (algebra.Factor(NORMAL, {"x": (2,), "y": ()}, ["x"]), {"event_shape": (3,)}),
    (algebra.Factor(NORMAL, {"x": (2,)}, ["x"]), {"log_normalizer": 0.0}),
    (algebra.OverTime(NOISY, 3), {**SIGMA, "event_shape": (3,)}),
    (algebra.PulledBack(PICTURE, Decoder()), SEEN),
    (algebra.Decoded(NORMAL, Decoder()), {"decoded_shape": (3,), "decoder": Decoder, "log_normalizer": 0.0}),
    (algebra.Restricted(NOISY, constraints.positive), {**SIGMA, "support": "positive"}),
    (algebra.Restricted(FALLING, constraints.positive), {"grounded": False, "support": "positive"}),
    (algebra.Restricted(FALLING, constraints.interval(0, 1)), {"support": "interval"}),
    (algebra.Conjunction(NORMAL, FALLING), {}),
    (algebra.Disjunction(NORMAL, FALLING), {"grounded": False, "sums": False}),
]


@pytest.mark.parametrize(("energy", "row"), ROWS, ids=lambda part: str(part) if isinstance(part, ce.Energy) else "row")
def test_each_class_has_the_properties_of_its_row(energy, row):
    found = {name: getattr(energy, name) for name in DEFAULTS}
    found["bases"], found["formula"] = len(found["bases"]), found["formula"] is not None
    found["decoder"] = None if found["decoder"] is None else type(found["decoder"])
    found["support"] = None if found["support"] is None else "positive" if found["support"] is constraints.positive else "interval"
    found["log_normalizer"] = None if found["log_normalizer"] is None else round(found["log_normalizer"].value, 3)
    assert found == {**DEFAULTS, **row}


def test_the_table_has_all_classes():
    nodes = {cls for _, cls in inspect.getmembers(algebra, inspect.isclass) if issubclass(cls, Node) and not inspect.isabstract(cls)}
    assert nodes == {type(energy) for energy, _ in ROWS}


@dataclass(frozen=True)
class Probe(Sampler):
    """Notes the energy that a sampler gets, which is wrapped."""

    seen: ClassVar[list[ce.Energy]] = []

    def init(self, energy, x, noise):
        self.seen.append(energy)
        return State(x, torch.zeros(len(x)), torch.zeros_like(x))

    def step(self, energy, state, noise):
        return state, Info()


def test_a_wrapped_energy_keeps_what_it_is():
    rows = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), event_shape=(2,)).given(y=torch.arange(4.0))
    falling = (-1.0 * rows).on(constraints.positive)
    for energy, grounded in ((-1.0 * PLAIN, False), (PLAIN, True), (falling, False)):
        Probe.seen.clear()
        energy.sample((4, 2), sampler=Probe(), steps=1, seed=0, batch_size=2, allow_improper=True)
        assert Probe.seen
        for wrapped in Probe.seen:
            assert wrapped.grounded == grounded == energy.grounded
            assert wrapped.has_value and wrapped.evidence_has_value and not wrapped.needs_log_densities and not wrapped.unsatisfiable
    refused(errors.UngroundedError, None, (-1.0 * PLAIN).sample, (4, 2), seed=0)


@pytest.mark.parametrize("leaf", [NORMAL, SCORE, MODES & PLAIN], ids=str)
def test_a_part_that_occurs_at_each_of_many_levels_is_visited_once(leaf):
    """There are 4^40 paths through this expression; a walk over them would not end."""
    energy = leaf
    for _ in range(40):
        energy = (energy & energy) | (energy & energy)
    assert (energy.grounded, energy.support) == (True, None)
    assert (energy.evidence_has_value, energy.needs_log_densities) == (leaf is not SCORE, leaf is SCORE)
    assert energy.shares == "known"  # both branches are equal
    assert not ((-1.0 * ce.as_energy(lambda x: -x.square().sum(1), event_shape=(2,))) | energy - leaf).grounded
    sums = leaf
    for _ in range(40):
        sums = sums & sums
    assert (sums | leaf).shares == ("known" if leaf is SCORE else "unknown")


class SoftMin(Node):
    """A soft minimum, with the formula of `|`."""

    @property
    def grounded(self) -> bool:
        return all(term.grounded for term in self.terms)

    def forward_evidence(self, x, **conditions):
        return -torch.logsumexp(-torch.stack([value_of(term, x, conditions) for term in self.terms]), 0)


def soft_min(*terms):
    return SoftMin(*to_common_space([ce.as_energy(term) for term in terms]))


UNTUNED = {
    **{name: {"step_size": 0.1} for name in ("langevin", "underdamped", "mala")},
    "hmc": {"step_size": 0.2, "leapfrogs": 2},
    "chees": {"step_size": 0.2, "trajectory": 0.5},
    "tempering": {"levels": 3, "mean": 0.0, "scale": 3.0},
    "smc": {"levels": 4, "mean": 0.0, "scale": 3.0},
}


@pytest.mark.filterwarnings("ignore")  # so few steps do not converge
@pytest.mark.parametrize("sampler", names("sampler"))
def test_an_operator_of_a_third_party_is_right_under_every_sampler(sampler):
    """Chains of a soft minimum and of `|`, the same formula, make the same steps, or are refused alike."""
    terms = (MODES & PLAIN, NOISY)
    own, ours = soft_min(*terms), ce.any_of(*terms, weights=[1.0, 1.0])
    kind = ce.get("sampler", sampler)
    if "sigma" not in kind.traits.binds:
        own, ours = own.at(0.3), ours.at(0.3)
    own_start = kind.traits.check_init is not None
    options = UNTUNED.get(sampler, {}) if own_start else {"init": 2 * torch.randn(16, 2), **UNTUNED.get(sampler, {})}
    found = []
    for energy in (own, ours):
        try:
            found.append(energy.sample((16, 2), sampler=sampler, steps=4, seed=0, **options))
        except errors.ComposableEnergyError as error:
            found.append(type(error))
    if sampler in ("inner-descent", "lace", "trajectories") or "continuous" not in kind.traits.states:  # they take other energies
        assert found[0] is found[1] and issubclass(found[0], errors.ComposableEnergyError)
    else:
        torch.testing.assert_close(*found)


class Ball(ce.Energy):
    """A plain density, with a complement of its own."""

    def forward(self, x):
        return x.square().sum(1) / 2


class Outside(Node):
    r"""The complement $-\log(1 - e^{-E})$ of an energy that is 0 at its minimum."""

    @property
    def grounded(self) -> bool:
        return False

    def forward_evidence(self, x, **conditions):
        return -torch.log1p(-(-value_of(self.terms[0], x, conditions)).exp())


def test_a_third_party_gives_its_density_another_complement():
    complement.register(Ball)(Outside)
    complement.register(Outside)(lambda outside: outside.terms[0])
    ball, x = Ball(), torch.randn(5, 2)
    assert type(~ball) is Outside and ~~ball is ball
    for energy in (~(ball | NORMAL), (ball ^ NORMAL).terms[1]):  # De Morgan's laws use it
        assert any(type(term) is Outside for term in energy.modules())
    torch.testing.assert_close((NORMAL & ~ball)(x), NORMAL(x) - (1 - (-ball(x)).exp()).log())
    (NORMAL & ~ball).sample((4, 2), sampler="mala", steps=3, step_size=0.1, seed=0)


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_anything_that_computes_energies_is_lifted_by_an_operator(base):
    x, module = points(), LEAVES["network"].function
    for tree in (base & quadratic, quadratic & base):
        torch.testing.assert_close(tree(x), base(x) + quadratic(x))
    torch.testing.assert_close((module & base)(x), module(x) + base(x))
    torch.testing.assert_close((base & normal(1.0, 1.0))(x), base(x) - normal(1.0, 1.0).log_prob(x))
    torch.testing.assert_close((quadratic | base)(x), -torch.logsumexp(torch.stack([-quadratic(x), -base(x)]), 0))
    torch.testing.assert_close((quadratic - base)(x), quadratic(x) - base(x))
    torch.testing.assert_close(ce.negate(quadratic, "power")(x), -0.01 * quadratic(x))
    assert str(quadratic >> base) == str(~ce.as_energy(quadratic) | base)
    script = torch.jit.trace(nn.Sequential(Affine(1, 0), nn.Flatten(0)), x)
    torch.testing.assert_close((base & script)(x), base(x) + script(x))
    assert ce.as_energy(base) is base


test_what_cannot_be_lifted_or_does_not_fit_is_refused = refusals(
    *((lambda base, operand=operand: base & operand, TypeError, None) for operand in (3, "male", None, nn.Linear)),
    *((lambda base, operand=operand: operand | base, TypeError, None) for operand in (3, "male", None, nn.Linear)),
    (lambda base: base.relative_to(quadratic), errors.OptionError, "base must be an energy, got function; lift it once"),
    (lambda base: ce.as_energy(base, name="another"), errors.OptionError, "base is already an energy and takes no options, got name"),
    (lambda base: ce.as_energy(nn.Linear), TypeError, "the class Linear; make an instance"),
    (lambda base: ce.as_energy(3), TypeError, "got int"),
    (lambda base: base & Normal(torch.zeros(3), torch.ones(3)), errors.ShapeError, r"\(2,\).*\(3,\)"),
    (lambda base: base(torch.zeros(5, 3).double()), errors.ShapeError, r"shape \(B, 2\), got \(5, 3\)"),
    (lambda base: ce.as_energy(quadratic)(torch.tensor(1.0)), errors.ShapeError, "batch of points"),
    (lambda base: base(torch.zeros(5, 2, dtype=torch.uint8)), errors.DtypeError, r"torch.uint8: .* for images `x.float\(\) / 255`"),
    (lambda base: LEAVES["network"](torch.zeros(5, 2)), errors.DtypeError, r"float64 weights, the points are torch\.float32"),
    (lambda base: LEAVES["network"](points().to("meta")), errors.DeviceError, "is on cpu, the points are on meta"),
    (lambda base: base([[0.0, 1.0]]), errors.DtypeError, "got list"),
    (lambda base: base.score(torch.zeros(5, 2, dtype=torch.uint8)), errors.DtypeError, "floating dtype, got torch.uint8"),
    (lambda base: base.score([[0.0, 1.0]], create_graph=True), errors.DtypeError, "got list"),
    (lambda base: ce.as_energy(lambda x: 1.0)(points()), errors.DtypeError, "floating tensor of energies, got float"),
    (lambda base: (base | (lambda x: x.sum(1, keepdim=True)))(points()), errors.ShapeError, r"shape \(5, 1\).*add `.squeeze\(-1\)`"),
    (lambda base: (base & (lambda x: x.sum()))(points()), errors.ShapeError, r"shape \(\).*not over the batch"),
    (lambda base: (~ce.as_energy(lambda x: x))(points()), errors.ShapeError, r"shape \(5, 2\).*expected \(5,\)"),
    fixture="base",
)


@pytest.mark.parametrize("lift", [ce.as_energy, lambda function: ce.ClassifierEnergy(function, 0)])
def test_an_energy_that_is_gone_keeps_no_function_alive(lift):
    function = lambda x: x
    energy, known = lift(function), weakref.ref(function)
    assert not energy.conditions
    del energy, function
    gc.collect()
    assert known() is None


@pytest.mark.parametrize("lift", [ce.as_energy, ce.ScoreEnergy])
def test_a_function_that_writes_to_its_points_is_refused(lift):
    def shift(x):
        with torch.no_grad():
            x -= 3
        return -x if lift is ce.ScoreEnergy else x.square().sum(1)

    energy = lift(shift, event_shape=(2,))
    for use in (energy.with_gradient, (energy & quadratic).with_gradient, lambda x: energy.sample(len(x), steps=1, sampler="langevin")):
        refused(errors.ExpressionError, "shift changes its points in place", use, torch.zeros(4, 2))
    if lift is ce.as_energy:
        with pytest.raises(errors.ExpressionError, match="energy changes its points in place"):
            ce.as_energy(lambda x: x.sub_(3).square().sum(1)).with_gradient(points())


def test_a_shape_is_any_sequence_of_numbers():
    ring = LEAVES["ring"].__class__(1.0)
    ring.event_shape = [2]
    assert ring.event_shape == torch.Size([2]) and ring(points()).shape == (5,)
    ring.event_shape = None
    assert ring(torch.zeros(1, 7)).shape == (1,)


LAYOUTS = [torch.sparse_coo, torch.sparse_csr, torch.sparse_csc]
PRECISION = torch.diag_embed(torch.full((6,), 2.0)) - torch.diag_embed(torch.ones(5), 1) - torch.diag_embed(torch.ones(5), -1)
OPTIONS = {"sampler": "langevin", "step_size": 0.05, "steps": 10, "seed": 0}
sparse = pytest.mark.filterwarnings("ignore:Sparse C:UserWarning")  # that compressed layouts are new


class Field(nn.Module):
    def __init__(self, layout=torch.strided):
        super().__init__()
        precision = PRECISION if layout is torch.strided else PRECISION.to_sparse(layout=layout)
        self.register_buffer("precision", precision.coalesce() if layout is torch.sparse_coo else precision)

    def forward(self, x):
        return (x * (self.precision @ x.T).T).sum(1) / 2


@sparse
@pytest.mark.parametrize("layout", LAYOUTS)
def test_draws_of_a_sparse_matrix_are_those_of_the_dense_one(layout):
    thin, dense = (ce.as_energy(Field(each)) for each in (layout, torch.strided))
    torch.testing.assert_close((thin & thin).sample((4, 6), **OPTIONS), (dense & dense).sample((4, 6), **OPTIONS))


@sparse
def test_copies_of_sparse_tensors_count_once_until_a_value_changes():
    energy, x = ce.as_energy(Field(torch.sparse_coo)), torch.ones(1, 6)  # torch does not copy other sparse layouts
    copied = copy.deepcopy(energy)
    both = energy | copied
    assert torch.equal(both(x), (energy | energy)(x))
    next(copied.buffers()).values().mul_(2)
    refused(errors.ExpressionError, "their numbers differ now", both, x)
    assert not torch.equal((energy | copied)(x), (energy | energy)(x))


@sparse
@pytest.mark.slow
@needs_compiler
def test_what_torch_does_not_compile_runs_without():
    energy = ce.as_energy(Field(torch.sparse_csr))
    with pytest.warns(RuntimeWarning, match=r"without torch\.compile"):
        draws = energy.sample((4, 6), compile=True, **OPTIONS)
    assert torch.equal(draws, energy.sample((4, 6), **OPTIONS))


LABELLED = ce.as_energy(lambda x, y: (x - y[:, None]).square().sum(1), name="labelled")
OPTIONAL = ce.as_energy(lambda x, label, sigma=1.0: x.square().sum(1) + label, name="optional")
SCALED = ce.as_energy(lambda x, sigma: sigma * x.square().sum(1))
X = points()


def test_conditions_come_as_rows(base):
    labels = torch.arange(5)
    torch.testing.assert_close(LABELLED.given(y=2)(X), (X - 2).square().sum(1))
    torch.testing.assert_close(LABELLED.given(y=labels)(X), (X - labels[:, None]).square().sum(1))
    torch.testing.assert_close(LABELLED.given(y=labels)(X[1:3], chains=slice(1, 3)), (X[1:3] - labels[1:3, None]).square().sum(1))
    assert LABELLED.explain(X, y=2).energy.shape == (5,)
    torch.testing.assert_close((OPTIONAL & base).given(label=2)(X), OPTIONAL.given(label=2)(X) + base(X))  # one term takes it
    other = ce.as_energy(lambda x, sigma: sigma + x.sum(1))
    torch.testing.assert_close((SCALED.at(2.0) & other).at(3.0)(X), SCALED.at(2.0)(X) + other.at(3.0)(X))


test_wrong_conditions_are_errors = refusals(
    (lambda base: LABELLED.given(y=torch.arange(3))(X), errors.ShapeError, r"y has 3 rows .* for 5 points"),
    (lambda base: (LABELLED & base)(X), errors.ExpressionError, r"depends on y, which is not bound: bind it with `.given\(y=...\)`"),
    (lambda base: LABELLED.given(y="red")(X), errors.OptionError, "number or a tensor, got str"),
    *((lambda base, s=s: SCALED.given(sigma=s), errors.OptionError, "sigma must be a number") for s in (-1, torch.inf, torch.nan, -X)),
    *((lambda base, s=s: (SCALED & base)(X, sigma=s), errors.OptionError, "sigma must be a number") for s in (-1, -0.5)),
    (lambda base: OPTIONAL.given(lable=3), errors.ExpressionError, r"optional takes no lable\. Did you mean 'label'\?"),
    (lambda base: OPTIONAL(X, label=1, sgima=1.0), errors.ExpressionError, r"takes no sgima\. Did you mean 'sigma'\?"),
    (lambda base: (OPTIONAL & base).evidence(X, label=1, y=3), errors.ExpressionError, "takes no y"),
    *((f, errors.ExpressionError, "takes no y") for f in (lambda b: OPTIONAL.with_gradient(X, label=1, y=3), lambda b: b.given(y=3))),
    (lambda base: SCALED.at(2.0).at(3.0), errors.ExpressionError, r"takes no sigma\. It is already bound"),
    (lambda base: SCALED.at(2.0)(X, sigma=3.0), errors.ExpressionError, r"takes no sigma\. It is already bound"),
    (lambda base: LABELLED.infer(X, over={"z": [0.0]}), errors.OptionError, r"got candidates of \['z'\]"),
    (lambda base: base.infer(X, over={"z": [0.0]}), errors.OptionError, r"depends on no condition; got candidates of \['z'\]"),
    (lambda base: LABELLED.infer(X, over={"y": []}), errors.OptionError, "at least one candidate"),
    (lambda base: LABELLED.infer(X, over={"y": torch.tensor(1.0)}), errors.OptionError, "Candidates must be lists"),
    (lambda base: LABELLED.infer(X, over={"y": [0.0, torch.inf - torch.inf]}), errors.ExpressionError, "or an energy is not a number"),
    (lambda base: LABELLED.on(ce.positive).infer(-X.abs(), over={"y": [0.0, 1.0]}), errors.ExpressionError, "no candidate is possible"),
    fixture="base",
)


class Shifted(nn.Module):
    """Depends on a condition with a default."""

    def forward(self, x, y=0.0):
        return x.square().sum(1) + y


@pytest.mark.slow
def test_compiled_modules_keep_their_conditions(base):
    module = Shifted()
    torch.testing.assert_close(ce.as_energy(torch.compile(module, backend="eager")).given(y=2.0)(X), module(X, 2.0))
    assert "y" in ce.ClassifierEnergy(torch.compile(Shifted(), backend="eager"), 1, base).conditions


def test_infer_finds_the_condition_behind_points():
    x, energy = torch.tensor([[0.1, -0.1], [2.9, 3.2]]), 0.5 * LABELLED
    found = energy.infer(x, over={"y": [0.0, 1.0, 3.0]})
    assert [c["y"] for c in found.best] == [0.0, 3.0]
    expected = torch.softmax(torch.stack([-(x - c).square().sum(1) / 2 for c in (0.0, 1.0, 3.0)], 1), 1)
    torch.testing.assert_close(found.probabilities, expected)
    together = energy.infer(x, over={"y": torch.tensor([0.0, 1.5])}, joint=True)
    assert together.probabilities.shape == (1, 2) and together.best[0]["y"] == 1.5
    rising = ce.as_energy(lambda x, y: 3e3 + x[:, 0] * y, event_shape=(1,))
    far = rising.infer(torch.full((8193, 1), 2**-12), over={"y": [0, 1]}, joint=True)
    torch.testing.assert_close(far.log_probabilities.diff(), torch.tensor([[-8193 / 4096]]))  # of sums of 2e7


class Embedded(nn.Module):
    """Two numbers that depend on a condition `z`, whose weights must have its dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return self.layer(z) * x.sum(1, keepdim=True)


def test_bound_conditions_follow_the_points_also_where_to_does_not_reach_them():
    inner = Embedded()
    base = ce.as_energy(lambda x, z: inner(x, z).sum(1).square())
    events = [ce.ClassifierEnergy(Embedded(), 0, base).given(z=torch.ones(1, 3)) for _ in range(2)]
    for energy in (events[0], events[0] & events[1], events[0] | ~events[1]):
        inner.double()
        assert energy.double()(X).dtype == torch.float64
