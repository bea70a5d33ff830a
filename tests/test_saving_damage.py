"""Files that are damaged, crafted or newer, and saving that is killed, fails at any call or races: a typed error or an unchanged load."""

import json
import math
import os
import random
import shutil
import stat
import sys

import pytest
import safetensors.torch
import torch
from torch import nn

import composable_energy as ce
from composable_energy import sampling
from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError, PluginNotFound, StorageError
from composable_energy.files import ENERGY_FILE, VERSION, read_record, write_record
from composable_energy.files.values import decode
from tests.campaign.files import damage
from tests.refusals import refused
from tests.sampling_runs import BOWL, Stop, same
from tests.saving_energies import X, edit, expressions, nodes, normal

pytestmark = pytest.mark.usefixtures("saving_registry")


@pytest.fixture
def saved(tmp_path):
    folders = [tmp_path / str(i) for i in range(3)]
    for energy, folder in zip(expressions(), folders, strict=True):
        energy.save(folder)
    return folders


@pytest.mark.slow
def test_100_random_corruptions(saved, tmp_path):
    generator = random.Random(0)
    values = [ce.load(folder)(X) for folder in saved]
    before = set(sys.modules)
    errors = unchanged = 0
    for _ in range(100):
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
    assert errors + unchanged == 100 and errors > 75 and set(sys.modules) == before


def test_a_name_of_a_folder_comes_before_a_plugin(saved, monkeypatch):
    monkeypatch.chdir(saved[0].parent)
    saved[1].rename("people")
    assert type(ce.load("people")) is type(ce.load(f"people/{ENERGY_FILE}")) is ce.algebra.Disjunction
    refused(OptionError, "takes no options", ce.load, "people", latent=False)
    shutil.rmtree("people")
    (saved[0].parent / "people" / "male").mkdir(parents=True)
    assert str(ce.load("people/male")) == "male"


def test_a_folder_without_an_energy_is_an_error(tmp_path):
    refused(FileFormatError, r"no energy\.safetensors", ce.load, tmp_path)
    refused(FileFormatError, "holds no saved energy", ce.load, str(tmp_path / "nowhere"))
    for content in (b"", b"\xff" * 8 + b"not a header", safetensors.torch.save({"x": torch.zeros(1)})):
        (tmp_path / ENERGY_FILE).write_bytes(content)
        refused(FileFormatError, "is damaged, or no record", ce.load, tmp_path)


def test_another_version_and_another_kind_are_named(tmp_path):
    version = r"has version 9, written by 'composable-energy .*reads 4: use the version"
    for kind, number, told in (("energy", 9, version), ("training", VERSION, "holds 'training', expected 'energy'")):
        write_record(tmp_path / ENERGY_FILE, kind, number, {}, {})
        refused(FileFormatError, told, ce.load, tmp_path)


def test_a_header_with_a_key_that_occurs_twice_is_refused(saved):
    path = saved[0] / ENERGY_FILE
    path.write_bytes(path.read_bytes().replace(b'\\"root\\"', b'\\"kind\\"'))
    refused(FileFormatError, "is damaged", ce.load, saved[0])


def law(config):
    return nodes(config, "DistributionEnergy")[0]["config"]["distribution"]


def part(kind, /, **values):
    """Returns an edit that sets values of the first node of a class."""
    return lambda c: nodes(c, kind)[0].update(values)


def settings(kind, /, **values):
    return lambda c: nodes(c, kind)[0]["config"].update(values)


def bias(c):
    return nodes(c, "built")[0]["tensors"]["base.net.bias"]


EDITS = {
    "an unknown key": lambda c: c.update(extra=1),
    "no nodes": lambda c: c.update(nodes=[]),
    "a node of another type": lambda c: c["nodes"].__setitem__(0, [1]),
    "a node with another key": part("Conjunction", code="import os"),
    "an unknown node": part("Conjunction", **{"class": "os.system"}),
    "a term after the node": part("Negation", terms=[{"$module": [99, ""]}]),
    "a term before all nodes": part("Negation", terms=[{"$module": [-1, ""]}]),
    "a term that is true": part("Negation", terms=[{"$module": [True, ""]}]),
    "too many terms": part("Negation", terms=2 * [{"$module": [0, ""]}]),
    "a root that is no node": lambda c: c.update(root={"$module": [99, ""]}),
    "a missing part": lambda c: nodes(c, "Negation")[0]["config"].pop("mode"),
    "a weight of another shape": lambda c: settings("Weighted", weight={"$tensor": bias(c)})(c),
    "a tensor that is not there": settings("Weighted", weight={"$tensor": "evil"}),
    "a deep value": settings("Weighted", weight=json.loads("[" * 200 + "]" * 200)),
    "no number": settings("Weighted", weight=math.nan),
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
    "a group of another type": part("built", group=True),
    "a tensor that is missing": lambda c: nodes(c, "built")[0]["tensors"].pop("base.net.weight"),
    "tensors that are not there": part("built", tensors={"base.net.weight": "evil"}),
    "a tensor of another shape": lambda c: nodes(c, "built")[0]["tensors"].update({"base.net.weight": bias(c)}),
    "a tensor with another path": lambda c: nodes(c, "built")[0]["tensors"].update({"__class__": bias(c)}),
    "too much advice": lambda c: c["nodes"][-1].update(recommended={"sampler": "hmc"}),
    "threads of another type": lambda c: c["nodes"][-1].update(recommended={"sampler": "hmc", "options": {}, "threads": "1"}),
}


@pytest.mark.full
@pytest.mark.parametrize("what", EDITS)
def test_a_crafted_config_is_refused(saved, what):
    before = set(sys.modules)
    refused(FileFormatError, None, ce.load, edit(saved[0], EDITS[what]))
    assert not [name for name in set(sys.modules) - before if not name.startswith("torch.")]  # torch imports parts of itself late


@pytest.mark.parametrize(
    "entry, distribution", [("os:system", None), ("os.system", "os"), ("../people", None), ("people", "evil"), ("", None)]
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


class Deep(ce.Energy):
    def __init__(self, depth: int = 2, width: int = 4, copies: int = 1) -> None:
        super().__init__()
        self.register_buffer("axes", torch.eye(width).repeat(1, copies), persistent=False)
        self.net = nn.Sequential(nn.Linear(2, width), *(nn.Linear(width, width) for _ in range(depth)), nn.Linear(width, 1))
        self.options = {"depth": depth, "width": width, "copies": copies}

    def config(self):
        return self.options

    def forward(self, x):
        return self.net(x).squeeze(1) + x.square().sum(1)


def told(folder, change):
    """Returns the error of a saved energy whose header is edited."""
    with pytest.raises(ComposableEnergyError) as caught:
        ce.load(edit(folder, change))
    return str(caught.value)


def test_an_expression_that_doubles_at_each_level_or_has_idle_nodes_is_refused(tmp_path, monkeypatch):
    (normal() & normal(1.0)).save(tmp_path)

    def double(data):
        node = data["nodes"][-1]
        for i in range(len(data["nodes"]), 60):
            data["nodes"].append({**node, "terms": 2 * [{"$module": [i - 1, ""]}]})
        data["root"] = {"$module": [len(data["nodes"]) - 1, ""]}

    assert "more than 100000 nodes" in told(tmp_path, double)
    monkeypatch.setattr("composable_energy.files.nodes._LARGEST", 100)
    (normal() & normal(1.0)).save(tmp_path)
    assert "more than 100 nodes" in told(tmp_path, lambda data: data.update(nodes=40 * data["nodes"]))


@pytest.mark.full
@pytest.mark.parametrize("options", [{"depth": 100_000}, {"width": 10**18}, {"copies": 2**23}])
def test_options_that_build_much_more_than_the_saved_tensors_are_refused(tmp_path, options):
    with ce.register("energy", "deep", Deep):
        ce.get("energy", "deep").save(tmp_path)
        assert torch.isfinite(ce.load(tmp_path)(X)).all()
        message = told(tmp_path, lambda data: nodes(data, "built")[0]["options"].update(options))
    assert "much larger than its saved tensors" in message or "cannot be built" in message


def test_distributions_that_are_the_square_of_their_tensors_are_refused():
    low, wide = {"loc": (1,), "cov_factor": (1, 10**4), "cov_diag": (1,)}, {"loc": (10**4, 1), "scale": (1, 10**4)}
    for name, sizes in (("LowRankMultivariateNormal", low), ("Gumbel", wide)):
        with pytest.raises(ValueError, match="much larger than its saved tensors"):
            decode({"$distribution": [name, {key: {"$tensor": key} for key in sizes}, {}]}, lambda _, key, of=sizes: torch.ones(of[key]))


def test_an_expression_that_could_not_be_loaded_is_not_saved(tmp_path):
    energy = normal() & normal(1.0)
    for _ in range(20):
        energy = ce.algebra.Negation(ce.algebra.Conjunction(energy, energy), mode="power")
    refused(ce.errors.ExpressionError, "cannot be saved", energy.save, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


IRREGULAR = {"a pipe": lambda path: os.mkfifo(path), "an endless device": lambda path: path.symlink_to("/dev/zero")}
IRREGULAR |= {"a link to itself": lambda path: path.symlink_to(path), "a folder": lambda path: path.mkdir()}


@pytest.mark.skipif(os.name != "posix", reason="pipes and devices of POSIX")
@pytest.mark.parametrize("kind", IRREGULAR)
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    normal().save(folder := tmp_path / "saved")
    (path := folder / ENERGY_FILE).unlink()
    IRREGULAR[kind](path)
    refused(FileFormatError, None, ce.load, folder)


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_save_keeps_the_permissions_of_the_folder_and_of_its_files(tmp_path):
    folder = tmp_path / "saved"
    folder.mkdir(mode=0o700)
    normal(1.0).save(folder)
    (folder / ENERGY_FILE).chmod(0o600)
    normal(2.0).save(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700 and {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


CALL = {"sampler": "mala", "step_size": 0.1, "seed": 0, "trace": 2, "batch_size": 3}


def sample(path, steps=6, callback=lambda *_: None):
    return BOWL.sample((8, 3), steps=steps, observers=[sampling.Stop(callback), sampling.Checkpoint(path, 10)], **CALL)


def test_a_second_call_with_a_checkpoint_in_use_is_refused(tmp_path):
    def again(step, state, info):
        refused(StorageError, "in use by another call or process: wait", sample, tmp_path / "c")
        raise Stop

    refused(Stop, None, sample, tmp_path / "c", callback=again)
    sample(tmp_path / "c")
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_files_with_similar_names_and_links_stay(tmp_path):
    mine = [".c.mine.new", ".c.12-abc.new", ".c.txt", f".c.{os.getpid()}-0123abcd.new"]  # the last is that of a process that runs
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "c").symlink_to(tmp_path / "elsewhere" / "real")
    same(sample(tmp_path / "c"), sample(tmp_path / "c"))
    assert (tmp_path / "c").is_symlink() and [path.name for path in (tmp_path / "elsewhere").iterdir()] == ["real"]
    assert all((tmp_path / name).read_text() == "mine" for name in mine)


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(StorageError, "cannot be locked", sample, tmp_path / "file" / "c")
    refused(StorageError, None, sample, long := tmp_path / ("x" * 300))
    refused(StorageError, "cannot be written", normal().save, long)


RUN_EDITS = {
    "no steps": lambda r, t: r.pop("steps"),
    "steps as text": lambda r, t: r.update(steps="3"),
    "negative steps": lambda r, t: r.update(steps=-3),
    "steps beyond a word": lambda r, t: r.update(steps=2**70),
    "a call of another type": lambda r, t: r.update(call=3),
    "a seed of another type": lambda r, t: r["call"].update(seed="zero"),
    "no state": lambda r, t: r.pop("state"),
    "a scalar that is text": lambda r, t: r.update(scalars={"a": ["b"]}),
    "steps of points of another type": lambda r, t: r.update(point_steps="many"),
    "a reference that is missing": lambda r, t: r.update(reference=9),
    "no reference": lambda r, t: r.update(reference=0),
    "points of another shape": lambda r, t: t.update({"state.x": t["state.x"][:1]}),
    "points of another dtype": lambda r, t: t.update({"state.x": t["state.x"].half()}),
    "points without rows": lambda r, t: t.update({"state.x": t["state.x"].sum()}),
    "divergences of another type": lambda r, t: t.update(diverged_at=t["diverged_at"].double()),
    "divergences that are missing": lambda r, t: t.pop("diverged_at"),
    "energies of another shape": lambda r, t: t.update(energies=t["energies"][:, :1].clone()),
    "energies of another type": lambda r, t: t.update({"reference.0.energies": t["reference.0.energies"].long()}),
    "gradients of another shape": lambda r, t: t.update({"reference.0.grads": t["reference.0.grads"].flatten()}),
}


@pytest.mark.parametrize("name", RUN_EDITS)
def test_an_edited_record_is_a_typed_error(tmp_path, name):
    sample(tmp_path / "c", steps=3)
    RUN_EDITS[name](*(record := read_record(tmp_path / "c", "checkpoint", 4)))
    write_record(tmp_path / "c", "checkpoint", 4, *record)  # with a digest that fits
    refused(ComposableEnergyError, "give another path", sample, tmp_path / "c")
