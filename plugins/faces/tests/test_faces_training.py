"""Training of faces: drawn once, conditioned on one attribute, and weights written stage by stage."""

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.faces_conditional import train_conditional
from composable_energy_faces import data, train, weights
from composable_energy_faces.data import draw_to
from composable_energy_faces.draw import HAIR_COLORS, draw
from composable_energy_faces.export import export, main
from composable_energy_faces.training_run import TrainingRun
from composable_energy_image import base_and_attributes, network_training
from composable_energy_image.data import open_pictures
from tests.precision import train_in_float32


def test_drawing_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PART", 20)
    whole = draw_to(tmp_path / "whole", 40, seed=4).pixels.copy()
    draw_to(tmp_path / "killed", 40, seed=4)
    (tmp_path / "killed" / "part-001.safetensors").unlink()
    pixels = np.load(tmp_path / "killed" / "faces.npy", mmap_mode="r+")
    pixels[30:] = 0
    pixels.flush()
    assert np.array_equal(draw_to(tmp_path / "killed", 40, seed=4).pixels, whole)


def test_exported_faces_open_as_anybodys_pictures(tmp_path, capsys):
    main(["--out", str(tmp_path / "faces"), "-n", "7", "--seed", "3", "--size", "16"])
    faces, pictures = draw(7, seed=3, size=16), open_pictures(tmp_path / "faces")
    assert (pictures.images(torch.arange(7)) - faces.images).abs().max() <= 0.5 / 255 + 1e-6
    assert torch.equal(pictures.labels["old"].values, faces.attributes[:, 4].long()) and pictures.labels["old"].binary
    hair = pictures.labels["hair"]
    assert [hair.names[value] for value in hair.values] == [HAIR_COLORS[color] for color in faces.hair]
    export(tmp_path / "one", 2, seed=3, size=16, attributes=["smiling"])
    assert (tmp_path / "one" / "attributes.csv").read_text().split() == [
        "file,smiling",
        *(f"face-{index:06d}.png,{int(value)}" for index, value in enumerate(faces.attributes[:2, 1])),
    ]
    with Image.open(tmp_path / "one" / "face-000000.png") as picture:
        assert picture.size == (16, 16)
    with pytest.raises(ValueError, match="no smilling"):
        export(tmp_path, 1, attributes=["smilling"])


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")  # two draws of untrained energies
def test_the_command_makes_weights_and_a_card_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Every stage at a thousandth of the effort; the second call finds all done."""
    monkeypatch.setattr(data, "PART", 60)
    monkeypatch.setattr(train, "CRITERIA", train.CRITERIA[:1])
    monkeypatch.setattr(train, "TEST_FACES", 20)
    monkeypatch.setattr(base_and_attributes, "DRAWS", 2)
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "package")
    train_in_float32(monkeypatch, network_training)
    command = ["--out", str(tmp_path / "run"), "--effort", "0.001", "--samples", "2"]
    train.main(command)
    files = sorted((tmp_path / "run" / "weights").glob("*.safetensors"))
    assert [path.stem for path in files] == ["autoencoder", "base", "heads", "judge"]
    text = (tmp_path / "run" / "MODEL_CARD.md").read_text()
    assert "--effort 0.001" in text and "| `male` |" in text and "| decoder | 6 |" in text
    first = [path.read_bytes() for path in files]
    train.main(command)
    assert [path.read_bytes() for path in files] == first
    assert not (tmp_path / "package").exists()
    with pytest.raises(SystemExit):
        train.main(["--out", str(tmp_path), "--effort", "0"])
    assert "must be positive" in capsys.readouterr().err


@pytest.mark.full
def test_the_conditional_energy_learns_from_what_it_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PART", 60)
    network = train_conditional(TrainingRun(tmp_path, 0.0005)).double()
    codes, conditions = torch.randn(3, 64).double(), torch.eye(9)[:3].double()
    told, untold = (network(codes, sigma=0.5, y=share * conditions) for share in (1, 0))
    assert (told != untold).all()
