"""The recipes train, resume after an interruption, and write models that load."""

from __future__ import annotations

import json

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_comet import load_comet
from composable_energy_comet.recipe import CometRecipe
from composable_energy_comet.train import OBJECTS, main, pictures
from composable_energy_image.data import Pictures
from composable_energy_training import open_recipe

SMALL = {"data.size": 16, "quadratic.steps": 4, "conv.steps": 4, "model.components": 2, "training.checkpoint_every": 2}


@pytest.fixture(scope="module")
def few():
    return pictures(24, seed=5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["comet", *(pytest.param(name, marks=pytest.mark.full) for name in ("comet-global", "comet-paper"))])
def test_recipes_are_found_by_name_and_make_their_models(name, few, tmp_path):
    recipe = open_recipe(name)
    assert isinstance(recipe, CometRecipe)
    recipe = recipe.with_changes({**SMALL, "quadratic.batch_size": 4, "conv.batch_size": 4, "conv.filters": 4, "quadratic.filters": 4})
    folder = recipe.train(few, tmp_path / name)
    model = load_comet(folder)
    x = few.images(torch.arange(3))
    assert model.decode(model.encode(x)).shape == x.shape
    assert (tmp_path / name / "decomposition.png").exists()
    report = json.loads((tmp_path / name / "report.json").read_text())
    assert set(report["stages"]) == {"quadratic", "conv"}


@pytest.mark.full
def test_the_recipe_of_windows_trains_the_attention_first(tmp_path):
    few = Pictures(ce.get("world", "colored-sprites", size=32).draw(12, seed=5).images, {}, "sprites")
    small = {"model.components": 3, "model.window": 8, "window.filters": 16, "quadratic.filters": 4, "quadratic.batch_size": 4}
    steps = {"quadratic.steps": 3, "window.steps": 3, "window.batch_size": 4, "window.rate": 1e-12, "data.size": 32}
    recipe = open_recipe("comet-window").with_changes(small | steps)
    found = load_comet(recipe.train(few, tmp_path))
    attention, whole = load_comet(tmp_path / "quadratic").encoder.state_dict(), found.encoder.state_dict()
    for name, value in attention.items():
        torch.testing.assert_close(whole[f"find.{name}"], value)
    assert load_comet(tmp_path / "quadratic").energy.size == 16 and found.energy.size == 32
    assert set(json.loads((tmp_path / "report.json").read_text())["stages"]) == {"quadratic", "window"}
    slow = load_comet(recipe.with_changes({"window.rate": 1e-3}).train(few, tmp_path / "slow")).encoder.state_dict()
    moved = {name: float((value - whole[name]).abs().max()) for name, value in slow.items()}
    assert 1e-5 < max(moved[f"find.{name}"] for name in attention) < 0.2 * max(moved.values())
    with pytest.raises(OptionError, match=r"quadratic.steps and window.steps are both 0"):
        recipe.with_changes({"quadratic.steps": 0, "window.steps": 0}).train(few, tmp_path / "none")


@pytest.mark.full
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(few, tmp_path):
    recipe = open_recipe("comet").with_changes(SMALL)
    whole = recipe.train(few, tmp_path / "whole")
    recipe.with_changes({"conv.steps": 2}).train(few, tmp_path / "cut")
    resumed = recipe.with_changes({"training.checkpoint_every": 2})
    with pytest.raises(OptionError, match=r"conv.steps: there 2, here 4"):
        resumed.train(few, tmp_path / "cut")
    again = recipe.train(few, tmp_path / "whole")
    assert again == whole
    first, second = (load_comet(folder).state_dict() for folder in (whole, tmp_path / "whole" / "comet"))
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.full
def test_the_script_makes_a_model(tmp_path):
    main(["--out", str(tmp_path), "--steps", "3", "--count", "20"])
    assert load_comet(tmp_path / "comet").energy.name == "comet-conv"


def test_what_the_shipped_model_finds():
    """The masks of the model that comes with the package, on pictures that nothing was trained on, and far above quadrants (.78)."""
    from composable_energy_comet.metrics import adjusted_rand_index

    scenes = ce.get("world", "colored-sprites", size=32).draw(48, seed=9, masks=True)
    x = torch.nn.functional.avg_pool2d(torch.from_numpy(scenes.images).float() / 255, 2)
    comet = ce.get("encoder", "comet", weights="sprites")
    labels = comet.masks(x).repeat_interleave(2, 1).repeat_interleave(2, 2)
    assert float(adjusted_rand_index(torch.from_numpy(scenes.masks).long(), labels, foreground=True).mean()) > 0.85


@pytest.mark.full
def test_what_the_shipped_model_of_objects_finds():
    """Masks, reconstructions and the ground of the model of solids, on pictures that nothing was trained or chosen on."""
    from composable_energy_comet.metrics import adjusted_rand_index

    scenes = ce.get("world", "objects", **OBJECTS).draw(32, seed=9, masks=True)
    x, truth = torch.from_numpy(scenes.images).float() / 255, torch.from_numpy(scenes.masks).long()
    comet = ce.get("encoder", "comet-window", weights="objects")
    z = comet.encode(x)
    assert float(adjusted_rand_index(truth, comet.masks(x), foreground=True).nanmean()) > 0.9
    assert float((comet.decode(z) - x).square().mean()) < 1e-3
    ground = (comet.decode(z[:, :1]) - x).abs().mean(1)
    assert float(ground[truth == 0].median()) < 0.02 < 0.1 < float(ground[truth > 0].mean())
