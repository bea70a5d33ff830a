"""A base and its attributes: networks, losses, files of weights and the recipes, from a folder to expressions; metrics of pictures."""

import json
import math

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

import composable_energy as ce
from composable_energy.errors import DtypeError, ExpressionError, FileFormatError, OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy.testing import check_energy
from composable_energy_cli import main
from composable_energy_image import Autoencoder, CodeEnergy, CodeHeads
from composable_energy_image.attribute import attribute
from composable_energy_image.attributes import attribute_energies, select_attributes
from composable_energy_image.base_and_attributes import base_and_attributes
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.data import Labels, Pictures
from composable_energy_image.label_columns import JointHeads, count_columns, label_columns, label_loss
from composable_energy_image.metrics import features_of, fidelity, frechet_distance, psnr, ssim
from composable_energy_image.pipeline import STAGES, AttributePipeline
from composable_energy_image.reconstruction import outline_weights, picture_loss
from composable_energy_image.weights import read_weights, write_weights
from composable_energy_training import Batch
from plugins.image.tests.picture_files import pictures_of
from tests.refusals import refusals, refused

F64 = torch.float64


def stirred(module: nn.Module) -> nn.Module:
    """With weights that are not zero anywhere: the last layers of codes' networks begin so."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


class TestNetworks:
    @pytest.mark.parametrize("size", [16, 48, 80, 112, 144, 256])
    def test_pictures_of_any_size_go_to_codes_and_back(self, size):
        coder = Autoencoder(size, 1 + 2 * (size % 32 == 0), code=5, details=8 * (size > 80)).eval()
        images = torch.rand(2, coder.channels, size, size)
        codes = coder.encode(images)
        assert codes.shape == (2, 5) and coder(codes).shape == images.shape
        assert coder(100 * codes).min() >= 0 and coder(100 * codes).max() <= 1
        refused(ShapeError, r"codes of shape \(B, 5\), got \(2, 3\)", coder, codes[:, :3])
        refused(DtypeError, r"torch.uint8: write .*/ 255", coder.encode, images.byte())
        refused(OptionError, r"must lie in \[0, 1\], got .* to 2\d\d.*: write `images / 255`", coder.encode, images * 255)

    @pytest.mark.parametrize("options", [{"size": 15}, {"size": 272}, {"size": 0}, {"channels": 2}, {"code": 0}, {"details": -1}])
    def test_others_are_refused(self, options):
        refused(OptionError, next(iter(options)), Autoencoder, **options)

    def test_a_last_layer_of_all_pixels_reads_across_the_borders_of_blocks(self):
        """What the decoder writes into a block changes pixels of its neighbours."""
        for details, changed in ((0, 4), (2, 6)):
            coder, codes = Autoencoder(64, 1, code=5, details=details), torch.zeros(1, 5)
            before, written = coder.decode(codes), torch.zeros(16 * (details or 1), 16, 16)
            written[:, 8, 8] = 1.0
            coder.to_pixels.register_forward_hook(lambda _, __, found, written=written: found + written)
            assert ((coder.decode(codes) - before).abs()[0, 0] > 1e-4).any(0).sum() == changed

    def test_before_training_the_base_is_that_of_normal_codes(self):
        z, sigma = torch.randn(5, 8), torch.tensor([0.05, 0.1, 1.0, 2.0, 4.0])
        torch.testing.assert_close(CodeNetwork(8)(z, sigma=sigma), z.square().sum(1) / (1 + sigma.square()) / 2)

    def test_without_a_level_it_is_the_lowest(self):
        z = torch.randn(4, 8)
        energy, heads = stirred(CodeEnergy(16, code=8, sigma_min=0.2)), stirred(CodeHeads(2, code=8, sigma_min=0.2))
        assert torch.equal(energy(z), energy.at(0.2)(z)) and not torch.equal(energy(z), energy.at(0.3)(z))
        assert torch.equal(heads(z), heads(z, 0.2))

    @pytest.mark.slow
    def test_a_base_and_attributes_over_it_keep_the_contract(self):
        base = stirred(ce.get("energy", "code-base", size=16, code=8, width=16, blocks=1))
        heads = stirred(ce.get("encoder", "code-heads", outputs=4, code=8, width=16, blocks=1))
        for energy in (base, ce.ClassifierEnergy(heads, 1, base, columns=0), ce.ClassifierEnergy(heads, 2, base, columns=slice(1, 4))):
            check_energy(energy, torch.randn(5, 8))


class TestLosses:
    @pytest.mark.parametrize("channels", [1, 3])
    def test_the_loss_and_its_gradient_are_those_of_its_formula(self, channels):
        torch.manual_seed(0)
        images = torch.rand(3, channels, 16, 12, dtype=torch.float64)
        painted = torch.rand_like(images).requires_grad_()
        error, weight = painted - images, outline_weights(images)
        neighbors = (weight[..., 1:] * error.diff(dim=3).abs()).mean() + (weight[..., 1:, :] * error.diff(dim=2).abs()).mean()
        expected = (weight * (error.abs() + 2 * error.square())).mean() + 0.5 * neighbors
        loss = picture_loss(painted, images)
        torch.testing.assert_close(loss, expected)
        torch.testing.assert_close(torch.autograd.grad(3 * loss, painted), torch.autograd.grad(3 * expected, painted))

    def test_unknown_attributes_do_not_count(self):
        variables = {"round": 2, "color": 3, "old": 2}
        assert label_columns(variables) == {"round": slice(0, 1), "color": slice(1, 4), "old": slice(4, 5)}
        assert count_columns(variables) == 5
        torch.manual_seed(0)
        logits = torch.randn(4, 5)
        labels = {"round": torch.tensor([1, 0, -1, 1]), "color": torch.tensor([2, -1, 0, -1]), "old": torch.full((4,), -1)}
        first = -nn.functional.logsigmoid(torch.stack([logits[0, 0], -logits[1, 0], logits[3, 0]])).mean()
        second = -logits[[0, 2], 1:4].log_softmax(1)[[0, 1], [2, 0]].mean()
        torch.testing.assert_close(label_loss(logits, labels, variables), (first + second) / 3)


class TestAttributes:
    @pytest.mark.parametrize("name", ["base", "Base", "stages", "a/b", ".hidden", ""])
    def test_a_name_that_no_folder_can_have_is_refused(self, name):
        refused(OptionError, "rename", select_attributes, Pictures.from_tensors(torch.rand(2, 3, 16, 16), {name: [0, 1]}), [])

    def test_a_name_of_each_picture_is_no_attribute(self):
        pictures = Pictures.from_tensors(torch.rand(5, 3, 16, 16), {"artist": ["Ann", "Bob", "Cy", "Ann", ""]})
        refused(OptionError, "'artist' has 3 values for 4 pictures", select_attributes, pictures, [])

    def test_two_energies_of_one_name_are_refused_and_a_value_without_pictures_is_named(self, caplog):
        labels = {"hair": Labels(torch.tensor([0, 1]), ("black", "red", "white")), "hair=red": Labels(torch.tensor([0, 1]), ("no", "yes"))}
        pictures = Pictures.from_tensors(torch.rand(2, 3, 16, 16), labels)
        refused(OptionError, "'hair=red' are alike.*: rename one", select_attributes, pictures, [])
        select_attributes(pictures, ["hair"])
        assert "has the value white of hair" in caplog.text

    def test_names_and_columns_are_those_of_the_values(self):
        labels = {"old": Labels(torch.tensor([0, 1]), ("no", "yes")), "sex": Labels(torch.tensor([0, 1]), ("female", "male"))}
        labels["hair"] = Labels(torch.tensor([0, 1]), ("black", "red", "white"))
        base, heads = CodeEnergy(16, code=4, width=8, blocks=0), stirred(CodeHeads(5, code=4, width=8, blocks=0))
        found = {energy.name: energy for energy in attribute_energies(base, heads, labels, None)}
        assert list(found) == ["old", "sex=female", "sex=male", "hair=black", "hair=red", "hair=white"]
        z = torch.randn(6, 4)
        logits = heads(z)
        torch.testing.assert_close(found["sex=female"].evidence(z), -nn.functional.logsigmoid(-logits[:, 1]))
        torch.testing.assert_close(found["hair=white"].evidence(z), -logits[:, 2:].log_softmax(1)[:, 2])
        torch.testing.assert_close((~found["sex=male"]).evidence(z), found["sex=female"].evidence(z))


def test_the_loss_is_the_log_probability_of_what_is_known():
    logits = torch.randn(3, 6)
    batch = Batch(torch.zeros(3, 4), {"a": torch.tensor([1, -1, 0]), "b": torch.tensor([2, 0, -1])}, Noise(0, range(3), step=1))
    loss = JointHeads({"a": 2, "b": 3}, 0.1, 1.0).loss(lambda x, sigma: logits, batch)  # pyright: ignore[reportArgumentType]
    p = logits.softmax(1)
    torch.testing.assert_close(loss.value, -torch.stack([p[0, 5], p[1, 0] + p[1, 3], p[2, :3].sum()]).log().mean())


def network(seed: int, width: int = 5) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 2))
        for value in [*net.parameters(), net[1].get_buffer("running_mean")]:
            nn.init.normal_(value)
    return net


def test_parameters_come_back_rounded_to_half_precision_and_statistics_as_they_were(tmp_path):
    before = network(0)
    write_weights(before, "net", tmp_path)
    after = read_weights(network(1), "net", tmp_path)
    for name, value in before.named_parameters():
        assert torch.equal(after.get_parameter(name), value.half().float()) and not torch.equal(value.half().float(), value)
    assert torch.equal(after[1].get_buffer("running_mean"), before[1].get_buffer("running_mean"))
    assert not after.training and not any(value.requires_grad for value in after.parameters())
    assert {path.name for path in tmp_path.iterdir()} == {"net.safetensors"}


def test_layers_with_other_names_are_reported(tmp_path):
    write_weights(network(0), "net", tmp_path)
    new = load_file(tmp_path / "net.safetensors")
    save_file({f"former.{name[2:]}" if name.startswith("2.") else name: value for name, value in new.items()}, tmp_path / "old.safetensors")
    with pytest.raises(FileFormatError, match=r"differing: \['2.bias', '2.weight', 'former.bias', 'former.weight'\]"):
        read_weights(network(1), "old", tmp_path)


def test_a_file_that_cannot_be_read_is_reported(tmp_path):
    for prepare in (lambda: None, lambda: (tmp_path / "net.safetensors").write_bytes(b"cut")):
        prepare()
        refused(FileFormatError, "Cannot read the weights", read_weights, network(1), "net", tmp_path)


def pictures():
    axis = torch.linspace(0, 1, 24, dtype=F64)
    steps = (axis[:, None] > 0.5).double().expand(24, 24)
    a = torch.stack([torch.outer(axis, axis), (7 * axis[:, None] + 3 * axis).sin() / 2 + 0.5, steps])
    return a[None], (a * 0.8 + 0.1 + 0.05 * torch.cos(40 * axis))[None]


def test_similarity_and_noise_are_those_of_scikit_image():
    # scikit-image 0.26: structural_similarity(gaussian_weights=True, sigma=1.5, use_sample_covariance=False), peak_signal_noise_ratio
    a, b = pictures()
    assert ssim(a, b).item() == pytest.approx(0.7228616161295007, rel=1e-9)
    assert psnr(a, b).item() == pytest.approx(21.026221731713374, rel=1e-9) and ssim(a, a).item() == 1 and psnr(a, a).item() == math.inf


def test_the_frechet_distance_of_gaussians_is_that_of_their_moments():
    points = torch.randn(500, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    points = (points - points.mean(0)) @ torch.linalg.cholesky(torch.cov(points.T)).inverse().T  # mean 0 and covariance 1
    scale, shift = torch.tensor([2.0, 0.5, 1.0], dtype=F64), torch.tensor([1.0, -2.0, 0.0], dtype=F64)
    assert frechet_distance(points, points * scale + shift) == pytest.approx((shift.square().sum() + (scale - 1).square().sum()).item())
    assert frechet_distance(points, points.flip(0)) == pytest.approx(0, abs=1e-9) == frechet_distance(9 * points.T, 9 * points.T)
    assert frechet_distance(points[:, :1].numpy(), 3 * points[:, :1]) == pytest.approx(4)


def test_a_network_of_features_gets_pictures_in_batches():
    a = torch.rand(7, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    sizes = []

    def network(x):
        sizes.append(len(x))
        return x.mean((2, 3))

    assert torch.equal(features_of(network, a, batch_size=3), a.mean((2, 3))) and sizes == [3, 3, 1]
    assert frechet_distance(a, a + 1, network) == pytest.approx(3, rel=1e-5)
    assert torch.equal(features_of(torch.nn.Dropout(), a), a.flatten(1))


def test_draws_of_one_mode_are_precise_and_miss_the_other():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(400, 2, generator=generator)
    truth[200:] += 100
    same = torch.randn(400, 2, generator=generator)
    same[200:] += 100
    assert min(fidelity(same, truth)) > 0.85
    one = fidelity(same[:200], truth)
    assert one.precision > 0.85 and 0.4 < one.recall < 0.55 and 0.4 < one.coverage < 0.55 and fidelity(truth + 1000, truth) == (0, 0, 0, 0)


test_bad_input_is_refused = refusals(
    (lambda: psnr(torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 5)), ShapeError, "two batches"),
    (lambda: ssim(torch.rand(2, 3, 8, 8), torch.rand(2, 3, 8, 8)), ShapeError, "11 pixels"),
    (lambda: psnr(torch.ones(2, 3, 4, 4), torch.ones(2, 3, 4, 4).byte()), DtypeError, "floating numbers in \\[0, 1\\], got torch.uint8"),
    (lambda: ssim(torch.ones(2, 3, 16, 16), torch.ones(2, 3, 16, 16).numpy()), DtypeError, "got float32"),
    (lambda: psnr(torch.full((2, 3, 4, 4), -1.0), torch.ones(2, 3, 4, 4)), OptionError, "must lie in"),
    (lambda: frechet_distance(torch.rand(5, 2), torch.rand(5, 3)), ShapeError, "\\(N, D\\)"),
    (lambda: frechet_distance(torch.full((5, 2), math.nan), torch.rand(5, 2)), ExpressionError, "not finite"),
    (lambda: fidelity(torch.rand(5, 2), torch.rand(5, 2)), ShapeError, "at least 6"),
)


# Recipes

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


@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
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
            assert sheet.size == (8 * 18 - 2, len(names) * 18 - 2)
        report = json.loads((out / "report.json").read_text())
        assert report["energies"] == names and report["held_out_accuracy"].keys() == {"bright", "left", "tint"}
        assert {stage: costs["steps"] for stage, costs in report["stages"].items()} == dict.fromkeys(STAGES, 3) | {"autoencoder": 1}
        base, bright, left = (ce.load(out / name) for name in ("base", "bright", "left"))
        assert len((bright & left & base).bases) == 1 and len((bright & left).formula.variables) == 2
        assert bright.recommended == base.recommended and bright.recommended.sampler == "annealed"  # pyright: ignore
        z = torch.randn(5, 8)
        torch.testing.assert_close((bright & ~left)(z), base(z) + bright.evidence(z) + (~left).evidence(z))
        assert ce.any_of(*[ce.load(out / f"tint={name}") for name in ("blue", "green", "red")]).evidence(z).abs().max() < 1e-5
        assert (bright & ~left).sample(2, seed=0).shape == (2, 3, 16, 16)

    def test_a_small_set_is_augmented_and_keeps_its_labels(self, tmp_path):
        """Codes of changed copies follow those of the pictures, each with the labels of its picture."""
        levels = torch.linspace(0, 1, 24)[:, None, None, None].expand(-1, 3, 16, 16)  # far apart, and with a slope that moves
        pictures, seen = Pictures.from_tensors(0.9 * levels + 0.1 * torch.linspace(0, 1, 16)), {}
        for below in (0, 5000):
            settings = {**base_and_attributes().with_changes({**SMALL, "small.below": below}).settings}
            pipeline = AttributePipeline.open(settings, tmp_path, False).for_pictures(pictures)
            torch.manual_seed(0)
            seen[below] = pipeline.encode_training(Autoencoder(16, 3, 8).eval(), pictures)
        codes, changes = seen[5000]
        assert len(seen[0][0]) == 24 and seen[0][1] is None and len(codes) == len(changes) == 3 * 24
        assert not changes[:24].any() and bool(changes[24:].any(1).all())
        first, *copies = codes.split(24)
        assert torch.equal(first, seen[0][0])
        for copy in copies:
            assert not torch.equal(copy, first) and (torch.cdist(copy, first).argmin(1) == torch.arange(24)).float().mean() > 0.8

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
        assert (-(a & b).evidence(z)).exp().max() < 0.05 and (-(a | b | c).evidence(z)).exp().min() > 0.95
        assert json.loads((out / "report.json").read_text())["held_out_accuracy"].keys() == {"a", "b", "c"}

    @pytest.mark.slow
    def test_grey_pictures_without_labels_give_the_base_alone_and_keep_their_size(self, tmp_path, caplog):
        images = pictures_of(20, size=28, channels=1).images(torch.arange(20))
        folder = write_folder(tmp_path / "data", Pictures.from_tensors(images))
        settings = {**SMALL, "data.size": "auto", "data.held_out": 0.0}
        out = base_and_attributes().with_changes(settings).run(folder, tmp_path / "run")
        base = ce.load(out / "base")
        assert base.sample(1, seed=0).shape == (1, 1, 28, 28) and base.decoder.encode(images).shape == (20, 8)
        assert json.loads((out / "report.json").read_text())["energies"] == ["base"]
        assert "The pictures have no attributes, so a base alone is trained; data.labels=FILE.csv names" in caplog.text

    @pytest.mark.full
    def test_the_command_line_from_a_folder_to_a_new_attribute(self, tmp_path, capsys):
        """Two runs without Python: a base with two attributes, and a third that joins it."""
        data = write_folder(tmp_path / "data", pictures_of(40))
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

    @pytest.mark.parametrize(
        ("name", "value", "told"),
        [("decoder.adversarial", -1.0, "at least 0"), ("autoencoder.batch_size", 1, "at least 2"), ("data.held_out", 1.0, "Set it to 0")],
    )
    def test_a_setting_out_of_range_is_refused(self, tmp_path, name, value, told):
        refused(OptionError, f"{name}.*{told}", base_and_attributes().with_changes({name: value}).train, pictures_of(4), tmp_path / "out")

    def test_what_is_no_base_is_refused(self, tmp_path):
        data = write_folder(tmp_path / "data", pictures_of(4))
        refused(OptionError, r"model\.base=RUN/base", attribute().run, data, tmp_path / "out")
        ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)).save(tmp_path / "bowl")
        for base in (tmp_path / "bowl", tmp_path):  # a folder of energies, none of which is a base
            refused(OptionError, "is neither", attribute().with_changes({"model.base": str(base)}).run, data, tmp_path / "out")
        assert not (tmp_path / "out").exists()
