"""A misspelt name, or one that others use, is answered with the name to write."""

import subprocess
import sys
from functools import partial

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.registry import members_of
from composable_energy_cli import main
from tests.third_party import install

NORMAL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
FAMILY = """
    import composable_energy as ce

    class Shapes(ce.EnergyFamily):
        def members(self):
            return ("helix",)

        def load(self, member):
            return ce.as_energy(lambda x: x.square().sum(1))
"""


@pytest.mark.parametrize(
    ("name", "right"),
    [("NUTS", "chees"), ("hamiltonian", "hmc"), ("Metropolis_Hastings", "mala"), ("lagevin", "langevin"), ("feynman_kac", "feynman-kac")],
)
def test_a_sampler_by_another_name(name, right):
    with pytest.raises(PluginNotFound, match=f"the sampler '{name}'. Did you mean '{right}'"):
        NORMAL.sample((4, 2), sampler=name)


@pytest.mark.parametrize(("name", "right"), [("NUTS", "ChEES"), ("langevin", "Langevin")])
def test_a_sampler_by_another_class(name, right):
    with pytest.raises(AttributeError, match=f"Did you mean '{right}'"):
        getattr(ce.samplers, name)


@pytest.mark.parametrize("get", [ce.load, partial(ce.get, "energy"), members_of])
def test_an_energy_without_its_family(get):
    for name, right in (("rings", "plane/ring"), ("smilling", "faces/smiling"), ("plan", "plane")):
        with pytest.raises(PluginNotFound, match=f"the energy '{name}'. Did you mean '{right}'"):
            get(name)


def test_members_of_third_parties_are_not_imported_to_suggest_them(site):
    install(site, "acme-shapes", {"energies": {"shapes": "third_party_shapes:Shapes"}}, {"third_party_shapes": FAMILY})
    with pytest.raises(PluginNotFound, match="the energy 'helix'"):
        ce.load("helix")
    assert "third_party_shapes" not in sys.modules
    with pytest.raises(PluginNotFound, match="'shapes/helix'"):
        ce.load("shapes/helx")


@pytest.mark.parametrize(("kind", "name", "right"), [("recipe", "IGEBM_MNIST", "igebm-mnist"), ("samplers", "hmc", "sampler")])
def test_another_kind_of_plugin(kind, name, right):
    with pytest.raises((PluginNotFound, OptionError), match=f"Did you mean '{right}'"):
        ce.get(kind, name)


@pytest.mark.parametrize(
    ("option", "right"), [("lr", "step_size"), ("num_steps", "steps"), ("num_chains", "shape"), ("x0", "init"), ("Seed", "seed")]
)
def test_an_option_by_another_name(option, right):
    with pytest.raises(OptionError, match=rf"has no option {option}; .* Did you mean {right}\?"):
        NORMAL.sample((4, 2), sampler="langevin", **{option: 3})


@pytest.mark.parametrize(("name", "right"), [("laod", "load"), ("any", "any_of")])
def test_an_attribute_of_the_package(name, right):
    with pytest.raises(AttributeError, match=f"has no attribute '{name}'. Did you mean .*'{right}'"):
        getattr(ce, name)
    assert not hasattr(ce, name)


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["smple", "ring"], "Did you mean 'sample'"),
        (["sample", "plane/rng"], "did you mean `plane/ring`"),
        (["sample", "plane/ring", "--sampler", "nuts"], "Did you mean 'chees'"),
        (["sample", "plane/ring", "--stps", "3"], "Did you mean --steps"),
        (["new-plugin", "--kind", "samplr", "x"], "Did you mean 'sampler'"),
    ],
)
def test_the_command_line(arguments, right, capsys):
    try:
        code = main(arguments)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    assert code == 2 and right in err and not out


@pytest.mark.slow
def test_the_listing_of_the_package_has_its_public_names_alone():
    """Names of other packages too, as composable_energy_training, are listed by the same rule."""
    code = "import composable_energy as ce; print([n for n in dir(ce) if not n.startswith('__') and n not in ce.__all__])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "['diagnostics', 'energies', 'errors', 'events', 'registry', 'sampling', 'supports', 'testing']"
    import composable_energy_training

    assert [name for name in dir(composable_energy_training) if not name.startswith("__")] == sorted(composable_energy_training.__all__)
    assert not {"TYPE_CHECKING", "annotations", "lazy", "lazy_exports"} & {*dir(ce), *dir(composable_energy_training)}
