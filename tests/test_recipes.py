"""Recipes: settings in files that extend one another, checked before anything runs."""

from dataclasses import dataclass
from pathlib import Path

import pytest

import composable_energy as ce
from composable_energy.errors import FileFormatError, OptionError, PluginLoadError, PluginNotFound
from composable_energy.training import Recipe, open_recipe
from composable_energy.training.toml import flat, nested, read_toml, read_value, toml_text

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
        self.claim(out)
        return out


@pytest.fixture
def bowl(tmp_path):
    (tmp_path / "bowl.toml").write_text(TEXT)
    return Bowl.read(tmp_path / "bowl.toml")


class TestToml:
    DATA = {
        "text": 'quotes " and \\ and\nlines, ü',
        "none": None,
        "table": {"whole": 3, "small": 1e-10, "yes": True, "list": [1, 0.5, "a"], "inner": {"odd key": -1.0}},
    }

    def test_what_is_written_is_read_again(self):
        assert read_toml(toml_text(self.DATA), "here") == self.DATA

    def test_flat_and_nested_are_each_others_inverse(self):
        assert flat(self.DATA)["table.inner.odd key"] == -1.0
        assert nested(flat(self.DATA)) == self.DATA

    @pytest.mark.parametrize(
        ("word", "value"),
        [
            ("3", 3),
            ("3.0", 3.0),
            ("1e-4", 1e-4),
            ("true", True),
            ("none", None),
            ("[1, 2]", [1, 2]),
            ("[a, 2]", ["a", 2]),
            ("[]", []),
            ("adam", "adam"),
            ('"7"', "7"),
            ("a=b", "a=b"),
        ],
    )
    def test_words_of_the_command_line_are_values_or_words(self, word, value):
        read = read_value(word)
        assert read == value
        assert type(read) is type(value)


def test_a_file_is_a_head_and_settings(bowl):
    assert (bowl.name, bowl.about, bowl.source, bowl.needs, bowl.cost) == ("bowl", "A bowl", "Nobody (2020)", "nothing", "no time")
    assert bowl.settings["model"] == {"width": 4, "gain": 0.5, "sharp": True}
    assert bowl.text == TEXT


def test_settling_changes_what_it_names_and_nothing_else(bowl):
    settled = bowl.settled({"model.gain": 1, "data.labels": "faces.csv"}).with_steps(3)
    assert flat(settled.settings) == {**flat(bowl.settings), "model.gain": 1.0, "data.labels": "faces.csv", "training.steps": 3}
    assert isinstance(settled.settings["model"]["gain"], float)
    assert bowl.settings["training"]["steps"] == 10


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("model.widht", 8, r"no setting 'model\.widht'\. Did you mean 'width'\? Known: width, gain, sharp\."),
        ("colour", 8, r"no setting 'colour'\. Known: data, model, training\."),
        ("modle.width", 8, r"no setting 'modle\.width'\. Did you mean 'model'\? Known: data, model, training\."),
        ("model.width", 8.5, r"model\.width takes a whole number, got 8\.5"),
        ("model.width", True, "a whole number"),
        ("model.gain", "much", "takes a number"),
        ("model.sharp", 1, "true or false"),
        ("data.size", 8, "a list in brackets"),
        ("training.device", 0, "a text"),
        ("training.steps", None, "a whole number"),
    ],
)
def test_what_does_not_fit_is_told_with_what_does(bowl, key, value, said):
    with pytest.raises(OptionError, match=said):
        bowl.settled({key: value})


def test_a_file_may_extend_a_name_or_a_file(bowl, tmp_path):
    (tmp_path / "wide.toml").write_text('extends = "bowl"\nabout = "A wide bowl"\n[model]\nwidth = 9\n')
    (tmp_path / "widest.toml").write_text('extends = "wide.toml"\n[model]\nwidth = 99\n')
    with ce.register("recipe", "bowl", lambda: bowl):
        recipe = open_recipe(tmp_path / "widest.toml")
        assert open_recipe("bowl").entry == recipe.entry == "bowl"
    assert isinstance(recipe, Bowl)
    assert (recipe.name, recipe.about, recipe.needs) == ("widest", "A wide bowl", "nothing")
    assert flat(recipe.settings) == {**flat(bowl.settings), "model.width": 99}


def test_files_that_make_no_recipe_are_told(tmp_path, bowl):
    def write(text: str) -> Path:
        (tmp_path / "mine.toml").write_text(text)
        return tmp_path / "mine.toml"

    with pytest.raises(FileFormatError, match="no file"):
        open_recipe(tmp_path / "nothing.toml")
    with pytest.raises(FileFormatError, match=r"mine\.toml is not TOML.*line 1"):
        open_recipe(write("steps = = 3"))
    with pytest.raises(FileFormatError, match=r"steps = 3 stands in no table.*about, source, needs, cost, extends"):
        open_recipe(write("steps = 3\n"))
    with pytest.raises(FileFormatError, match="extends itself"):
        open_recipe(write('extends = "./mine.toml"\n'))
    with pytest.raises(PluginNotFound, match="the recipe 'bawl'"):
        open_recipe(write('extends = "bawl"\n'))
    with ce.register("recipe", "bowl", lambda: bowl), pytest.raises(OptionError, match=r"no setting 'model\.with'"):
        open_recipe(write('extends = "bowl"\n[model]\nwith = 3\n'))
    (tmp_path / "mine.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(FileFormatError, match="UTF-8"):
        open_recipe(tmp_path / "mine.toml")


def test_a_run_documents_itself_and_refuses_another(bowl, tmp_path):
    out = tmp_path / "out"
    bowl.run(tmp_path, out)
    assert Bowl.read(out / "recipe.toml").settings == bowl.settings
    bowl.with_steps(20).run(tmp_path, out)
    assert Bowl.read(out / "recipe.toml").settings["training"]["steps"] == 20
    with pytest.raises(OptionError, match=r"other settings \(model\.width: there 4, here 5; training\.seed: there 0, here 1\)"):
        bowl.settled({"model.width": 5, "training.seed": 1}).run(tmp_path, out)
    assert [path.name for path in out.iterdir()] == ["recipe.toml"]


def test_an_entry_that_makes_no_recipe_is_refused():
    with ce.register("recipe", "odd", lambda: 3), pytest.raises(PluginLoadError, match="should make a Recipe"):
        ce.get_recipe("odd")
