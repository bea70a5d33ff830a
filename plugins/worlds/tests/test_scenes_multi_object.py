"""Several objects: codes of patches, the evidence of a position, the detector, and the counts of experiments."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import composable_energy as ce
from benchmarks.papers.compositional_2020.several_objects import conjunction, match_objects, requested_places, scores
from composable_energy.errors import ExtraNotInstalled, ShapeError
from composable_energy.testing import check_energy
from composable_energy_scenes import network_trainer, train_multi_object
from composable_energy_scenes.detector import Detector, detect_objects
from composable_energy_scenes.multi_object import MultiObjectEnergies, load_detector, load_multi_object
from composable_energy_scenes.patches import PatchEnergy
from composable_energy_scenes.presence import CELLS, PlaceHead, Presence, cell_of
from tests.precision import train_in_float32


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


class TestPatches:
    @pytest.mark.slow
    def test_the_base_keeps_the_contract(self, base, codes):
        check_energy(base, codes)


class TestPresence:
    def test_places_with_noise_are_reported_by_cells(self):
        position = torch.tensor([[-1.0, -1.0], [1.0, 1.0], [0.99, -0.99], [0.01, 0.01], [-3.0, 3.0]])
        assert cell_of(position).tolist() == [0, 255, 15, 8 * 16 + 8, 240]
        middles = Presence(ConstantHead(torch.zeros(256)), PatchEnergy()).middles
        assert torch.equal(cell_of(middles), torch.arange(CELLS**2))

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
        with pytest.raises(ShapeError, match="two numbers"):
            presence.given(c=torch.zeros(1, 3))(codes)
        assert torch.equal(presence.near([0.0, 0.3]).evidence(codes), presence.given(c=places[:1]).evidence(codes))
        inferred = presence.infer(codes, over={"c": places}).log_probabilities
        assert torch.allclose(inferred, (-expected).log_softmax(1), atol=1e-3)

    @pytest.mark.slow
    def test_it_keeps_the_contract(self, base, codes):
        presence = Presence(stirred(PlaceHead()), base)
        check_energy(presence.given(c=torch.tensor([[0.3, -0.2]])).at(0.5), codes)


class TestDetector:
    def test_of_two_near_ones_the_surer_counts(self):
        detector = Detector().eval()
        last = detector.read[-1]
        assert isinstance(last, nn.Linear)
        with torch.no_grad():
            last.weight.zero_()
            told = last.bias.view(64, 3)
            told.zero_()
            told[:, 0] = -9.0
            told[[0, 9, 63], 0] = torch.tensor([1.0, 2.0, 0.5])  # cells of the corner, of its neighbor across, and of the far corner
            told[63, 1:] = 0.25
        (found,) = detect_objects(torch.rand(1, 3, 64, 64), detector)
        assert torch.allclose(found, torch.tensor([[-0.625, -0.625], [-0.875, -0.875], [0.9375, 0.9375]]))
        with torch.no_grad():
            told[0, 1:] = 0.5
        (found,) = detect_objects(torch.rand(1, 3, 64, 64), detector)
        assert torch.allclose(found, torch.tensor([[-0.625, -0.625], [0.9375, 0.9375]]))
        with pytest.raises(ShapeError, match="64, 64"):
            detect_objects(torch.rand(1, 3, 32, 32), detector)


class TestCounting:
    def test_as_many_places_as_can_be_have_an_object(self):
        """The nearest object of the first place is the only one of the second."""
        asked = torch.tensor([[0.0, 0.0], [0.6, 0.0]])
        assert match_objects(torch.tensor([[0.3, 0.0], [-0.35, 0.1]]), asked).tolist() == [True, True]
        near = match_objects(torch.tensor([[0.3, 0.0], [0.0, 0.41]]), asked)
        assert near.sum() == 1

    def test_missing_and_extra_objects(self):
        asked = torch.tensor([[[0.0, 0.0], [0.6, 0.0]]] * 3)
        found = [asked[0], asked[0][:1], torch.cat([asked[0], torch.tensor([[-0.9, -0.9]])])]
        told = scores(found, asked)
        assert told["all found"] == pytest.approx(2 / 3) and told["each found"] == pytest.approx(5 / 6)
        assert scores([asked[0][:0]] * 3, asked)["all found"] == 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Every training at a thousandth of the effort, by the command."""
    folder = tmp_path_factory.mktemp("made")
    try:
        with pytest.MonkeyPatch.context() as patch:
            train_in_float32(patch, network_trainer)
            train_multi_object.main(["--out", str(folder), "--effort", "0.001"])
    except ExtraNotInstalled as error:
        pytest.skip(str(error))
    return folder


@pytest.mark.full
def test_the_command_makes_all_weights_and_the_energies_read_them(made):
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
