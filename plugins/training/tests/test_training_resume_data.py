"""Resuming with other data: refused by value, except for rounding and data that reproduce."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from composable_energy.errors import OptionError
from composable_energy_image.data import Pictures
from plugins.training.tests.resume_helpers import same, trainer
from plugins.training.tests.run_helpers import DATA, Stop, StopAt


def changed(data):
    data = data.clone()
    data[17, 1] += 0.25
    return data


def pictures(data):
    return Pictures.from_tensors((data[:, :, None, None] % 1).expand(-1, -1, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data, "a value has changed"),
        (lambda data: (data, {"kind": torch.zeros(40)}), "a value has changed"),
        (lambda data: DataLoader(torch.utils.data.TensorDataset(data), batch_size=7), "differ now"),
        (lambda data: [data[:20], data[20:]], "differ now"),
    ],
    ids=["tensor", "pair", "loader", "list"],
)
def test_data_with_one_other_number_are_refused(tmp_path, make, message):
    with pytest.raises(Stop):
        trainer(tmp_path, data=make(DATA), callbacks=[StopAt(9)]).fit()
    with pytest.raises(OptionError, match=f"trained on other data.*{message}"):
        trainer(tmp_path, data=make(changed(DATA))).fit()
    assert trainer(tmp_path, data=make(DATA)).fit().steps == 12


def test_points_that_are_computed_again_may_differ_by_rounding(tmp_path):
    """The codes of a network do so on another device, or with another number of threads."""
    trainer(tmp_path, steps=4).fit()
    assert trainer(tmp_path, data=DATA * (1 + 1e-6)).fit().steps == 12


def test_another_picture_of_the_same_name_is_refused(tmp_path):
    model = nn.Conv2d(3, 3, 1)
    trainer(tmp_path, model=model, data=pictures(DATA), steps=4).fit()
    with pytest.raises(OptionError, match="trained on other data: a value has changed"):
        trainer(tmp_path, model=model, data=pictures(changed(DATA))).fit()
    assert trainer(tmp_path, model=model, data=pictures(DATA)).fit().steps == 12


def test_other_labels_are_refused(tmp_path):
    trainer(tmp_path, data=(DATA, {"kind": torch.zeros(40)}), steps=4).fit()
    with pytest.raises(OptionError, match="trained on other data"):
        trainer(tmp_path, data=(DATA, {"kind": torch.ones(40)})).fit()


class Augmented(Dataset):
    """Points with noise from a source of random numbers."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return DATA[index] + 0.1 * self.draw()


def shuffled(draw):
    return DataLoader(Augmented(draw), batch_size=7, shuffle=True)


def test_a_loader_that_draws_from_torch_has_the_same_bits(tmp_path):
    """Its items are keyed by epoch and number, so they do not depend on other draws of training."""
    whole = trainer(tmp_path / "whole", data=shuffled(lambda: torch.rand(())))
    whole.fit()
    with pytest.raises(Stop):
        trainer(tmp_path / "cut", data=shuffled(lambda: torch.rand(())), callbacks=[StopAt(10)]).fit()
    again = trainer(tmp_path / "cut", data=shuffled(lambda: torch.rand(())))
    again.fit()
    same(whole.model, again.model)


@pytest.mark.parametrize("draw", [lambda: float(np.random.rand()), random.random], ids=["numpy", "random"])
def test_a_loader_that_draws_from_elsewhere_is_refused(tmp_path, draw):
    with pytest.raises(Stop):
        trainer(tmp_path, data=shuffled(draw), callbacks=[StopAt(10)]).fit()
    with pytest.raises(OptionError, match=r"drawn at random .* Draw from torch's global generator, or key the draws by epoch and index"):
        trainer(tmp_path, data=shuffled(draw)).fit()
