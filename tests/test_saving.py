"""Saving and loading of energies: values, shared bases and tensors are kept, and what cannot be saved is named."""

import copy
import inspect
import json
import re
import sys

import pytest
import torch
from torch import distributions as td
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, FileFormatError, OptionError, PluginNotFound, StorageError
from composable_energy.files import ENERGY_FILE, VERSION, read_record
from tests.factories import network
from tests.processes import run_code
from tests.refusals import refused
from tests.saving_energies import WEIGHT, Attributes, Mean, Picture, Prior, Tempered, X, edit, nodes, normal, people, reloaded, together
from tests.third_party import install

pytestmark = pytest.mark.usefixtures("saving_registry")


def test_a_trained_family_is_not_written_into_the_session(tmp_path):
    male, old = together("male", "old")
    expression = copy.deepcopy(male & ~old)
    with torch.no_grad():
        expression.terms[0].bases[0].energy.net.weight += 1.0
    before = male(X)
    loaded = reloaded(expression, tmp_path)
    assert torch.equal(male(X), before)
    first, second = loaded.terms
    assert first.bases[0].energy is second.bases[0].energy is not male.bases[0].energy and len(loaded.bases) == 1
    reloaded(loaded, tmp_path)  # and again


def test_a_leaf_used_twice_is_one_object_again(tmp_path):
    (male,), bowl = people("male", latent=False), normal()
    loaded = reloaded(ce.any_of(male & bowl, bowl, weights=[1.0, 2.0]), tmp_path)
    assert loaded.terms[0].terms[1] is loaded.terms[1]
    levels = torch.rand(9)
    loaded = reloaded(male.given(sigma=levels) & bowl & (2 * male).given(sigma=levels), tmp_path)
    assert len(loaded.bases) == 1


def test_modes_come_back(tmp_path):
    (male,) = people("male")
    for mode in (True, False):
        male.logits.train(mode)
        loaded = reloaded(male, tmp_path)
        assert loaded.logits.training is mode and loaded.base.training is False
    male.logits.eval()


def test_what_is_saved_in_two_folders_and_equal_counts_as_one_and_events_are_exact(tmp_path):
    with ce.register("energy", "prior", Prior), ce.register("encoder", "heads", lambda: nn.Linear(2, 2).eval()):
        base, heads = ce.get("energy", "prior", latent=True), ce.get("encoder", "heads")
        pair = [ce.ClassifierEnergy(heads, 1, base, columns=i, name=f"a{i}") for i in (0, 1)]
        for energy, name in zip(pair, "ab", strict=True):
            energy.save(tmp_path / name)
        again = [ce.load(tmp_path / name) for name in "ab"]
        assert again[0] is not ce.load(tmp_path / "a") and ce.load(tmp_path / "a")(X).equal(again[0](X))
        found = ce.load(tmp_path)
        refused(OptionError, "takes no options", ce.load, tmp_path, latent=True)
    assert list(found) == ["a", "b"] and found["a"].base is found["b"].base and found["a"].logits is found["b"].logits
    assert torch.equal((found["a"] & ~found["b"])(X), (pair[0] & ~pair[1])(X))
    assert len((again[0] & again[1]).bases) == len((again[0] & pair[1]).bases) == 1
    for before, after in ((pair[0] & ~pair[1], again[0] & ~again[1]), (pair[0] | pair[1], again[0] | again[1])):
        assert torch.equal(after(X), before(X))


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
    done = run_code(program)
    assert done.returncode == 0, done.stderr
    bits, text = done.stdout.splitlines()
    assert json.loads(bits) == expression(X).view(torch.int32).tolist() and text == str(expression)


def test_an_unknown_plugin_names_who_wrote_it(site, tmp_path):
    source = "import composable_energy as ce\n\ndef bowl():\n    return ce.as_energy(lambda x: x.square().sum(1), name='bowl')\n"
    install(site, "acme-bowls", {"energies": {"bowl": "third_party_bowl:bowl"}}, {"third_party_bowl": source}, version="2.3")
    (2 * ce.get("energy", "bowl")).save(tmp_path / "saved")
    assert ce.load(tmp_path / "saved")(X).equal(2 * X.square().sum(1))
    sys.path.remove(str(site))
    refused(PluginNotFound, r"'bowl' cannot be built here. It is from acme-bowls 2.3; install that", ce.load, tmp_path / "saved")
    with ce.register("energy", "bowl", normal):  # who registers the name says what to take
        assert ce.load(tmp_path / "saved")(X).equal((2 * normal())(X))


EXPRESSIONS = {
    "and not": lambda m, o, r: m & ~o,
    "nested": lambda m, o, r: (m & o) | (~m & r),
    "mixture": lambda m, o, r: ce.any_of(m, normal(), weights=[0.3, 0.7]),
    "calibrated": lambda m, o, r: ce.Disjunction(m, o, log_z=[0.25, -1.5]),
    "sharpened": lambda m, o, r: m.sharpened(2.5) & o.sharpened(torch.tensor(0.7)),
    "weighted": lambda m, o, r: 3 * normal() & WEIGHT * normal(1.0) & torch.tensor(0.2) * normal(2.0) & normal() / WEIGHT,
    "minus": lambda m, o, r: (m & o) - r,
    "relative": lambda m, o, r: normal(1.0).relative_to(normal()) & normal(2.0).relative_to(normal(3.0)),
    "contrast": lambda m, o, r: ce.negate(normal(1.0).relative_to(normal()), offset=0.5),
    "learnable negation": lambda m, o, r: m & ce.negate(o, weight=WEIGHT),
    "at": lambda m, o, r: (m & ~o).at(0.3),
    "given rows": lambda m, o, r: m.given(sigma=torch.linspace(0, 1, 9)) & o.at(0.2),
    "given label": lambda m, o, r: people("place")[0].given(y=2) & m,
    "base": lambda m, o, r: m.bases[0].energy & m,
    "event by hand": lambda m, o, r: ce.ClassifierEnergy(m.logits, {0, 2}, m.base, columns=slice(0, 3), name="mine") & ~o,
    "density": lambda m, o, r: ce.GaussianHead(m.logits, m.base, dims=2, columns=slice(0, 4), name="where")((0.1, 0.2)) & o,
    "interval": lambda m, o, r: ~ce.GaussianHead(m.logits, m.base, dims=3, name="where").near((0.1, 0.2, 0.3), 0.7) & o,
    "wrapped": lambda m, o, r: Tempered(normal(), 2.0) & Tempered(m, 3.0),
    "pulled back": lambda m, o, r: m & ce.get("energy", "picture", target=[1.0, 2.0]),
    "pulled back encoder": lambda m, o, r: Picture([0.0, 1.0]).pull_back(ce.get("encoder", "linear", in_features=2, out_features=2)),
    "event over an encoder": lambda m, o, r: ce.ClassifierEnergy(ce.get("encoder", "linear", in_features=2, out_features=4), 3, normal()),
}


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_an_expression_comes_back_after_training_and_in_another_dtype(name, tmp_path):
    reloaded(EXPRESSIONS[name](*people("male", "old", "hair=red")), tmp_path)
    energy = EXPRESSIONS[name](*together("male", "old", "hair=red"))
    with torch.no_grad():
        for parameter in {*energy.parameters()} - {WEIGHT}:
            parameter += 0.125
    reloaded(energy, tmp_path)
    reloaded(copy.deepcopy(energy).double(), tmp_path, X.double())


@pytest.mark.parametrize("name", ["nested", "weighted", "event by hand"])
def test_each_tensor_is_written_once(name, tmp_path):
    energy = EXPRESSIONS[name](*people("male", "old", "hair=red"))
    energy.save(tmp_path / "saved")
    tensors = sum(p.numel() for p in {*energy.parameters(), *energy.buffers()})
    header = 4 * len(json.dumps(read_record(tmp_path / "saved" / ENERGY_FILE, "energy", VERSION)[0])) // 3
    assert (tmp_path / "saved" / ENERGY_FILE).stat().st_size < 4 * (tensors + 64) + 8 + 140 * 24 + header


def test_a_distribution_of_one_number_comes_back(tmp_path):
    """Its scale is expanded to the shape of the mean, and has the stride 0."""
    for mean in (torch.zeros(1), torch.tensor([1 + 2j]).conj().imag):  # the second is a view that negates
        reloaded(ce.as_energy(td.Normal(mean, 1.0)), tmp_path, X[:, :1])


def test_a_node_of_a_plugin_comes_back(tmp_path, saving_registry):
    male, red = people("male", "hair=red")
    loaded = reloaded(Mean(male & normal(), red, power=nn.Parameter(torch.tensor(0.4))) & ~red, tmp_path)
    assert type(loaded.terms[0]) is Mean and isinstance(loaded.terms[0].power, nn.Parameter)
    (energy := ce.get("energy", "mlp", dim=2)).scale = 3.0  # after it was built
    reloaded(energy, tmp_path)


def test_a_malformed_node_of_a_plugin_is_refused(tmp_path, saving_registry):
    wrong = [("entry", "people"), ("config", {"evil": 1}), ("config", 3)]
    for name, value, error in (("entry", "nowhere", PluginNotFound), *((*change, FileFormatError) for change in wrong)):
        ce.save(Mean(normal(), normal(1.0)), tmp_path / "saved")
        edit(tmp_path / "saved", lambda header, name=name, value=value: header["nodes"][-1].update({name: value}))
        refused(error, None, ce.load, tmp_path / "saved")


def test_an_unsatisfiable_expression_comes_back(tmp_path):
    with ce.register("energy", "people", Attributes):
        male, red = people("male", "hair=red")
        never = (male & ~male) & red
        ce.save(never, tmp_path / "never")
        loaded = ce.load(tmp_path / "never")
        assert loaded.unsatisfiable and repr(loaded) == repr(never)
        refused(ce.errors.ContradictionError, None, loaded, X)
        reloaded(never | red, tmp_path)


def test_what_cannot_be_saved_is_named_and_nothing_written(tmp_path):
    odd, wide = people("male", "male", "male"), torch.ones(2, dtype=torch.complex128)
    for energy, tensor in zip(odd, (torch.eye(2).to_sparse(), torch.empty(2, device="meta"), wide), strict=True):
        energy.logits.register_buffer("odd", tensor)
    for energy, message in (
        (ce.as_energy(lambda x: x.sum(1)), "is a bare function and cannot be saved: code is not data"),
        (ce.as_energy(nn.Linear(2, 1), name="net") & normal(), "net is a bare Linear"),
        (ce.ClassifierEnergy(nn.Linear(2, 3), 1, normal()), "ClassifierEnergy.logits is a Linear that no plug-in built"),
        (ce.ClassifierEnergy(lambda x: x, 1, normal()), "ClassifierEnergy.logits is a function"),
        (Picture().pull_back(nn.Linear(2, 2)), "decoder is a Linear that no plug-in built"),
        (Unlisted(), "has no `config"),
        (Nameless(), "no plug-in offers its class Nameless"),
        (ce.as_energy(td.RelaxedBernoulli(torch.tensor(1.0), torch.tensor([0.5]))), "A RelaxedBernoulli cannot be saved"),
        (Tempered(normal(), 2.0).given() & Tempered(ce.as_energy(lambda x: x.sum(1)), 1.0), "bare function"),
        *((odd[i], f"It cannot be saved: {error}") for i, error in enumerate(("RuntimeError", "NotImplementedError", "KeyError"))),
    ):
        refused(ExpressionError, message, energy.save, tmp_path / "saved")
        assert not (tmp_path / "saved").exists()


class Unlisted(ce.Energy):
    def forward(self, x):
        return x.sum(1)


Nameless = type("Nameless", (Unlisted,), {"config": lambda self: {}})


def test_a_save_replaces_a_save_and_nothing_else(tmp_path):
    normal().save(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "notes.txt").write_text("mine")
    normal(1.0).save(str(tmp_path / "a" / "b"))
    assert ce.load(str(tmp_path / "a" / "b"))(X).equal(normal(1.0)(X)) and (tmp_path / "a" / "b" / "notes.txt").read_text() == "mine"
    (tmp_path / "file").write_text("mine")
    refused(StorageError, None, normal().save, tmp_path / "file")
    refused(OptionError, "'' is no path: it is empty", normal().save, "")
    refused(OptionError, "a holds energies, such as b, which this one would hide: give another folder", normal().save, tmp_path / "a")
    assert (tmp_path / "file").read_text() == "mine"


def test_weights_that_are_no_numbers_are_refused(tmp_path):
    (male,) = people("male")
    nn.init.constant_(next(male.parameters()), torch.nan)
    male.save(tmp_path)
    refused(FileFormatError, "has NaN in its tensor .*, as after a training that diverged", ce.load, tmp_path)


def lines(error: Exception) -> list[str]:
    found = re.findall(r"^ {4}(.*)$", str(error), flags=re.MULTILINE)
    assert len(found) == 2
    return found


@pytest.mark.parametrize("kind", ["network", "function"])
def test_the_two_lines_of_the_message_work(tmp_path, kind):
    function = network() if kind == "network" else lambda x: x.square().sum(1) / 3
    energy = ce.as_energy(function, event_shape=(2,))
    with pytest.raises(ExpressionError, match="code is not data") as caught:
        (energy if kind == "network" else energy & normal()).save(tmp_path / "E")
    register, get = lines(caught.value)
    names = {"composable_energy": ce, "network": function}
    with eval(register, names):
        exec(get, names)
        (names["E"] & normal()).save(tmp_path / "E")
    if kind != "function":
        names["network"] = network(1)  # another program builds it with other weights
    with eval(register, names):
        torch.testing.assert_close(ce.load(tmp_path / "E")(X), (energy & normal())(X))
