"""Energies over named variables: factors that `&` joins by name, their supports, draws as mappings, and traces with names."""

import math

import pytest
import torch
from arviz_stats import loo
from torch import Tensor, nn
from torch.distributions import Bernoulli, Categorical, Dirichlet, Gamma, HalfNormal, MixtureSameFamily, Normal, Uniform, constraints

import composable_energy as ce
from composable_energy.algebra import Factor
from composable_energy.errors import DtypeError, ExpressionError, LiftError, OptionError, ShapeError, UngroundedError
from composable_energy.supports import join, split
from composable_energy.testing import check_energy
from tests.refusals import refusals, refused

SHAPES = {"mu": (), "tau": constraints.positive, "theta": (3,)}
MU, TAU, THETA = torch.tensor([0.5, -1.0]), torch.tensor([1.0, 2.0]), torch.tensor([[1.0, 2.0, 3.0], [0.0, -1.0, 1.0]])
POINT = {"mu": MU, "tau": TAU, "theta": THETA}


def groups(mu: Tensor, tau: Tensor, theta: Tensor) -> Tensor:
    return -Normal(mu[:, None], tau[:, None]).log_prob(theta).sum(1)


def far(theta: Tensor, scale: Tensor | float = 1.0) -> Tensor:
    return (theta - 1).square().sum(1) / scale


GROUPS = ce.as_energy(groups, variables=SHAPES)
PRIOR = ce.as_energy(Normal(0.0, 2.0), variables="mu")
SCALE = ce.as_energy(HalfNormal(1.5), variables="tau")
FAR = ce.as_energy(far, variables={"theta": (3,)})
MODEL = FAR & GROUPS & PRIOR & SCALE
NOT_FAR = ce.negate(FAR, level=3.0)
FAST = {"sampler": "mala", "step_size": 0.1, "steps": 20}  # without pilot chains


def test_factors_add_up_by_name():
    expected = groups(MU, TAU, THETA) + far(THETA) - Normal(0.0, 2.0).log_prob(MU) - HalfNormal(1.5).log_prob(TAU)
    assert list(MODEL.variables) == ["theta", "mu", "tau"]
    x, other = join(POINT, MODEL.variables), PRIOR & SCALE & GROUPS & FAR
    assert list(other.variables) == ["mu", "tau", "theta"]
    for found in (MODEL(POINT), MODEL(x), MODEL(**POINT), -MODEL.log_prob(**POINT, log_z=0.0), other(POINT)):
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(lift(lambda x, y: x - y, {"x": (), "y": ()})(x=MU, y=TAU), MU - TAU)
    gradients = [split(one.with_gradient(join(POINT, one.variables))[1], one.variables) for one in (MODEL, other)]
    torch.testing.assert_close(gradients[0], gradients[1])
    torch.testing.assert_close(MODEL.with_gradient(POINT)[1], MODEL.with_gradient(x)[1])
    assert str(MODEL.explain(POINT)).count("\n") == 4


def test_recommendations_are_those_of_all_terms():
    plain, advised = (ce.as_energy(lambda x: x.square().sum(1), event_shape=(2,)) for _ in range(2))
    advised.recommended = ce.Recommendation("mala", {"step_size": 0.3})
    for one, other in ((plain, advised), (advised, plain)):
        named, third = (one.over("x"), other.over("x")), one.over("y")
        for energy in (named[0] & named[1], named[0] | named[1], ce.all_of(*named, third), ~named[0] & named[1], 2 * named[1] & named[0]):
            assert energy.recommended == advised.recommended


def test_named_energies_pass_the_kit():
    joined = ce.as_energy(Uniform(torch.tensor([0.0, -1.0, 0.0]), torch.tensor([1.0, 2.0, 3.0]))).over({"a": (), "b": (2,)})
    assert [part.lower_bound.tolist() for part in joined.support.cseq] == [[0.0], [-1.0, 0.0]]
    for build in (lambda: ce.as_energy(Gamma(2.0, 1.0), variables={"rate": (3,)}), lambda: PRIOR & SCALE & NOT_FAR, lambda: joined & SCALE):
        check_energy(build, torch.rand(4, build().event_shape[0], generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("energy", [GROUPS, GROUPS.given(mu=0.5), PRIOR], ids=str)
def test_a_term_may_occur_twice(energy):
    point = {name: POINT[name] for name in energy.variables}
    torch.testing.assert_close((energy & energy)(point), 2 * energy(point))
    torch.testing.assert_close((energy | energy)(point), energy(point) - math.log(2))


def test_supports_are_those_of_the_variables():
    assert GROUPS({**POINT, "tau": torch.tensor([-1.0, 2.0])}).isinf().tolist() == [True, False]
    flat = ce.as_energy(Gamma(2.0, 1.0), variables={"rate": (2, 2)}) & ce.as_energy(Dirichlet(torch.ones(2, 3)), variables="share")
    draws = flat.sample(50, seed=0, **FAST)
    assert {name: tuple(values.shape) for name, values in draws.items()} == {"rate": (50, 2, 2), "share": (50, 2, 3)}
    assert (draws["rate"] > 0).all() and lift(far, {"theta": ((3,), constraints.simplex)}).on(constraints.simplex).support
    torch.testing.assert_close(draws["share"].sum(2), torch.ones(50, 2))
    ends = constraints.interval(torch.zeros(2), torch.tensor([1.0, 5.0]))
    boxed = ce.as_energy(lambda b: 0 * b.sum(1), variables={"b": ((2,), ends)}) & ce.as_energy(Normal(0.0, 1.0), variables="a")
    assert (high := boxed.sample(200, seed=0)["b"].amax(0))[0] < 1 < 3 < high[1] < 5
    numbers = ce.as_energy(Normal(0.0, 1.0), variables={"a": ()}) & ce.as_energy(Normal(0.0, 1.0), variables={"b": (2,)})
    within = numbers.on(constraints.interval(torch.tensor([0.0, 1.0, -1.0]), torch.tensor([0.5, 2.0, 1.0]))) & PRIOR
    draws = within.sample(50, seed=0, **FAST)
    assert 0 < draws["a"].min() < draws["a"].max() < 0.5 and draws["b"].amin(0)[0] > 1
    assert draws["b"].abs().amax(0)[1] < 1 and draws["mu"].abs().max() > 2


def test_draws_agree_with_a_closed_form():
    """$a$ is normal, $b$ is $a$ with noise, and $b$ is measured as 1 with noise: a Gaussian with a known precision."""
    noise = ce.as_energy(lambda a, b: 2 * (b - a).square().sum(1), variables={"a": (1,), "b": (1,)})
    seen = ce.as_energy(lambda b: (b - 1).square().sum(1) / 2, variables={"b": (1,)})
    posterior = noise & seen & ce.as_energy(Normal(0.0, 1.0), variables={"a": (1,)})
    covariance = torch.tensor([[5.0, -4.0], [-4.0, 5.0]]).inverse()
    points = join(posterior.sample(4000, seed=0), posterior.variables)
    mean, errors = covariance @ torch.tensor([0.0, 1.0]), (covariance.diagonal() / 4000).sqrt()
    assert ((points.mean(0) - mean).abs() < 4 * errors).all()
    torch.testing.assert_close(points.T.cov(), covariance, rtol=4 * math.sqrt(2 / 4000), atol=0)


def test_a_disjunction_of_other_variables_is_a_factor():
    left, right = FAR, ce.as_energy(lambda mu: 3 * mu.square(), variables={"mu": ()})
    either = (left | right) & ce.as_energy(Normal(0.0, 1.0), variables={"theta": (3,)}) & PRIOR
    expected = -torch.logaddexp(-far(THETA), -3 * MU.square()) - Normal(0.0, 1.0).log_prob(THETA).sum(1) - Normal(0.0, 2.0).log_prob(MU)
    torch.testing.assert_close(either({"theta": THETA, "mu": MU}), expected)
    coin = ce.as_energy(Bernoulli(0.5), variables="z")
    assert either.grounded and (coin - coin).grounded and (-2 * coin & PRIOR).grounded
    refused(UngroundedError, "no lower bound, and leaves theta, mu free", (left | right).sample, 10)
    refused(UngroundedError, None, (left & ~right).sample, 10)


def test_complements_are_those_of_the_variable():
    plain, without = ce.as_energy(Normal(0.0, 2.0)), ~PRIOR & GROUPS & SCALE & FAR
    torch.testing.assert_close(without(POINT), (~plain)(MU) + (GROUPS & SCALE & FAR)(POINT))
    assert ~~PRIOR is PRIOR
    found = ce.calibrate(~FAR & FAR.over({"theta": (3,), "mu": ()}) & PRIOR)
    level = next(part.level for part in found.modules() if isinstance(part, ce.Negation))
    # far is half a chi-squared number with three degrees of freedom, whose quantile .95 is 7.81
    assert level == pytest.approx(7.81 / 2, abs=0.25)


def two(a: float, b: float) -> MixtureSameFamily:
    return MixtureSameFamily(Categorical(torch.tensor([0.8, 0.2])), Normal(torch.tensor([a, b]), 0.5))


@pytest.mark.full
def test_modes_keep_their_shares():
    prior = ce.as_energy(two(0.0, 40.0), variables="x") & ce.as_energy(Normal(torch.zeros(4), 1.0), variables="y")
    for energy in (prior, prior & ce.as_energy(lambda y: y.square().sum(1) / 2, variables={"y": (4,)})):
        draws, trace = energy.sample(1000, seed=0, trace=True)
        assert (draws["x"] > 20).float().mean().item() == pytest.approx(0.2, abs=0.06)
        assert trace.exact and draws["y"].std().item() == pytest.approx(1 if energy is prior else math.sqrt(0.5), abs=0.06)
    ends = [ce.as_energy(Normal(place, 0.5), variables="x") for place in (0.0, 40.0)]
    inside = ce.any_of(*(ce.as_energy(Normal(place, 0.5)) for place in (0.0, 40.0)), weights=[4, 1]).over("x")
    both = [ends[0] & ce.as_energy(Normal(2.0, 1.0), variables="y"), ends[1] & ce.as_energy(Normal(-2.0, 1.0), variables="y")]
    assert (inside & both[0].given(x=0.0)).log_normalizer is None and ce.any_of(*both, weights=[4, 1]).log_normalizer.value == math.log(5)
    mixed, seen = ce.any_of(*both, weights=[4, 1]), ce.as_energy(Normal(0.0, 1.0), variables="y")
    cases = ((both[0] | both[1], 0.5), (mixed & seen, 0.2), (seen & inside, 0.2), (ends[0] | ends[1], 0.5), (inside, 0.2))
    for either, share in (*cases, (ce.any_of(*ends, weights=[4, 1]), 0.2)):
        draws, trace = either.sample(1000, seed=0, trace=True)
        assert trace.exact and (draws["x"] > 20).float().mean().item() == pytest.approx(share, abs=0.05)
    torch.testing.assert_close(trace.branch_shares, torch.tensor([0.8, 0.2]), atol=0.04, rtol=0)


def test_given_fixes_variables():
    fixed = MODEL.given(tau=2.0, mu=torch.tensor(0.5))
    torch.testing.assert_close(fixed({"theta": THETA}), MODEL({"theta": THETA, "mu": torch.full((2,), 0.5), "tau": torch.full((2,), 2.0)}))
    assert str(fixed).endswith(".given(mu=0.5, tau=2)") and fixed.sample(5, seed=0, **FAST).keys() == {"theta"}
    shifted = lift(lambda a, self: a - self, {"a": (), "self": ()}).given(self=2.0**24 + 1)
    assert shifted({"a": torch.tensor([2.0**24], dtype=torch.float64)}).item() == -1
    conditional = ce.as_energy(far, variables={"theta": (3,)}).given(scale=4.0) & PRIOR
    torch.testing.assert_close(conditional.given(mu=0.0)({"theta": THETA}), far(THETA, 4.0) - Normal(0.0, 2.0).log_prob(torch.tensor(0.0)))
    rows = ce.as_energy(far, variables={"theta": (3,)}).given(scale=torch.tensor([1.0, 2.0])) & PRIOR
    torch.testing.assert_close(rows({"theta": THETA, "mu": MU}), far(THETA, torch.tensor([1.0, 2.0])) + PRIOR({"mu": MU}))


BASE = ce.as_energy(Normal(torch.zeros(2), 1.0), name="base")
HEADS = nn.Linear(2, 2).eval()
A, B = (ce.ClassifierEnergy(HEADS, 1, BASE, columns=column, name=name) for column, name in enumerate("AB"))


def test_a_base_counts_once_and_events_stay_exact():
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
    point = {"place": x, "mu": torch.zeros(4)}
    relative = ce.as_energy(lambda x: x.square().sum(1), event_shape=(2,)).relative_to(BASE).over("place")
    torch.testing.assert_close((A.over("place") & relative & PRIOR)(point), (A & relative.terms[0])(x) + PRIOR({"mu": point["mu"]}))
    torch.testing.assert_close(((A & ~B).over("place") & PRIOR)(point), (A & ~B)(x) + PRIOR({"mu": point["mu"]}))
    torch.testing.assert_close((~A.over("place") & PRIOR)(point), (~A)(x) + PRIOR({"mu": point["mu"]}))
    apart = A.over("one") & A.over("two")
    torch.testing.assert_close(apart({"one": x, "two": x}), 2 * A(x))
    for build in (
        lambda a, b: a & b,
        lambda a, b: a | b,
        lambda a, b: a ^ b,
        lambda a, b: a >> b,
        lambda a, b: 2 * a & b,
        lambda a, b: a.sharpened(torch.tensor(3.0)) & ~b,
        lambda a, b: (a | b) & a & (~a | ~b),
    ):
        torch.testing.assert_close(build(A.over("place"), B.over("place"))({"place": x}), build(A, B)(x))
    for weigh in (lambda energy: 2 * energy, lambda energy: energy.sharpened(2.0)):
        apart = weigh(A.over("place") & PRIOR) & B.over("place")
        torch.testing.assert_close(apart(point), (weigh(A) & B)(x) + weigh(PRIOR)({"mu": point["mu"]}))


def test_noise_levels_and_scores_reach_the_variables():
    clean = ce.as_energy(lambda x: (x - 1).square().sum(1), event_shape=(2,), name="clean")
    noisy = ce.as_energy(lambda x, sigma: x.square().sum(1) / (2 + 2 * sigma**2), event_shape=(2,), name="noisy")
    options = {"sampler": "annealed", "sigma_max": 8.0, "seed": 0}
    plain = (noisy & clean).sample(200, **options)
    refused(ExpressionError, "name each of its terms", (noisy & clean).over, "x")
    torch.testing.assert_close((noisy.over("x") & clean.over("x")).sample(200, **options)["x"], plain)
    both = ce.ScoreEnergy(lambda x: 3 - x, event_shape=(1,)).over("a") & ce.as_energy(Normal(torch.zeros(1), 1.0), variables="b")
    draws = both.sample(1000, sampler="langevin", step_size=0.1, steps=200, seed=0)
    assert draws["a"].mean().item() == pytest.approx(3, abs=0.15) and draws["b"].mean().item() == pytest.approx(0, abs=0.15)


@pytest.mark.full
def test_compiled_steps_draw_the_same():
    eager, compiled = (MODEL.sample(8, seed=0, batch_size=4, compile=flag, **FAST) for flag in (False, True))
    torch.testing.assert_close(eager, compiled, rtol=1e-3, atol=1e-3)


def test_saved_expressions_keep_their_variables(tmp_path):
    expression = PRIOR & SCALE & ce.as_energy(Normal(0.0, 1.0), variables={"theta": (3,)}) & ~PRIOR.over({"mu": (), "tau": ()})
    for number, energy in enumerate((expression, (PRIOR & SCALE).given(tau=1.0))):
        energy.save(tmp_path / str(number))
        loaded = ce.load(tmp_path / str(number))
        assert loaded.equals(energy) and list(loaded.variables.items()) == list(energy.variables.items())
        torch.testing.assert_close(loaded.sample(5, seed=0, **FAST), energy.sample(5, seed=0, **FAST))


def test_starts_and_traces_have_names(tmp_path):
    first = MODEL.sample(16, seed=0, **FAST)
    draws, trace = MODEL.sample(16, seed=1, init=first, trace=1, **FAST)
    assert trace.points.shape == (20, 16, 5)
    torch.testing.assert_close(split(trace.points[-1], MODEL.variables), draws)
    assert [row.name for row in trace.summary().rows] == ["energy", "theta[0]", "theta[1]", "theta[2]", "mu", "tau"]
    posterior = trace.to_dict()["posterior"]
    assert {name: values.shape for name, values in posterior.items()} == {"theta": (16, 20, 3), "mu": (16, 20), "tau": (16, 20)}
    new = trace.predict(lambda mu, theta: mu[:, None] + theta)
    refused(OptionError, "also takes nu", trace.predict, lambda mu, nu: mu + nu)
    torch.testing.assert_close(new[-1], draws["mu"][:, None] + draws["theta"])
    call, watch = {"seed": 1, "init": first, **FAST, "steps": 25}, [ce.sampling.Checkpoint(tmp_path / "run", every=5)]
    plain, whole = MODEL.latents.sample(16, **call), MODEL.sample(16, **call)
    for found in (MODEL.sample(16, resume=trace, steps=5), MODEL.sample(16, observers=watch, **call), split(plain, MODEL.variables)):
        torch.testing.assert_close(found, whole, rtol=0, atol=0)


def test_runs_of_other_variables_are_refused(tmp_path):
    other, call = ce.as_energy(Normal(0.0, 2.0), variables="nu"), {"seed": 0, "observers": [ce.sampling.Checkpoint(tmp_path / "run")]}
    _, trace = PRIOR.sample(4, trace=True, **call, **FAST)
    refused(OptionError, r"trace has the variables \['mu'\], and Normal has \['nu'\]", other.sample, 4, resume=trace, steps=5)
    refused(OptionError, "variables was", other.sample, 4, trace=True, **call, **FAST)


def test_arviz_gets_the_axes_of_each_variable():
    _, trace = MODEL.sample(8, seed=0, trace=1, **FAST)
    tree = trace.to_arviz(dims={"theta": ["school"]}, coords={"school": ["a", "b", "c"]})
    assert tree["posterior"]["theta"].dims == ("chain", "draw", "school") and tree["posterior"]["mu"].dims == ("chain", "draw")
    assert trace.to_arviz()["posterior"]["theta"].dims == ("chain", "draw", "theta_dim_0")
    for wrong in ({"dims": {"theta": []}}, {"dims": {"nu": ["school"]}}, {"dims": {"theta": ["school"]}, "coords": {"school": [1]}}):
        refused(ShapeError, "`dims` names each axis of theta", trace.to_arviz, **wrong)


def test_arviz_gets_the_log_likelihood_of_each_observation():
    """Leave-one-out densities of a Gaussian mean with a Gaussian prior are Gaussian."""
    y = torch.tensor([-1.2, 0.3, 0.4, 1.9, -0.5, 0.1])
    model = ce.as_energy(Normal(0.0, 10.0), variables="mu") & ce.as_energy(
        lambda mu: -Normal(mu[:, None], 1.0).log_prob(y).sum(1), variables={"mu": ()}
    )
    _, trace = model.sample(64, seed=0, steps=100, burn_in=20, trace=1)
    tree = trace.to_arviz(log_likelihood=lambda mu: Normal(mu[:, None], 1.0).log_prob(y))
    rest = Normal((y.sum() - y) / 5.01, (1 + 1 / 5.01) ** 0.5)  # the precision is that of five observations and of the prior
    assert loo(tree).elpd == pytest.approx(float(rest.log_prob(y).sum()), abs=0.1)
    refused(ShapeError, r"shape \(B, N\) for N observations", trace.to_arviz, log_likelihood=lambda mu: mu)


def test_predict_needs_recorded_points_and_a_row_for_each():
    _, trace = ce.as_energy(Normal(torch.zeros(1), 1.0)).sample(4, seed=0, steps=3, trace=1)
    assert trace.predict(lambda x: x.square()).shape == (3, 4, 1)
    _, short = PRIOR.sample(4, seed=0, steps=3, trace=True)
    refused(OptionError, "trace=1", short.predict, lambda mu: mu)
    for wrong in (lambda x: {"x": x}, lambda x: x.sum(), lambda x: x[:6]):  # the last would look like draws of two chains
        refused(ShapeError, r"a row for each point, \(12, \*\), got", trace.predict, wrong)


def lift(obj: object, variables: object, **options: object) -> ce.Energy:
    return ce.as_energy(obj, variables=variables, **options)


ROWS = (constraints.simplex, constraints.independent(constraints.positive, 1))
LATENT = ce.as_energy(lambda z: z.square().sum(1), event_shape=(2,), decoder=nn.Linear(2, 2))
test_what_does_not_fit_is_refused = refusals(
    (lambda: lift(groups, {"mu": (), "tau": ()})({"mu": MU, "tau": TAU}), ExpressionError, "depends on theta"),
    (lambda: lift(groups, {**SHAPES, "nu": ()}), OptionError, "takes mu, tau, theta, not nu"),
    *((lambda wrong=wrong: lift(groups, wrong), OptionError, "maps names") for wrong in ("mu", {})),
    *((lambda shape=shape: lift(far, {"theta": shape}), OptionError, "theta is a shape") for shape in (3, (0,))),
    (lambda: lift(far, {"theta": ((2, 2), constraints.corr_cholesky)}), OptionError, "joins its rows"),
    *((lambda rows=rows: lift(far, {"theta": rows}), OptionError, "is of rows, and it has no shape: give both") for rows in ROWS),
    (lambda: lift(far, {"theta 1": (3,)}), OptionError, "identifier"),
    (lambda: lift(far, {"theta": (3,)}, event_shape=(3,)), OptionError, "leave out event_shape"),
    (lambda: lift(Normal(0.0, 1.0), {"a": (), "b": ()}), ShapeError, "one variable"),
    (lambda: lift(Dirichlet(torch.ones(3)), {"a": (4,)}), ShapeError, "one variable"),
    (lambda: lift(Normal, {"a": ()}), LiftError, "make an instance"),
    (lambda: ce.as_energy(lambda x: x.sum(1)).over("x"), ShapeError, "does not say the shape"),
    (lambda: LATENT.over("z"), ExpressionError, "latent points"),
    (lambda: MODEL.over({"theta": (3,), "mu": ()}), ShapeError, "lacks tau"),
    (lambda: PRIOR.over("x"), ShapeError, r"is over mu \(\) already, .* leave out `.over`, .* `.over\({'mu': \(\), 'other': \(\)}\)`"),
    (lambda: PRIOR & ce.as_energy(Normal(torch.zeros(2), 1.0)), ExpressionError, "without a name"),
    (lambda: PRIOR & ce.as_energy(Normal(0.0, 1.0), variables={"mu": (2,)}), ShapeError, "variable mu has shape"),
    (lambda: PRIOR & lift(lambda a, mu: a.square() * mu, {"a": ()}), ExpressionError, "condition and of a variable"),
    (lambda: MODEL.given(tau=-1.0), OptionError, "tau is in positive"),
    (lambda: MODEL.given(tau=torch.ones(2)), ShapeError, "variable tau has shape"),
    *((lambda wrong=wrong: MODEL.given(tau=wrong), OptionError, "number or a tensor.*, got") for wrong in (None, "high", 1j)),
    (lambda: MODEL.given(nu=1.0), ExpressionError, "takes no nu"),
    (lambda: PRIOR.given(mu=1.0), OptionError, "evaluate it there"),
    (lambda: MODEL({"mu": MU}), OptionError, "variables are theta, mu, tau; got mu"),
    (lambda: MODEL({**POINT, "mu": torch.zeros(3)}), ShapeError, "variable mu"),
    (lambda: MODEL({**POINT, "mu": None}), OptionError, "variables theta, mu, tau are tensors, with a row for each"),
    (lambda: MODEL({**POINT, "theta": MU}), ShapeError, "variable theta"),
    (lambda: PRIOR.sample(3, init={"nu": MU}), OptionError, "variables are mu; got nu"),
    (lambda: BASE({"x": MU}), DtypeError, "takes a tensor of points"),
    (lambda: MODEL.sample((4, 3)), ShapeError, None),
    (lambda: lift(groups, dict.fromkeys(SHAPES, ())).on(constraints.simplex).given(mu=1.0), OptionError, "of one vector, not of mu, tau"),
    (lambda: lift(far, {"theta": ((1,), constraints.simplex)}).sample(3), ShapeError, "has a single point"),
    (lambda: Factor(BASE, {"x": (3,)}, ["x"])(torch.zeros(2, 3)), ShapeError, None),
)
