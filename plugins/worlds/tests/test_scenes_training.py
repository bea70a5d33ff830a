"""Training of scenes: worlds are rendered once, and the command writes each network in the format that the concepts read."""

import json

import pytest
import torch

from composable_energy.errors import ExtraNotInstalled, OptionError, ShapeError
from composable_energy_image import CodeEnergy, network_training
from composable_energy_scenes import Concepts, load_judge, train, weights
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.one_object import OneObject
from plugins.training.tests.run_helpers import train_in_float32

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every training at a thousandth of the effort, by the command."""
    try:
        OneObject().draw(1)
    except ExtraNotInstalled as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        train_in_float32(patch, network_training)
        train.main(["--out", str(folder), "--effort", "0.001"])
    return folder


@pytest.mark.full
def test_the_command_makes_all_weights_and_finds_them_done(made, monkeypatch, tmp_path):
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    train_in_float32(monkeypatch, network_training)
    names = {"judge", "autoencoder", "base", "position", "size", "light", "color", "shape", "of_position", "of_color"}
    first = {path.stem: path.read_bytes() for path in (made / "weights").glob("*.safetensors")}
    assert first.keys() == names
    report = json.loads((made / "report.json").read_text())
    assert report["trainings"].keys() == names | {"decoder", "base_refined"} and set(report["judge"]) == {"renders", "autoencoder"}
    train.main(["--out", str(made), "--effort", "0.001", "--install"])
    assert {path.stem: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == first


@pytest.mark.full
def test_concepts_share_a_base_and_sample(made):
    concepts = Concepts(made / "weights")
    asked = concepts.position.near((0.5, 0.5), 0.2) & ~concepts.color("red") & concepts.shape("box", "sphere") & concepts.size(0.5)
    assert [base.energy for base in asked.bases] == [concepts.base]
    images = asked.sample(2, seed=0, levels=3)
    assert images.shape == (2, 3, 64, 64) and load_judge(made / "weights")(images).shape == (2, 16)


@pytest.mark.full
def test_a_conditional_energy_begins_as_the_base_and_ends_as_another(made):
    concepts = Concepts(made / "weights")
    codes = torch.randn(5, 48)
    untold = ConditionalEnergy(concepts.base, dims=2)
    assert torch.allclose(untold(codes, y=torch.rand(5, 2), sigma=0.3), concepts.base(codes, sigma=0.3), atol=1e-4)
    here, there = (concepts.of_position(where)(codes, sigma=0.3) for where in ((0.5, 0.5), (-0.5, 0.5)))
    assert (here != there).all()
    assert (concepts.of_color("red")(codes) == concepts.of_color(torch.zeros(5, dtype=torch.int64))(codes)).all()
    with pytest.raises(OptionError, match="no color 'pink'; known are red"):
        concepts.color("pink")
    with pytest.raises(ShapeError, match=r"takes 2 numbers as y, got values of shape \(3,\)"):
        untold(codes, y=torch.rand(5, 3))
    for none in (8, 1.5):
        with pytest.raises(OptionError, match=rf"takes classes from 0 to 7 as y, got \[{none}\]"):
            concepts.of_color()(codes, y=none)


def test_a_condition_is_added_to_a_balanced_network_and_to_no_mixture():
    torch.manual_seed(0)
    base, codes = CodeEnergy(16, code=4, width=8, blocks=1, balanced=True), torch.randn(5, 4)
    for parameter in base.net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.testing.assert_close(ConditionalEnergy(base, dims=2)(codes, y=torch.rand(5, 2), sigma=2.0), base(codes, sigma=2.0))
    with pytest.raises(OptionError, match=r"is a mixture, which has no network to copy: train a base with model\.components=0"):
        ConditionalEnergy(CodeEnergy(16, code=4, components=2), dims=2)
