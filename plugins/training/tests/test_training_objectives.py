"""Contrastive divergence, heads and the joint classifier against closed forms and formulas; errors of all objectives for bad input."""

import itertools
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributions import constraints

import composable_energy as ce
import composable_energy_training as training
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from plugins.training.tests.run_helpers import IMPROVED, LANGEVIN, Bell, Heads, Joint, Net, batch_of, context, data, gradients
from tests.refusals import refusals, refused

SLOPE, SPREAD = 1.5, 0.4  # x = SLOPE v + SPREAD noise, v standard normal
MATCHING: dict[str, Any] = {"temperature": 0.5, "warm_up": 0}
NOISE = training.GaussianNoise(torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64))
Divergence, Improved = training.ContrastiveDivergence, training.ImprovedContrastiveDivergence


def prepare(objective, model=None):
    objective.begin(Net(3) if model is None else model, context(4, (2,)))
    return objective


def labelled(label):
    return batch_of(data(4, 2), kind=torch.tensor([0, 1, 2, label]))


PLANE = ce.as_energy(lambda x, y: x.sum(1) * y)
MALE_AND_HAIR = training.AttributeHeads({"male": 2, "hair": 3}, 0.1, 1.0)
test_bad_input_is_reported = refusals(
    (lambda: Divergence(steps=0), "steps must be a whole number of at least 1, got 0"),
    (lambda: Divergence(steps=1, start="data"), "persistent=False"),
    (lambda: prepare(Divergence(steps=1)), "langevin needs step_size"),
    (lambda: prepare(Divergence(**LANGEVIN), nn.Linear(2, 1)), "trains an energy, got Linear"),
    (lambda: prepare(Divergence(**LANGEVIN, start="normal"), Net().on(constraints.positive)), "Chains start outside of the support of"),
    (lambda: Divergence(**LANGEVIN).loss(Net(), batch_of(data(4, 2))), "is not prepared"),
    (lambda: prepare(Divergence(**LANGEVIN, condition="hair")).loss(Net(3), labelled(0)), "no attribute hair; they have kind"),
    (lambda: prepare(Divergence(**LANGEVIN, condition="kind")).loss(Net(3), labelled(-1)), "kind is unknown"),
    (lambda: prepare(Divergence(**LANGEVIN)).loss(Net(), training.Batch(data(2, 2), {}, Noise(0, (1, 3), 1))), "must be consecutive"),
    (lambda: training.DenoisingScoreMatching(0.0, 1.0), "sigma_min must be a positive number, got 0.0"),
    (lambda: training.DenoisingScoreMatching(2.0, 1.0), "0 < sigma_min <= sigma_max, got 2.0 and 1.0"),
    (lambda: training.AttributeHeads({"male": 1}, 0.1, 1.0), "The number of values of male must be a whole number of at least 2, got 1"),
    (lambda: training.AttributeHeads({"kind": 2}, 0.1, 1.0).loss(Heads(1), labelled(0)), "kind has values from 0 to 1, .* 0 to 2"),
    (lambda: training.AttributeHeads({"kind": 3}, 0.1, 1.0).loss(Heads(3), labelled(-2)), "got -2 to 2"),
    (lambda: training.AttributeHeads({"kind": 3}, 0.1, 1.0).loss(Heads(3), batch_of(data(4, 2), kind=data(4))), "whole numbers with shape"),
    (lambda: training.DenoisingScoreMatching(0.1, 1.0).loss(Net(), labelled(0)), "Net does not depend on the noise level"),
    (lambda: prepare(Divergence(**LANGEVIN, condition="kind")).loss(Bell(), labelled(0)), "Bell does not depend on y"),
    (lambda: prepare(Improved(steps=1, options={"step_size": 1, "metric": torch.ones(2)})), "supports no metric"),
    (lambda: prepare(Improved(**LANGEVIN), Net().on(constraints.positive)), "no energy with a support"),
    (lambda: prepare(Improved(**IMPROVED, buffer=7)).loss(Net(), labelled(0)), "two slots a row, has 7"),
    (lambda: prepare(training.JointEnergyClassifier(**LANGEVIN)), "needs a method `logits"),
    (lambda: prepare(training.JointEnergyClassifier(**LANGEVIN, label="kind"), Joint()).loss(Joint(), labelled(3)), "from 0 to 2, or"),
    (lambda: training.NoiseContrastive(torch.distributions.Normal(0.0, 1.0)), "another NoiseDistribution, got Normal"),
    (lambda: Divergence(**LANGEVIN).loss(PLANE, labelled(0)), "depends on y: give the objective `condition=`, .* which have 'kind'"),
    (lambda: training.GaussianNoise(torch.zeros(2), 1.0), r"scale must have shape \(2, 2\)"),
    (lambda: training.GaussianNoise(torch.zeros(2), torch.zeros(2, 2)), "positive diagonal"),
    (lambda: training.GaussianNoise(torch.zeros(2), torch.full((2, 2), 0.5)), "lower triangular"),
    (lambda: training.GaussianNoise.fit(torch.zeros(5, 2)), "singular"),
    (lambda: training.GaussianNoise.fit(torch.arange(10).view(5, 2)), r"shape \(5, 2\) of torch.int64"),
    (lambda: training.FlowNoise.fit([[0.0], [1.0]]), "finite and floating.*got list"),
    (lambda: training.FlowNoise.fit(data(50, 2), batch_size=0), "batch_size must be"),
    (lambda: training.FlowNoise.fit(data(3, 2)), "at least four, got 3"),
    (lambda: prepare(Divergence(**LANGEVIN, fresh="often")), "fresh must be"),
    (lambda: training.DiffusionRecoveryLikelihood(0.1, 1.0, ratio=1.0), "ratio must be a number"),
    (lambda: training.EnergyMatching(**MATCHING, cutoff=1.0), "cutoff must be a number from 0 to below 1, got 1.0"),
    (lambda: training.EnergyMatching(**MATCHING, coupling=3).loss(Net(), labelled(0)), "Rows 0 to 3 cannot be divided into groups of 3"),
    (lambda: training.EnergyMatching(**MATCHING, coupling=2).loss(Net(), batch_of(data(4))), r"points of shape \(B, 2\), got \(4,\)"),
    (lambda: training.LabelContrast("kind", classes=[1]), r"at least two classes, got \[1\]"),
    (lambda: training.LabelContrast("kind", classes=[0, 1]).loss(Net(3), labelled(0)), r"kind has the class 2, but classes are \[0, 1\]"),
    (lambda: training.LabelContrast("kind").begin(Net(3), context(4, (2,), range(2))), "give `classes`"),
    (lambda: training.LabelContrast("size").loss(Net(3), batch_of(data(4, 2), size=data(4))), r"shape \(B,\); size has .* torch.float64"),
    (lambda: training.LabelContrast("kind").loss(Net(3), batch_of(data(4, 2), kind=torch.zeros(4, 1).long())), r"kind has shape \(4, 1\)"),
    (lambda: training.NoiseContrastive(NOISE).loss(Net(), batch_of(data(4, 3))), r"points of shape \(2,\), got points of shape \(3,\)"),
    (lambda: MALE_AND_HAIR.loss(Heads(5), labelled(0)), r"male \(2\), hair \(3\) need logits of shape \(4, 4\), one .* got \(4, 5\)"),
    error=ce.errors.ComposableEnergyError,
)


def test_chains_stay_within_the_support_of_an_energy():
    model = Net().on(constraints.positive)
    assert (prepare(Divergence(**LANGEVIN), model).draw(model, batch_of(data(4, 2)), {}, 5).x > 0).all()


def test_with_draws_of_the_model_the_gradient_is_that_of_the_likelihood():
    """At the model N(mean, 1/p): dE/dmean = -p (x - mean) and dE/dlog p = p (x - mean)^2 / 2."""
    rows, model, exact = 20_000, Bell(0.5, 4.0), lambda like, noise: 0.5 + noise.normal(like) / 2
    objective = training.ContrastiveDivergence(steps=2, sampler="mala", options={"step_size": 0.1}, start=exact, persistent=False, l2=0.0)
    objective.begin(model, context(rows))
    x = data(rows, 1) + 1
    by_mean, by_precision = gradients(model, objective.loss(model, batch_of(x)))
    of_data = -4 * (x - 0.5).mean(), 2 * (x - 0.5).square().mean()
    assert abs(by_mean - (of_data[0] - 0)) < 4 * 2 / math.sqrt(rows)  # the standard deviation of p (x' - mean) is 2
    assert abs(by_precision - (of_data[1] - 0.5)) < 4 * math.sqrt(0.5 / rows)


def test_chains_are_those_of_sample_without_dropout_and_the_model_is_as_before():
    model, x, filters = Net(dropout=0.5), data(4, 2), set()
    model.register_forward_pre_hook(lambda *_: filters.update(map(str, warnings.filters)))  # those of other threads, too
    objective = training.ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0)
    objective.begin(model, context(4, (2,)))
    began, batch = objective.state()["slots"].clone(), batch_of(x)
    loss = objective.loss(model, batch)
    assert filters == set(map(str, warnings.filters)) and all(parameter.requires_grad for parameter in model.parameters())
    assert model.training and all(part.training for part in model.modules())
    ended = model.sample((4, 2), sampler="langevin", steps=3, step_size=0.1, init=began, seed=batch.noise.child("chains 1").seed)
    assert torch.equal(objective.state()["slots"], ended) and not loss.scalars["energy"].requires_grad and loss.value.requires_grad
    assert not torch.equal(objective.loss(model, batch_of(x, 1)).value, objective.loss(model, batch_of(x, 2)).value)


def test_a_run_whose_energy_is_not_that_of_the_data_warns():
    x = data(200, 2).float()
    noise, chains = training.NoiseContrastive(training.GaussianNoise.fit(x + 20)), Divergence(**LANGEVIN, buffer=128)
    for objective, points in ((chains, x + 5), (noise, x + 20), (training.EnergyDiscrepancy(1e-6), x)):
        with pytest.warns(training.TrainingWarning, match="Scale data to about mean 0"):
            training.Trainer(training.MLPEnergy(2), objective, points, steps=50, callbacks=[training.Monitor(gap=None)]).fit()


def test_the_loss_and_its_scalars_are_those_of_the_formula():
    model, x = Net(), data(4, 2)
    objective = training.ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0, l2=0.7)
    objective.begin(model, context(4, (2,)))
    loss, here, there = objective.loss(model, batch_of(x)), model(x), model(chains := objective.state()["slots"])
    torch.testing.assert_close(loss.value, (here - there).mean() + 0.7 * (here.square() + there.square()).mean())
    results = {"energy": here.mean(), "energy_negative": there.mean(), "gap": (there - here).mean()}
    results |= {"magnitude": torch.cat([here, there]).abs().mean(), "spread": torch.stack([here, there]).var(1, correction=0).mean().sqrt()}
    width, other = (points.var(0, correction=0).sum().sqrt() for points in (x, chains))
    shift = ((x.mean(0) - chains.mean(0)).square().sum() - (width**2 + other**2) / 4).clamp_min(0).sqrt()
    results |= {"diverged": torch.zeros((), dtype=torch.float64), "distance": shift.hypot(other - width) / width}
    torch.testing.assert_close(dict(loss.scalars), {name: value.detach() for name, value in results.items()})


def test_acceptance_is_reported_for_samplers_that_reject():
    objective = Divergence(steps=2, sampler="mala", options={"step_size": 0.5}, buffer=4)
    objective.begin(Net(), context(4, (2,)))
    assert 0.5 < objective.loss(Net(), batch_of(data(4, 2))).scalars["acceptance"] <= 1
    assert objective.loss(Cliff(-math.inf), batch_of(data(4, 2))).scalars["acceptance"] == 0  # all processes report the same names


class Cliff(ce.Energy):
    """Not a number beyond an edge."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.slope, self.edge = nn.Parameter(torch.ones((), dtype=torch.float64)), edge

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < self.edge, self.slope * x.square().sum(1), torch.nan)


@pytest.mark.parametrize("edge", [0.5, -math.inf])
def test_a_chain_that_diverges_starts_again_and_the_others_continue(edge):
    rows, model = 40, Cliff(edge)
    start = lambda like, noise: noise.uniform(like)[:, None] if noise.step == 0 else torch.full_like(like, -0.25)
    objective = training.ContrastiveDivergence(steps=1, options={"step_size": 1e-12}, buffer=rows, fresh=0.0, start=start)
    objective.begin(model, context(rows))
    lost = objective.state()["slots"][:, 0] >= edge
    loss = objective.loss(model, batch_of(torch.full((rows, 1), -0.1, dtype=torch.float64)))
    assert loss.scalars["diverged"] == lost.double().mean() > 0 and torch.equal(objective.state()["slots"][:, 0] == -0.25, lost)
    assert loss.value.isfinite() == (edge > 0)  # without any finite energy the step is skipped


class Slopes(ce.Energy):
    """Points of one number around a plane over their condition, two numbers; its slopes are learnt."""

    def __init__(self, *slopes: float) -> None:
        super().__init__()
        self.event_shape = (1,)
        self.slopes = nn.Parameter(torch.tensor(slopes, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x[:, 0] - y @ self.slopes).square() / 2


@pytest.mark.parametrize("kind", [training.ContrastiveDivergence, training.ImprovedContrastiveDivergence])
def test_a_condition_of_numbers_binds_each_chain_to_its_row(kind):
    """Without noise each step moves a chain towards its row's mean by the factor 1 - step / 2."""
    spot, x, model, options = data(4, 2, seed=1), data(4, 1), Slopes(0.5, -1.0), {"step_size": 0.4, "temperature": 0.0}
    objective = kind(steps=3, options=options, buffer=8, fresh=0.0, start=lambda like, noise: like + 5, condition="spot", l2=0.0)
    objective.begin(model, context(4))
    loss, middle = objective.loss(model, batch_of(x, spot=spot)), spot @ model.slopes.detach()
    expected, slots = middle + 0.8**3 * (5 - middle), objective.state()["slots"][:, 0]
    torch.testing.assert_close(slots[slots != 5], expected)  # one of each row's two slots
    torch.testing.assert_close(loss.scalars["gap"], ((expected - middle).square() - (x[:, 0] - middle).square()).mean() / 2)
    refused(OptionError, r"spot is unknown \(NaN\)", objective.loss, model, batch_of(x, spot=spot.where(spot > 0, torch.nan)))


def improved_once(model, x, step=50, **settings):
    """Returns the loss of a step, the points before the last step of chains, its noise, their nearest others, and those kept."""
    objective = training.ImprovedContrastiveDivergence(**{**IMPROVED, "buffer": 30, "entropy_after": 0, **settings})
    objective.begin(model, context(6, (2,)))
    batch, buffer = batch_of(x, step), objective.replay
    assert buffer is not None
    before = buffer.state()["slots"].clone()
    slots, chains = buffer.draw(batch.noise)
    noise = batch.noise.child(f"chains {step}")
    walk = lambda steps: model.sample((6, 2), sampler="langevin", steps=steps, init=chains, seed=noise.seed, **IMPROVED["options"])
    moved, nearest = walk(2), buffer.nearest(walk(3), slots, batch.noise)
    assert torch.equal(buffer.state()["slots"], before)
    return objective.loss(model, batch), moved, noise.at(3).normal(x), nearest, objective.state()["slots"][slots]


def last_step_by_hand(model, moved, kick):
    y = moved.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(y).sum(), y, create_graph=True)
    return (y - 0.15 * gradient + math.sqrt(0.3 * 0.5) * kick).clamp(-0.8, 0.8)


def test_the_chains_of_the_improved_objective_are_those_of_langevin():
    model, x = Net(), data(6, 2)
    _, moved, kick, _, kept = improved_once(model, x)
    assert torch.equal(kept, last_step_by_hand(model, moved, kick).detach())
    settings: dict[str, Any] = {**IMPROVED, "buffer": 30, "condition": "kind"}
    model, kind = Net(labels=3, dropout=0.5), torch.arange(6) % 3
    whole = training.ImprovedContrastiveDivergence(**settings), training.ContrastiveDivergence(**settings)
    for objective in whole:
        objective.begin(model, context(6, (2,)))
        for step in (1, 2):
            objective.loss(model, batch_of(x, step, kind=kind))
    torch.testing.assert_close(*(objective.state()["slots"] for objective in whole), rtol=0, atol=1e-13)


def test_the_terms_of_the_last_step_reach_the_parameters_through_the_points_alone():
    x, model, held = data(6, 2), Net(), Net()
    held.requires_grad_(False)
    loss, moved, kick, nearest, _ = improved_once(model, x, kl=0.7, entropy=0.4, l2=1.0)
    last = last_step_by_hand(model, moved, kick)
    far, here, there = (last - nearest).norm(dim=1).log().mean(), model(x), model(last.detach())
    expected = (here - there).mean() + (here.square() + there.square()).mean() + 0.7 * held(last).mean() - 0.4 * far
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.scalars["kl"], held(last).mean().detach())
    torch.testing.assert_close(loss.scalars["log_distance"], far.detach())
    for grad, wanted in zip(gradients(model, loss), gradients(model, training.Loss(expected)), strict=True):
        torch.testing.assert_close(grad, wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("condition", [None, "kind"])
def test_two_processes_give_the_improved_gradients_of_one(condition):
    rows, x, labels = 6, data(6, 2), torch.arange(6) % 3

    def run(share):
        model, results = Net(labels=3, dropout=0.0), []
        objective = training.ImprovedContrastiveDivergence(**{**IMPROVED, "fresh": 0.3}, buffer=31, entropy_after=0, condition=condition)
        objective.begin(model, context(rows, (2,), share))
        for step in (1, 2, 3):
            loss = objective.loss(model, batch_of(x[share.start : share.stop], step, share, kind=labels[share.start : share.stop]))
            results += [grad * len(share) / rows for grad in gradients(model, loss)]
        assert model.training and all(parameter.requires_grad for parameter in model.parameters())
        return results

    for grad, one, other in zip(*(run(share) for share in (range(rows), range(2), range(2, rows))), strict=True):
        torch.testing.assert_close(one + other, grad, rtol=0, atol=1e-12)


def test_heads_take_the_cross_entropy_of_known_labels():
    rows, model, objective = 8, Heads(5), training.AttributeHeads({"male": 2, "hair": 3, "smiling": 2}, 0.1, 1.0)
    labels: dict[str, Any] = {
        "smiling": torch.tensor([0, 1, -1, 1, 0, 0, 1, -1]),
        "male": torch.tensor([1, 0, 1, -1, 0, 1, 0, 1]),
        "hair": torch.tensor([2, 1, 0, 2, -1, -1, 1, 0]),
    }
    batch = batch_of(data(rows, 2), **labels)
    loss = objective.loss(model, batch)
    levels = torch.exp(batch.noise.child("level").uniform(batch.x) * math.log(10) + math.log(0.1))
    logits = model(batch.x + levels[:, None] * batch.noise.child("noise").normal(batch.x), levels)
    total, right, known = 0.0, 0, 0
    for row in range(rows):
        male, hair, smiling = logits[row, 0], logits[row, 1:4], logits[row, 4]
        for name, logit in (("male", male), ("smiling", smiling)):
            label = int(labels[name][row])
            if label >= 0:
                total = total - F.logsigmoid(logit if label else -logit)
                right, known = right + int((logit > 0) == bool(label)), known + 1
        if labels["hair"][row] >= 0:
            total = total - hair.log_softmax(0)[labels["hair"][row]]
            right, known = right + int(hair.argmax() == labels["hair"][row]), known + 1
    torch.testing.assert_close(loss.value, torch.as_tensor(total / rows))
    assert loss.scalars["accuracy"].item() == pytest.approx(right / known)


def test_unknown_labels_alone_have_no_loss():
    nothing = training.AttributeHeads({"male": 2}, 0.1, 1.0).loss(Heads(1), batch_of(data(3, 2), male=torch.full((3,), -1)))
    assert nothing.value == 0 and nothing.scalars["accuracy"] == 0


def test_a_joint_loss_is_the_divergence_and_the_cross_entropy():
    model, x, labels = Joint(), data(4, 2), torch.tensor([0, 2, -1, 1])
    settings: dict[str, Any] = {**LANGEVIN, "buffer": 8, "l2": 0.0}
    joint, plain = training.JointEnergyClassifier(**settings, label="kind", weight=0.5), training.ContrastiveDivergence(**settings)
    for objective in (joint, plain):
        objective.begin(model, context(4, (2,)))
    loss, divergence = joint.loss(model, batch_of(x, kind=labels)), plain.loss(model, batch_of(x))
    known = [0, 1, 3]
    torch.testing.assert_close(loss.value, divergence.value + 0.5 * -model.logits(x).log_softmax(1)[known, labels[known]].sum() / 4)
    assert loss.scalars["accuracy"] == (model.logits(x).argmax(1) == labels)[known].double().mean()
    assert torch.equal(joint.state()["slots"], plain.state()["slots"])
    joint.restore(plain.state())


def points(rows: int, dims: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Returns points and their numbers."""
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(rows, dims, generator=generator, dtype=torch.float64)
    return SLOPE * v + SPREAD * torch.randn(rows, dims, generator=generator, dtype=torch.float64), v


class Line(nn.Module):
    """Means `gain * x` and log widths `log_width`, at all levels alike."""

    def __init__(self, gain: float = 0.0, log_width: float = 0.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain, dtype=torch.float64))
        self.log_width = nn.Parameter(torch.tensor(log_width, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return torch.cat([self.gain * x, self.log_width.expand_as(x)], 1)


def test_heads_become_the_posterior_of_a_linear_gaussian():
    r"""With $x = a v + s \eta$ and a level $\sigma$, $v$ given $x$ has mean $a x / (a^2 + s^2 + \sigma^2)$."""
    sigma, rows = 0.7, 20_000
    x, v = points(rows)
    model, objective = Line(), training.ValueHeads("v", 2, sigma, sigma)
    solver = torch.optim.LBFGS(model.parameters(), max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        solver.zero_grad()
        value = objective.loss(model, batch_of(x, v=v)).value
        value.backward()
        return value

    solver.step(closure)  # pyright: ignore[reportArgumentType]
    variance = SLOPE**2 + SPREAD**2 + sigma**2
    width = math.sqrt((SPREAD**2 + sigma**2) / variance)
    assert abs(model.gain.item() - SLOPE / variance) < 5 * width / math.sqrt(variance * 2 * rows)
    assert abs(model.log_width.item() - math.log(width)) < 5 / math.sqrt(2 * 2 * rows)
    assert abs(objective.loss(model, batch_of(x, v=v)).scalars["error"] - width) < 5 * width / math.sqrt(2 * 2 * rows)


def test_the_loss_is_the_evidence_of_the_energies_that_heads_become():
    sigma, (x, v) = 0.3, points(50)
    model = Line(0.4, -0.5)
    loss = training.ValueHeads("v", 2, sigma, sigma).loss(model, batch_of(x, v=v))
    noisy = x + sigma * Noise(3, range(50), 1).child("noise").normal(x)
    head = ce.GaussianHead(lambda x: model(x, torch.full((len(x),), sigma)), dims=2)
    assert torch.allclose(loss.value, head(v).evidence(noisy).mean() - math.log(2 * math.pi)) and loss.scalars["likelihood"] == loss.value


def test_rows_without_numbers_add_nothing():
    x, v = points(40)
    model, objective = Line(0.3, -0.2), training.ValueHeads("v", 2, 0.5, 0.5)
    known, lacking = objective.loss(model, batch_of(x[:20], v=v[:20])), v.clone()
    lacking[20:, 0] = math.nan
    some = objective.loss(model, batch_of(x, v=lacking))
    assert torch.allclose(some.value, known.value / 2) and torch.allclose(some.scalars["error"], known.scalars["error"])
    of_some, of_known = (torch.autograd.grad(loss.value, list(model.parameters())) for loss in (some, known))
    assert torch.allclose(torch.stack(of_some), torch.stack(of_known) / 2)
    none = objective.loss(model, batch_of(x, v=torch.full_like(v, math.nan)))
    assert none.value == 0 and none.scalars["error"] == 0
    single = training.ValueHeads("v", 1, 0.5, 1.0)  # one number needs no axis
    assert single.loss(model, batch_of(x[:, :1], v=v[:, 0])).value == single.loss(model, batch_of(x[:, :1], v=v[:, :1])).value


test_numbers_that_do_not_fit_are_reported = refusals(
    (2, {"v": torch.zeros(4, 3)}, 4, ShapeError, r"v has shape \(4, 3\); expected \(4, 2\) for 2 numbers"),
    (2, {"v": torch.zeros(4)}, 4, ShapeError, r"v has shape \(4, 1\); expected \(4, 2\)"),
    (2, {"v": torch.zeros(4, 2)}, 2, ShapeError, r"The model returned shape \(4, 2\); expected \(4, 4\)"),
    (2, {"w": torch.zeros(4, 2)}, 4, OptionError, "The data have no attribute v; they have w"),
    call=lambda dims, labels, columns: training.ValueHeads("v", dims, 0.1, 1.0).loss(Heads(columns), batch_of(data(4, 2), **labels)),
)


def test_an_unknown_number_is_reported():
    x, v = points(4)
    v[2, 1] = math.nan
    energy = ce.as_energy(lambda x, y, sigma: (x - y).square().sum(1) / (1 + sigma))
    refused(OptionError, r"v is unknown \(NaN\)", training.DenoisingScoreMatching(0.1, 1.0, condition="v").loss, energy, batch_of(x, v=v))


class Single(Net):
    """A network of float32, with a noise level and logits."""

    def __init__(self) -> None:
        super().__init__(labels=3)
        self.float()

    def forward(self, x: Tensor, y: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        return super().forward(x, y) * (1 if sigma is None else sigma)

    def logits(self, x: Tensor) -> Tensor:
        return self.layers(x) * torch.arange(3.0)


@pytest.mark.parametrize(
    "objective",
    [
        training.ContrastiveDivergence(**LANGEVIN, condition="kind"),
        training.ImprovedContrastiveDivergence(**LANGEVIN, entropy_after=0),
        training.DenoisingScoreMatching(0.1, 1.0),
        training.JointEnergyClassifier(**LANGEVIN, label="kind"),
        training.EnergyDiscrepancy(0.5),
        training.NoiseContrastive(training.GaussianNoise(torch.zeros(2), torch.eye(2))),
        training.DiffusionRecoveryLikelihood(0.1, 1.0, steps=3),
        training.EnergyMatching(**MATCHING, steps=3, coupling=2),
        training.LabelContrast("kind"),
    ],
)
def test_networks_may_compute_in_half_precision(objective):
    model, batch = Single(), batch_of(data(4, 2).float(), kind=torch.tensor([0, 1, 2, 1]))
    results = []
    for half in (False, True):
        objective.begin(model, context(4, (2,), dtype=torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective.loss(model, batch)
        assert loss.value.dtype == torch.float32
        assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in loss.scalars.values())
        # The monitor watches the gap of chains; what an objective without them learns has another name.
        margin = isinstance(objective, training.EnergyDiscrepancy | training.NoiseContrastive | training.LabelContrast)
        assert ("margin" in loss.scalars) == margin and not (margin and "gap" in loss.scalars)
        results.append(torch.cat([grad.flatten() for grad in gradients(model, loss)]))
    assert (results[0] - results[1]).norm() < 0.05 * results[0].norm()


@pytest.mark.parametrize(("points", "weights"), [*itertools.permutations(("bfloat16", "float32", "float64"), 2)])
def test_data_and_noise_may_have_another_dtype_than_the_model(points, weights):
    x, model = data(64, 2).to(getattr(torch, points)), training.MLPEnergy(2).to(getattr(torch, weights))
    noises = [training.NoiseContrastive(noise) for noise in (training.GaussianNoise.fit(x), training.FlowNoise.fit(x, steps=1))]
    for objective in (*noises, training.EnergyMatching(**MATCHING, steps=2)):
        assert math.isfinite(training.Trainer(model, objective, x, steps=1, batch_size=16).fit().scalars["loss"])
