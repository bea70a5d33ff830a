"""The families of real pictures and the pipeline of small faces: what is shipped and shared, its judge, its training, and files."""

import importlib.util
from pathlib import Path

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from composable_energy_faces import draw
from composable_energy_pictures import WEIGHTS, Clothes, Letters
from composable_energy_small_faces import ANY_FACE, PIPELINE, class_of, judge_small, shrink
from composable_energy_small_faces.train import train_pipeline

FAMILIES = {"fashion": (Clothes(), 28), "type": (Letters(), 64)}
with_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the extra diffusers")


@pytest.mark.parametrize("name", FAMILIES)
def test_all_members_are_those_of_the_file_and_share_base_heads_and_decoder(name):
    family, size = FAMILIES[name]
    base, *events = map(family.load, (None, *family.members()))
    assert {str(term) for term in ce.load(WEIGHTS / name).terms} == {"base", *family.members()}
    assert [str(event) for event in events] == list(family.members()) and str(base) == name
    assert all(event.base is base and event.logits is events[0].logits and event.decoder is base.decoder for event in events)
    assert base.decoder(torch.zeros(2, 64)).shape == (2, 1, size, size)
    with pytest.raises(PluginNotFound, match=family.members()[0]):
        family.load("striped")


def test_members_by_name_have_one_base_and_come_back_from_a_file(tmp_path):
    energy = ce.load("fashion/dress") & ~ce.load("fashion/wide") & ce.load("fashion")
    energy.save(tmp_path)
    codes = energy.latents.sample(3, seed=0)
    assert len(energy.bases) == 1 and energy(codes).dtype == torch.float32 and torch.equal(ce.load(tmp_path)(codes), energy(codes))
    assert not torch.equal(energy(codes), (ce.load("fashion/dress") & ce.load("fashion/wide"))(codes))


@pytest.mark.slow
@pytest.mark.parametrize(("text", "least"), [("fashion/trousers", 0.9), ("type/letter=o", 0.8)])
def test_pictures_are_read_as_what_was_asked_for(text, least):
    energy, other = ce.load(text), ce.load(text.partition("/")[0])
    for asked, low, high in ((energy, least, 1), (other, 0, 0.5)):
        pictures = asked.sample(16, seed=0)
        assert pictures.min() >= 0 and pictures.max() <= 1
        assert low <= (-energy.evidence(energy.decoder.encode(pictures))).exp().mean() <= high


def test_the_judge_of_small_faces_is_right_on_drawn_faces():
    faces = draw(200, seed=3)
    verdict = judge_small(shrink(faces.images))
    assert ((verdict.attributes == (faces.attributes > 0.5)).float().mean(0) > 0.98).all()
    assert (verdict.hair == faces.hair).float().mean() > 0.98


@pytest.mark.full
@with_diffusers
def test_expressions_over_the_shipped_pipeline_are_obeyed():
    files = [path for path in PIPELINE.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 10e6 and not [path for path in files if path.suffix in (".bin", ".pt", ".py")]
    faces = ce.load(f"diffusers:{PIPELINE}", unconditional=ANY_FACE)
    male, serious = (faces.concept(class_label=class_of(name, present)) for name, present in (("male", True), ("smiling", False)))
    verdict = judge_small((male & serious).sharpened(3).sample(12, sampler="sde", levels=10, seed=0))
    assert (verdict["male"] & ~verdict["smiling"]).float().mean() > 0.7


@pytest.mark.full
@with_diffusers
def test_the_pipeline_is_trained_and_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr("composable_energy_faces.data.PART", 64)
    options = {"effort": 0.001}
    first = train_pipeline(tmp_path, **options)
    weights = first / "unet" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    Path(weights).unlink()
    assert train_pipeline(tmp_path, **options) == first and weights.read_bytes() == before  # from the last checkpoint
    energy = ce.load(f"diffusers:{first}", unconditional=ANY_FACE)
    assert energy.event_shape == (3, 32, 32) and energy.conditions == {"sigma", "class_label"}
