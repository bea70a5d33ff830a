"""The pipeline of small faces: what is shipped, its judge, and its training."""

import importlib.util
from pathlib import Path

import pytest

import composable_energy as ce
from composable_energy_faces import draw
from composable_energy_small_faces import ANY_FACE, PIPELINE, class_of, judge_small, shrink
from composable_energy_small_faces.train import train_pipeline

with_diffusers = pytest.mark.skipif(importlib.util.find_spec("diffusers") is None, reason="needs the extra diffusers")


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
    images = (male & serious).sharpened(3).sample(12, sampler="sde", levels=10, seed=0)
    verdict = judge_small(images)
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
