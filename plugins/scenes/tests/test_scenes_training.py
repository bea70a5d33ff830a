"""Training: worlds are rendered once, the command makes all weights, and each network is of the kind that the concepts read."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from composable_energy_scenes import Concepts, load_judge, train, weights
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.fitting import Fitting
from composable_energy_scenes.one_object import OneObject

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, FileFormatError


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every training at a thousandth of the effort, by the command."""
    try:
        OneObject().draw(1)
    except ExtraNotInstalled as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("made")
    train.main(["--out", str(folder), "--effort", "0.001"])
    return folder


def test_the_command_makes_all_weights_and_finds_them_done(made, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    names = {"judge", "autoencoder", "base", "position", "size", "light", "color", "shape", "of_position", "of_color"}
    first = {path.stem: path.read_bytes() for path in (made / "weights").glob("*.safetensors")}
    assert first.keys() == names
    report = json.loads((made / "report.json").read_text())
    assert report["trainings"].keys() == names | {"decoder"} and set(report["judge"]) == {"renders", "autoencoder"}
    train.main(["--out", str(made), "--effort", "0.001", "--install"])
    assert {path.stem: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == first


def test_concepts_share_a_base_and_sample(made):
    concepts = Concepts(made / "weights")
    asked = concepts.position.near((0.5, 0.5), 0.2) & ~concepts.color("red") & concepts.shape("box", "sphere") & concepts.size(0.5)
    assert [base.energy for base in asked.bases] == [concepts.base]
    images = asked.sample(2, seed=0)
    assert images.shape == (2, 3, 64, 64) and load_judge(made / "weights")(images).shape == (2, 16)


def test_a_conditional_energy_begins_as_the_base_and_ends_as_another(made):
    concepts = Concepts(made / "weights")
    codes = torch.randn(5, 48)
    untold = ConditionalEnergy(concepts.base, dims=2)
    assert torch.allclose(untold(codes, torch.rand(5, 2), sigma=0.3), concepts.base(codes, sigma=0.3), atol=1e-4)
    here, there = (concepts.of_position(where)(codes, sigma=0.3) for where in ((0.5, 0.5), (-0.5, 0.5)))
    assert (here != there).all()
    assert (concepts.of_color("red")(codes) == concepts.of_color(torch.zeros(5, dtype=torch.int64))(codes)).all()


def test_what_does_not_exist_is_told(made, tmp_path):
    concepts = Concepts(made / "weights")
    with pytest.raises(ValueError, match="no color 'pink'; there are red"):
        concepts.color("pink")
    with pytest.raises(ValueError, match="no shape 3"):
        concepts.shape(3)
    with pytest.raises(FileFormatError, match="Install the package again"):
        Concepts(tmp_path).base  # noqa: B018


def test_a_killed_training_goes_on_to_the_same_bits(tmp_path):
    """A base of random codes, cut off after its first checkpoint, by the trainer that all trainings here use."""
    codes = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 8), np.float32))
    whole, cut = (ce.get_energy("code-base", size=16, code=8, width=16, blocks=1) for _ in range(2))
    cut.load_state_dict(whole.state_dict())
    first = {name: value.clone() for name, value in cut.state_dict().items()}
    Fitting(tmp_path / "whole").base(whole, codes, 510)  # pyright: ignore[reportArgumentType]
    Fitting(tmp_path / "cut").base(cut, codes, 510)  # pyright: ignore[reportArgumentType]
    for checkpoint in sorted((tmp_path / "cut" / "base" / "checkpoints").iterdir())[-1:]:
        assert checkpoint.exists()
    cut.load_state_dict(first)
    Fitting(tmp_path / "cut").base(cut, codes, 510)  # pyright: ignore[reportArgumentType]
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), cut.parameters(), strict=True))
