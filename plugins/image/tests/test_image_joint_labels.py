"""Combinations of attributes as one variable."""

from __future__ import annotations

import pytest
import torch

from composable_energy.sampling.noise import Noise
from composable_energy_image.data import Labels
from composable_energy_image.joint_labels import JointHeads, find_joint_labels
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
