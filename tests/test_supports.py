"""Energies on a support: values, draws, files, supports of expressions; distributions of others, infinite outside of theirs."""

import copy
import math

import pytest
import torch
from torch import distributions as td
from torch.distributions import Normal, constraints

import composable_energy as ce
from composable_energy.errors import ContradictionError, DtypeError, ExpressionError, LiftError, OptionError, ShapeError, SupportWarning
from composable_energy.supports import circle, contains, coordinates_of, ordered, polytope, positive_ordered, same_support, sphere, zero_sum
from tests.factories import DTYPE as F64
from tests.factories import t
from tests.refusals import refusals, refused

BOX = constraints.interval(t(-1.0, -math.inf, 2.0, -math.inf), t(1.0, 0.0, math.inf, math.inf))
MIXED = constraints.cat([constraints.simplex, constraints.positive, circle, constraints.real], dim=0, lengths=[3, 1, 2, 1])
STACK = constraints.stack([constraints.positive, constraints.unit_interval], dim=-1)
ROWS = constraints.cat([ordered, positive_ordered, zero_sum, constraints.real], dim=0, lengths=[2, 2, 3, 1])
SHORT = {"sampler": "hmc", "step_size": 0.4, "leapfrogs": 5, "steps": 30}
DRAWS = 4000
unconverged = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
POINTS = torch.tensor([[1.0, 2.0, 3.0], [0.3, 0.2, 0.9], [0.5, -0.2, 0.1]], dtype=F64)


@pytest.mark.parametrize(
    "build",
    [
        lambda f: ce.as_energy(f, support=constraints.positive),
        lambda f: ce.as_energy(f).on(constraints.positive),
        lambda f: ce.as_energy(lambda x: f(x.abs())) & ce.inside(constraints.positive),
    ],
    ids=["as_energy", "on", "inside"],
)
def test_the_energy_is_infinite_outside_with_zero_gradient_and_nan_at_nan(build):
    energy = build(lambda x: (x - x.log()).sum(1))
    x = t(0.5, -1.0, 2.0, math.nan)[:, None]
    energies, gradients = energy.with_gradient(x)
    torch.testing.assert_close(energies[:3], t(0.5 - math.log(0.5), math.inf, 2 - math.log(2)))
    torch.testing.assert_close(gradients[:3, 0], t(-1.0, 0.0, 0.5))
    assert energies[3].isnan()


@pytest.mark.parametrize(
    "support",
    [
        *(constraints.interval(low, high) for low, high in [(0.0, 1.0), (-3, -1), (1e6, 1e6 + 0.5), (-1e-9, 1e-9), (-math.inf, 2.0)]),
        *(make(end) for make in (constraints.greater_than, constraints.less_than) for end in (-1e30, -2.0, 1e-30, 1e8)),
        *(constraints.simplex, constraints.greater_than_eq(t(1.0, -1.0, 5.0, 0.0, 1e9, 0.0, 2.0)), MIXED, constraints.real),
    ],
)
def test_a_function_gets_points_inside_alone(support):
    seen = []
    energy = ce.as_energy(lambda x: (seen.append(x), x.sum(1))[1], support=support, event_shape=(7,))
    assert energy(torch.full((2, 7), math.nan)).isnan().all() and (ce.inside(support)(torch.cat(seen)) == 0).all()


NONE = [
    (constraints.interval, "the class"),
    ("positive", "got 'positive'"),
    (constraints.multinomial(3), "A support of discrete numbers is boolean"),
    (constraints.dependent, "depends on arguments"),
    (constraints.interval(2.0, 1.0), "interval\\(2, 1\\) is empty"),
    (constraints.cat([constraints.real, constraints.integer_interval(3, 1)]), "integer_interval\\(3, 1\\) is empty"),
    (constraints.symmetric, "No coordinates are known"),
    (constraints.interval([0.0, 1.0], 2.0), "numbers or tensors, got \\[0.0, 1.0\\]"),
]
OUTSIDE = r"2 of 3 given points are not inside the support of Gamma, nonnegative; the first is number 1"
test_what_is_no_support_and_a_start_outside_of_one_are_refused = refusals(
    *((lambda support=support: ce.as_energy(torch.square, support=support), message) for support, message in NONE),
    *((lambda support=support: ce.inside(support), message) for support, message in NONE),
    (lambda: ce.as_energy(td.Gamma(t(2.0), t(1.0))).sample(3, seed=0, init=t(1.0, -1.0, 0.0)[:, None]), OUTSIDE),
    error=OptionError,
)


def test_a_score_with_a_support_is_sampled_in_its_coordinates():
    score = ce.ScoreEnergy(lambda x: 2 / x - 1, event_shape=(1,), support=constraints.positive)  # Gamma(3, 1)
    energies, gradients = score.with_gradient(t(-1.0, 4.0)[:, None])
    assert torch.equal(energies, t(math.inf, 0.0))
    torch.testing.assert_close(gradients[:, 0], t(0.0, 0.5))
    draw = {"sampler": "langevin", "step_size": 0.05, "steps": 10, "seed": 0, "init": torch.full((9, 1), 3.0, dtype=F64)}
    torch.testing.assert_close(score.sample(9, **draw), ce.as_energy(td.Gamma(t(3.0), t(1.0))).sample(9, **draw))


def test_a_temperature_divides_the_energy_and_not_the_volume_of_its_coordinates():
    energy, warm = ce.as_energy(td.Gamma(t(3.0), t(1.0))), {"sampler": "underdamped", "temperature": 4.0, "steps": 150}
    for options, mean, error in (({"sampler": "descent"}, 2.0, 1e-5), (warm, 6.0, 4 * math.sqrt(24 / DRAWS))):  # of `energy / 4`
        x, trace = energy.sample(DRAWS, seed=0, trace=True, **options)
        assert abs(x.mean() - mean) < error
        torch.testing.assert_close(trace.energies[-1], energy(x))


def test_ends_beyond_the_largest_number_of_a_dtype_are_infinite_and_a_support_without_numbers_is_refused():
    normal = ce.as_energy(Normal(torch.zeros(2), 1.0))
    for low, high, spread in ((0, 1e39, 0.5), (-1e39, math.inf, 0.9), (-math.inf, 1e39, 0.9)):
        assert normal.on(constraints.interval(low, high)).sample(400, **SHORT, seed=0).std() > spread
    for empty in (constraints.interval(0, 1e-40), constraints.greater_than(1e39)):
        refused(DtypeError, "No torch.float32 is inside the support .*: use dtype=torch.float64", normal.on(empty).sample, 4)


@pytest.mark.slow
def test_draws_that_their_dtype_cannot_tell_from_the_boundary_warn():
    options = {"sampler": "hmc", "step_size": 4.0, "leapfrogs": 5, "steps": 60}
    with pytest.warns(SupportWarning, match=r"close to the boundary .*interval\(0, 1\), that torch.float32 cannot tell.*proper prior"):
        ce.as_energy(td.Beta(torch.tensor([0.05]), 0.05)).sample(400, seed=0, **options)
    ce.as_energy(td.Beta(torch.tensor([0.9]), 0.9)).sample(400, seed=0, **options)  # warnings are errors


def test_a_copied_simplex_has_the_tolerance_of_its_dtype():
    points = torch.softmax(10 * torch.randn(200, 400, generator=torch.Generator().manual_seed(0)), 1)
    assert contains(copy.deepcopy(constraints.simplex), points).all() and not contains(constraints.simplex, 1.001 * points).any()


@pytest.mark.parametrize(
    "support",
    [
        *(constraints.positive, constraints.interval(2.0, 5.0), BOX, constraints.simplex, constraints.lower_triangular),
        *(constraints.lower_cholesky, constraints.positive_definite, constraints.corr_cholesky, STACK, circle, sphere, MIXED),
        *(ordered, positive_ordered, zero_sum, ROWS, polytope(-torch.eye(2), [0.0, 1.0], [1, 2])),
    ],
)
def test_every_support_is_saved(support, tmp_path):
    ce.inside(support).save(tmp_path / "wall")
    loaded = ce.load(tmp_path / "wall")
    assert same_support(loaded.support, support) and loaded.equals(ce.inside(support)) == ce.inside(support).equals(ce.inside(support))


def test_a_support_of_another_package_is_not_saved(tmp_path):
    class Odd(constraints.Constraint):
        event_dim = 0

        def check(self, value):
            return value > 0

    td.biject_to.register(Odd, lambda _: td.ExpTransform())
    wall = ce.inside(Odd()) & ce.as_energy(td.Normal(t(0.0), 1.0))
    assert (wall.sample(5, seed=0, **SHORT) > 0).all()
    refused(ExpressionError, "Odd", wall.save, tmp_path / "wall")


@pytest.mark.slow
def test_a_resumed_and_a_checkpointed_call_continue_in_the_coordinates(tmp_path):
    energy = ce.as_energy(lambda x: -x.log().sum(1), support=constraints.simplex)
    options = {**SHORT, "seed": 0, "trace": 5, "init": torch.full((8, 3), 1 / 3, dtype=F64)}
    whole, trace = energy.sample((8, 3), **options)
    _, half = energy.sample((8, 3), **{**options, "steps": 15})
    assert torch.equal(energy.sample((8, 3), resume=half, steps=15, trace=5)[0], whole)
    file = tmp_path / "run"
    energy.sample((8, 3), **{**options, "steps": 15}, observers=[ce.sampling.Checkpoint(file)])
    points, continued = energy.sample((8, 3), **options, observers=[ce.sampling.Checkpoint(file)])
    assert torch.equal(points, whole)
    torch.testing.assert_close(continued.points, trace.points)
    assert contains(constraints.simplex, continued.points.flatten(0, 1)).all()


@pytest.mark.slow
def test_callbacks_and_branch_shares_see_points_of_the_support():
    beta, other = (ce.as_energy(td.Beta(t(a), t(b))) for a, b in ((2.0, 9.0), (9.0, 2.0)))
    mixture, seen = beta | other, []
    watch = ce.sampling.Stop(lambda step, state, info: seen.append(state))
    drawn, trace = mixture.sample(200, seed=0, trace=True, observers=[watch], **SHORT)
    assert torch.equal(seen[-1].x, drawn)
    torch.testing.assert_close(seen[-1].energy, mixture(drawn))
    torch.testing.assert_close(trace.branch_shares, torch.softmax(-mixture.branches(drawn), 0).mean(1))


def test_expressions_keep_and_join_the_supports_of_their_terms():
    beta, gamma = ce.as_energy(td.Beta(t(2.0), t(2.0))), ce.as_energy(td.Gamma(t(2.0), t(1.0)))
    line = ce.as_energy(td.Normal(t(0.0), t(1.0)))
    for kept in (2 * beta, beta / 3, beta.sharpened(2), beta.relative_to(line), beta & line, beta & gamma, line & beta, beta - line):
        assert same_support(kept.support, constraints.unit_interval)
    assert same_support((beta | gamma).support, constraints.positive) and (beta | line).support is None
    assert ce.negate(beta, mode="contrast").support is None  # "not in (0, 1)" also holds at 2
    assert same_support((ce.negate(beta, mode="contrast") & gamma).support, constraints.positive)
    assert ce.negate(ce.as_energy(td.VonMises(t(0.0), t(1.0))), mode="contrast").support is circle
    assert gamma.pull_back(torch.nn.Softplus()).support is None


@pytest.mark.slow
def test_a_product_of_disjoint_supports_is_a_contradiction():
    low, high = ce.as_energy(td.Uniform(t(0.0), t(1.0))), ce.as_energy(td.Uniform(t(2.0), t(3.0)))
    refused(ContradictionError, "supports", (low & high).sample, 5, seed=0)
    assert same_support(((low & high) | high).support, constraints.interval(2.0, 3.0))
    refused(ExpressionError, "neither support includes the other.*or each all variables, `A.over", (low | high).sample, 5, seed=0)
    drawn = (low | high).on(constraints.interval(0.0, 3.0)).sample(20, seed=0, init=torch.full((20, 1), 2.5, dtype=F64), **SHORT)
    assert (low | high)(drawn).isfinite().all()


@unconverged
@pytest.mark.full
def test_a_mixed_support_has_the_moments_of_its_independent_parts():
    shares, size = td.Dirichlet(t(2.0, 1.0, 0.5)), td.Gamma(t(2.0), t(1.0))
    angles, shift = td.VonMises(t(3.0, 0.0), t(2.0, 1.0)), td.Normal(t(1.0), t(2.0))

    def function(x):
        parts = zip((shares, size, angles, shift), x.split([3, 1, 2, 1], 1), strict=True)
        return -sum(part.log_prob(some).reshape(len(x), -1).sum(1) for part, some in parts)

    energy, n = ce.as_energy(function, support=MIXED, event_shape=(7,)), DRAWS
    drawn, trace = energy.sample(n, seed=0, dtype=F64, init=t(0.3, 0.3, 0.4, 2, 3, 0, 1).expand(n, 7), trace=50, **{**SHORT, "steps": 100})
    assert contains(MIXED, drawn).all() and (drawn[:, 4:6].abs() <= math.pi).all() and torch.equal(trace.points[-1], drawn)
    torch.testing.assert_close(trace.energies[-1], energy(drawn))
    turned = torch.cat([drawn[:, :4], drawn[:, 4:6].cos(), drawn[:, 4:6].sin(), drawn[:, 6:]], 1)
    concentration = [(torch.special.i1(k) / torch.special.i0(k)).item() for k in t(2.0, 1.0)]
    means = [*shares.mean.tolist(), 2.0, math.cos(3) * concentration[0], concentration[1], math.sin(3) * concentration[0], 0.0, 1.0]
    errors = turned.std(0) / math.sqrt(n)
    assert ((turned.mean(0) - t(*means)).abs() < 4 * errors).all()


@pytest.mark.parametrize(
    ("support", "size"),
    [(ordered, 3), (positive_ordered, 3), (zero_sum, 4), (polytope(torch.eye(3)[:2] - 0.2, [1, 2], [0, 0, 1]), 3)],
)
def test_coordinates_of_vectors_have_their_change_of_volume_and_an_inverse(support, size):
    coordinates = coordinates_of(support, (2, size), F64, torch.device("cpu"))
    u = torch.randn(5, *coordinates.shape, generator=torch.Generator().manual_seed(0), dtype=F64)
    x, volume = coordinates.points(u)
    assert contains(support, x).all()
    torch.testing.assert_close(coordinates.inverse(x), u)
    slopes = torch.vmap(torch.func.jacrev(lambda one: coordinates.points(one[None])[0].flatten()))(u).flatten(2)
    torch.testing.assert_close(torch.linalg.slogdet(slopes.mT @ slopes)[1] / 2, volume)


def test_what_is_in_no_support_of_vectors_is_outside_up_to_rounding():
    rows = t(1.0, 2.0, 2.5, -2.0, 1.0, 1.0, 3.0, 1.0, 2.0, -4.0, 1.0, 3.0, 0.0, 0.0, 0.0).reshape(5, 3)
    expected = {ordered: [1, 1, 0, 1, 1], positive_ordered: [1, 0, 0, 0, 0], zero_sum: [0, 1, 0, 1, 1]}
    for support, inside in expected.items():
        energies, gradients = ce.as_energy(lambda x: x.square().sum(1), support=support).with_gradient(rows)
        assert energies.isfinite().int().tolist() == inside and (gradients[energies.isinf()] == 0).all()
    for scale in (1e-6, 1.0, 1e6):
        x = scale * torch.randn(500, 300, generator=torch.Generator().manual_seed(0))
        assert contains(zero_sum, x - x.mean(1, keepdim=True)).all() and not contains(zero_sum, x + 1e-3 * scale).any()


def test_supports_of_vectors_meet_and_join_where_one_is_known():
    for one, other, both in (
        (ordered, constraints.positive, positive_ordered),
        (constraints.nonnegative, positive_ordered, positive_ordered),
        (positive_ordered, ordered, positive_ordered),
        (constraints.cat([ordered, zero_sum], 0, [2, 1]), constraints.cat([positive_ordered, zero_sum], 0, [2, 1]), None),
    ):
        assert same_support((ce.inside(one, (3,)) & ce.inside(other, (3,))).support, other if both is None else both)
    assert (ce.inside(ordered, (3,)) | ce.inside(positive_ordered, (3,))).support is ordered
    assert (ce.inside(ordered, (3,)) | ce.as_energy(STANDARD)).support is None
    for one, other in ((ordered, zero_sum), (zero_sum, UNIT), (ordered, constraints.greater_than(2.0))):
        with pytest.raises(ExpressionError, match=r"lives on .* and .* on .*; the intersection is none of the supports"):
            (ce.inside(one, (3,)) & ce.inside(other, (3,))).sample(5, seed=0)


@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("sampler", ["annealed", "chees", "descent", "hmc", "langevin", "mala", "smc", "tempering", "underdamped"])
def test_all_samplers_stay_on_supports_of_vectors(sampler):
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2 + x[:, 2:4].sum(1), support=ROWS, event_shape=(8,))
    steps = {} if sampler in ("annealed", "smc") else {"steps": 5}
    sized = {"step_size": 0.1} if sampler in ("langevin", "mala", "hmc", "underdamped") else {}
    assert contains(ROWS, energy.sample(8, seed=0, dtype=F64, sampler=sampler, **steps, **sized)).all()


@unconverged
@pytest.mark.full
def test_draws_of_vectors_have_the_moments_of_closed_forms():
    """Order statistics of three normal and three exponential numbers, normal ones whose sum is 0, and von Mises-Fisher directions."""
    n, third = DRAWS, 1 / 3
    cuts = ce.as_energy(Normal(torch.zeros(3, dtype=F64), 1.0)).on(ordered).over("cuts")
    waits = ce.as_energy(td.Exponential(torch.ones(3, dtype=F64))).on(ordered).over("waits")
    effects = ce.as_energy(lambda effects: effects.square().sum(1) / 2, variables={"effects": ((4,), zero_sum)})
    directions = ce.as_energy(lambda directions: -2 * directions[:, 2], variables={"directions": ((3,), sphere)})
    drawn = (cuts & waits & effects & directions).sample(n, seed=0, dtype=F64, sampler="hmc", step_size=0.3, leapfrogs=6, steps=60)
    torch.testing.assert_close(drawn["directions"].norm(dim=1), torch.ones(n, dtype=F64))
    high, towards = 1.5 / math.sqrt(math.pi), 1 / math.tanh(2) - 0.5
    expected = {"cuts": (-high, 0, high), "waits": (third, third + 0.5, third + 1.5), "effects": (0,) * 4, "directions": (0, 0, towards)}
    for name, means in expected.items():
        assert ((drawn[name].mean(0) - t(*means)).abs() < 4 * drawn[name].std(0) / math.sqrt(n)).all()
    torch.testing.assert_close(drawn["effects"].T.cov(), torch.eye(4, dtype=F64) - 0.25, rtol=0, atol=4 * math.sqrt(2 / n) * 0.75)
    assert drawn["waits"][:, 2].var() == pytest.approx(1 + 0.25 + 1 / 9, rel=8 * math.sqrt(2 / n))  # of the largest of three


def budget(size: int) -> ce.supports.Support:
    """Positive numbers whose sum is at most 1."""
    return polytope(torch.cat([-torch.eye(size), torch.ones(1, size)]), [0.0] * size + [1.0], [0.8 / size] * size)


TURN = t([0.8, -0.6], [0.6, 0.8])  # of a box of 1 by 1/100
THIN = polytope(torch.cat([TURN, -TURN]), t(1.0, 0.01, 1.0, 0.01), [0.0, 0.0])
WEDGE = polytope([[1.0, 1.0], [-1.0, 0.5]], [1.0, 0.3], [0.0, 0.0])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("support", "exact"),
    [
        (budget(5), lambda: td.Dirichlet(torch.ones(6)).sample((20_000,))[:, :5]),
        (THIN, lambda: ((2 * torch.rand(20_000, 2) - 1) * torch.tensor([1.0, 0.01])) @ TURN.float()),
        (WEDGE, lambda: torch.randn(60_000, 2)),
    ],
    ids=["budget", "thin", "normal in a wedge"],
)
def test_polytopes_have_draws_as_by_rejection(support, exact):
    torch.manual_seed(0)
    exact = exact()
    exact, normal = exact[support.check(exact)].double(), support is WEDGE
    x = ce.as_energy(lambda x: normal * x.square().sum(1) / 2, support=support, event_shape=exact.shape[1:]).sample(400, seed=0).double()
    assert support.check(x).all()
    for values in (lambda x: x, lambda x: x.square(), lambda x: x[:, :1] * x[:, 1:2]):
        error = (values(exact).var(0) * (1 / len(x) + 1 / len(exact))).sqrt()
        assert ((values(x).mean(0) - values(exact).mean(0)).abs() < 4 * error).all()


@unconverged
@pytest.mark.full
def test_log_z_integrates_over_the_support():
    """With exact draws, where there are any, or points of a pilot run."""
    waits, normals = td.Exponential(t(1.0)).sample((128, 3))[..., 0], torch.randn(128, 4, dtype=F64)
    parts, centred = td.Dirichlet(t(1.0, 1.0, 1.0, 1.0)).sample((128,))[:, :3], normals - normals.mean(1, keepdim=True)
    for energy, draws, expected in (
        (ce.as_energy(td.VonMises(t(3.0, 1.0, 0.0), t(9.0, 1.0, 50.0))), None, 0.0),
        (ce.as_energy(shares := td.Dirichlet(t(2.0, 3.0, 1.0))), shares.sample((128,)), 0.0),
        (ce.as_energy(lambda x: -2.0 * x[:, 2], support=sphere, event_shape=(3,)), None, math.log(4 * math.pi * math.sinh(2) / 2)),
        (ce.as_energy(td.Gamma(t(3.0), t(1.0))) & ce.inside(constraints.less_than(3.0)), None, math.log(1 - 8.5 * math.exp(-3))),
        (ce.as_energy(STANDARD).on(ordered), normals[:, :3].sort(1)[0], -math.log(6)),  # one of the orders of three numbers
        (ce.as_energy(lambda x: x.sum(1), support=positive_ordered, event_shape=(3,)), waits.sort(1)[0], -math.log(6)),
        (ce.as_energy(lambda x: 0 * x.sum(1), support=budget(3), event_shape=(3,)), parts, -math.log(6)),
        (ce.as_energy(lambda x: x.square().sum(1) / 2, support=zero_sum, event_shape=(4,)), centred, 1.5 * math.log(2 * math.pi)),
    ):
        found = ce.log_z(energy, draws=draws, seed=0, dtype=F64, particles=128)
        assert abs(found.value - expected) < 4 * found.standard_error + 1e-3
    scalars = ce.as_energy(td.VonMises(t(0.0), t(50.0))).sample((512, 1), sampler="smc", seed=0, trace=True)[1].scalars
    assert abs(scalars["log_z"][-1]) < 4 * scalars["log_z_se"][-1]


class Product(td.Distribution):
    """A density over vectors whose support, as a class of a user says it, may be that of numbers."""

    arg_constraints = {}

    def __init__(self, support, log_prob, batch=(), event=(3,)):
        self.limits, self.formula = support, log_prob
        super().__init__(torch.Size(batch), torch.Size(event), validate_args=False)

    @property
    def support(self):
        if self.limits is None:
            raise NotImplementedError
        return self.limits

    def log_prob(self, value):
        return self.formula(value)


def normal(x):
    return td.Normal(0.0, 1.0).log_prob(x).sum(-1)


def exponential(x):
    return -x.sum(-1)


class LogNormal(td.TransformedDistribution):
    def __init__(self, base):
        super().__init__(base, [td.ExpTransform()])


class Tempered(td.Independent):
    def log_prob(self, value):
        return 2 * super().log_prob(value)


CUBE = constraints.interval(torch.zeros(3, dtype=F64), torch.full((3,), 2.0, dtype=F64))
STANDARD = td.Normal(torch.zeros(3, dtype=F64), 1.0)
LOGS = td.LogNormal(torch.zeros(3, dtype=F64), 1.0)
PER_POINT = {  # a distribution, its log density inside, and where it is positive
    "real": (Product(constraints.real, normal), normal, lambda x: x == x),
    "positive": (Product(constraints.positive, exponential), exponential, lambda x: x > 0),
    "box": (Product(CUBE, exponential), exponential, lambda x: (x > 0) & (x < 2)),
    "stack": (
        Product(constraints.stack([constraints.positive, constraints.real, constraints.positive], -1), exponential),
        exponential,
        lambda x: x[:, [0, 2]] > 0,
    ),
    "cat along an axis of a point": (
        Product(constraints.cat([constraints.positive, constraints.real], 0, [1, 2]), exponential),
        exponential,
        lambda x: torch.stack([x[:, 0] > 0, x[:, 1] == x[:, 1], x[:, 2] == x[:, 2]], 1),
    ),
    "subclass of a transformed one": (LogNormal(STANDARD), lambda x: LOGS.log_prob(x).sum(-1), lambda x: x > 0),
    "mixture of subclasses": (
        td.MixtureSameFamily(td.Categorical(torch.ones(2)), LogNormal(td.Independent(td.Normal(torch.zeros(2, 3, dtype=F64), 1.0), 1))),
        lambda x: LOGS.log_prob(x).sum(-1),
        lambda x: x > 0,
    ),
    "subclass with a log density of its own": (Tempered(LOGS, 1), lambda x: 2 * LOGS.log_prob(x).sum(-1), lambda x: x > 0),
    "simplexes": (
        Product(constraints.simplex, lambda x: x.log().sum((-1, -2)), event=(1, 3)),
        lambda x: x.log().sum((-1, -2)),
        lambda x: (x > 0) & ((x.sum(-1, keepdim=True) - 1).abs() < 1e-6),
    ),
}


@pytest.mark.parametrize("name", PER_POINT)
def test_a_distribution_gives_one_energy_for_each_point(name):
    distribution, formula, positive = PER_POINT[name]
    energy = ce.as_energy(distribution)
    points = POINTS.reshape(3, *energy.event_shape)
    if name == "simplexes":
        points = torch.cat([points, points.abs() / points.abs().sum(-1, keepdim=True)])
    inside = positive(points).flatten(1).all(1)
    safe = torch.where(inside.reshape(-1, *[1] * (points.ndim - 1)), points, torch.full_like(points, 1 / 3))
    torch.testing.assert_close(energy(points), torch.where(inside, -formula(safe), math.inf))
    assert energy.with_gradient(points)[1].isfinite().all()
    torch.testing.assert_close(energy(points[:1]), energy(points)[:1])


def test_log_densities_of_another_shape_are_refused():
    for wrong in (lambda x: -x, lambda x: -x.sum(-1, keepdim=True), lambda x: -x.sum()):
        refused(ShapeError, "one number for all axes of the event_shape", ce.as_energy(Product(constraints.positive, wrong)), POINTS[:2])


test_supports_that_do_not_fit_a_distribution_are_refused = refusals(
    (None, (3,), None),
    (constraints.simplex, (), None),
    (constraints.cat([constraints.positive, constraints.real], 0, [1, 1]), (3,), None),
    (constraints.multinomial(3), (3,), "A support of discrete numbers"),
    call=lambda support, event: ce.as_energy(Product(support, exponential, event=event)),
    error=LiftError,
)

ZERO, ONE = torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)
A = ce.as_energy(Normal(ZERO, ONE), name="A")
B = ce.as_energy(Normal(2 * ONE, 2 * ONE), name="B")
C = ce.as_energy(Normal(ONE, ONE), name="C")
UNIT, AROUND = constraints.interval(0.0, 1.0), constraints.interval(-1.0, 1.0)


def quadratic(x):
    return x.square() / 2


def of_b(x):
    return (x - 2).square() / 8


EXPRESSIONS = {  # an expression, its energy up to a constant, and the ends of its support
    "weight": (2 * A.on(UNIT), lambda x: 2 * quadratic(x), 0, 1),
    "negative weight": (-3 * A.on(UNIT), lambda x: -3 * quadratic(x), 0, 1),
    "conjunction of two": (A.on(UNIT) & B.on(constraints.interval(0.5, 3.0)), lambda x: quadratic(x) + of_b(x), 0.5, 1),
    "mixture": (
        ce.any_of(3 * A.on(UNIT), B.on(UNIT), weights=[1.0, 2.0]),
        lambda x: (
            -torch.logsumexp(
                torch.stack([-3 * quadratic(x) - 1.5 * math.log(2 * math.pi), math.log(2) - of_b(x) - 0.5 * math.log(8 * math.pi)]), 0
            )
        ),
        0,
        1,
    ),
    "ratio by a density on a box": (A - B.on(UNIT), lambda x: quadratic(x) - of_b(x), 0, 1),
    "sharpened relative": (B.on(UNIT).relative_to(A).sharpened(2.0), lambda x: 2 * of_b(x) - quadratic(x), 0, 1),
    "over a base": (B.relative_to(A.on(UNIT)) & C.relative_to(A.on(UNIT)), lambda x: of_b(x) + quadratic(x - 1) - quadratic(x), 0, 1),
    "twice": (2 * (A.on(AROUND) & B.on(constraints.positive)).on(UNIT), lambda x: 2 * (quadratic(x) + of_b(x)), 0, 1),
    "mixture without a known support": (
        2 * ce.any_of(A.on(UNIT), B.on(constraints.interval(2.0, 3.0)), weights=[1.0, 1.0]).on(UNIT),
        lambda x: 2 * quadratic(x),
        0,
        1,
    ),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_has_the_density_and_the_support_of_its_restricted_terms(name):
    energy, formula, low, high = EXPRESSIONS[name]
    assert (energy.support.lower_bound, energy.support.upper_bound) == (low, high)
    assert energy(torch.tensor([[low - 0.5], [high + 0.5]], dtype=F64)).isinf().all()
    grid = torch.linspace(low, high, 103, dtype=F64)[1:-1]
    assert (energy(grid[:, None]) - formula(grid)).std() < 1e-9  # they differ by a constant


def test_supports_that_do_not_join_are_refused():
    pull = ce.as_energy(lambda x: -x.cos().sum(1), event_shape=(2,))
    for build in (lambda a, b: 2 * a & b, lambda a, b: a | 0.5 * b, lambda a, b: a - b):
        refused(ExpressionError, "lives on", build(pull.on(circle), pull.on(constraints.simplex)).sample, (5, 2), seed=0)
    with pytest.raises(ExpressionError, match="supports of its terms have none in common"):
        (2 * A.on(UNIT) & B.on(constraints.greater_than(3.0))).sample((5, 1), seed=0)


@pytest.mark.slow
def test_a_deep_expression_of_restrictions_has_a_support():
    energy = A
    for _ in range(150):
        energy = (energy & energy).on(constraints.positive)
    assert energy.support is constraints.positive
