"""Energies with gradients of their own, with and without a value: they compose as autograd does, fit their values, or are refused."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, ShapeError
from composable_energy.sampling import energy_and_gradient
from composable_energy_mcmc import HMC, MALA
from tests.refusals import refusals, refused

DRAWS = {"sampler": "langevin", "step_size": 0.05, "steps": 400, "seed": 0}
BROAD = ce.as_energy(Normal(torch.zeros(1), 3.0), name="broad")


class Own(ce.Energy):
    """N(mean, 1) with right values, which autograd cannot follow, and a gradient of its own, which counts its uses."""

    def __init__(self, mean: float | nn.Parameter = 1.0) -> None:
        super().__init__()
        self.mean, self.uses = mean, 0

    def forward(self, x: Tensor) -> Tensor:
        return (x.detach() - self.mean).square().flatten(1).sum(1) / 2

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.uses += 1
        return self.forward(x).detach(), (x - self.mean).detach()


class Silent(Own):
    """The same with values that do not fit."""

    def __init__(self, mean: float = 3.0) -> None:
        super().__init__(mean)
        self.event_shape = (1,)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x))


class Score(Silent):
    has_value = False


class Plain(Own):
    """The same by autograd."""

    with_gradient = ce.Energy.with_gradient

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean).square().flatten(1).sum(1) / 2


class OwnRelative(ce.energies.RelativeEnergy):
    """A relative energy whose gradient is that of the whole."""

    def __init__(self, base: ce.Energy) -> None:
        super().__init__()
        self.base, self.bases = base, (ce.energies.WeightedBase(base),)

    def forward_evidence(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1).sum(1).sin()

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energies, gradient = self.base.with_gradient(x)
        return energies + self.forward_evidence(x), gradient + x.flatten(1).sum(1).cos().view(-1, *[1] * (x.ndim - 1)).detach()


class PlainRelative(OwnRelative):
    with_gradient = ce.Energy.with_gradient

    def forward_evidence(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1).sin()


X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.slow
def test_values_that_do_not_fit_the_own_gradient_are_refused():
    for expression in (Silent(), Silent() & BROAD, Silent().relative_to(BROAD), ce.any_of(Silent(), BROAD, weights=[1, 1])):
        for sampler in (HMC(0.3, leapfrogs=4), MALA(0.3)):
            with pytest.raises(ExpressionError, match=r"do not fit its `with_gradient`.*has_value = False"):
                expression.sample(50, sampler=sampler, steps=2, seed=0)
    refused(ExpressionError, r"do not fit its `with_gradient`.*has_value = False", Silent().sample, 50, steps=2, seed=0)
    loud = type("Loud", (Own,), {"with_gradient": lambda self, x: (1.05 * self(x), x - self.mean)})()
    refused(ExpressionError, "fit its `with_gradient`: it returns", loud.sample, (50, 1), sampler="hmc", steps=2, seed=0)
    assert (Own(1.0) & Own(3.0)).sample((50, 1), sampler="hmc", steps=2, seed=0, dtype=torch.float64).isfinite().all()


def test_a_mixture_whose_values_do_not_fit_is_refused_by_samplers_of_gradients():
    """The gradient of a mixture depends on the values of its branches."""
    for mixture in (
        ce.any_of(Silent(), Silent(-3.0), weights=[1, 1]),
        ce.any_of(BROAD, 2 * Silent() & BROAD, weights=[1, 1]),
        BROAD & ce.negate(Silent().relative_to(BROAD), "contrast"),
    ):
        refused(ExpressionError, "do not fit its `with_gradient`", mixture.sample, 50, **{**DRAWS, "steps": 1})


FOLLOWED = [
    *((lambda x: (2 * x - x.detach()).square().sum(1), True), (lambda x: x[:, 0].square() + x[:, 1].detach().square(), True)),
    *((lambda x: x.abs().sum(1), False), (lambda x: (x + (x.round() - x).detach()).square().sum(1), False)),
    *((lambda x: (40 * x).sin().sum(1) + x.square().sum(1), False), (lambda x: x.bfloat16().square().sum(1).to(x), False)),
]


@pytest.mark.filterwarnings("ignore::composable_energy.errors.SamplingWarning")
@pytest.mark.parametrize(("function", "found"), FOLLOWED)
def test_gradients_that_are_not_those_of_the_energy_are_reported_where_they_alone_count(function, found):
    for sampler, dtype in (("langevin", torch.float32), ("langevin", torch.float64), ("mala", torch.float64)):
        call = {"sampler": sampler, "step_size": 0.01, "steps": 16, "seed": 0, "dtype": dtype, "trace": True}
        _, trace = ce.as_energy(function).sample((64, 2), **call)
        assert ("gradient" in {warning.kind for warning in trace.observed}) is (found and sampler == "langevin")


def expressions(leaf, relative) -> dict[str, ce.Energy]:
    a, b, c, base = leaf(0.5), leaf(-1.0), ce.as_energy(lambda x: x.sin().sum(1) + x.square().sum(1)), leaf(0.2)
    logits = nn.Linear(2, 3, dtype=torch.float64)
    nn.init.normal_(logits.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(logits.bias)
    red, green = (ce.ClassifierEnergy(logits, k, base, labels=3) for k in range(2))
    decoder = nn.Linear(2, 2, dtype=torch.float64)
    nn.init.normal_(decoder.weight, generator=torch.Generator().manual_seed(1))
    nn.init.zeros_(decoder.bias)
    left, right = relative(base), c.relative_to(base)
    return {
        "leaf": a,
        "and": a & b & c,
        "or": a | b | c,
        "weighted or": ce.any_of(a, c, b, weights=[1.0, 2.0, 3.0]),
        "minus": a - 0.5 * b,
        "not": c & ce.negate(a, level=2.0),
        "weight": 2 * a,
        "learnable weight": a * torch.tensor(0.7, dtype=torch.float64),
        "relative": left,
        "relatives": left & right,
        "relative or": left | right,
        "contrast": ~left & right,
        "sharpened": left.sharpened(2.0) & right,
        "events": (red | green) & ~green,
        "event and relative": red & left,
        "pull-back": (a & c).pull_back(decoder),
        "own in plain": ce.as_energy(lambda x: a(x) * c(x)),
    }


OWN, PLAIN = expressions(Own, OwnRelative), expressions(Plain, PlainRelative)


@pytest.mark.parametrize("name", OWN)
def test_own_gradients_compose_as_autograd_does(name):
    energies, gradient = OWN[name].with_gradient(X)
    expected_energies, expected = PLAIN[name].with_gradient(X)
    torch.testing.assert_close(energies, expected_energies)
    torch.testing.assert_close(gradient, expected)


def test_the_own_gradient_is_used_once_for_a_shared_base():
    base = Own()
    left, right = OwnRelative(base), ce.as_energy(lambda x: x.sum(1).cos()).relative_to(base)
    base.uses = 0
    (right & right.sharpened(2.0)).eval().with_gradient(X)
    assert base.uses == 1
    (left & right).eval().with_gradient(X)
    assert base.uses == 3  # and once in `with_gradient` of the relative energy


def test_a_wrapper_may_call_the_gradient_of_its_own_class():
    class Shifted(Plain):
        def with_gradient(self, x):
            energies, gradient = ce.Energy.with_gradient(self, x)
            return energies, gradient + 1

    torch.testing.assert_close((Shifted() & Shifted()).with_gradient(X)[1], 2 * (X - 1) + 2)


def test_training_uses_forward_and_reaches_the_parameters():
    mean = nn.Parameter(torch.ones((), dtype=torch.float64))
    own = Own(mean)
    (own & own)(X).sum().backward()
    assert own.uses == 0
    torch.testing.assert_close(mean.grad, 2 * (1 - X).sum())


def test_a_gradient_of_another_shape_is_refused():
    class Flat(Own):
        def with_gradient(self, x):
            return self.forward(x).detach(), (x - self.mean).detach().sum(1)

    refused(ShapeError, "gradient of shape", (Flat() & Own()).with_gradient, X)
    refused(ShapeError, "score", (ce.ScoreEnergy(lambda x: x.sum(1)) & Own()).with_gradient, X)


def test_rows_of_conditions_reach_an_own_gradient():
    means = torch.tensor([-4.0, 0.0, 4.0])
    score = ce.ScoreEnergy(lambda x, mean: mean.view(-1, 1) - x, name="score").given(mean=means)
    value = ce.as_energy(lambda x, mean: (x - mean.view(-1, 1)).square().sum(1) / 2).given(mean=means)
    draw = {**DRAWS, "steps": 5, "batch_size": 2}
    torch.testing.assert_close((score & BROAD).sample((3, 1), **draw), (value & BROAD).sample((3, 1), **draw))


def test_points_of_inference_mode_have_gradients_inside_and_outside():
    bowl = ce.as_energy(lambda x, y: (x - y.view(-1, 1)).square().sum(1) / 2)
    with torch.inference_mode():
        x, y = torch.ones(3, 2), torch.zeros(3)
        inside = bowl.with_gradient(x, y=y)[1]
    assert x.is_inference()
    for gradient in (inside, bowl.with_gradient(x, y=y)[1], (bowl.given(y=y.clone()) & bowl).with_gradient(x, y=y)[1] / 2):
        assert torch.equal(gradient, torch.ones(3, 2))
    assert torch.equal(ce.ScoreEnergy(lambda x: -x).with_gradient(x)[1], torch.ones(3, 2))


def test_a_constant_energy_with_weights_has_no_gradient():
    level = nn.Parameter(torch.ones(()))
    constant = ce.as_energy(lambda x: level.expand(len(x)))
    for energy in (constant, constant & constant, ce.as_energy(lambda x: x.detach().sum(1))):
        refused(ExpressionError, "no gradient at its points", energy.with_gradient, torch.ones(2, 2))


SCORE = ce.ScoreEnergy(lambda x: 3 - x, name="score", event_shape=(1,))


def events_over(base: ce.Energy) -> ce.Energy:
    """Two events of one classifier, as a mixture of densities over their base."""
    logits = lambda x: torch.cat([-x, x], 1) * 5
    return ce.any_of(*(ce.ClassifierEnergy(logits, k, base, labels=2) for k in range(2)), weights=[1.0, 1.0])


@pytest.mark.parametrize("score", [SCORE, Score()], ids=["ScoreEnergy", "class"])
def test_evaluation_without_value_names_the_term_and_the_way_out(score):
    x = torch.zeros(2, 1)
    for expression in (score, score & BROAD, 2 * score, BROAD - score, score.relative_to(BROAD), ce.negate(score, "power")):
        assert not expression.has_value
        refused(ExpressionError, r"(score|Score) has a gradient and no value.*with_gradient", expression, x)
    energies, gradient = energy_and_gradient(score & BROAD, x)
    assert torch.equal(energies, torch.zeros(2))
    torch.testing.assert_close(gradient, torch.full((2, 1), -3.0))


COMPARING = ("hmc", "mala", "chees", "descent", "smc", "tempering")
test_what_needs_values_refuses_a_score = refusals(
    *((lambda sampler=sampler: (SCORE & BROAD).sample(4, sampler=sampler, seed=0), "needs values") for sampler in COMPARING),
    (lambda: SCORE.sample(4, sampler="annealed", corrector="hmc", seed=0), "needs values"),
    (lambda: SCORE | Score(-3.0), "needs values"),
    (lambda: ce.any_of(BROAD, SCORE, weights=[1.0, 2.0]), "needs values"),
    (lambda: ce.log_z(SCORE & BROAD, seed=0), "needs values"),
    (lambda: (SCORE & BROAD).explain(torch.zeros(2, 1)), "needs values"),
    (lambda: ce.calibrate(events_over(SCORE), seed=0), "needs values"),
    (lambda: ce.ScoreEnergy(lambda x, y: x * y, event_shape=(1,)).infer(torch.zeros(2, 1), over={"y": [1.0]}), "needs values"),
    (lambda: ~SCORE.relative_to(BROAD), "needs values"),
    (lambda: ~SCORE, "needs values"),
    (lambda: BROAD.relative_to(SCORE) | BROAD, "needs values"),
    error=ExpressionError,
)


@pytest.mark.slow
def test_the_default_sampler_of_a_score_tunes_its_step():
    """The variance is at most 5 % too large, and 2,000 draws have a standard error of .022."""
    x, trace = SCORE.sample(2000, seed=0, trace=True)
    assert "step_size" in trace.tuned and abs(x.mean().item() - 3) < 4 * 0.0224 and -4 * 0.032 < x.var().item() - 1 < 0.05 + 4 * 0.032
    assert SCORE.sample(4, step_size=0.1, steps=3, seed=0).shape == (4, 1)


@pytest.mark.full
def test_a_mixture_of_events_over_a_score_is_drawn_and_has_no_value():
    mixture = events_over(ce.ScoreEnergy(lambda x: -x, name="base", event_shape=(1,)))
    left, right = mixture.terms
    E = left | right
    assert E.evidence_has_value and not E.has_value and right.sample(1000, **DRAWS).mean() > 0.5
    points, trace = mixture.sample(1000, trace=True, **DRAWS)
    assert abs(points.var().item() - 1) < 0.2 and trace.branch_shares.sum().item() == pytest.approx(1)
    assert torch.allclose(E.evidence(points), torch.zeros(1000), atol=1e-5)


def test_records_and_callbacks_of_a_score_have_no_energies():
    energies = []
    seen = ce.sampling.Stop(lambda step, state, info: energies.append(state.energy))
    _, trace = SCORE.sample(8, trace=1, observers=[seen], **{**DRAWS, "steps": 60})
    assert trace.energies.isnan().all() and torch.stack(energies).isnan().all()
    assert "energy" not in [row.name for row in trace.summary().rows]


def test_scores_of_another_dtype_get_that_of_the_points_and_whole_numbers_are_refused():
    assert ce.ScoreEnergy(lambda x: 3 - x.double()).sample((2, 1), **{**DRAWS, "steps": 2}).dtype == torch.float32
    refused(DtypeError, r"gave torch.int64.*`.float\(\)`", ce.ScoreEnergy(torch.Tensor.long).with_gradient, torch.zeros(2, 1))


def test_an_energy_that_hides_a_score_is_refused():
    inner = Score()
    refused(ExpressionError, r"uses Score.*has_value = False", ce.as_energy(lambda x: inner(x).exp()).with_gradient, torch.zeros(2, 1))


def test_a_relative_energy_may_have_no_value():
    class Guided(OwnRelative):
        has_value = False  # pyright: ignore[reportAssignmentType]

        def with_gradient(self, x):
            return x.new_zeros(len(x)), x.detach() - 3

    guided = Guided(BROAD)
    assert not guided.has_value and not guided.evidence_has_value
    for call in (guided, guided.evidence):
        refused(ExpressionError, "no value", call, torch.zeros(2, 1))
    torch.testing.assert_close((guided & BROAD).with_gradient(torch.zeros(2, 1))[1], torch.full((2, 1), -3.0))


def test_a_score_outside_the_support_of_another_term_is_not_hidden():
    box = ce.as_energy(lambda x: torch.where(x.abs().sum(1) < 1, 0 * x.sum(1), torch.inf))
    energies, gradient = (Score() & box).with_gradient(torch.tensor([[0.0], [2.0]]))
    assert energies.tolist() == [0, math.inf] and gradient.isfinite().all()


@pytest.mark.parametrize("sampler", ["langevin", "underdamped", "annealed"])
def test_samplers_that_need_no_values_draw_the_same_without_them(sampler):
    options = {"langevin": {"step_size": 0.1}, "underdamped": {"step_size": 0.3}, "annealed": {"levels": 10, "delta": 0.1}}[sampler]
    assert not ce.get("sampler", sampler)(**options).traits.values
    with_values, without = (
        energy.sample((20, 1), sampler=sampler, seed=0, steps=10, **options)
        for energy in (ce.as_energy(lambda x: (x - 3).square().sum(1) / 2), ce.ScoreEnergy(lambda x: 3 - x))
    )
    assert torch.equal(with_values, without)
