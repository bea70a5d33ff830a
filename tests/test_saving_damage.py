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


def edits_of_nodes():
    """Malformed nodes that a person or an attacker could have written, by their defect."""
    yield "an unknown key", lambda c: c.update(extra=1)
    yield "no nodes", lambda c: c.update(nodes=[])
    yield "nodes of another type", lambda c: c.update(nodes={"0": 1})
    yield "a node of another type", lambda c: c["nodes"].__setitem__(0, [1])
    yield "a node with another key", lambda c: c["nodes"][0].update(code="import os")
    yield "an unknown node", lambda c: nodes(c, "Conjunction")[0].update({"class": "os.system"})
    yield "a node that is no name", lambda c: nodes(c, "Conjunction")[0].update({"class": ["Conjunction"]})
    yield "a term after the node", lambda c: nodes(c, "Negation")[0].update(terms=[{"$module": [99, ""]}])
    yield "a term before all nodes", lambda c: nodes(c, "Negation")[0].update(terms=[{"$module": [-1, ""]}])
    yield "a term that is true", lambda c: nodes(c, "Negation")[0].update(terms=[{"$module": [True, ""]}])
    yield "terms of another type", lambda c: nodes(c, "Negation")[0].update(terms=0)
    yield "too many terms", lambda c: nodes(c, "Negation")[0].update(terms=2 * [{"$module": [0, ""]}])
    yield "no terms", lambda c: nodes(c, "Conjunction")[0].update(terms=[])
    yield "a root that is no node", lambda c: c.update(root={"$module": [99, ""]})
    yield "a root of another type", lambda c: c.update(root="0")
    yield "a missing part", lambda c: nodes(c, "Negation")[0]["config"].pop("mode")
    yield "another part", lambda c: nodes(c, "Negation")[0]["config"].update(evil=1)
    yield "an unknown mode", lambda c: nodes(c, "Negation")[0]["config"].update(mode="evil")
    yield "a weight of another type", lambda c: nodes(c, "Weighted")[0]["config"].update(weight="0.3")
    yield "a weight that is true", lambda c: nodes(c, "Weighted")[0]["config"].update(weight=True)
    yield (
        "a weight of another shape",
        lambda c: nodes(c, "Weighted")[0]["config"].update(weight={"$tensor": next(iter(nodes(c, "built")[0]["tensors"].values()))}),
    )
    yield "a tensor that is not there", lambda c: nodes(c, "Weighted")[0]["config"].update(weight={"$tensor": "evil"})
    yield "an unknown tag", lambda c: nodes(c, "Weighted")[0]["config"].update(weight={"$python": "evil"})
    yield "a tag with company", lambda c: nodes(c, "Weighted")[0]["config"].update(weight={"$tensor": "a", "b": 1})
    yield "a deep value", lambda c: nodes(c, "Weighted")[0]["config"].update(weight=json.loads("[" * 200 + "]" * 200))
    yield "a negative weight", lambda c: nodes(c, "Negation")[0]["config"].update(weight=-1.0)
    yield "an unknown distribution", lambda c: law(c).update({"$distribution": ["eval", {}, {}]})
    yield "a distribution without arguments", lambda c: law(c).update({"$distribution": ["Normal", {}, {}]})
    yield "a distribution of text", lambda c: law(c).update({"$distribution": ["Normal", {"loc": "0", "scale": "1"}, {}]})
    yield "a distribution with other tensors", lambda c: law(c)["$distribution"][2].update(__class__=1)


def edits_of_references():
    """Malformed references, tokens and recommendations, by their defect."""
    yield "a part that is not there", lambda c: nodes(c, "Negation")[0].update(terms=[{"$module": [0, "evil.path"]}])
    yield "a part that is no energy", lambda c: nodes(c, "Negation")[0].update(terms=[{"$module": [0, "logits"]}])
    yield "a module of another type", lambda c: nodes(c, "Negation")[0].update(terms=[{"$module": 0}])
    yield "a reference of another type", lambda c: c["nodes"].__setitem__(0, 1)
    yield "a reference with another key", lambda c: nodes(c, "built")[0].update(module="os")
    yield "a reference to a sampler", lambda c: nodes(c, "built")[0].update(kind="sampler")
    yield "an entry of another type", lambda c: nodes(c, "built")[0].update(entry=1)
    yield "a member of another type", lambda c: nodes(c, "built")[0].update(member=["male"])
    yield "options of another type", lambda c: nodes(c, "built")[0].update(options=[1])
    yield "options that there are not", lambda c: nodes(c, "built")[0].update(options={"evil": 1})
    yield "a token of another type", lambda c: nodes(c, "DistributionEnergy")[0].update(token=1)
    yield "tokens of another type", lambda c: nodes(c, "built")[0].update(tokens={"": 1})
    yield "a name of another type", lambda c: nodes(c, "DistributionEnergy")[0]["config"].update(name=3)
    yield "modes of another type", lambda c: nodes(c, "built")[0].update(training={"": 1})
    yield "a group of another type", lambda c: nodes(c, "built")[0].update(group=True)
    yield "tensors of another type", lambda c: nodes(c, "built")[0].update(tensors=[1])
    yield "tensors that are not there", lambda c: nodes(c, "built")[0].update(tensors={"base.net.weight": "evil"})
    yield (
        "a tensor of another shape",
        lambda c: nodes(c, "built")[0]["tensors"].update({"base.net.weight": nodes(c, "built")[0]["tensors"]["base.net.bias"]}),
    )
    yield (
        "a tensor with another path",
        lambda c: nodes(c, "built")[0]["tensors"].update({"__class__": nodes(c, "built")[0]["tensors"]["base.net.bias"]}),
    )
    yield "too much advice", lambda c: c["nodes"][-1].update(recommended={"sampler": "hmc"})
    yield "advice of another type", lambda c: c["nodes"][-1].update(recommended={"sampler": 1, "options": {}, "threads": None})
    yield "threads of another type", lambda c: c["nodes"][-1].update(recommended={"sampler": "hmc", "options": {}, "threads": "1"})


EDITS = {**dict(edits_of_nodes()), **dict(edits_of_references())}


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
    [("os:system", None), ("os.system", "os"), ("../people", None), ("people", "evil"), ("__main__", None), ("", None)],
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


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_are_finite(saved, number):
    edit(saved[0], lambda c: nodes(c, "Weighted")[0]["config"].update(weight=number))
    with pytest.raises(FileFormatError):
        ce.load(saved[0])
