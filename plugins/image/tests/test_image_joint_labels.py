"""Combinations of attributes as one variable, and bases that know how pictures were changed."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from composable_energy.sampling.noise import Noise
from composable_energy_image.code_energy import AugmentedCodeNetwork, CodeNetwork
from composable_energy_image.data import Labels
from composable_energy_image.data.distortion import Distortion
from composable_energy_image.label_columns import JointHeads, find_joint_labels
from composable_energy_training import Batch


def labels_of(rows: list[tuple[int, ...]], counts: tuple[int, ...]) -> dict[str, Labels]:
    columns = torch.tensor(rows).T
    return {f"v{i}": Labels(columns[i].contiguous(), tuple(map(str, range(count)))) for i, count in enumerate(counts)}


@pytest.mark.parametrize(
    ("rows", "counts", "together"),
    [
        ([(0, 1), (1, 0)] * 40, (2, 2), True),  # one excludes the other
        ([(0, 1), (1, 0), (1, 1)] * 40, (2, 2), False),  # three of four combinations
        ([(0, 1), (1, 0)] * 19, (2, 2), False),  # 19 pictures of each
        ([(0, 1), (1, 0), (-1, 0)] * 40, (2, 2), True),  # unknown values do not count
        ([(0,), (1,)] * 40, (2,), False),  # a single attribute
        ([(-1, 0), (1, -1)] * 40, (2, 2), False),  # no picture is known
        ([(0, 1), (1, 0)] * 40, (2, 300), False),  # too many combinations
    ],
)
def test_attributes_are_learnt_together_if_few_combinations_occur(rows, counts, together):
    assert (find_joint_labels(labels_of(rows, counts)) is not None) == together


def test_the_loss_is_the_log_probability_of_what_is_known():
    logits = torch.randn(3, 6)
    labels = {"a": torch.tensor([1, -1, 0]), "b": torch.tensor([2, 0, -1])}
    batch = Batch(torch.zeros(3, 4), labels, Noise(0, range(3), step=1))
    loss = JointHeads({"a": 2, "b": 3}, 0.1, 1.0).loss(lambda x, sigma: logits, batch)  # pyright: ignore[reportArgumentType]
    p = logits.softmax(1)
    expected = -torch.stack([p[0, 5], p[1, 0] + p[1, 3], p[2, :3].sum()]).log().mean()
    torch.testing.assert_close(loss.value, expected)


IMAGES = torch.rand(6, 1, 16, 16, generator=torch.Generator().manual_seed(0))
NOISE = Noise(3, range(6))


def test_the_written_network_is_the_energy_of_unchanged_pictures():
    torch.manual_seed(0)
    augmented = AugmentedCodeNetwork(4, 7, width=16, blocks=2)
    for parameter in augmented.parameters():
        nn.init.normal_(parameter, std=0.3)  # the last layers begin with zeros
    plain = CodeNetwork(4, width=16, blocks=2)
    augmented.write_unchanged(plain)
    z, sigma = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.full((5,), 0.3)
    torch.testing.assert_close(plain(z, sigma=sigma), augmented(z, sigma=sigma, y=torch.zeros(5, 7)))
    assert not torch.allclose(plain(z, sigma=sigma), augmented(z, sigma=sigma, y=torch.ones(5, 7)))


def test_no_change_leaves_pictures_as_they_are():
    distortion = Distortion(rotation=20, zoom=0.2, shift=0.1, bend=0.05)
    changes = distortion.draw(IMAGES, NOISE)
    assert changes.shape == (6, Distortion.NUMBERS)
    torch.testing.assert_close(distortion.apply(IMAGES, torch.zeros_like(changes)), IMAGES)
    assert torch.equal(distortion.apply(IMAGES, changes), distortion(IMAGES, NOISE))


def test_numbers_of_a_change_that_is_off_are_zero():
    changes = Distortion(rotation=20).draw(IMAGES, NOISE)
    assert bool(changes[:, 0].all()) and not changes[:, 1:].any()
    assert bool(Distortion(bend=0.05).draw(IMAGES, NOISE)[:, 5:].all())
