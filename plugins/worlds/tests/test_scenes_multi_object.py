"""Energies of scenes and their training by command; several objects: codes of patches, the evidence of a position, the detector."""

import json
import math

import pytest
import torch
from torch import nn

import composable_energy as ce
import composable_energy_scenes as scenes
from benchmarks.papers.compositional_2020.several_objects import conjunction, requested_places
from composable_energy.errors import ExtraNotInstalled, OptionError, ShapeError
from composable_energy.testing import check_energy
from composable_energy_image import CodeEnergy, network_training
from composable_energy_scenes import Concepts, SceneFamily, load_concepts, load_judge, train, train_multi_object
from composable_energy_scenes import weights as shipped
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.judge import detect_objects
from composable_energy_scenes.multi_object import MultiObjectEnergies, load_detector, load_multi_object
from composable_energy_scenes.patches import PatchEnergy
from composable_energy_scenes.presence import CELLS, PlaceHead, Presence, cell_of
from plugins.training.tests.run_helpers import train_in_float32
from tests.refusals import refused


class ConstantHead(nn.Module):
    """A head that gives the same logits whatever the code, plus a little of it."""

    def __init__(self, logits: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, z, sigma=None):
        return self.logits.to(z) + z.flatten(1)[:, :1]


def stirred(module):
    """Weights that begin at zero would hide mistakes."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


@pytest.fixture(scope="module")
def base():
    return stirred(PatchEnergy())


@pytest.fixture(scope="module")
def codes():
    return torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(0))


class TestPresence:
    def test_places_with_noise_are_reported_by_cells(self):
        position = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.99, -0.99], [0.01, 0.01], [-3.0, 3.0]])
        assert cell_of(position).tolist() == [0, 255, 15, 8 * 16 + 8, 240]
        assert torch.equal(cell_of(Presence(ConstantHead(torch.zeros(256)), PatchEnergy()).middles), torch.arange(CELLS**2))

    def test_evidence_is_the_ratio_of_densities_with_a_gaussian_error(self, base, codes):
        """By the formula with plain probabilities, in double precision."""
        generator = torch.Generator().manual_seed(2)
        logits, c, r = torch.randn(256, generator=generator).double(), torch.rand(4, 2, generator=generator).double() * 2 - 1, 0.3
        presence = Presence(ConstantHead(logits), base, radius=r).double()
        normal = torch.exp(-(c[:, None] - presence.middles).square().sum(2) / (2 * r**2)) / (2 * math.pi * r**2)
        expected = -torch.log((normal * logits.softmax(0)).sum(1) / (normal / 256).sum(1))
        assert torch.allclose(presence.given(c=c).evidence(codes.double()), expected)
        base.float()

    def test_half_of_the_objects_there_is_half_the_density_and_both_are_found(self, base, codes):
        """A picture of two objects, and one of the first alone: each object of two costs log 2."""
        first, second = torch.tensor([[-0.5, 0.5]]), torch.tensor([[0.7, -0.3]])
        logits = torch.full((256,), -40.0)
        logits[cell_of(first)] = 0.0
        one = Presence(ConstantHead(logits.clone()), base)
        logits[cell_of(second)] = 0.0
        two = Presence(ConstantHead(logits), base)
        extra = two.given(c=first).evidence(codes) - one.given(c=first).evidence(codes)
        assert torch.allclose(extra, torch.full((4,), math.log(2)), atol=1e-4)
        both = conjunction(two, torch.cat([first, second])[None].expand(4, 2, 2))
        assert torch.allclose(both.evidence(codes), two.given(c=first).evidence(codes) + two.given(c=second).evidence(codes))
        assert [part.energy for part in both.bases] == [base]
        assert (two.given(c=second).evidence(codes) < -3).all() and (one.given(c=second).evidence(codes) > 3).all()

    def test_a_map_is_the_evidence_of_each_place(self, base, codes):
        presence = Presence(stirred(PlaceHead()), base).eval()
        places = torch.tensor([[0.0, 0.3], [-0.8, 1.0], [0.5, 0.5]])
        expected = torch.stack([presence.given(c=place[None]).evidence(codes) for place in places], 1)
        assert torch.allclose(presence.map(codes, places), expected, atol=1e-5)
        refused(ShapeError, "two numbers", presence.given(c=torch.zeros(1, 3)), codes)
        refused(OptionError, r"two finite numbers, got \(nan, 0\)", presence.near, (math.nan, 0))
        assert torch.equal(presence.near([0.0, 0.3]).evidence(codes), presence.given(c=places[:1]).evidence(codes))
        assert torch.allclose(presence.infer(codes, over={"c": places}).log_probabilities, (-expected).log_softmax(1), atol=1e-3)

    @pytest.mark.full
    def test_it_and_its_base_keep_the_contract(self, base, codes):
        check_energy(base, codes)
        check_energy(Presence(stirred(PlaceHead()), base).given(c=torch.tensor([[0.3, -0.2]])).at(0.5), codes)


def made_by(command, folder):
    """Every training at a thousandth of the effort, by the command."""
    try:
        with pytest.MonkeyPatch.context() as patch:
            train_in_float32(patch, network_training)
            command.main(["--out", str(folder), "--effort", "0.001"])
    except ExtraNotInstalled as error:
        pytest.skip(str(error))
    return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return made_by(train, tmp_path_factory.mktemp("one"))


@pytest.mark.full
def test_the_command_makes_all_weights_and_the_energies_read_them(tmp_path):
    made = made_by(train_multi_object, tmp_path)
    first = {path.stem: path.read_bytes() for path in (made / "weights").glob("*.safetensors")}
    assert first.keys() == {"coder", "base", "place", "detector"}
    several = MultiObjectEnergies(made / "weights")
    asked = conjunction(several.presence, requested_places(2, 3, 0)) & ~several.presence.near((0.0, 0.0))
    assert isinstance(asked, ce.Energy) and [part.energy for part in asked.bases] == [several.base]
    images = asked.sample(3, seed=0, levels=3)
    assert images.shape == (3, 3, 64, 64) and len(detect_objects(images, load_detector(made / "weights"))) == 3


def test_the_weights_that_are_shipped_are_those_of_these_networks():
    several = load_multi_object()
    assert several is load_multi_object() and several.base is several.presence.base
    codes = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert several.presence.near((0.5, -0.5))(codes).isfinite().all()
    assert len(detect_objects(several.base.coder(codes), load_detector())) == 2


def test_the_family_lists_its_members_and_shares_their_base():
    family = SceneFamily()
    assert len(family.members()) == len(scenes.COLORS) + len(scenes.KINDS) + 6
    left, red = ce.get("energy", "scenes/left"), ce.get("energy", "scenes/color=red")
    assert len((left & red & ce.get("energy", "scenes")).bases) == 1 and ce.get("energy", "scenes").equals(load_concepts().base)
    refused(ce.errors.PluginNotFound, "'middle'", family.load, "middle")


@pytest.mark.full
def test_an_expression_by_name_means_what_it_says():
    """Thirty-two pictures of a shortened draw: three standard errors below what full draws reach."""
    energy = ce.get("energy", "scenes/left") & ~ce.get("energy", "scenes/color=red") & ce.get("energy", "scenes/small")
    call = {"sampler": "annealed", "levels": 60, "corrector_steps": 2, "delta": 0.3, "max_gradient": 3.0}
    seen = scenes.judge_images(energy.sharpened(4).sample(32, seed=0, **call), load_judge())
    assert ((seen.position[:, 0] < 0.1) & (seen.color != 0) & (seen.size < 0.52)).float().mean() > 0.8


@pytest.mark.full
def test_the_command_makes_all_weights_and_finds_them_done(one, monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "FOLDER", tmp_path)
    train_in_float32(monkeypatch, network_training)
    names = {"judge", "autoencoder", "base", "position", "size", "light", "color", "shape", "of_position", "of_color"}
    first = {path.stem: path.read_bytes() for path in (one / "weights").glob("*.safetensors")}
    assert first.keys() == names
    assert json.loads((one / "report.json").read_text())["trainings"].keys() == names | {"decoder", "base_refined"}
    train.main(["--out", str(one), "--effort", "0.001", "--install"])
    assert {path.stem: path.read_bytes() for path in tmp_path.glob("*.safetensors")} == first


@pytest.mark.full
@pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")
def test_concepts_share_a_base_and_sample(one):
    concepts = Concepts(one / "weights")
    asked = concepts.position.near((0.5, 0.5), 0.2) & ~concepts.color("red") & concepts.shape("box", "sphere") & concepts.size(0.5)
    assert [base.energy for base in asked.bases] == [concepts.base]
    images = asked.sample(2, seed=0, levels=3)
    assert images.shape == (2, 3, 64, 64) and load_judge(one / "weights")(images).shape == (2, 16)


@pytest.mark.full
def test_a_conditional_energy_begins_as_the_base_and_ends_as_another(one):
    concepts = Concepts(one / "weights")
    codes = torch.randn(5, 48)
    untold = ConditionalEnergy(concepts.base, dims=2)
    assert torch.allclose(untold(codes, y=torch.rand(5, 2), sigma=0.3), concepts.base(codes, sigma=0.3), atol=1e-4)
    here, there = (concepts.of_position(where)(codes, sigma=0.3) for where in ((0.5, 0.5), (-0.5, 0.5)))
    assert (here != there).all() and (concepts.of_color("red")(codes) == concepts.of_color(torch.zeros(5, dtype=torch.int64))(codes)).all()
    refused(OptionError, "no color 'pink'; known are red", concepts.color, "pink")
    refused(OptionError, r"two finite numbers, got \(nan, 0\)", concepts.of_position, (math.nan, 0))
    refused(ShapeError, r"takes 2 numbers as y, got values of shape \(3,\)", untold, codes, y=torch.rand(5, 3))
    for none in (8, 1.5):
        refused(OptionError, rf"takes classes from 0 to 7 as y, got \[{none}\]", concepts.of_color(), codes, y=none)


def test_a_condition_is_added_to_a_balanced_network_and_to_no_mixture():
    torch.manual_seed(0)
    base, codes = CodeEnergy(16, code=4, width=8, blocks=1, balanced=True), torch.randn(5, 4)
    for parameter in base.net.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.testing.assert_close(ConditionalEnergy(base, dims=2)(codes, y=torch.rand(5, 2), sigma=2.0), base(codes, sigma=2.0))
    with pytest.raises(OptionError, match=r"is a mixture, which has no network to copy: train a base with model\.components=0"):
        ConditionalEnergy(CodeEnergy(16, code=4, components=2), dims=2)
