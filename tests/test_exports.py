"""What the package offers: names, samplers by class, what an import loads, `installed()`; and hints for names that are misspelt."""

import copy
import functools
import inspect
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
import torch

import composable_energy as ce
import composable_energy_training
from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.registry import get, members_of, names
from composable_energy.sampling import Sampler, sample
from tests.processes import run_code
from tests.refusals import refusals, refused
from tests.third_party import GOOD_SAMPLER, Noisy, Toys, install

NORMAL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
HEAVY = {"matplotlib", "triton", "tqdm", "scipy", "pandas", "PIL", "einops", "safetensors", "mujoco", "arviz_stats", "xarray", "sklearn"}
FAMILY = """
    import composable_energy as ce

    class Shapes(ce.EnergyFamily):
        def members(self):
            return ("helix",)

        def load(self, member):
            return ce.as_energy(lambda x: x.square().sum(1))
"""


@functools.cache
def loaded_by(statement: str) -> frozenset[str]:
    return frozenset(json.loads(run_code(f"import sys, json; {statement}; print(json.dumps(sorted(sys.modules)))").stdout))


@pytest.mark.full
@pytest.mark.parametrize(
    "statement",
    [
        "import composable_energy as ce; [getattr(ce, name) for name in ce.__all__]",
        "import composable_energy as ce; (ce.as_energy(lambda x: x.sum(1)) & (lambda x: x.sum(1))); ce.plugins()",
    ],
)
def test_importing_loads_nothing_that_is_not_needed(statement):
    loaded = loaded_by(statement) - loaded_by("import torch")  # torch itself takes tqdm where it is
    assert {name.split(".")[0] for name in loaded} & HEAVY == set()
    assert not [name for name in loaded if name.startswith("composable_energy_")]


def test_listing_imports_no_plugin_and_no_torch(site):
    install(site, "acme", {"samplers": {"walk": "third_party_s:Walk"}}, {"third_party_s": GOOD_SAMPLER})
    uses = "assert 'entrypoints' not in sys.modules; ce.plugins(); dir(ce.samplers); dir(ce.viz)"
    loaded = loaded_by(f"import composable_energy as ce; {uses}")
    assert not [name for name in loaded if name.startswith(("third_party", "composable_energy_", "torch"))]


def test_every_public_name_is_there():
    assert len(set(ce.__all__)) == len(ce.__all__)
    assert [name for name in ce.__all__ if not hasattr(ce, name)] == [] and set(ce.__all__) <= set(dir(ce))
    refused(AttributeError, "no attribute 'nothing'", getattr, ce, "nothing")


def test_every_sampler_is_there_by_the_name_of_its_class():
    classes = [get("sampler", name) for name in names("sampler")]
    assert dir(ce.samplers) == sorted(cls.__name__ for cls in classes)
    assert [getattr(ce.samplers, cls.__name__) for cls in classes] == classes and all(issubclass(cls, Sampler) for cls in classes)
    by_name = NORMAL.sample(20, sampler="mala", step_size=0.5, steps=5, seed=0)
    assert torch.equal(NORMAL.sample(20, sampler=ce.samplers.MALA(step_size=0.5), steps=5, seed=0), by_name)
    refused(AttributeError, r"Known: Annealed, Annealing, ChEES, ", getattr, ce.samplers, "Zzz")
    assert inspect.signature(ce.log_z) == inspect.signature(get("estimator", "log-z"))
    assert "HMC" in dir(copy.deepcopy(ce.samplers)) and copy.deepcopy(ce.log_z)


class Walk(ce.samplers.MALA):
    """A sampler of this session."""


def test_a_sampler_of_this_session_is_there_while_it_is_registered():
    with ce.register("sampler", "walk", Walk):
        assert ce.samplers.Walk is Walk and "Walk" in dir(ce.samplers)
    assert not hasattr(ce.samplers, "Walk")


def test_samplers_of_two_packages_with_one_name_are_refused_with_the_ways_out(site):
    for package in ("acme", "apex"):
        install(site, package, {"samplers": {"walk": f"third_party_{package}:Walk"}}, {f"third_party_{package}": GOOD_SAMPLER})
    with pytest.raises(AttributeError, match=r"composable_energy\.get\('sampler', 'acme:walk'\) or .*'apex:walk'"):
        ce.samplers.Walk  # noqa: B018
    assert ce.get("sampler", "acme:walk").__name__ == "Walk"


@pytest.mark.full
def test_sample_is_a_method_with_the_signature_and_the_text_of_the_function():
    function, method = inspect.signature(sample), inspect.signature(NORMAL.sample)
    assert list(method.parameters.values()) == list(function.parameters.values())[1:]
    assert {"shape", "sampler", "steps", "seed", "trace", "observers", "options"} <= method.parameters.keys()
    assert NORMAL.sample.__doc__ == sample.__doc__
    code = (
        "import inspect, torch, composable_energy as ce; E = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)); "
        "assert 'composable_energy.sampling' not in sys.modules; first = inspect.signature(E.sample); "
        "assert inspect.signature(E.sample) == first and 'self' not in first.parameters"
    )
    assert "composable_energy.sampling" in loaded_by(code)
    draw = {"sampler": "mala", "step_size": 0.5, "steps": 2, "seed": 0}
    points = NORMAL.sample(3, **draw)
    for other in (copy.deepcopy(NORMAL), pickle.loads(pickle.dumps(NORMAL))):
        assert torch.equal(other.sample(3, **draw), points)
    assert torch.equal(ce.Energy.sample(NORMAL, 3, **draw), points)


class Trained(ce.Energy):
    """A network of <b>toys</b>, $f(x)$: with weights."""

    comes_trained = True

    def __init__(self, size: int, *, depth: int = 1, **options) -> None:
        super().__init__()

    def forward(self, x):
        return x.flatten(1).sum(1)


def build_trained(folder: str = "") -> Trained:
    return Trained(1)


def test_each_energy_of_the_library_has_a_line_that_says_what_is_trained():
    table = ce.installed()
    assert [row.name for row in table if row.error or not row.summary or "$" in row.summary or len(row.summary) > 80] == []
    states = {"faces": "trained", "igebm-mnist": "untrained", "observed": "needs y", "transition": "untrained, needs size", "effort": ""}
    assert {name: table[name].state for name in states} == states
    assert f"{len(table['faces'].members)} members, such as faces/male" in table["faces"].line


def test_what_a_plugin_says_is_shown_in_a_table_and_nothing_is_built():
    before = list(Toys.loaded)
    with (
        ce.register("energy", "mine", Trained),
        ce.register("energy", "made", build_trained),
        ce.register("energy", "bowl", lambda: Noisy()),
        ce.register("energy", "toys", Toys),
    ):
        table = ce.installed()
    assert (table["mine"].summary, table["mine"].state) == ("A network of <b>toys</b>", "trained, needs size")
    assert (table["made"].trained, table["made"].needs, table["bowl"].state, table["bowl"].summary) == (True, (), "", "")
    assert table["toys"].members == Toys().members() and Toys.loaded == before
    assert len(str(table).splitlines()) == len(table) + 1 and repr(table) == str(table) and "toys" in table and "toy" not in table
    refused(PluginNotFound, "Did you mean 'faces'", table.__getitem__, "face")
    refused(OptionError, "which has all kinds; got 'sampler'", ce.installed, "sampler")
    assert "No energies are installed" in str(ce.registry.EnergyTable([]))


def draw(**options):
    return NORMAL.sample((4, 2), **{"sampler": "langevin", **options})


def test_the_answer_to_nuts_quotes_figures_that_were_measured():
    with pytest.raises(PluginNotFound) as found:
        ce.get("sampler", "no-u-turn")
    text = (Path(__file__).parents[1] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    rows = text[text.index("<!-- gradients a sample -->") :]
    for name, said in (("**chees**", r"takes (.*) gradients"), ("BlackJAX NUTS", r"BlackJAX (.*)\.")):
        cells = next(line for line in rows.splitlines() if line.startswith(f"| {name} |")).strip("| ").split(" | ")[1:]
        assert re.search(said, str(found.value))[1] == f"{', '.join(cells[:3])} and {cells[3]}"


test_another_name_is_answered_with_the_right_one = refusals(
    *[
        (lambda name=name: draw(sampler=name), PluginNotFound, f"the sampler '{name}'. Did you mean '{right}'")
        for name, right in (("NUTS", "chees"), ("hamiltonian", "hmc"), ("Metropolis_Hastings", "mala"), ("feynman_kac", "feynman-kac"))
    ],
    *[
        (lambda get=get, name=name: get(name), PluginNotFound, f"the energy '{name}'. Did you mean '{right}'")
        for get in (ce.load, lambda name: ce.get("energy", name), members_of)
        for name, right in (("rings", "plane/ring"), ("smilling", "faces/smiling"), ("plan", "plane"))
    ],
    *[
        (lambda name=name: draw(**{name: 3}), OptionError, rf"has no option {name}; .* Did you mean {right}\?")
        for name, right in (("lr", "step_size"), ("num_steps", "steps"), ("num_chains", "shape"), ("x0", "init"), ("Seed", "seed"))
    ],
    (lambda: ce.as_energy(lambda x, radius: x[:, 0]).sample((3, 1), radius=2), OptionError, r"condition of energy: write `.given\(radius"),
    (lambda: getattr(ce.samplers, "NUTS"), AttributeError, "Did you mean 'ChEES'"),  # noqa: B009
    (lambda: getattr(ce, "any"), AttributeError, "has no attribute 'any'. Did you mean .*'any_of'"),  # noqa: B009
    (lambda: ce.get("recipe", "IGEBM_MNIST"), PluginNotFound, "Did you mean 'igebm-mnist'"),
    (lambda: ce.get("samplers", "hmc"), OptionError, "Did you mean 'sampler'"),
)


def test_members_of_third_parties_are_not_imported_to_suggest_them(site):
    install(site, "acme-shapes", {"energies": {"shapes": "third_party_shapes:Shapes"}}, {"third_party_shapes": FAMILY})
    refused(PluginNotFound, "the energy 'helix'", ce.load, "helix")
    assert "third_party_shapes" not in sys.modules
    refused(PluginNotFound, "'shapes/helix'", ce.load, "shapes/helx")


@pytest.mark.full
def test_the_listing_of_the_package_has_its_public_names_alone():
    """Names of other packages too, as composable_energy_training, are listed by the same rule."""
    code = "import composable_energy as ce; print([n for n in dir(ce) if not n.startswith('__') and n not in ce.__all__])"
    assert run_code(code).stdout.strip() == "['diagnostics', 'energies', 'errors', 'events', 'registry', 'sampling', 'supports', 'testing']"
    shown = [name for name in dir(composable_energy_training) if not name.startswith("__")]
    assert shown == sorted([*composable_energy_training.__all__, "toys"])
