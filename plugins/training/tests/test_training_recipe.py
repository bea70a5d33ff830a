"""Recipes: settings in files that extend one another, checked before a run."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import composable_energy as ce
from composable_energy.errors import FileFormatError, OptionError, PluginLoadError, PluginNotFound
from composable_energy_training import Recipe, open_recipe
from composable_energy_training.toml import flatten
from tests.refusals import refusals

TEXT = """
about = "A bowl"
source = "Nobody (2020)"
needs = "nothing"
cost = "no time"

[data]
labels = "none"
limit = "none"
size = [8, 8]

[model]
width = 4
gain = 0.5
sharp = true

[training]
steps = 10
seed = 0
device = "cpu"
"""


@dataclass(frozen=True)
class Bowl(Recipe):
    def run(self, data: Path, out: Path, *, progress: bool = False) -> Path:
        self.save(out)
        return out


@pytest.fixture
def bowl(tmp_path):
    (tmp_path / "bowl.toml").write_text(TEXT)
    return Bowl.read(tmp_path / "bowl.toml")


def test_a_file_has_a_head_and_settings_which_changes_leave_alone(bowl):
    assert (bowl.name, bowl.about, bowl.source, bowl.needs, bowl.cost) == ("bowl", "A bowl", "Nobody (2020)", "nothing", "no time")
    assert bowl.settings["model"] == {"width": 4, "gain": 0.5, "sharp": True} and bowl.text == TEXT
    changed = bowl.with_changes({"model.gain": 1, "data.labels": "faces.csv"}).with_steps(3)
    assert flatten(changed.settings) == {**flatten(bowl.settings), "model.gain": 1.0, "data.labels": "faces.csv", "training.steps": 3}
    assert isinstance(changed.settings["model"]["gain"], float) and bowl.settings["training"]["steps"] == 10


def test_the_word_none_is_none_only_in_settings_that_may_be_none(bowl, tmp_path):
    assert bowl.settings["data"]["labels"] is None and bowl.settings["data"]["limit"] is None
    assert bowl.with_changes({"training.device": "none"}).settings["training"]["device"] is None
    listed = bowl.with_changes({"data.labels": "faces.csv"}).with_changes({"data.labels": "none", "data.size": ["none", "a"]})
    assert listed.settings["data"] == {"labels": None, "limit": None, "size": ["none", "a"]}
    with pytest.raises(OptionError, match=r"model\.width takes a whole number, got 'none'"):
        bowl.with_changes({"model.width": "none"})
    (tmp_path / "named.toml").write_text('about = "none"\n[model]\nkind = "shell"\n')
    named = Bowl.read(tmp_path / "named.toml").with_changes({"model.kind": "none"})
    assert (named.about, named.settings) == ("none", {"model": {"kind": "none"}})


def test_settings_survive_a_run(bowl, tmp_path):
    settings = {**bowl.settings, "model": {**bowl.settings["model"], "layers": [{"width": 3}, {"width": 4}], "extra": {}, "name": "\x7f"}}
    odd = replace(bowl, settings=settings)
    odd.run(tmp_path, tmp_path / "out")
    assert Bowl.read(tmp_path / "out" / "recipe.toml").settings == odd.settings
    odd.run(tmp_path, tmp_path / "out")


test_bad_settings_are_reported_with_the_known_ones = refusals(
    ("model.widht", 8, r"no setting 'model\.widht'\. Did you mean 'model\.width'\? Known: model\.width, model\.gain, model\.sharp\."),
    ("colour", 8, r"no setting 'colour'\. Known: data, model, training\."),
    ("modle.wide", 8, r"no setting 'modle\.wide'\. Did you mean 'model'\? Known: data, model, training\."),
    ("model.width", 8.5, r"model\.width takes a whole number, got 8\.5"),
    ("model.gain", "much", "takes a number"),
    ("model.sharp", 1, "true or false"),
    ("data.size", 8, "a list in brackets"),
    ("training.device", 0, "a text"),
    ("training.steps", None, "a whole number"),
    call=lambda bowl, key, value: bowl.with_changes({key: value}),
    fixture="bowl",
    error=OptionError,
)


def test_a_file_may_extend_a_name_or_a_file(bowl, tmp_path):
    (tmp_path / "wide.toml").write_text('extends = "bowl"\nabout = "A wide bowl"\n[model]\nwidth = 9\n')
    (tmp_path / "widest.toml").write_text('extends = "wide.toml"\n[model]\nwidth = 99\n')
    with ce.register("recipe", "bowl", lambda: bowl):
        recipe = open_recipe(tmp_path / "widest.toml")
        assert open_recipe("bowl").entry == recipe.entry == "bowl"
    assert isinstance(recipe, Bowl)
    assert (recipe.name, recipe.about, recipe.needs) == ("widest", "A wide bowl", "nothing")
    assert flatten(recipe.settings) == {**flatten(bowl.settings), "model.width": 99}


@pytest.fixture
def mine(bowl, tmp_path):
    with ce.register("recipe", "bowl", lambda: bowl):
        yield tmp_path / "mine.toml"


test_bad_files_are_reported = refusals(
    (b"steps = = 3", FileFormatError, r"mine\.toml is not TOML.*line 1"),
    (b"steps = 3\n", FileFormatError, r"steps = 3 is in no table.*about, source, needs, cost, extends"),
    (b'extends = "./mine.toml"\n', FileFormatError, "extends itself"),
    (b'extends = "./nothing.toml"\n', FileFormatError, "no file"),
    (b'extends = "bawl"\n', PluginNotFound, "the recipe 'bawl'"),
    (b'extends = "bowl"\n[model]\nwith = 3\n', OptionError, r"no setting 'model\.with'"),
    (b"\xff\xfe", FileFormatError, "UTF-8"),
    call=lambda mine, content: mine.write_bytes(content) and open_recipe(mine),
    fixture="mine",
)


def test_a_run_saves_its_recipe_and_refuses_another(bowl, tmp_path):
    out = tmp_path / "out"
    bowl.run(tmp_path, out)
    assert Bowl.read(out / "recipe.toml").settings == bowl.settings
    bowl.with_steps(20).run(tmp_path, out)
    assert Bowl.read(out / "recipe.toml").settings["training"]["steps"] == 20
    with pytest.raises(OptionError, match=r"other settings \(model\.width: there 4, here 5; training\.seed: there 0, here 1\)"):
        bowl.with_changes({"model.width": 5, "training.seed": 1}).run(tmp_path, out)
    assert [path.name for path in out.iterdir()] == ["recipe.toml"]


def test_paths_may_be_texts(bowl, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bowl.save("~/out")
    assert Bowl.read("~/out/recipe.toml").settings == bowl.settings
    assert bowl.with_changes({"data.labels": tmp_path / "faces.csv"}).settings["data"]["labels"] == str(tmp_path / "faces.csv")


def test_an_entry_of_another_class_is_refused():
    with ce.register("recipe", "odd", lambda: 3), pytest.raises(PluginLoadError, match="should return a Recipe"):
        ce.get("recipe", "odd")
