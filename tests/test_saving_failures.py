"""Saving that fails: what cannot be saved is named, and the previous folder is kept."""

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, StorageError
from tests.saving_energies import Picture, Tempered, X, normal, people

pytestmark = pytest.mark.usefixtures("saving_registry")


@pytest.mark.parametrize(
    ("energy", "message"),
    [
        (lambda: ce.as_energy(lambda x: x.sum(1)), "is a bare function and cannot be saved: code is not data"),
        (lambda: ce.as_energy(nn.Linear(2, 1), name="net") & normal(), "net is a bare Linear"),
        (lambda: ce.ClassifierEnergy(nn.Linear(2, 3), 1, normal()), "ClassifierEnergy.logits is a Linear that no plug-in built"),
        (lambda: ce.ClassifierEnergy(lambda x: x, 1, normal()), "ClassifierEnergy.logits is a function"),
        (lambda: Picture().pull_back(nn.Linear(2, 2)), "decoder is a Linear that no plug-in built"),
        (lambda: Unlisted(), "has no `config"),
        (lambda: Nameless(), "no plug-in offers its class Nameless"),
        (lambda: ce.as_energy(td.RelaxedBernoulli(torch.tensor(1.0), torch.tensor([0.5]))), "A RelaxedBernoulli cannot be saved"),
        (
            lambda: ce.get("energy", "tempered", inner=normal(), scale=2.0).given() & Tempered(ce.as_energy(lambda x: x.sum(1)), 1.0),
            "bare function",
        ),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_written(energy, message, tmp_path):
    with pytest.raises(ExpressionError, match=message):
        energy().save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == [] or not (tmp_path / "saved").exists()


class Unlisted(ce.Energy):
    def forward(self, x):
        return x.sum(1)


class Nameless(Unlisted):
    def config(self):
        return {}


def test_only_energies_are_saved(tmp_path):
    with pytest.raises(TypeError, match="as_energy"):
        ce.save(torch.zeros(2), tmp_path / "saved")  # pyright: ignore[reportArgumentType]


def test_a_save_replaces_a_save_and_nothing_else(tmp_path):
    normal().save(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine")
    normal(1.0).save(str(tmp_path / "a" / "b"))
    assert ce.load(str(tmp_path / "a" / "b"))(X).equal(normal(1.0)(X))
    assert (tmp_path / "a" / "b" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError):
        normal().save(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_tensors_that_cannot_be_written_are_errors(tmp_path):
    male = people("male")[0]
    male.logits.register_buffer("odd", torch.eye(2).to_sparse())
    with pytest.raises(ExpressionError, match="cannot be written"):
        male.save(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
