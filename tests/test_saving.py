"""Saving and loading of energies by name: shared bases, trained families, recommendations, other processes."""

import copy
import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from composable_energy.files import ENERGY_FILE, VERSION, read_record
from tests.saving_energies import WEIGHT, Attributes, Prior, X, nodes, normal, people, there_and_back, together
from tests.third_party import install

pytestmark = pytest.mark.usefixtures("saving_registry")


def test_the_base_of_a_loaded_energy_is_that_of_the_sessions_own(tmp_path):
    male, old = people("male", "old")
    loaded = there_and_back(male & ~old, tmp_path)
    assert loaded.terms[0].bases[0].energy is not male.bases[0].energy
    assert (loaded & male)(X).equal(((male & ~old) & male)(X))  # one base, counted once


def test_a_trained_family_is_not_written_into_the_session(tmp_path):
    male, old = together("male", "old")
    expression = copy.deepcopy(male & ~old)
    with torch.no_grad():
        expression.terms[0].bases[0].energy.net.weight += 1.0
    before = male(X)
    loaded = there_and_back(expression, tmp_path)
    assert torch.equal(male(X), before)
    first, second = loaded.terms
    assert first.bases[0].energy is second.bases[0].energy is not male.bases[0].energy
    assert len(loaded.bases) == 1
    there_and_back(loaded, tmp_path)  # and again


def test_a_leaf_used_twice_is_one_object_again(tmp_path):
    (male,), bowl = people("male", latent=False), normal()
    mixed = ce.any_of(male & bowl, bowl, weights=[1.0, 2.0])
    loaded = there_and_back(mixed, tmp_path)
    assert loaded.terms[0].terms[1] is loaded.terms[1]
    levels = torch.rand(9)
    loaded = there_and_back(male.given(sigma=levels) & bowl & (2 * male).given(sigma=levels), tmp_path)
    assert len(loaded.bases) == 1


def test_a_learnable_weight_is_learnable_again(tmp_path):
    (WEIGHT * normal()).save(tmp_path / "saved")
    weight = ce.load(tmp_path / "saved").weight  # pyright: ignore[reportAttributeAccessIssue]
    assert isinstance(weight, nn.Parameter) and weight.requires_grad


def test_modes_come_back(tmp_path):
    (male,) = people("male")
    for mode in (True, False):
        male.logits.train(mode)
        loaded = there_and_back(male, tmp_path)
        assert loaded.logits.training is mode
        assert loaded.base.training is False
    male.logits.eval()


class TestSavedApart:
    """What is saved in two folders and equal counts as one when both are loaded."""

    def trained(self) -> tuple[ce.Energy, ce.Energy]:
        base, heads = ce.get("energy", "prior", latent=True), ce.get("encoder", "heads")
        return tuple(ce.ClassifierEnergy(heads, 1, base, columns=i, name=f"a{i}") for i in (0, 1))

    @pytest.fixture(autouse=True)
    def entries(self, saving_registry):
        with ce.register("energy", "prior", Prior), ce.register("encoder", "heads", lambda: nn.Linear(2, 2).eval()):
            yield

    def test_the_base_is_counted_once_and_events_are_exact(self, tmp_path):
        pair = self.trained()
        for energy, name in zip(pair, "ab", strict=True):
            energy.save(tmp_path / name)
        again = [ce.load(tmp_path / name) for name in "ab"]
        assert len((again[0] & again[1]).bases) == len((again[0] & pair[1]).bases) == 1
        for before, after in ((pair[0] & ~pair[1], again[0] & ~again[1]), (pair[0] | pair[1], again[0] | again[1])):
            assert torch.equal(after(X), before(X))
        assert again[0] is not ce.load(tmp_path / "a") and ce.load(tmp_path / "a")(X).equal(again[0](X))

    def test_one_that_was_trained_since_stays_apart(self, tmp_path):
        first, _ = self.trained()
        first.save(tmp_path / "a")
        loaded = ce.load(tmp_path / "a")
        with torch.no_grad():
            next(loaded.bases[0].energy.parameters()).add_(1)
        again = ce.load(tmp_path / "a")
        assert len((again & loaded).bases) == 2 and torch.equal(again(X), first(X))

    def test_a_recommendation_of_a_named_energy_comes_back(self, tmp_path):
        energy = ce.get("energy", "prior", latent=False)
        for name, recommended in (("a", ce.Recommendation("langevin", {"step_size": 0.5, "clamp": (0, 1)}, 1)), ("b", None)):
            energy.recommended = recommended
            energy.save(tmp_path / name)
        assert ce.load(tmp_path / "a").recommended == ce.Recommendation("langevin", {"step_size": 0.5, "clamp": (0, 1)}, 1)
        assert ce.load(tmp_path / "b").recommended is None


@pytest.mark.full
def test_a_new_process_has_the_same_bits(site, tmp_path):
    header = "import composable_energy as ce\nimport torch\nfrom torch import nn\n"
    family = header + inspect.getsource(Prior) + inspect.getsource(Attributes)
    install(site, "acme-people", {"energies": {"humans": "third_party_people:Attributes"}}, {"third_party_people": family})
    male, old, red = (ce.get("energy", f"humans/{name}") for name in ("male", "old", "hair=red"))
    with torch.no_grad():
        male.base.net.weight.mul_(1.5)
    expression = ((male & ~old) | (red & 0.5 * normal())).at(0.25)
    expression.save(tmp_path / "saved")
    header, _ = read_record(tmp_path / "saved" / ENERGY_FILE, "energy", VERSION)
    assert {r["distribution"] for r in nodes(header, "built")} == {"acme-people"}
    torch.save(X, tmp_path / "x.pt")
    program = f"""
import torch, composable_energy as ce
energy = ce.load({str(tmp_path / "saved")!r})
print(energy(torch.load({str(tmp_path / "x.pt")!r})).view(torch.int32).tolist())
print(energy)
"""
    path = ":".join([str(site), *(part for part in sys.path if part)])
    done = subprocess.run([sys.executable, "-c", program], env={"PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    bits, text = done.stdout.splitlines()
    assert json.loads(bits) == expression(X).view(torch.int32).tolist()
    assert text == str(expression)


def test_an_unknown_plugin_names_who_wrote_it(site, tmp_path):
    source = "import composable_energy as ce\n\ndef bowl():\n    return ce.as_energy(lambda x: x.square().sum(1), name='bowl')\n"
    install(site, "acme-bowls", {"energies": {"bowl": "third_party_bowl:bowl"}}, {"third_party_bowl": source}, version="2.3")
    (2 * ce.get("energy", "bowl")).save(tmp_path / "saved")
    assert ce.load(tmp_path / "saved")(X).equal(2 * X.square().sum(1))
    sys.path.remove(str(site))
    with pytest.raises(PluginNotFound, match=r"'bowl' cannot be built here. It is from acme-bowls 2.3; install that"):
        ce.load(tmp_path / "saved")
    with ce.register("energy", "bowl", normal):  # who registers the name says what to take
        assert ce.load(tmp_path / "saved")(X).equal((2 * normal())(X))
