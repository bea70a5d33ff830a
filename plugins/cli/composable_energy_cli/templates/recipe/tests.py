"""Tests of the recipe: the conformance kit with two steps on random pictures, and its name."""

import tempfile
from pathlib import Path

import numpy as np
import torch
from my_plugin import recipe
from PIL import Image

import composable_energy as ce
from composable_energy.testing import parametrize_with_checks
from composable_energy_training.testing import recipe_checks

torch.set_num_threads(1)  # faster at this size
FOLDER = tempfile.TemporaryDirectory()
for i, picture in enumerate(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)):
    Image.fromarray(picture).save(Path(FOLDER.name) / f"{i}.png")
SHORT = {"training.steps": 2, "training.batch_size": 4, "model.width": 8}


@parametrize_with_checks(recipe_checks(recipe, FOLDER.name, changes=SHORT))
def test_the_recipe_conforms(check):
    check()


def test_it_has_a_name():
    assert ce.get("recipe", "my-plugin").settings == recipe().settings


def test_it_trains_an_energy(tmp_path):
    energy = ce.load(recipe().with_changes(SHORT).run(FOLDER.name, tmp_path / "run"))
    assert energy.event_shape == (3, 16, 16)
