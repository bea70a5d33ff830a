"""Faces and their generator: the kit, damaged weights, samples that the judge accepts, drawn faces; and their training."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import composable_energy as ce
from benchmarks.faces import seen
from benchmarks.faces_conditional import train_conditional
from benchmarks.real.judges import fulfils
from composable_energy.errors import DtypeError, OptionError, PluginNotFound, ShapeError
from composable_energy_cli.parsing import parse
from composable_energy_faces import GeneratedFaces, data, train, train_generator, weights
from composable_energy_faces.data import draw_to
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, draw
from composable_energy_faces.energies import Faces
from composable_energy_faces.export import export, main
from composable_energy_faces.judge import features, frechet_distance, judge, nearest_distances
from composable_energy_faces.mapping import FaceMapping
from composable_energy_faces.networks import Judge
from composable_energy_faces.train import TrainingRun
from composable_energy_faces.train_generator import pairs
from composable_energy_image import Autoencoder, CodeHeads, base_and_attributes, network_training
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.data import open_pictures
from plugins.training.tests.run_helpers import train_in_float32
from tests.refusals import refused


@pytest.fixture(scope="module")
def faces():
    return Faces()


@pytest.fixture(scope="module")
def energies(faces):
    return {name: faces.load(name) for name in faces.members()}


@pytest.fixture(scope="module")
def drawn():
    return draw(400, seed=11)


def test_members_share_base_heads_and_decoder(faces, energies):
    refused(PluginNotFound, "smiling", faces.load, "smilling")
    base = faces.load(None)
    assert all(energy.bases[0].energy is base for energy in energies.values())
    assert all(energy.decoder is base.decoder for energy in energies.values())
    assert len({id(energy.logits) for energy in energies.values()}) == 1


@pytest.mark.slow
def test_hair_colors_exclude_each_other_and_are_all_there_is(energies, drawn, faces):
    codes = faces.load(None).decoder.encode(drawn.images[:50])
    assert ce.any_of(*(energies[f"hair={color}"] for color in HAIR_COLORS)).evidence(codes).abs().max() < 1e-4
    red, others = energies["hair=red"], ~energies["hair=black"] & ~energies["hair=brown"] & ~energies["hair=blond"]
    assert torch.allclose(red.evidence(codes), others.evidence(codes), atol=1e-3, rtol=1e-3)


@pytest.mark.full
def test_codes_have_unit_variance_decode_to_the_same_face_and_are_read_by_the_heads(faces, energies, drawn):
    coder = faces.load(None).decoder
    codes = coder.encode(drawn.images)
    for index, name in enumerate(ATTRIBUTES):
        said = energies[name].evidence(codes) < (~energies[name]).evidence(codes)
        assert (said == (drawn.attributes[:, index] > 0.5)).float().mean() > 0.98, name
    assert (codes.var(0) - 1).abs().max() < 0.6 and abs(codes.var(0).mean() - 1) < 0.1
    pictures = coder(codes)
    assert pictures.min() >= 0 and pictures.max() <= 1 and (pictures - drawn.images).square().mean() < 0.003
    assert (judge(pictures).attributes == (drawn.attributes > 0.5)).float().mean() > 0.99


def test_the_judge_is_right_about_drawn_faces(drawn):
    verdict = judge(drawn.images)
    assert (verdict.attributes == (drawn.attributes > 0.5)).float().mean(0).min() >= 0.995
    assert (verdict.hair == drawn.hair).float().mean() >= 0.995 and torch.equal(verdict["male"], verdict.attributes[:, 0])
    assert torch.equal(verdict["hair=red"], verdict.hair == 3)
    refused(OptionError, "hair=red", lambda: verdict["red"])
    x = drawn.images[:2]
    for error, images in ((ShapeError, x[..., :32]), (DtypeError, x.double()), (DtypeError, x.byte()), (OptionError, 255 * x)):
        refused(error, r"\(B, 3, 64, 64\)|write `x|must lie in \[0, 1\], got", judge, images)
    refused(ShapeError, "two or more; got 1", nearest_distances, x[:1])


@pytest.mark.full
@pytest.mark.parametrize("text", ["(male & smiling) | (~male & glasses)", "hair=red & old & ~glasses"])
def test_samples_obey(text, energies):
    """96 samples each; an acceptance test of 1,000 would be slow, so this asks for what 96 can show."""
    images = parse(text).build(energies).sample(96, seed=3)
    assert images.shape == (96, 3, 64, 64)
    verdict = seen(judge(images))
    assert fulfils(text, verdict).float().mean() >= 0.88
    assert min(fulfils(part, verdict).float().mean() for part in text.split(" | ")) >= 0.25


def test_weights_are_small_and_read_back_alike(tmp_path):
    assert sum(path.stat().st_size for path in weights.FOLDER.glob("*.safetensors")) <= 8 * 2**20
    for build, part in ((Autoencoder, "autoencoder"), (CodeNetwork, "base"), (lambda: CodeHeads(9), "heads"), (Judge, "judge")):
        network = weights.read(build(), part, weights.FOLDER)
        weights.write(network, part, tmp_path)
        again = weights.read(build(), part, tmp_path)
        for name, value in network.state_dict().items():
            assert torch.equal(value, again.state_dict()[name]), name
        assert not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.full
def test_its_pictures_are_faces_of_all_kinds():
    base = GeneratedFaces().base
    refused(PluginNotFound, "fit_attributes", GeneratedFaces().load, "smiling")
    z = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pictures = base.decoder(z)
    assert pictures.shape == (400, 3, 64, 64) and pictures.min() >= 0 and pictures.max() <= 1
    shares = judge(pictures).attributes.float().mean(0)
    assert ((shares > 0.2) & (shares < 0.8)).all(), dict(zip(ATTRIBUTES, shares.tolist(), strict=True))
    drawn = features(draw(400, seed=3).images)
    assert frechet_distance(features(pictures), drawn) < frechet_distance(torch.zeros_like(drawn), drawn) / 3


@pytest.mark.full
def test_the_training_brings_the_mapping_nearer_to_the_flow():
    z, codes = pairs(1_500, levels=8, seed=2)
    assert torch.equal(codes[:5], pairs(1_500, levels=8, seed=2)[1][:5])
    mapping, error = train_generator.train(z, codes, steps=60, batch_size=64)
    assert isinstance(mapping, FaceMapping) and error < codes.square().mean()


@pytest.mark.slow
def test_a_face_depends_on_seed_and_index_alone():
    state = torch.get_rng_state()
    whole, other = draw(150, seed=5), draw(20, seed=1)
    assert torch.equal(state, torch.get_rng_state()) and not torch.allclose(whole.images[:20], other.images, atol=0.1)
    pieces = [draw(n, seed=5, start=start) for start, n in ((0, 1), (1, 7), (8, 100), (108, 42))]
    assert torch.equal(whole.attributes, torch.cat([piece.attributes for piece in pieces]))
    assert torch.equal(whole.hair, torch.cat([piece.hair for piece in pieces]))
    assert torch.allclose(whole.images, torch.cat([piece.images for piece in pieces]), atol=1e-6)


@pytest.mark.slow
def test_attributes_are_fair_and_independent():
    """4,096 coins: means and pairwise correlations within five standard errors, 5 / 64, of fair."""
    faces = draw(4096, seed=4, size=8)
    coins = torch.cat([faces.attributes * 2 - 1, torch.nn.functional.one_hot(faces.hair, 4) * 4.0 - 1], 1)
    assert coins.mean(0)[:5].abs().max() < 5 / 64 and coins.mean(0)[5:].abs().max() < 5 * 3**0.5 / 64
    correlation = torch.corrcoef(coins.T)
    correlation[5:, 5:] = 0  # hair colors exclude each other
    assert correlation.fill_diagonal_(0).abs().max() < 5 / 64


@pytest.mark.slow
def test_fixing_an_attribute_changes_that_alone():
    name = "glasses"
    free, off, on = draw(40, seed=6), draw(40, seed=6, given={name: 0}), draw(40, seed=6, given={name: 1})
    column = ATTRIBUTES.index(name)
    others = [i for i in range(5) if i != column]
    assert off.attributes[:, column].sum() == 0 and on.attributes[:, column].sum() == 40
    assert torch.equal(free.attributes[:, others], on.attributes[:, others])
    had = free.attributes[:, column] == 1
    assert torch.equal(free.images[had], on.images[had]) and torch.equal(free.images[~had], off.images[~had])
    assert ((on.images - off.images).abs().amax(1).flatten(1) > 0.1).sum(1).min() > 40, "the attribute must be well visible"
    for value in range(len(HAIR_COLORS)):
        assert (draw(10, seed=7, given={"hair": value}).hair == value).all()
    for wrong in ({"n": -1}, {"n": 1.5}, {"n": 1, "seed": 0.5}, {"n": 1, "size": 4}, {"n": 1, "given": {"hair": 4}}):
        refused(OptionError, r"must be a whole number of|Cannot fix", draw, **wrong)
    assert draw(0).images.shape == (0, 3, 64, 64)


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
    rows = [f"face-{index:06d}.png,{int(value)}" for index, value in enumerate(faces.attributes[:2, 1])]
    assert (tmp_path / "one" / "attributes.csv").read_text().split() == ["file,smiling", *rows]
    with Image.open(tmp_path / "one" / "face-000000.png") as picture:
        assert picture.size == (16, 16)
    refused(ValueError, "no smilling", export, tmp_path, 1, attributes=["smilling"])


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")  # two draws of untrained energies
def test_the_command_makes_weights_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    """Every stage at a thousandth of the effort; the second call finds all done."""
    monkeypatch.setattr(data, "PART", 60)
    few = base_and_attributes.draw_events  # of two energies of eleven, as the sheet takes seconds
    monkeypatch.setattr(base_and_attributes, "draw_events", lambda energies, count: few(energies[:2], 2))
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "package")
    train_in_float32(monkeypatch, network_training)
    command = ["--out", str(tmp_path / "run"), "--effort", "0.001"]
    train.main(command)
    files = sorted((tmp_path / "run" / "weights").glob("*.safetensors"))
    assert [path.stem for path in files] == ["autoencoder", "base", "heads", "judge"]
    assert json.loads((tmp_path / "run" / "report.json").read_text())["trainings"]["decoder"]["steps"] == 6
    first = [path.read_bytes() for path in files]
    train.main(command)
    assert [path.read_bytes() for path in files] == first and not (tmp_path / "package").exists()
    refused(SystemExit, None, train.main, ["--out", str(tmp_path), "--effort", "0"])
    assert "must be positive" in capsys.readouterr().err


@pytest.mark.full
def test_the_conditional_energy_learns_from_what_it_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "PART", 60)
    network = train_conditional(TrainingRun(tmp_path, 0.0005)).double()
    codes, conditions = torch.randn(3, 64).double(), torch.eye(9)[:3].double()
    told, untold = (network(codes, sigma=0.5, y=share * conditions) for share in (1, 0))
    assert (told != untold).all()
