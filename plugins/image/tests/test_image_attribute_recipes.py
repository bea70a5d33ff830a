"""The recipes `base-and-attributes` and `attribute`, from a folder of pictures to expressions."""

import json

import pytest
import torch
from PIL import Image

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_cli import main
from composable_energy_image import Autoencoder
from composable_energy_image.attribute import attribute
from composable_energy_image.base_and_attributes import base_and_attributes
from composable_energy_image.data import Pictures
from composable_energy_image.pipeline import STAGES, AttributePipeline
from plugins.image.tests.picture_files import pictures_of

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

SMALL = {
    "model.code": 8,
    "model.width": 16,
    "model.blocks": 1,
    "model.heads_width": 16,
    "model.heads_blocks": 1,
    "training.precision": "float32",
    "small.copies": 2,
    **{f"{stage}.{name}": value for stage in STAGES for name, value in (("steps", 3), ("batch_size", 8))},
}


def write_folder(folder, pictures: Pictures):
    folder.mkdir()
    lines = [",".join(["file", *pictures.labels])]
    for row, pixels in enumerate(pictures.pixels):
        Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).save(folder / f"{row}.png")
        lines.append(",".join([f"{row}.png", *(some.names[int(some.values[row])] for some in pictures.labels.values())]))
    if pictures.labels:
        (folder / "labels.csv").write_text("\n".join(lines))
    return folder


class TestRecipes:
    @pytest.mark.full
    def test_a_run_leaves_energies_that_compose(self, tmp_path):
        recipe, pictures = base_and_attributes().with_changes(SMALL), pictures_of(40)
        for some in pictures.labels.values():
            some.values[[3, 17]] = -1  # of two pictures nothing is known
        pictures.labels["left"].values[20:] = -1
        out = recipe.train(pictures, tmp_path / "run")
        names = ["base", "bright", "left", "tint=blue", "tint=green", "tint=red"]
        assert sorted(path.name for path in out.iterdir()) == sorted([*names, "samples.png", "report.json", "recipe.toml", "stages"])
        with Image.open(out / "samples.png") as sheet:
            assert sheet.size == (8 * 18, len(names) * 18)
        report = json.loads((out / "report.json").read_text())
        assert report["energies"] == names and report["held_out_accuracy"].keys() == {"bright", "left", "tint"}
        assert {stage: costs["steps"] for stage, costs in report["stages"].items()} == dict.fromkeys(STAGES, 3)
        base, bright, left = (ce.load(out / name) for name in ("base", "bright", "left"))
        assert len((bright & left & base).bases) == 1 and len((bright & left).formula.variables) == 2
        assert bright.recommended == base.recommended and bright.recommended.sampler == "annealed"  # pyright: ignore
        z = torch.randn(5, 8)
        expected = base(z) + bright.evidence(z) + (~left).evidence(z)
        torch.testing.assert_close((bright & ~left)(z), expected)
        tints = [ce.load(out / f"tint={name}") for name in ("blue", "green", "red")]
        assert ce.any_of(*tints).evidence(z).abs().max() < 1e-5
        assert (bright & ~left).sample(2, seed=0).shape == (2, 3, 16, 16)

    def test_a_small_set_is_augmented_and_keeps_its_labels(self, tmp_path):
        """Codes of changed copies follow those of the pictures, each with the labels of its picture."""
        levels = torch.linspace(0, 1, 24)[:, None, None, None].expand(-1, 3, 16, 16)  # far apart, and with a slope that moves
        pictures, seen = Pictures.from_tensors(0.9 * levels + 0.1 * torch.linspace(0, 1, 16)), {}
        for below in (0, 5000):
            settings = {**base_and_attributes().with_changes({**SMALL, "small.below": below}).settings}
            pipeline = AttributePipeline.open(settings, tmp_path, False).for_pictures(pictures)
            torch.manual_seed(0)
            coder = Autoencoder(16, 3, 8).eval()
            seen[below] = pipeline.encode_training(coder, pictures)
        codes, changes = seen[5000]
        assert len(seen[0][0]) == 24 and seen[0][1] is None and len(codes) == len(changes) == 3 * 24
        assert not changes[:24].any() and bool(changes[24:].any(1).all())
        first, *copies = codes.split(24)
        assert torch.equal(first, seen[0][0])
        for copy in copies:
            assert not torch.equal(copy, first)
            assert (torch.cdist(copy, first).argmin(1) == torch.arange(24)).float().mean() > 0.8

    @pytest.mark.full
    def test_attributes_that_exclude_one_another_are_one_variable(self, tmp_path):
        """Three of the eight combinations occur: the fourth of two attributes has a small probability, and every law is exact."""
        pictures, kind = pictures_of(90), torch.arange(90) % 3
        pictures = Pictures.from_tensors(pictures.images(torch.arange(90)), {"a": kind == 0, "b": kind == 1, "c": kind == 2})
        out = base_and_attributes().with_changes({**SMALL, "heads.steps": 200, "heads.rate": 2e-2}).train(pictures, tmp_path)
        a, b, c = (ce.load(out / name) for name in "abc")
        z = torch.randn(50, 8)
        assert len((a & b & c).formula.variables) == 1
        torch.testing.assert_close((-a.evidence(z)).exp() + (-(~a).evidence(z)).exp(), torch.ones(50))
        assert (-(a & b).evidence(z)).exp().max() < 0.05
        assert (-(a | b | c).evidence(z)).exp().min() > 0.95
        assert json.loads((out / "report.json").read_text())["held_out_accuracy"].keys() == {"a", "b", "c"}

    @pytest.mark.slow
    def test_grey_pictures_without_labels_give_the_base_alone_and_keep_their_size(self, tmp_path, caplog):
        images = pictures_of(20, size=28, channels=1).images(torch.arange(20))
        folder = write_folder(tmp_path / "data", Pictures.from_tensors(images))
        settings = {**SMALL, "data.size": "auto", "data.held_out": 0.0}
        out = base_and_attributes().with_changes(settings).run(folder, tmp_path / "run")
        base = ce.load(out / "base")
        assert base.sample(1, seed=0).shape == (1, 1, 28, 28)
        assert base.decoder.encode(images).shape == (20, 8)
        assert json.loads((out / "report.json").read_text())["energies"] == ["base"]
        assert "The pictures have no attributes, so a base alone is trained; data.labels=FILE.csv names" in caplog.text

    @pytest.mark.full
    def test_the_command_line_from_a_folder_to_a_new_attribute(self, tmp_path, capsys):
        """Two runs without Python: a base with two attributes, and a third that joins it."""
        pictures = pictures_of(40)
        data = write_folder(tmp_path / "data", pictures)
        sets = [word for key, value in SMALL.items() if key.split(".")[0] != "data" for word in ("--set", f"{key}={value}")]
        command = ["train", "--recipe", "base-and-attributes", "--data", str(data), "--out", str(tmp_path / "run"), "--quiet"]
        assert main([*command, *sets, "--set", "data.size=16", "--set", 'data.attributes=["left", "tint"]']) == 0
        new = [*command[:2], "attribute", "--data", str(data), "--quiet", "--steps", "3", "--set", "heads.batch_size=8"]
        for base in ("base", "left"):  # an attribute has the base in it
            sets = ["--set", 'data.attributes=["bright"]', "--set", f"model.base={tmp_path / 'run' / base}"]
            assert main([*new, *sets, "--out", str(tmp_path / f"new-{base}")]) == 0
        assert capsys.readouterr().err == ""
        left, bright = ce.load(tmp_path / "run" / "left"), ce.load(tmp_path / "new-base" / "bright")
        both = left & bright
        assert len(both.bases) == len((both & left).bases) == 1
        assert torch.equal(bright(z := torch.randn(3, 8)), ce.load(tmp_path / "new-left" / "bright")(z))
        assert both.sample(2, seed=0).shape == (2, 3, 16, 16)

    def test_no_held_out_picture_is_a_copy_of_one_that_is_learnt(self, tmp_path, caplog):
        pictures = Pictures.from_tensors(pictures_of(20).images(torch.arange(40) % 20))
        train, test = AttributePipeline.open(base_and_attributes().settings, tmp_path, False).split(pictures)
        assert not {x.tobytes() for x in test.pixels} & {x.tobytes() for x in train.pixels}
        assert f"{40 - len(train) - len(test)} of {40 - len(train)} held-out pictures are copies" in caplog.text

    def test_what_is_no_base_is_refused(self, tmp_path):
        data = write_folder(tmp_path / "data", pictures_of(4))
        with pytest.raises(OptionError, match=r"model\.base=RUN/base"):
            attribute().run(data, tmp_path / "out")
        ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).save(tmp_path / "bowl")
        with pytest.raises(OptionError, match="is neither"):
            attribute().with_changes({"model.base": str(tmp_path / "bowl")}).run(data, tmp_path / "out")
        assert not (tmp_path / "out").exists()
