"""Recipes: settings in files that extend one another, checked before anything runs."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import composable_energy as ce
from composable_energy.errors import FileFormatError, OptionError, PluginLoadError, PluginNotFound
from composable_energy_image.data import Pictures
from composable_energy_training import Recipe, open_recipe
from composable_energy_training.toml import flat, nested, read_toml, read_value, toml_text

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
        "none": "none",
        "table": {"whole": 3, "small": 1e-10, "yes": True, "list": [1, 0.5, "a"], "inner": {"odd key": -1.0}, "empty": {}},
    }
    PLAIN = st.recursive(
        st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.just("none"),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    )

    @pytest.mark.slow
    @given(st.dictionaries(st.text(), PLAIN, max_size=4))
    def test_plain_data_survives_writing_and_reading(self, data):
        read = read_toml(toml_text(data), "here")
        assert repr(read) == repr(self.in_order_of(read, data))  # also tells 1 from 1.0 and True, and 0.0 from -0.0

    def in_order_of(self, read, data):
        """Returns `data` with its keys in the order of `read`: TOML has values before tables."""
        if isinstance(data, dict):
            assert read.keys() == data.keys()
            return {key: self.in_order_of(read[key], data[key]) for key in read}
        if isinstance(data, list):
            assert len(read) == len(data)
            return [self.in_order_of(*pair) for pair in zip(read, data, strict=True)]
        return data

    @pytest.mark.parametrize(
        "value",
        [[{"a": 1}, {"b": [2.0]}], {}, {"inner": {}}, [{}], "none", ["none"], "\x7f\x00\x1b[0m"],
        ids=[
            "a list of tables",
            "no table",
            "an empty table within",
            "a list of no table",
            "none",
            "a list with none",
            "control characters",
        ],
    )
    def test_what_toml_has_a_form_for_is_read_as_it_was(self, value):
        assert read_toml(toml_text({"value": value}), "here") == {"value": value}

    @pytest.mark.parametrize(
        "value",
        [None, [1, None], {"a": {"b": None}}, object(), "\ud800"],
        ids=["none", "none in a list", "none in a table", "an object", "a lone surrogate"],
    )
    def test_what_toml_has_no_form_for_is_refused(self, value):
        with pytest.raises(OptionError, match="cannot be written as TOML"):
            toml_text({"value": value})

    def test_flat_and_nested_are_each_others_inverse(self):
        assert flat(self.DATA)["table.inner.odd key"] == -1.0
        assert flat(self.DATA)["table.empty"] == {}
        assert nested(flat(self.DATA)) == self.DATA

    def test_a_key_with_a_dot_is_refused(self):
        with pytest.raises(OptionError, match=r"table\.odd\.key has a dot of its own"):
            flat({"table": {"odd.key": 1}})

    @pytest.mark.parametrize(
        ("word", "value"),
        [
            ("3", 3),
            ("3.0", 3.0),
            ("1e-4", 1e-4),
            ("true", True),
            ("none", "none"),
            ('"none"', "none"),
            ("2024-01-31", "2024-01-31"),
            ("1\nother = 2", "1\nother = 2"),
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


def test_the_word_none_is_none_only_where_a_setting_may_be_none(bowl, tmp_path):
    assert bowl.settings["data"]["labels"] is None and bowl.settings["data"]["limit"] is None
    assert bowl.settled({"training.device": "none"}).settings["training"]["device"] is None
    listed = bowl.settled({"data.labels": "faces.csv"}).settled({"data.labels": "none", "data.size": ["none", "a"]})
    assert listed.settings["data"] == {"labels": None, "limit": None, "size": ["none", "a"]}
    with pytest.raises(OptionError, match=r"model\.width takes a whole number, got 'none'"):
        bowl.settled({"model.width": "none"})
    (tmp_path / "named.toml").write_text('about = "none"\n[model]\nkind = "shell"\n')
    named = Bowl.read(tmp_path / "named.toml").settled({"model.kind": "none"})
    assert (named.about, named.settings) == ("none", {"model": {"kind": "none"}})


def test_settings_survive_a_run(bowl, tmp_path):
    settings = {**bowl.settings, "model": {**bowl.settings["model"], "layers": [{"width": 3}, {"width": 4}], "extra": {}, "name": "\x7f"}}
    odd = replace(bowl, settings=settings)
    odd.run(tmp_path, tmp_path / "out")
    assert Bowl.read(tmp_path / "out" / "recipe.toml").settings == odd.settings
    odd.run(tmp_path, tmp_path / "out")


def test_an_empty_table_of_a_file_counts(tmp_path):
    text = (
        'about = "An energy"\n[model]\nname = "igebm-mnist"\n[objective]\nname = "contrastive-divergence"\n[chains]\nsteps = 3\n'
        "[training]\nsteps = 1\n"
    )
    (tmp_path / "plain.toml").write_text(text)
    (tmp_path / "mine.toml").write_text('extends = "./plain.toml"\n[augmentation]\n')
    assert "augmentation" not in open_recipe(tmp_path / "plain.toml").settings
    recipe = open_recipe(tmp_path / "mine.toml")
    assert recipe.settings["augmentation"] == {}
    assert "augmentation" in recipe.written()
    (tmp_path / "odd.toml").write_text('extends = "./plain.toml"\n[augmentatoin]\n')
    with pytest.raises(OptionError, match="no setting 'augmentatoin'"):
        open_recipe(tmp_path / "odd.toml")


def test_a_table_of_chains_says_how_many_steps(tmp_path):
    (tmp_path / "mine.toml").write_text('[model]\nname = "igebm-mnist"\n[objective]\nname = "contrastive-divergence"\n[chains]\n')
    pictures = Pictures(np.zeros((2, 1, 28, 28), np.uint8), {}, "nothing")
    with pytest.raises(OptionError, match=r"\[chains\] .* does not say how many steps"):
        open_recipe(tmp_path / "mine.toml").trainer(pictures)


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


def test_paths_may_be_texts(bowl, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    bowl.claim("~/out")
    assert Bowl.read("~/out/recipe.toml").settings == bowl.settings
    assert bowl.settled({"data.labels": tmp_path / "faces.csv"}).settings["data"]["labels"] == str(tmp_path / "faces.csv")


def test_an_entry_that_makes_no_recipe_is_refused():
    with ce.register("recipe", "odd", lambda: 3), pytest.raises(PluginLoadError, match="should make a Recipe"):
        ce.get_recipe("odd")
