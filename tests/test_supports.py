"""Supports: coordinates, joining, sampling against quadrature, and the ways that energies with supports are kept."""

from __future__ import annotations

import copy
import math
import pickle
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import distributions as td
from torch.distributions import constraints

import composable_energy as ce
from composable_energy.coordinates import coordinates_of
from composable_energy.errors import ContradictionError, ExpressionError, OptionError, ShapeError, SupportWarning
from composable_energy.support_sets import includes, intersect, same_support, unite
from composable_energy.supports import circle, contains, empty, format_support, sphere
from tests.distribution_values import F64, t

BOX = constraints.interval(t(-1.0, -math.inf, 2.0, -math.inf), t(1.0, 0.0, math.inf, math.inf))
MIXED = constraints.cat([constraints.simplex, constraints.positive, circle, constraints.real], dim=0, lengths=[3, 1, 2, 1])


def lower(x: Tensor, diagonal: int = 0) -> Tensor:
    rows, columns = torch.tril_indices(x.shape[-1], x.shape[-1], diagonal)
    return x[..., rows, columns]


BIJECTIONS = {  # a support, the shape of a point, and the free numbers of a point
    "interval": (constraints.interval(2.0, 5.0), (2,), lambda x: x),
    "box": (BOX, (4,), lambda x: x),
    "simplex": (constraints.simplex, (4,), lambda x: x[..., :-1]),
    "lower_triangular": (constraints.lower_triangular, (3, 3), lower),
    "lower_cholesky": (constraints.lower_cholesky, (3, 3), lower),
    "positive_definite": (constraints.positive_definite, (3, 3), lower),
    "corr_cholesky": (constraints.corr_cholesky, (3, 3), partial(lower, diagonal=-1)),
    "stack": (constraints.stack([constraints.positive, constraints.unit_interval], dim=-1), (3, 2), lambda x: x.mT),
}
EVERY = {name: (support, event) for name, (support, event, _) in BIJECTIONS.items()}
EVERY |= {"circle": (circle, (2,)), "sphere": (sphere, (2, 3)), "mixed": (MIXED, (7,)), "positive": (constraints.positive, ())}


def draw(coordinates, seed: int, count: int = 5) -> Tensor:
    return 2 * torch.randn(count, *coordinates.shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def make(support, event):
    return coordinates_of(support, event, F64, torch.device("cpu"))


# Coordinates --------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("support", "event"), EVERY.values(), ids=EVERY)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_coordinates_give_points_of_the_support_and_lead_back_to_them(support, event, seed):
    coordinates = make(support, event)
    x, volume = coordinates.points(draw(coordinates, seed))
    assert (x.shape, volume.shape) == ((5, *event), (5,))
    assert contains(support, x).all()
    torch.testing.assert_close(coordinates.points(coordinates.inverse(x))[0], x, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("support", "event", "free"), BIJECTIONS.values(), ids=BIJECTIONS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_the_volume_is_the_determinant_of_the_jacobian(support, event, free, seed):
    coordinates = make(support, event)
    u = draw(coordinates, seed, 1)
    jacobian = torch.autograd.functional.jacobian(lambda u: free(coordinates.points(u)[0]).flatten(), u)
    expected = torch.linalg.slogdet(jacobian.reshape(u.numel(), u.numel()))[1]  # pyright: ignore[reportAttributeAccessIssue]
    torch.testing.assert_close(coordinates.points(u)[1][0], expected)


def test_what_coordinates_forget_has_the_integral_one():
    line = torch.linspace(-8, 8, 401, dtype=F64) + 1e-3
    volumes = make(sphere, (2,)).points(torch.cartesian_prod(line, line))[1]
    assert (volumes.exp().sum() * (16 / 400) ** 2).item() == pytest.approx(2 * math.pi, rel=1e-3)  # of the uniform density on the circle
    x = torch.linspace(-3, 3, 7, dtype=F64)[:, None]
    turns = torch.stack([make(circle, (1,)).points(x + 2 * math.pi * k)[1].exp() for k in range(-9, 10)])
    torch.testing.assert_close(turns.sum(0), torch.ones(7, dtype=F64))
    torch.testing.assert_close(make(circle, (1,)).points(x + 4 * math.pi)[0], x)


def test_small_shares_of_a_simplex_keep_their_digits_in_float32():
    coordinates = coordinates_of(constraints.simplex, (3,), torch.float32, torch.device("cpu"))
    u = torch.tensor([[30.0, -40.0], [-60.0, 0.0]])
    torch.testing.assert_close(coordinates.inverse(coordinates.points(u)[0]), u)


def test_a_support_of_another_shape_is_an_error():
    for support, event in ((MIXED, (6,)), (constraints.stack([constraints.positive] * 2), (3,)), (constraints.positive_definite, (2, 3))):
        with pytest.raises(ShapeError):
            make(support, event)
    with pytest.raises(ShapeError):
        make(constraints.simplex, ())
    with pytest.raises(ShapeError):
        make(constraints.interval(torch.zeros(3), torch.ones(3)), (2,))


# Joining ------------------------------------------------------------------------------------------------------------------------------

ENDS = st.tuples(st.integers(-3, 3), st.integers(1, 4)).map(lambda pair: constraints.interval(float(pair[0]), float(sum(pair))))
LINES = st.one_of(ENDS, st.sampled_from([None, constraints.positive, constraints.less_than(1.0)]))
GRID = torch.linspace(-4, 8, 49, dtype=F64)[:, None] + 0.01


@settings(max_examples=100, deadline=None)
@given(a=LINES, b=LINES)
def test_intervals_join_as_their_points_do(a, b):
    inside = contains(a, GRID), contains(b, GRID)
    assert torch.equal(contains(intersect([("A", a), ("B", b)]), GRID), inside[0] & inside[1])
    assert same_support(intersect([("A", a), ("B", b)]), intersect([("B", b), ("A", a)]))
    assert includes(a, intersect([("A", a), ("B", b)]))
    try:
        union = unite([("A", a), ("B", b)], one_number=True)
    except ExpressionError:
        assert intersect([("A", a), ("B", b)]) is empty
    else:
        assert torch.equal(contains(union, GRID), inside[0] | inside[1])


def test_parts_join_one_by_one_and_ranges_hold_what_they_include():
    def cat(*parts):
        return constraints.cat(list(parts), lengths=[1, 2])

    both = intersect([("A", cat(constraints.positive, circle)), ("B", cat(constraints.less_than(3.0), circle))])
    assert format_support(both) == "cat(interval(0, 3), circle)"
    half = intersect([("A", cat(constraints.positive, constraints.less_than(3.0))), ("B", constraints.positive)])
    assert format_support(half) == "cat(positive, interval(0, 3))"
    assert intersect([("A", cat(constraints.positive, constraints.real)), ("B", constraints.positive)]) is constraints.positive
    assert intersect([("A", constraints.positive), ("B", constraints.simplex)]) is constraints.simplex
    assert intersect([("A", constraints.interval(-2, 2)), ("B", sphere)]) is sphere
    assert format_support(intersect([("A", circle), ("B", constraints.positive)])) == "interval(0, 3.142)"


def test_supports_without_a_known_join_name_both():
    simplex, angles = (
        ce.as_energy(td.Dirichlet(t(1.0, 2.0)), name="shares"),
        ce.as_energy(td.VonMises(t(0.0, 0.0), t(1.0, 1.0)), name="angles"),
    )
    with pytest.raises(ExpressionError, match=r"shares lives on simplex and angles on circle"):
        (simplex & angles).sample(5, seed=0)
    with pytest.raises(ExpressionError, match=r"shares lives on simplex and angles on circle"):
        (simplex | angles).sample(5, seed=0)
    line = ce.as_energy(td.Normal(t(0.0, 0.0), 1.0))
    with pytest.raises(ExpressionError, match=r"angles lives on circle and Normal on all of R\^n"):
        (angles | line).sample(5, seed=0)
    assert (simplex & line).support is constraints.simplex


def test_expressions_keep_and_join_the_supports_of_their_terms():
    beta, gamma = ce.as_energy(td.Beta(t(2.0), t(2.0))), ce.as_energy(td.Gamma(t(2.0), t(1.0)))
    line = ce.as_energy(td.Normal(t(0.0), t(1.0)))
    for kept in (2 * beta, beta / 3, beta.sharpened(2), beta.relative_to(line), beta & line, beta & gamma, line & beta, beta - line):
        assert same_support(kept.support, constraints.unit_interval)
    assert same_support((beta | gamma).support, constraints.positive)
    assert (beta | line).support is None
    assert ce.negate(beta, mode="contrast").support is None  # "not in (0, 1)" also holds at 2
    assert same_support((ce.negate(beta, mode="contrast") & gamma).support, constraints.positive)
    angles = ce.as_energy(td.VonMises(t(0.0), t(1.0)))
    assert ce.negate(angles, mode="contrast").support is circle
    assert gamma.pull_back(torch.nn.Softplus()).support is None


def test_a_product_of_disjoint_supports_is_a_contradiction():
    low, high = ce.as_energy(td.Uniform(t(0.0), t(1.0))), ce.as_energy(td.Uniform(t(2.0), t(3.0)))
    with pytest.raises(ContradictionError, match="supports"):
        (low & high).sample(5, seed=0)
    assert same_support(((low & high) | high).support, constraints.interval(2.0, 3.0))
    with pytest.raises(ExpressionError, match="neither support includes the other"):
        (low | high).sample(5, seed=0)
    drawn = (low | high).on(constraints.interval(0.0, 3.0)).sample(20, seed=0, init=torch.full((20, 1), 2.5, dtype=F64), **SHORT)
    assert (low | high)(drawn).isfinite().all()


def test_bounds_follow_learnable_parameters_and_moves():
    high = torch.nn.Parameter(t(1.0))
    energy = ce.as_energy(td.Uniform(torch.zeros(1, dtype=F64), high)) & ce.inside(constraints.positive)
    with torch.no_grad():
        high.fill_(4.0)
    assert same_support(energy.support, constraints.interval(0.0, 4.0))
    walls = ce.inside(constraints.interval(t(0.0), t(1.0))).to(torch.float32)
    assert walls.support.lower_bound.dtype == torch.float32


# Energies on a support ----------------------------------------------------------------------------------------------------------------


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


def test_a_score_with_a_support_is_sampled_in_its_coordinates():
    score = ce.ScoreEnergy(lambda x: 2 / x - 1, event_shape=(1,), support=constraints.positive)  # Gamma(3, 1)
    energies, gradients = score.with_gradient(t(-1.0, 4.0)[:, None])
    assert torch.equal(energies, t(math.inf, 0.0))
    torch.testing.assert_close(gradients[:, 0], t(0.0, 0.5))
    drawn = score.sample(2000, sampler="langevin", step_size=0.05, steps=400, seed=0, dtype=F64, init=torch.full((2000, 1), 3.0, dtype=F64))
    assert drawn.mean().item() == pytest.approx(3, abs=0.03 * 3 + 4 * math.sqrt(3 / 2000))  # the bias of this step is below 3 %


@pytest.mark.parametrize(
    ("support", "message"),
    [
        (constraints.interval, "the class"),
        ("positive", "got 'positive'"),
        (constraints.boolean, "is continuous"),
        (constraints.cat([constraints.positive, constraints.integer_interval(0, 3)]), "is continuous"),
        (constraints.dependent, "depends on arguments"),
        (constraints.symmetric, "No coordinates are known"),
    ],
)
def test_what_is_no_continuous_support_is_refused(support, message):
    with pytest.raises(OptionError, match=message):
        ce.as_energy(torch.square, support=support)
    with pytest.raises(OptionError, match=message):
        ce.inside(support)


def test_a_start_outside_of_the_support_is_refused():
    energy = ce.as_energy(td.Gamma(t(2.0), t(1.0)))
    with pytest.raises(OptionError, match=r"2 of 3 given points are not inside the support of Gamma, nonnegative; the first is number 1"):
        energy.sample(3, seed=0, init=t(1.0, -1.0, 0.0)[:, None])


def test_draws_that_their_dtype_cannot_tell_from_the_boundary_warn():
    options = {"sampler": "hmc", "step_size": 4.0, "leapfrogs": 5, "steps": 60}
    with pytest.warns(SupportWarning, match=r"so close to the boundary of its support, interval\(0, 1\), that torch.float32 cannot tell"):
        ce.as_energy(td.Beta(torch.tensor([0.05]), 0.05)).sample(400, seed=0, **options)
    ce.as_energy(td.Beta(torch.tensor([0.9]), 0.9)).sample(400, seed=0, **options)  # warnings are errors


# Sampling -----------------------------------------------------------------------------------------------------------------------------

SHORT = {"sampler": "hmc", "step_size": 0.4, "leapfrogs": 5, "steps": 30}
DENSITIES = {  # on (0, 1) or the half-line: an energy of one number, and the ends of the quadrature
    "beta": (lambda x: -x.log() - 2 * (1 - x).log(), constraints.unit_interval, (0, 1)),
    "product of betas": (td.Beta(t(2.0), t(1.5)), td.Beta(t(1.2), t(3.0)), (0, 1)),
    "beta and wave": (td.Beta(t(2.0), t(2.0)), lambda x: (8 * x).sin(), (0, 1)),
    "truncated normal": (td.Normal(t(0.5), t(1.0)), constraints.interval(0.0, 1.0), (0, 1)),
    "uniform and slope": (td.Uniform(t(-1.0), t(3.0)), lambda x: x, (-1, 3)),
    "kumaraswamy and normal": (td.Kumaraswamy(t(2.0), t(3.0)), td.Normal(t(0.2), t(0.3)), (0, 1)),
    "gamma and exponential": (td.Gamma(t(2.0), t(1.0)), td.Exponential(t(1.0)), (0, 40)),
    "half normal": (td.Normal(t(-0.5), t(1.0)), constraints.positive, (0, 12)),
    "weibull and wall": (td.Weibull(t(1.0), t(1.5)), constraints.less_than(2.0), (0, 2)),
    "inverse gamma and gamma": (td.InverseGamma(t(2.0), t(1.0)), td.Gamma(t(2.0), t(2.0)), (0, 40)),
    "line below one": (lambda x: x.square() - x, constraints.less_than(1.0), (-9, 1)),
    "pareto and exponential": (td.Pareto(t(1.0), t(2.0)), td.Exponential(t(0.5)), (1, 60)),
}


def lift(part):
    if isinstance(part, constraints.Constraint):
        return ce.inside(part)
    return ce.as_energy(part) if isinstance(part, td.Distribution) else ce.as_energy(lambda x: part(x).sum(1), event_shape=(1,))


@pytest.mark.slow
@pytest.mark.parametrize(("first", "second", "ends"), DENSITIES.values(), ids=DENSITIES)
def test_moments_are_those_of_quadrature(first, second, ends):
    energy = lift(first).on(second) if isinstance(second, constraints.Constraint) else lift(first) & lift(second)
    low, high = ends
    x = (torch.arange(200_000, dtype=F64)[:, None] + 0.5) / 200_000 * (high - low) + low
    weight = torch.softmax(-energy(x), 0)[:, None]
    n, median = 4000, x[weight.cumsum(0) > 0.5][0]
    drawn = energy.sample(n, seed=0, dtype=F64, init=median.expand(n, 1), **SHORT)
    assert contains(energy.support, drawn).all()
    for function in (lambda x: x, torch.square):
        mean = (weight * function(x)).sum()
        sd = (weight * (function(x) - mean).square()).sum().sqrt()
        assert abs(function(drawn).mean() - mean).item() < 4 * sd.item() / math.sqrt(n)


@pytest.mark.slow
def test_a_mixed_support_has_the_moments_of_its_independent_parts():
    shares, size = td.Dirichlet(t(2.0, 1.0, 0.5)), td.Gamma(t(2.0), t(1.0))
    angles, shift = td.VonMises(t(3.0, 0.0), t(2.0, 1.0)), td.Normal(t(1.0), t(2.0))

    def function(x):
        parts = zip((shares, size, angles, shift), x.split([3, 1, 2, 1], 1), strict=True)
        return -sum(part.log_prob(some).reshape(len(x), -1).sum(1) for part, some in parts)

    energy = ce.as_energy(function, support=MIXED, event_shape=(7,))
    n = 4000
    drawn, trace = energy.sample(
        n, seed=0, dtype=F64, init=torch.cat([t(0.3, 0.3, 0.4, 2, 3, 0, 1)[None]] * n), trace=50, warn=False, **{**SHORT, "steps": 100}
    )
    assert contains(MIXED, drawn).all()
    assert (drawn[:, 4:6].abs() <= math.pi).all()
    assert torch.equal(trace.points[-1], drawn)
    torch.testing.assert_close(trace.energies[-1], energy(drawn))
    turned = torch.cat([drawn[:, :4], drawn[:, 4:6].cos(), drawn[:, 4:6].sin(), drawn[:, 6:]], 1)
    concentration = [(torch.special.i1(k) / torch.special.i0(k)).item() for k in t(2.0, 1.0)]
    means = [*shares.mean.tolist(), 2.0, math.cos(3) * concentration[0], concentration[1], math.sin(3) * concentration[0], 0.0, 1.0]
    errors = turned.std(0) / math.sqrt(n)
    assert ((turned.mean(0) - t(*means)).abs() < 4 * errors).all()


@pytest.mark.slow
def test_directions_on_a_sphere_have_the_mean_of_their_density():
    n, kappa = 4000, 2.0
    energy = ce.as_energy(lambda x: -kappa * x[:, 2], support=sphere, event_shape=(3,))  # von Mises-Fisher
    drawn = energy.sample(n, seed=0, dtype=F64, sampler="hmc", step_size=0.5, leapfrogs=5, steps=40)
    torch.testing.assert_close(drawn.norm(dim=1), torch.ones(n, dtype=F64))
    expected = t(0.0, 0.0, 1 / math.tanh(kappa) - 1 / kappa)
    assert ((drawn.mean(0) - expected).abs() < 4 * drawn.std(0) / math.sqrt(n)).all()


@pytest.mark.slow
def test_four_modes_on_a_torus_have_their_weights():
    modes, weights = t(-2.5, 2.9, 0.6, -1.0).view(2, 2), t(0.4, 0.6)
    angles = td.MixtureSameFamily(td.Categorical(weights.expand(2, 2)), td.VonMises(modes, torch.full_like(modes, 6.0)))
    n = 4000
    drawn = ce.as_energy(angles).sample(
        n, seed=0, sampler="hmc", step_size=0.3, leapfrogs=8, steps=300, warn=False
    )  # few chains change modes
    nearest = (drawn[:, :, None] - modes).cos().argmax(2)  # the modes of an angle are far apart
    counts = torch.bincount(2 * nearest[:, 0] + nearest[:, 1], minlength=4) / n
    shares = torch.outer(weights, weights).flatten()
    grid = (torch.arange(2000, dtype=F64) + 0.5) / 2000 * 2 * math.pi - math.pi
    density = angles.log_prob(grid[:, None].expand(-1, 2)).exp()
    basin = (grid[:, None, None] - modes).cos().argmax(2)
    own = torch.stack([(density[:, i] * (basin[:, i] == k)).sum() / density[:, i].sum() for i in (0, 1) for k in (0, 1)]).view(2, 2)
    shares = torch.outer(own[0], own[1]).flatten()
    assert ((counts - shares).abs() < 4 * (shares * (1 - shares) / n).sqrt()).all()


@pytest.mark.slow
def test_log_z_integrates_over_the_support():
    for energy, expected in (
        (ce.as_energy(td.VonMises(t(0.0, 1.0), t(2.0, 1.0))), 0.0),
        (ce.as_energy(td.Dirichlet(t(2.0, 3.0, 1.0))), 0.0),
        (ce.as_energy(lambda x: -2.0 * x[:, 2], support=sphere, event_shape=(3,)), math.log(4 * math.pi * math.sinh(2) / 2)),
        (ce.as_energy(td.Gamma(t(3.0), t(1.0))) & ce.inside(constraints.less_than(3.0)), math.log(td.Gamma(3.0, 1.0).cdf(t(3.0)).item())),
    ):
        found = ce.log_z(energy, seed=0, dtype=F64, particles=512)
        assert abs(found.value - expected) < 4 * found.standard_error + 1e-3


# Keeping ------------------------------------------------------------------------------------------------------------------------------


def expression():
    walls = ce.inside(constraints.cat([constraints.positive, constraints.interval(t(-1.0), t(2.0))]), (2,))
    return ce.as_energy(td.Normal(t(0.5, 0.5), 1.0)).on(constraints.greater_than(-3.0)) & walls


@pytest.mark.parametrize("way", ["saved", "pickled", "copied", "rebuilt"])
def test_a_kept_energy_has_its_support_and_draws(way, tmp_path):
    energy = expression()
    if way == "saved":
        energy.save(tmp_path / "energy")
        kept = ce.load(tmp_path / "energy")
    else:
        kept = {"pickled": lambda e: pickle.loads(pickle.dumps(e)), "copied": copy.deepcopy, "rebuilt": lambda e: e.rebuild()}[way](energy)
    assert kept.equals(energy)
    assert same_support(kept.support, energy.support)
    assert torch.equal(kept.sample(20, seed=0, **SHORT), energy.sample(20, seed=0, **SHORT))


@pytest.mark.parametrize("support", [support for support, _ in EVERY.values()], ids=EVERY)
def test_every_support_is_saved(support, tmp_path):
    ce.inside(support).save(tmp_path / "wall")
    loaded = ce.load(tmp_path / "wall")
    assert same_support(loaded.support, support)
    assert loaded.equals(ce.inside(support)) == ce.inside(support).equals(ce.inside(support))


def test_a_support_of_another_package_is_not_saved(tmp_path):
    class Odd(constraints.Constraint):
        event_dim = 0

        def check(self, value):
            return value > 0

    td.biject_to.register(Odd, lambda _: td.ExpTransform())
    wall = ce.inside(Odd()) & ce.as_energy(td.Normal(t(0.0), 1.0))
    assert (wall.sample(5, seed=0, **SHORT) > 0).all()
    with pytest.raises(ExpressionError, match="Odd"):
        wall.save(tmp_path / "wall")


def test_descent_finds_the_minimum_of_the_energy_not_of_its_coordinates():
    energy = ce.as_energy(td.Gamma(t(3.0), t(1.0)))
    x, trace = energy.sample(3, sampler="descent", seed=0, trace=True)
    torch.testing.assert_close(x, torch.full_like(x, 2.0), rtol=0, atol=1e-5)
    torch.testing.assert_close(trace.energies[-1], energy(x))


def test_batches_conditions_and_chunks_give_the_same_draws():
    energy = ce.as_energy(lambda x, rate: (rate[:, None] * x - x.log()).sum(1), support=constraints.positive, event_shape=(2,))
    bound = energy.given(rate=torch.arange(1.0, 13.0))
    whole = bound.sample(12, seed=0, **SHORT)
    torch.testing.assert_close(bound.sample(12, seed=0, batch_size=5, **SHORT), whole)


def test_a_resumed_and_a_checkpointed_call_continue_in_the_coordinates(tmp_path):
    energy = ce.as_energy(lambda x: -x.log().sum(1), support=constraints.simplex)
    options = {**SHORT, "seed": 0, "trace": 5, "init": torch.full((8, 3), 1 / 3, dtype=F64)}
    whole, trace = energy.sample((8, 3), **options)
    _, half = energy.sample((8, 3), **{**options, "steps": 15})
    assert torch.equal(energy.sample((8, 3), resume=half, steps=15, trace=5)[0], whole)
    file = tmp_path / "run"
    energy.sample((8, 3), **{**options, "steps": 15}, checkpoint=file)
    points, continued = energy.sample((8, 3), **options, checkpoint=file)
    assert torch.equal(points, whole)
    torch.testing.assert_close(continued.points, trace.points)
    assert contains(constraints.simplex, continued.points.flatten(0, 1)).all()


def test_callbacks_best_of_and_branch_shares_see_points_of_the_support():
    beta, other = (ce.as_energy(td.Beta(t(a), t(b))) for a, b in ((2.0, 9.0), (9.0, 2.0)))
    mixture = beta | other
    seen = []
    drawn, trace = mixture.sample(200, seed=0, trace=True, callback=lambda step, state, info: seen.append(state), **SHORT)
    assert torch.equal(seen[-1].x, drawn)
    torch.testing.assert_close(seen[-1].energy, mixture(drawn))
    share = torch.softmax(-mixture.branches(drawn), 0).mean(1)
    torch.testing.assert_close(trace.branch_shares, share)
    best = mixture.sample(50, seed=0, best_of=4, **SHORT)
    assert mixture(best).mean() < mixture(drawn).mean()


@pytest.mark.slow
def test_a_compiled_energy_draws_the_same():
    energy = ce.as_energy(td.Beta(t(2.0, 3.0), t(3.0, 2.0)))
    plain, compiled = (energy.sample(20, seed=0, compile=compile, **SHORT) for compile in (False, True))
    torch.testing.assert_close(compiled, plain)
