"""Heads of classes and of numbers and the joint classifier: against a hand-written loop and the posterior of a linear Gaussian model."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy_training import AttributeHeads, ContrastiveDivergence, DenoisingScoreMatching, JointEnergyClassifier, ValueHeads
from plugins.training.tests.objective_helpers import LANGEVIN, Heads, Joint, batch_of, context, data
from tests.refusals import refusals

SLOPE, SPREAD = 1.5, 0.4  # x = SLOPE v + SPREAD noise, v standard normal


def test_heads_take_the_cross_entropy_of_known_labels():
    rows, model, objective = 8, Heads(5), AttributeHeads({"male": 2, "hair": 3, "smiling": 2}, 0.1, 1.0)
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
    nothing = AttributeHeads({"male": 2}, 0.1, 1.0).loss(Heads(1), batch_of(data(3, 2), male=torch.full((3,), -1)))
    assert nothing.value == 0 and nothing.scalars["accuracy"] == 0


def test_a_joint_loss_is_the_divergence_and_the_cross_entropy():
    model, x, labels = Joint(), data(4, 2), torch.tensor([0, 2, -1, 1])
    settings: dict[str, Any] = {**LANGEVIN, "buffer": 8, "l2": 0.0}
    joint, plain = JointEnergyClassifier(**settings, label="kind", weight=0.5), ContrastiveDivergence(**settings)
    for objective in (joint, plain):
        objective.begin(model, context(4, (2,)))
    loss, divergence = joint.loss(model, batch_of(x, kind=labels)), plain.loss(model, batch_of(x))
    known = [0, 1, 3]
    named = -model.logits(x).log_softmax(1)[known, labels[known]].sum() / 4
    torch.testing.assert_close(loss.value, divergence.value + 0.5 * named)
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
    model, objective = Line(), ValueHeads("v", 2, sigma, sigma)
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
    scalars = objective.loss(model, batch_of(x, v=v)).scalars
    assert abs(scalars["error"] - width) < 5 * width / math.sqrt(2 * 2 * rows)


def test_the_loss_is_the_evidence_of_the_energies_that_heads_become():
    sigma, (x, v) = 0.3, points(50)
    model = Line(0.4, -0.5)
    loss = ValueHeads("v", 2, sigma, sigma).loss(model, batch_of(x, v=v))
    noisy = x + sigma * Noise(3, range(50), 1).child("noise").normal(x)
    head = ce.GaussianHead(lambda x: model(x, torch.full((len(x),), sigma)), dims=2)
    assert torch.allclose(loss.value, head(v).evidence(noisy).mean() - math.log(2 * math.pi))
    assert loss.scalars["likelihood"] == loss.value


def test_rows_without_numbers_add_nothing():
    x, v = points(40)
    model, objective = Line(0.3, -0.2), ValueHeads("v", 2, 0.5, 0.5)
    known = objective.loss(model, batch_of(x[:20], v=v[:20]))
    lacking = v.clone()
    lacking[20:, 0] = math.nan
    some = objective.loss(model, batch_of(x, v=lacking))
    assert torch.allclose(some.value, known.value / 2)
    assert torch.allclose(some.scalars["error"], known.scalars["error"])
    of_some, of_known = (torch.autograd.grad(loss.value, list(model.parameters())) for loss in (some, known))
    assert torch.allclose(torch.stack(of_some), torch.stack(of_known) / 2)
    none = objective.loss(model, batch_of(x, v=torch.full_like(v, math.nan)))
    assert none.value == 0 and none.scalars["error"] == 0
    single = ValueHeads("v", 1, 0.5, 1.0)  # one number needs no axis
    assert single.loss(model, batch_of(x[:, :1], v=v[:, 0])).value == single.loss(model, batch_of(x[:, :1], v=v[:, :1])).value


test_numbers_that_do_not_fit_are_reported = refusals(
    (2, {"v": torch.zeros(4, 3)}, 4, ShapeError, r"v has shape \(4, 3\); expected \(4, 2\) for 2 numbers"),
    (2, {"v": torch.zeros(4)}, 4, ShapeError, r"v has shape \(4, 1\); expected \(4, 2\)"),
    (2, {"v": torch.zeros(4, 2)}, 2, ShapeError, r"The model returned shape \(4, 2\); expected \(4, 4\)"),
    (2, {"w": torch.zeros(4, 2)}, 4, OptionError, "The data have no attribute v; they have w"),
    call=lambda dims, labels, columns: ValueHeads("v", dims, 0.1, 1.0).loss(Heads(columns), batch_of(torch.zeros(4, 2).double(), **labels)),
)


def test_an_unknown_number_is_reported():
    x, v = points(4)
    v[2, 1] = math.nan
    energy = ce.as_energy(lambda x, y, sigma: (x - y).square().sum(1) / (1 + sigma))
    with pytest.raises(OptionError, match=r"Attribute v is unknown \(NaN\) for some rows"):
        DenoisingScoreMatching(0.1, 1.0, condition="v").loss(energy, batch_of(x, v=v))
