"""Energies with a gradient and no value: what samples them and what refuses them."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ExpressionError
from composable_energy.sampling import energy_and_gradient
from tests.gradient_energies import BROAD, DRAWS, OwnRelative, Score

SCORES = {"ScoreEnergy": lambda mean=3.0: ce.ScoreEnergy(lambda x: mean - x, name="score", event_shape=(1,)), "class": Score}


scores = pytest.mark.parametrize("score", SCORES.values(), ids=SCORES)


@pytest.mark.slow
@scores
def test_a_score_is_drawn_alone_and_beside_a_broad_normal(score):
    alone = score().sample(4000, **DRAWS)
    assert abs(alone.mean().item() - 3) < 0.1
    joined = (score() & BROAD).sample(4000, **DRAWS)
    # The product with N(0, 9) has mean 3 * 9 / 10 and variance 9 / 10; its standard error is .015.
    assert abs(joined.mean().item() - 2.7) < 0.08


@scores
def test_a_mixture_of_scores_is_refused(score):
    with pytest.raises(ExpressionError, match=r"needs values.*has_value"):
        _ = score() | score(-3.0)
    with pytest.raises(ExpressionError, match="needs values"):
        ce.any_of(BROAD, score(), weights=[1.0, 2.0])


def events_over(base: ce.Energy) -> ce.Energy:
    """Two events of one classifier, as a mixture of densities over their base."""

    def logits(x):
        return torch.cat([-x, x], 1) * 5

    return ce.any_of(*(ce.ClassifierEnergy(logits, k, base, labels=2) for k in range(2)), weights=[1.0, 1.0])


@scores
def test_evaluation_without_value_names_the_term_and_the_way_out(score):
    x = torch.zeros(2, 1)
    for expression in (score(), score() & BROAD, 2 * score(), BROAD - score(), score().relative_to(BROAD), ce.negate(score(), "power")):
        assert not expression.has_value
        with pytest.raises(ExpressionError, match=r"(score|Score) has a gradient and no value.*with_gradient"):
            expression(x)
    energies, gradient = energy_and_gradient(score() & BROAD, x)
    assert torch.equal(energies, torch.zeros(2))
    torch.testing.assert_close(gradient, torch.full((2, 1), -3.0))


@scores
def test_samplers_and_estimators_that_need_values_refuse(score):
    E = score() & BROAD
    x = torch.zeros(2, 1)
    for sampler in ("hmc", "mala", "chees", "descent", "smc", "tempering"):
        with pytest.raises(ExpressionError, match=f"sampler {sampler} needs values"):
            E.sample(4, sampler=sampler, seed=0)
    for refused in (
        lambda: ce.log_z(E, seed=0),
        lambda: E.explain(x),
        lambda: ce.calibrate(events_over(score()), seed=0),
        lambda: ce.ScoreEnergy(lambda x, y: x * y, event_shape=(1,)).infer(x, over={"y": [1.0]}),
        lambda: ~score().relative_to(BROAD),
        lambda: ~score(),
        lambda: BROAD.relative_to(score()) | BROAD,
    ):
        with pytest.raises(ExpressionError, match="needs values"):
            refused()


@pytest.mark.slow
@scores
def test_the_default_sampler_of_a_score_tunes_its_step(score):
    """The variance is at most 5 % too large, and 2,000 draws have a standard error of .022."""
    x, trace = score().sample(2000, seed=0, trace=True)
    assert "step_size" in trace.tuned
    assert abs(x.mean().item() - 3) < 4 * 0.0224 and -4 * 0.032 < x.var().item() - 1 < 0.05 + 4 * 0.032
    assert score().sample(4, step_size=0.1, steps=3, seed=0).shape == (4, 1)


def test_samplers_of_gradients_alone_take_a_score():
    noisy = ce.ScoreEnergy(lambda x, sigma: (3 - x) / (1 + sigma.square()).view(-1, 1), event_shape=(1,))
    assert abs(noisy.sample(2000, seed=0).mean().item() - 3) < 0.2
    assert (
        abs(noisy.sample(2000, sampler="annealed", corrector=ce.get("sampler", "langevin")(step_size=0.1), seed=0).mean().item() - 3) < 0.2
    )
    assert abs(Score().sample(2000, sampler="underdamped", step_size=0.3, steps=100, seed=0).mean().item() - 3) < 0.2
    with pytest.raises(ExpressionError, match="needs values"):
        noisy.sample(4, sampler="annealed", corrector="hmc", seed=0)


@pytest.mark.full
def test_a_mixture_of_events_over_a_score_is_drawn_and_has_no_value():
    mixture = events_over(ce.ScoreEnergy(lambda x: -x, name="base", event_shape=(1,)))
    left, right = mixture.terms
    E = left | right
    assert E.evidence_has_value
    assert not E.has_value
    assert abs(E.sample(2000, **DRAWS).var().item() - 1) < 0.15
    assert right.sample(2000, **DRAWS).mean() > 0.5
    points, trace = mixture.sample(500, trace=True, **DRAWS)
    assert trace.branch_shares.sum().item() == pytest.approx(1)
    assert torch.allclose(E.evidence(points), torch.zeros(500), atol=1e-5)


def test_records_and_callbacks_of_a_score_have_no_energies():
    energies = []

    def callback(step, state, info):
        energies.append(state.energy)

    _, trace = Score().sample(8, trace=1, observers=[ce.sampling.Stop(callback)], **{**DRAWS, "steps": 60})
    assert trace.energies.isnan().all()
    assert torch.stack(energies).isnan().all()
    assert "energy" not in [row.name for row in trace.summary().rows]


def test_an_energy_that_hides_a_score_is_refused():
    class Hiding(ce.Energy):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Score()

        def forward(self, x):
            return self.inner(x).exp()

    with pytest.raises(ExpressionError, match=r"uses Score.*has_value = False"):
        Hiding().with_gradient(torch.zeros(2, 1))


def test_a_relative_energy_may_have_no_value():
    class Guided(OwnRelative):
        has_value = False  # pyright: ignore[reportAssignmentType]

        def with_gradient(self, x):
            return x.new_zeros(len(x)), x.detach() - 3

    guided = Guided(BROAD)
    assert not guided.has_value
    assert not guided.evidence_has_value
    for call in (guided, guided.evidence):
        with pytest.raises(ExpressionError, match="no value"):
            call(torch.zeros(2, 1))
    torch.testing.assert_close((guided & BROAD).with_gradient(torch.zeros(2, 1))[1], torch.full((2, 1), -3.0))


def test_a_score_outside_the_support_of_another_term_is_not_hidden():
    box = ce.as_energy(lambda x: torch.where(x.abs().sum(1) < 1, 0 * x.sum(1), torch.inf))
    energies, gradient = (Score() & box).with_gradient(torch.tensor([[0.0], [2.0]]))
    assert energies.tolist() == [0, math.inf]
    assert gradient.isfinite().all()


@pytest.mark.parametrize("sampler", ["langevin", "underdamped", "annealed"])
def test_samplers_that_need_no_values_draw_the_same_without_them(sampler):
    options = {"langevin": {"step_size": 0.1}, "underdamped": {"step_size": 0.3}, "annealed": {"levels": 10, "delta": 0.1}}[sampler]
    assert not ce.get("sampler", sampler)(**options).traits.values
    with_values, without = (
        energy.sample((20, 1), sampler=sampler, seed=0, steps=10, **options)
        for energy in (ce.as_energy(lambda x: (x - 3).square().sum(1) / 2), ce.ScoreEnergy(lambda x: 3 - x))
    )
    assert torch.equal(with_values, without)
