"""Loading of damaged, swapped, crafted and newer files: a typed error or an unchanged load, and no code runs."""

import json
import math
import random
import shutil
import sys

import pytest
import safetensors.torch
import torch

import composable_energy as ce
from composable_energy.errors import FileFormatError, OptionError, PluginNotFound
from composable_energy.files import ENERGY_FILE, VERSION, write_record
from tests.campaign.files import damage
from tests.saving_energies import X, edit, expressions, nodes

pytestmark = pytest.mark.usefixtures("saving_registry")


@pytest.fixture
def saved(tmp_path):
    folders = [tmp_path / str(i) for i in range(3)]
    for energy, folder in zip(expressions(), folders, strict=True):
        energy.save(folder)
    return folders


@pytest.mark.slow
def test_200_random_corruptions(saved, tmp_path):
    generator = random.Random(0)
    values = [ce.load(folder)(X) for folder in saved]
    before = set(sys.modules)
    errors = unchanged = 0
    for _ in range(200):
        i = generator.randrange(3)
        folder = tmp_path / "damaged"
        shutil.copytree(saved[i], folder)
        (folder / ENERGY_FILE).write_bytes(damage((folder / ENERGY_FILE).read_bytes(), generator))
        try:
            assert torch.equal(ce.load(folder)(X), values[i])
            unchanged += 1
        except FileFormatError as error:
            assert str(folder) in str(error)
            errors += 1
        shutil.rmtree(folder)
    assert errors + unchanged == 200
    assert errors > 150
    assert set(sys.modules) == before


def test_a_name_of_a_folder_comes_before_a_plugin(saved, monkeypatch):
    monkeypatch.chdir(saved[0].parent)
    saved[1].rename("people")
    assert type(ce.load("people")).__name__ == "Disjunction"
    with pytest.raises(OptionError, match="takes no options"):
        ce.load("people", latent=False)
    shutil.rmtree("people")
    (saved[0].parent / "people" / "male").mkdir(parents=True)
    assert str(ce.load("people/male")) == "male"
    (saved[0].parent / "people").rename("folks")
    with pytest.raises(PluginNotFound, match=r"no energy\.safetensors in the folder 'folks' either"):
        ce.load("folks")


def test_a_folder_without_an_energy_is_an_error(tmp_path):
    with pytest.raises(FileFormatError, match=r"no energy\.safetensors"):
        ce.load(tmp_path)
    with pytest.raises(FileFormatError, match="holds no saved energy"):
        ce.load(str(tmp_path / "nowhere"))
    with pytest.raises(PluginNotFound, match="no folder 'nowhere/at/all' either"):
        ce.load("nowhere/at/all")
    for content in (b"", b"\xff" * 8 + b"not a header", safetensors.torch.save({"x": torch.zeros(1)})):
        (tmp_path / ENERGY_FILE).write_bytes(content)
        with pytest.raises(FileFormatError, match="is damaged, or no record"):
            ce.load(tmp_path)


def test_another_version_and_another_kind_are_named(tmp_path):
    write_record(tmp_path / ENERGY_FILE, "energy", 9, {}, {})
    with pytest.raises(FileFormatError, match=r"has version 9, written by 'composable-energy .*reads 4: use the version"):
        ce.load(tmp_path)
    write_record(tmp_path / ENERGY_FILE, "training", VERSION, {}, {})
    with pytest.raises(FileFormatError, match="holds 'training', expected 'energy'"):
        ce.load(tmp_path)


def test_a_header_with_a_key_that_occurs_twice_is_refused(saved):
    path = saved[0] / ENERGY_FILE
    data = path.read_bytes()
    path.write_bytes(data.replace(b'\\"root\\"', b'\\"kind\\"'))
    with pytest.raises(FileFormatError, match="is damaged"):
        ce.load(saved[0])


def law(config):
    return nodes(config, "DistributionEnergy")[0]["config"]["distribution"]


def part(kind, **values):
    """Returns an edit that sets values of the first node of a class."""
    return lambda c: nodes(c, kind)[0].update(values)


def settings(kind, **values):
    return lambda c: nodes(c, kind)[0]["config"].update(values)


def bias(c):
    return nodes(c, "built")[0]["tensors"]["base.net.bias"]


EDITS = {
    "an unknown key": lambda c: c.update(extra=1),
    "no nodes": lambda c: c.update(nodes=[]),
    "nodes of another type": lambda c: c.update(nodes={"0": 1}),
    "a node of another type": lambda c: c["nodes"].__setitem__(0, [1]),
    "a node with another key": part("Conjunction", code="import os"),
    "an unknown node": part("Conjunction", **{"class": "os.system"}),
    "a node that is no name": part("Conjunction", **{"class": ["Conjunction"]}),
    "a term after the node": part("Negation", terms=[{"$module": [99, ""]}]),
    "a term before all nodes": part("Negation", terms=[{"$module": [-1, ""]}]),
    "a term that is true": part("Negation", terms=[{"$module": [True, ""]}]),
    "terms of another type": part("Negation", terms=0),
    "too many terms": part("Negation", terms=2 * [{"$module": [0, ""]}]),
    "a root that is no node": lambda c: c.update(root={"$module": [99, ""]}),
    "a missing part": lambda c: nodes(c, "Negation")[0]["config"].pop("mode"),
    "another part": settings("Negation", evil=1),
    "a weight of another type": settings("Weighted", weight="0.3"),
    "a weight of another shape": lambda c: settings("Weighted", weight={"$tensor": bias(c)})(c),
    "a tensor that is not there": settings("Weighted", weight={"$tensor": "evil"}),
    "an unknown tag": settings("Weighted", weight={"$python": "evil"}),
    "a deep value": settings("Weighted", weight=json.loads("[" * 200 + "]" * 200)),
    "no number": settings("Weighted", weight=math.nan),
    "no finite number": settings("Weighted", weight=-math.inf),
    "an unknown distribution": lambda c: law(c).update({"$distribution": ["eval", {}, {}]}),
    "a distribution of text": lambda c: law(c).update({"$distribution": ["Normal", {"loc": "0", "scale": "1"}, {}]}),
    "a distribution with other tensors": lambda c: law(c)["$distribution"][2].update(__class__=1),
    "a part that is not there": part("Negation", terms=[{"$module": [0, "evil.path"]}]),
    "a part that is no energy": part("Negation", terms=[{"$module": [0, "logits"]}]),
    "a reference with another key": part("built", module="os"),
    "a reference to a sampler": part("built", kind="sampler"),
    "an entry of another type": part("built", entry=1),
    "options that there are not": part("built", options={"evil": 1}),
    "tokens of another type": part("built", tokens={"": 1}),
    "modes of another type": part("built", training={"": 1}),
    "a group of another type": part("built", group=True),
    "tensors that are not there": part("built", tensors={"base.net.weight": "evil"}),
    "a tensor of another shape": lambda c: nodes(c, "built")[0]["tensors"].update({"base.net.weight": bias(c)}),
    "a tensor with another path": lambda c: nodes(c, "built")[0]["tensors"].update({"__class__": bias(c)}),
    "too much advice": lambda c: c["nodes"][-1].update(recommended={"sampler": "hmc"}),
    "threads of another type": lambda c: c["nodes"][-1].update(recommended={"sampler": "hmc", "options": {}, "threads": "1"}),
}


@pytest.mark.full
@pytest.mark.parametrize("what", EDITS)
def test_a_crafted_config_is_refused(saved, what):
    edit(saved[0], EDITS[what])
    before = set(sys.modules)
    with pytest.raises(FileFormatError):
        ce.load(saved[0])
    assert set(sys.modules) == before


@pytest.mark.parametrize(
    ("entry", "distribution"),
    [("os:system", None), ("os.system", "os"), ("../people", None), ("people", "evil"), ("", None)],
)
def test_only_what_entry_points_name_is_imported(saved, entry, distribution):
    def change(config):
        for node in nodes(config, "built"):
            node.update(entry=entry, distribution=distribution, version="6.6")

    edit(saved[0], change)
    if entry == "people":  # registered here: who registers a name says what to take
        assert ce.load(saved[0])(X).shape == (9,)
        return
    with pytest.raises(PluginNotFound) as caught:
        ce.load(saved[0])
    if distribution:
        assert f"{distribution} 6.6; install that" in str(caught.value)
