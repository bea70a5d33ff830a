"""Attribute heads and the joint classifier: cross entropy against a hand-written loop."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy_training import AttributeHeads, ContrastiveDivergence, JointEnergyClassifier
from plugins.training.tests.objective_helpers import LANGEVIN, Heads, Joint, batch_of, context, data


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


def test_an_unknown_label_has_no_gradient():
    seen = []

    class Watch(Heads):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(super().forward(x, sigma))
            seen[-1].retain_grad()
            return seen[-1]

    loss = AttributeHeads({"male": 2, "hair": 3}, 0.1, 1.0).loss(
        Watch(4), batch_of(data(3, 2), male=torch.tensor([1, -1, 0]), hair=torch.tensor([-1, 2, -1]))
    )
    loss.value.backward()
    assert seen[0].grad.ne(0).tolist() == [[True, *[False] * 3], [False, *[True] * 3], [True, *[False] * 3]]
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
