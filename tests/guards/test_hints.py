"""A misspelt name, or one that others use, is answered with the name to write."""

import sys

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.registry import members_of
from composable_energy_cli import main
from tests.processes import run_code
from tests.refusals import refusals
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


def draw(**options):
    return NORMAL.sample((4, 2), **{"sampler": "langevin", **options})


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
    (lambda: getattr(ce.samplers, "NUTS"), AttributeError, "Did you mean 'ChEES'"),  # noqa: B009
    (lambda: getattr(ce, "any"), AttributeError, "has no attribute 'any'. Did you mean .*'any_of'"),  # noqa: B009
    (lambda: ce.get("recipe", "IGEBM_MNIST"), PluginNotFound, "Did you mean 'igebm-mnist'"),
    (lambda: ce.get("samplers", "hmc"), OptionError, "Did you mean 'sampler'"),
)


def test_members_of_third_parties_are_not_imported_to_suggest_them(site):
    install(site, "acme-shapes", {"energies": {"shapes": "third_party_shapes:Shapes"}}, {"third_party_shapes": FAMILY})
    with pytest.raises(PluginNotFound, match="the energy 'helix'"):
        ce.load("helix")
    assert "third_party_shapes" not in sys.modules
    with pytest.raises(PluginNotFound, match="'shapes/helix'"):
        ce.load("shapes/helx")


@pytest.mark.parametrize(
    ("arguments", "right"),
    [
        (["smple", "ring"], "Did you mean 'sample'"),
        (["sample", "plane/rng"], "did you mean `plane/ring`"),
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


@pytest.mark.full
def test_the_listing_of_the_package_has_its_public_names_alone():
    """Names of other packages too, as composable_energy_training, are listed by the same rule."""
    code = "import composable_energy as ce; print([n for n in dir(ce) if not n.startswith('__') and n not in ce.__all__])"
    assert run_code(code).stdout.strip() == "['diagnostics', 'energies', 'errors', 'events', 'registry', 'sampling', 'supports', 'testing']"
    import composable_energy_training

    assert [name for name in dir(composable_energy_training) if not name.startswith("__")] == sorted(
        [*composable_energy_training.__all__, "toys"]
    )
