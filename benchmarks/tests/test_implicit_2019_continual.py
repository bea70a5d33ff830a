"""Continual learning and cross-class mapping: data, learners that forget or not, and files of MNIST."""

import math

import pytest
import torch

from benchmarks import handwritten
from benchmarks.handwritten import LabelledPixels, load_digits, train_judge
from benchmarks.papers.implicit_2019 import continual, cross_class
from benchmarks.papers.implicit_2019.continual_learners import CLASSES, LEARNERS, ConditionalEnergy, fit_base, heads
from benchmarks.real.data import Part, RealSet


def points(rows: int = 40, seed: int = 0) -> LabelledPixels:
    """Ten classes of points with 12 numbers, each near a corner of its own."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand(CLASSES, 12, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    labels = torch.arange(CLASSES).repeat(rows)
    x = (corners[labels] + 0.1 * torch.randn(len(labels), 12, generator=generator)).clamp(0, 1)
    return LabelledPixels(x, labels, x[:100], labels[:100], 1 / 16)


def test_digits_are_divided_by_the_seed():
    first, same, other = load_digits(0), load_digits(0), load_digits(1)
    assert first.train.shape == (1397, 64) and first.test.shape == (400, 64)
    assert torch.equal(first.test, same.test) and not torch.equal(first.test, other.test)
    assert first.train.min() >= 0 and first.train.max() == 1


def test_real_sets_are_rows_of_pixels(monkeypatch):
    def part(first: int, rows: int) -> Part:
        return Part(torch.full((rows, 1, 4, 4), first, dtype=torch.uint8), {"digit": torch.arange(rows) % 10})

    real = RealSet("digits", {"digit": 10}, lambda images, marks: {}, {}, part(51, 30), part(102, 20), part(255, 10))
    monkeypatch.setattr(handwritten, "open_set", lambda name, seed: real)
    found = handwritten.load_real("digits", 0)
    assert found.train.shape == (50, 16) and found.test.shape == (10, 16) and found.size == 16
    assert found.train[[0, 30], 0].tolist() == pytest.approx([0.2, 0.4]) and found.test[0, 0] == 1
    assert found.train_labels.tolist() == [*(i % 10 for i in range(30)), *(i % 10 for i in range(20))]


@pytest.mark.full
def test_softmax_forgets_and_an_energy_with_negatives_of_the_present_task_does_not():
    data, found = load_digits(7), {}
    for name in ("softmax", "energy, contrast of classes and noise"):
        found[name] = continual.by_tasks(LEARNERS[name](data.size, 0), data, steps=30)
    softmax, energy = found.values()
    assert len(softmax) == 5 and softmax[0] > 0.9 and softmax[-1] < 0.4 and energy[-1] > 1.5 * softmax[-1]


def test_a_head_that_is_trained_changes_no_other_head():
    data = points()
    learner = heads(0, fit_base(data.train, 0, steps=50))
    before = {name: value.detach().clone() for name, value in learner.model.named_parameters()}
    rows = data.train_labels < 2
    learner.learn((learner.prepare(data.train[rows]), {"digit": data.train_labels[rows]}), 5, (0, 1))
    for name, value in learner.model.named_parameters():
        changed = (value.detach() != before[name]).flatten(1).any(1) if value.ndim > 1 else value.detach() != before[name]
        assert changed.tolist() == [c < 2 for c in range(CLASSES)], name


def test_figures_of_seeds():
    assert continual.spread([0.5, 0.7])["mean"] == pytest.approx(0.6)
    assert continual.spread([0.5, 0.7])["deviation"] == pytest.approx(math.sqrt(0.02))


@pytest.mark.slow
def test_chains_of_another_class_start_at_their_pictures():
    data = points()
    torch.manual_seed(0)
    energy = ConditionalEnergy(data.size)
    with torch.no_grad():
        energy.numbers["mean"].weight.copy_((data.train[:CLASSES] - 0.3) / 10)  # pyright: ignore[reportCallIssue]
    x, target = data.test[:20], (data.test_labels[:20] + 1) % CLASSES
    few, many = (cross_class.moved(energy, x, target, steps) for steps in (1, 60))
    assert 0 < (few - x).norm(dim=1).mean() < (many - x).norm(dim=1).mean()
    judge = train_judge(data.train, data.train_labels, steps=300)
    rows = cross_class.figures(judge, many, x, target)
    assert rows["read as b"] > 0.7 > cross_class.figures(judge, x, x, target)["read as b"]
