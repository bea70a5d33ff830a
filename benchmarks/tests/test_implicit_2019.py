"""The experiments with the 2019 paper: splits, sets of pictures, networks, summaries."""

import math

import pytest
import torch

from benchmarks.papers.implicit_2019.robustness import right
from benchmarks.papers.implicit_2019.training import (
    LEVELS,
    SETS,
    Autoencoder,
    Autoregressive,
    DenoisingEnergy,
    DigitEnergy,
    corrupted,
    minimise,
    split,
    summary,
    unusual_sets,
)


def test_a_split_divides_the_digits():
    parts = [*vars(split(0)).values()]
    rows = torch.cat([torch.cat([x.flatten(1), y[:, None].float()], 1) for x, y in parts])
    assert [len(x) for x, _ in parts] == [1197, 200, 400] and len(rows.unique(dim=0)) == 1797
    assert not torch.equal(split(0).test[0], split(1).test[0])


@pytest.mark.slow
def test_all_pictures_have_the_shape_and_the_levels_of_digits():
    x, y = (part[:40] for part in split(0).test)
    sets = unusual_sets(x, y, 3)
    assert tuple(sets) == SETS
    for pictures in (x, *sets.values()):
        steps = pictures * (LEVELS - 1)
        assert pictures.shape == x.shape and torch.allclose(steps, steps.round(), atol=1e-4)
        assert pictures.min() >= 0 and pictures.max() <= 1
    assert all(torch.equal(sets[name], pictures) for name, pictures in unusual_sets(x, y, 3).items())


def test_corruption_replaces_a_share_of_the_pixels():
    x = torch.full((100, 1, 8, 8), 0.4)  # no level of the digits
    changed = (corrupted(x, 0.3, torch.Generator().manual_seed(0)) != x).double().mean()
    assert abs(changed - 0.3) < 4 * math.sqrt(0.3 * 0.7 / 6400)


def test_networks_have_about_equal_weights():
    counts = [
        sum(parameter.numel() for parameter in network().parameters())
        for network in (DigitEnergy, DenoisingEnergy, Autoencoder, Autoregressive)
    ]
    assert counts[0] == 26_122 and max(counts) / min(counts) < 1.03


@pytest.mark.parametrize("pixel", [0, 20, 63])
def test_the_autoregressive_network_has_probabilities_given_the_pixels_before(pixel):
    torch.manual_seed(0)
    network = Autoregressive().double()
    x = torch.randint(LEVELS, (64,)).double().repeat(LEVELS, 1) / (LEVELS - 1)
    x[:, pixel] = torch.arange(LEVELS).double() / (LEVELS - 1)
    found = network.log_probabilities(x.view(-1, 1, 8, 8)).detach()
    assert float(found[:, pixel].exp().sum()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(found[:, :pixel], found[:1, :pixel]) and not torch.allclose(found[0], found[1])
    assert torch.allclose(found.sum(1), -network(x.view(-1, 1, 8, 8)).detach())


def test_minimise_fits():
    torch.manual_seed(0)
    model = Autoencoder()
    data = torch.rand(32, 1, 8, 8), torch.zeros(32, dtype=torch.int64)
    before = model(data[0]).mean().item()
    minimise(model, lambda x, y: model(x).mean(), data, steps=60, seed=0)
    assert model(data[0]).mean().item() < 0.5 * before and not model.training


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
