"""Improved contrastive divergence: its terms and gradients against hand-written formulas and finite differences."""

import math
from typing import Any

import pytest
import torch

from composable_energy_training import ContrastiveDivergence, ImprovedContrastiveDivergence
from plugins.training.tests.objective_helpers import IMPROVED, Net, batch_of, context, data, gradients


def improved_once(model, x, step=50, **settings):
    """Returns the loss of a step, the points before the last step of chains, its noise, their nearest others, and those kept."""
    objective = ImprovedContrastiveDivergence(**{**IMPROVED, "buffer": 30, "entropy_after": 0, **settings})
    objective.begin(model, context(6, (2,)))
    batch, buffer = batch_of(x, step), objective.replay
    assert buffer is not None
    before = buffer.state()["slots"].clone()
    slots, chains = buffer.draw(batch.noise)
    noise = batch.noise.child(f"chains {step}")
    moved = model.sample((6, 2), sampler="langevin", steps=2, init=chains, seed=noise.seed, **IMPROVED["options"])
    nearest = buffer.nearest(
        model.sample((6, 2), sampler="langevin", steps=3, init=chains, seed=noise.seed, **IMPROVED["options"]), slots, batch.noise
    )
    assert torch.equal(buffer.state()["slots"], before)
    loss = objective.loss(model, batch)
    return loss, moved, noise.at(3).normal(x), nearest, objective.state()["slots"][slots]


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
    whole = ImprovedContrastiveDivergence(**settings), ContrastiveDivergence(**settings)
    for objective in whole:
        objective.begin(model, context(6, (2,)))
        for step in (1, 2):
            objective.loss(model, batch_of(x, step, kind=kind))
    torch.testing.assert_close(*(objective.state()["slots"] for objective in whole), rtol=0, atol=1e-13)


def test_the_terms_of_the_last_step_reach_the_parameters_through_the_points_alone():
    x = data(6, 2)
    model, held = Net(), Net()
    held.requires_grad_(False)
    loss, moved, kick, nearest, _ = improved_once(model, x, kl=0.7, entropy=0.4)
    last = last_step_by_hand(model, moved, kick)
    far = (last - nearest).norm(dim=1).log().mean()
    here, there = model(x), model(last.detach())
    plain = (here - there).mean() + (here.square() + there.square()).mean()
    expected = plain + 0.7 * held(last).mean() - 0.4 * far
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.scalars["kl"], held(last).mean().detach())
    torch.testing.assert_close(loss.scalars["log_distance"], far.detach())
    for grad, wanted in zip(
        gradients(model, loss), torch.autograd.grad(expected, list(model.parameters()), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if wanted is None else wanted, rtol=0, atol=1e-12)


def test_the_improved_gradient_is_that_of_finite_differences():
    x, model, held = data(6, 2), Net(), Net()
    loss, moved, kick, nearest, negative = improved_once(model, x)

    def value():
        last = last_step_by_hand(model, moved, kick).detach()
        here, there = model(x), model(negative)
        plain = (here - there).mean() + (here.square() + there.square()).mean()
        return (plain + held(last).mean() - 0.3 * (last - nearest).norm(dim=1).log().mean()).item()

    for parameter, grad in zip(model.parameters(), gradients(model, loss), strict=True):
        for i in range(0, parameter.numel(), 3):
            flat, size = parameter.data.view(-1), 1e-6
            flat[i] += size
            above = value()
            flat[i] -= 2 * size
            below = value()
            flat[i] += size
            assert abs((above - below) / (2 * size) - grad.view(-1)[i]) < 1e-7


def test_without_its_terms_the_improved_objective_is_the_plain_one():
    x = data(6, 2)
    results = []
    settings: dict[str, Any] = {**IMPROVED, "buffer": 30}
    for objective in (ImprovedContrastiveDivergence(**settings, kl=0.0, entropy=0.0), ContrastiveDivergence(**settings)):
        model = Net()
        objective.begin(model, context(6, (2,)))
        results.append(gradients(model, objective.loss(model, batch_of(x))))
    for improved, plain in zip(*results, strict=True):
        torch.testing.assert_close(improved, plain, rtol=0, atol=1e-13)


def test_the_entropy_joins_once_the_buffer_holds_chains():
    x = data(6, 2)
    for step, joins in ((10, False), (11, True)):
        loss, *_ = improved_once(Net(), x, step, entropy_after=60)
        none, *_ = improved_once(Net(), x, step, entropy=0.0)
        torch.testing.assert_close(loss.value, none.value - joins * 0.3 * loss.scalars["log_distance"])


@pytest.mark.parametrize("condition", [None, "kind"])
def test_two_processes_give_the_improved_gradients_of_one(condition):
    rows, x, labels = 6, data(6, 2), torch.arange(6) % 3

    def run(share):
        model, results = Net(labels=3, dropout=0.0), []
        objective = ImprovedContrastiveDivergence(**{**IMPROVED, "fresh": 0.3}, buffer=31, entropy_after=0, condition=condition)
        objective.begin(model, context(rows, (2,), share))
        for step in (1, 2, 3):
            loss = objective.loss(model, batch_of(x[share.start : share.stop], step, share, kind=labels[share.start : share.stop]))
            results += [grad * len(share) / rows for grad in gradients(model, loss)]
        assert model.training and all(parameter.requires_grad for parameter in model.parameters())
        return results

    for grad, one, other in zip(*(run(share) for share in (range(rows), range(2), range(2, rows))), strict=True):
        torch.testing.assert_close(one + other, grad, rtol=0, atol=1e-12)


def test_one_step_of_the_improved_objective_is_the_last_one():
    model, objective = Net(), ImprovedContrastiveDivergence(**{**IMPROVED, "steps": 1}, buffer=12)
    objective.begin(model, context(6, (2,)))
    before = objective.state()["slots"].clone()
    loss = objective.loss(model, batch_of(data(6, 2)))
    assert loss.value.isfinite() and (objective.state()["slots"] != before).any(1).sum() == 6
