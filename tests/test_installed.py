"""`installed()`: one line for each installed energy, and whether it is trained."""

from __future__ import annotations

import pytest

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from tests.toys import Broken, Noisy, Toys, Unmade


class Trained(ce.Energy):
    """A network of <b>toys</b>, $f(x)$: with weights."""

    comes_trained = True

    def __init__(self, size: int, *, depth: int = 1, **options) -> None:
        super().__init__()

    def forward(self, x):
        return x.flatten(1).sum(1)


def build_trained(folder: str = "") -> Trained:
    return Trained(1)


class TestFirstParty:
    table = ce.installed()

    def test_each_has_a_line_and_loads(self):
        assert [row.name for row in self.table if row.error] == []
        assert [row.name for row in self.table if not row.summary or "$" in row.summary or len(row.summary) > 80] == []

    @pytest.mark.parametrize(
        ("name", "state"),
        [
            ("faces", "trained"),
            ("scenes", "trained"),
            ("igebm-mnist", "untrained"),
            ("jem", "untrained"),
            ("observed", "needs y"),
            ("transition", "untrained, needs size"),
            ("effort", ""),
        ],
    )
    def test_says_what_is_trained(self, name, state):
        assert self.table[name].state == state

    def test_members_of_families_are_there(self):
        faces = self.table["faces"]
        assert "male" in faces.members and f"{len(faces.members)} members, such as faces/male" in faces.line


def test_what_a_plugin_says_is_shown_and_nothing_is_built():
    before = list(Toys.loaded)
    with (
        ce.register("energy", "mine", Trained),
        ce.register("energy", "made", build_trained),
        ce.register("energy", "bowl", lambda: Noisy()),
        ce.register("energy", "toys", Toys),
    ):
        table = ce.installed()
    assert (table["mine"].summary, table["mine"].state) == ("A network of <b>toys</b>", "trained, needs size")
    assert (table["made"].trained, table["made"].needs) == (True, ())
    assert (table["bowl"].state, table["bowl"].summary) == ("", "")
    assert table["toys"].members == Toys().members() and Toys.loaded == before


def test_one_that_fails_is_listed_with_its_error():
    with ce.register("energy", "broken", Broken), ce.register("energy", "unwritten", Unmade):
        table = ce.installed()
    assert table["broken"].state == table["unwritten"].state == "failed"
    assert "ZeroDivisionError: no members today" in str(table) and "unwritten weights" in table["unwritten"].line


def test_the_table_is_a_sequence_with_text():
    with ce.register("energy", "mine", Trained):
        table = ce.installed()
    assert table[0].name == "mine" and [row.name for row in table][1:] == sorted(row.name for row in table if row.name != "mine")
    lines = str(table).splitlines()
    assert len(lines) == len(table) + 1 and repr(table) == str(table)
    with pytest.raises(PluginNotFound, match="Did you mean 'faces'"):
        table["face"]


def test_without_energies_it_says_so():
    assert "No energies are installed" in str(ce.registry.EnergyTable([]))
