"""The autoencoder, the base, heads and losses of a base and its attributes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy.testing import check_energy
from composable_energy_image import Autoencoder, CodeEnergy, CodeHeads
from composable_energy_image.attributes import attribute_energies, select_attributes
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.data import Labels, Pictures
from composable_energy_image.data.preparation import Distortion
from composable_energy_image.label_columns import JointHeads, count_columns, find_joint_labels, label_columns, label_loss
from composable_energy_image.reconstruction import AutoencoderWithLabels, DecoderOnly, Reconstruction, outline_weights, picture_loss
from composable_energy_training import Batch
from plugins.image.tests.picture_files import pictures_of


def stirred(module: nn.Module) -> nn.Module:
    """With weights that are not zero anywhere: the last layers of codes' networks begin so."""
    torch.manual_seed(0)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.1)
    return module.eval()


class TestNetworks:
    @pytest.mark.parametrize("size", [16, 48, 80, 112, 144, 256])
    def test_pictures_of_any_size_go_to_codes_and_back(self, size):
        coder = Autoencoder(size, 1 + 2 * (size % 32 == 0), code=5).eval()
        images = torch.rand(2, coder.channels, size, size)
        codes = coder.encode(images)
        assert codes.shape == (2, 5) and coder(codes).shape == images.shape
        assert coder(100 * codes).min() >= 0 and coder(100 * codes).max() <= 1

    @pytest.mark.parametrize("options", [{"size": 24}, {"size": 272}, {"size": 0}, {"channels": 2}, {"code": 0}])
    def test_others_are_refused(self, options):
        with pytest.raises(OptionError, match=next(iter(options))):
            Autoencoder(**options)

    def test_pictures_of_another_shape_are_reported(self):
        with pytest.raises(ShapeError, match=r"\(B, 3, 16, 16\), got \(2, 3, 32, 32\)"):
            Autoencoder(16).encode(torch.zeros(2, 3, 32, 32))

    def test_before_training_the_base_is_that_of_normal_codes(self):
        z, sigma = torch.randn(5, 8), torch.tensor([0.05, 0.1, 1.0, 2.0, 4.0])
        expected = z.square().sum(1) / (1 + sigma.square()) / 2
        torch.testing.assert_close(CodeNetwork(8)(z, sigma=sigma), expected)

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
    def test_outlines_weigh_more_and_all_pictures_the_same(self):
        flat = torch.full((1, 3, 64, 64), 0.5)
        assert torch.equal(outline_weights(flat), torch.full((1, 1, 64, 64), 0.3))
        small, large = flat.clone(), flat.clone()
        small[..., 30:33, 30:33], large[..., 8:56, 8:56] = 1.0, 1.0
        weights = outline_weights(torch.cat([small, large]))
        assert weights[0].max() > weights[1].max() > 0.9
        assert (weights.sum((1, 2, 3)) / 64**2 - 0.3 < 0.7).all()
        assert (weights[0, 0, 27:35, 30:33] > 0.9).all() and weights[0, 0, 26, 31] == weights[0, 0, 31, 35] == weights[0, 0, 0, 0]

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
        assert (
            label_columns(variables) == {"round": slice(0, 1), "color": slice(1, 4), "old": slice(4, 5)} and count_columns(variables) == 5
        )
        torch.manual_seed(0)
        logits = torch.randn(4, 5)
        labels = {"round": torch.tensor([1, 0, -1, 1]), "color": torch.tensor([2, -1, 0, -1]), "old": torch.full((4,), -1)}
        odds = torch.stack([logits[0, 0], -logits[1, 0], logits[3, 0]])
        first = -nn.functional.logsigmoid(odds).mean()
        second = -logits[[0, 2], 1:4].log_softmax(1)[[0, 1], [2, 0]].mean()
        torch.testing.assert_close(label_loss(logits, labels, variables), (first + second) / 3)

    @pytest.mark.parametrize("whole", [True, False])
    def test_reconstruction_reaches_what_it_should(self, whole):
        torch.manual_seed(0)
        coder, pictures = Autoencoder(16, 3, 8), pictures_of(12)
        variables = {"bright": 2, "left": 2, "tint": 3}
        model = AutoencoderWithLabels(coder, 5) if whole else DecoderOnly(coder)
        weights = {"decorrelation": 0.05, "naming": 0.02} if whole else {}
        objective = Reconstruction(8, variables if whole else {}, noise=0.1, **weights)
        batch = Batch(
            pictures.images(torch.arange(12)), {name: some.values for name, some in pictures.labels.items()}, Noise(0, range(12), 1)
        )
        before = {name: value.clone() for name, value in coder.standardize.state_dict().items()}
        loss = objective.loss(model.train(), batch)
        loss.value.backward()
        assert loss.scalars.keys() == ({"picture", "correlation", "naming"} if whole else {"picture"})
        for name, parameter in model.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
            assert reached == (whole or ".encoder." not in name), name
        moved = any(not torch.equal(value, before[name]) for name, value in coder.standardize.state_dict().items())
        assert moved == whole
        coder.zero_grad()
        again = objective.loss(model.eval(), batch), objective.loss(model.eval(), batch)
        assert again[0].value.equal(again[1].value)


class TestAttributes:
    @pytest.mark.parametrize("name", ["base", "stages", "a/b", ".hidden", ""])
    def test_a_name_that_no_folder_can_have_is_refused(self, name):
        pictures = Pictures.from_tensors(torch.rand(2, 3, 16, 16), {name: [0, 1]})
        with pytest.raises(OptionError, match="rename"):
            select_attributes(pictures, [])

    def test_names_and_columns_are_those_of_the_values(self):
        labels = {"old": Labels(torch.tensor([0, 1]), ("no", "yes")), "sex": Labels(torch.tensor([0, 1]), ("female", "male"))}
        labels["hair"] = Labels(torch.tensor([0, 1]), ("black", "red", "white"))
        base, heads = CodeEnergy(16, code=4, width=8, blocks=0), stirred(CodeHeads(5, code=4, width=8, blocks=0))
        found = {energy.name: energy for energy in attribute_energies(base, heads, labels)}
        assert list(found) == ["old", "sex=female", "sex=male", "hair=black", "hair=red", "hair=white"]
        z = torch.randn(6, 4)
        logits = heads(z)
        torch.testing.assert_close(found["sex=female"].evidence(z), -nn.functional.logsigmoid(-logits[:, 1]))
        torch.testing.assert_close(found["hair=white"].evidence(z), -logits[:, 2:].log_softmax(1)[:, 2])
        torch.testing.assert_close((~found["sex=male"]).evidence(z), found["sex=female"].evidence(z))


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
    augmented = CodeNetwork(4, conditions=7, width=16, blocks=2)
    for parameter in augmented.parameters():
        nn.init.normal_(parameter, std=0.3)  # the last layers begin with zeros
    plain = CodeNetwork(4, width=16, blocks=2)
    augmented.write_unconditioned(plain)
    z, sigma = torch.randn(5, 4, generator=torch.Generator().manual_seed(1)), torch.full((5,), 0.3)
    torch.testing.assert_close(plain(z, sigma=sigma), augmented(z, sigma=sigma, y=torch.zeros(5, 7)))
    assert not torch.allclose(plain(z, sigma=sigma), augmented(z, sigma=sigma, y=torch.ones(5, 7)))


def test_no_change_leaves_pictures_as_they_are():
    distortion = Distortion(rotation=20, zoom=0.2, shift=0.1, bend=0.05)
    changes = distortion.draw(IMAGES, NOISE)
    assert changes.shape == (6, Distortion.NUMBERS)
    torch.testing.assert_close(distortion.apply(IMAGES, torch.zeros_like(changes)), IMAGES)
    assert torch.equal(distortion.apply(IMAGES, changes), distortion(IMAGES, NOISE))
