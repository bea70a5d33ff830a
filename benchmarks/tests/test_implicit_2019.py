"""The experiments with the 2019 paper: splits, networks, summaries."""

import math

import pytest
import torch

from benchmarks.papers.implicit_2019.robustness import right
from benchmarks.papers.implicit_2019.training import DigitEnergy, minimise, split, summary


def test_a_split_divides_the_digits():
    parts = [*vars(split(0)).values()]
    rows = torch.cat([torch.cat([x.flatten(1), y[:, None].float()], 1) for x, y in parts])
    assert [len(x) for x, _ in parts] == [1197, 200, 400] and len(rows.unique(dim=0)) == 1797
    assert not torch.equal(split(0).test[0], split(1).test[0])


def test_minimise_fits():
    torch.manual_seed(0)
    model = DigitEnergy()
    data = torch.rand(32, 1, 8, 8), torch.arange(32) % 10
    minimise(model, lambda x, y: torch.nn.functional.cross_entropy(model.logits(x), y), data, steps=60, seed=0)
    assert torch.nn.functional.cross_entropy(model.logits(data[0]), data[1]) < 1.0 and not model.training


def test_a_picture_counts_if_it_withstands_all_attacks():
    class Sign:
        def predict(self, x):
            return (x[:, 0] > 0).long()

    x = torch.tensor([[1.0], [1.0], [-1.0]])
    assert right(Sign(), [x, torch.tensor([[1.0], [-1.0], [-1.0]])], torch.tensor([1, 1, 1])).tolist() == [True, False, False]


def test_a_summary_has_means_and_deviations():
    found = summary([{"a": 1.0}, {"a": 3.0}])
    assert found == {"a": {"mean": 2.0, "deviation": pytest.approx(math.sqrt(2))}}
    assert summary([{"a": 1.0}]) == {"a": {"mean": 1.0, "deviation": 0.0}}
