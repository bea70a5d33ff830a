"""Every plug-in of the library passes the conformance kit: here, or in the tests of its package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

import composable_energy as ce
from composable_energy.testing import check_energy, check_sampler
from composable_energy_image.testing import check_encoder, check_world
from composable_energy_mcmc.metric import Metric
from composable_energy_planning import Trajectories
from composable_energy_training.testing import check_recipe

PLUGINS = Path(__file__).parent.parent / "plugins"
NO_MODEL = dict.fromkeys(("settings", "texts", "changes", "file", "folder"), "it is the frame of recipes, and names no model")
LATER = {"gradient": "later components take earlier attention as constant"}


def points(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def pair(x: torch.Tensor) -> torch.Tensor:
    return (x[:, 1] - 0.9 * x[:, 0]).square().sum(1)


def heads(name: str, **options: Any) -> Callable[[], None]:
    return lambda: check_encoder(lambda: ce.get("encoder", name, outputs=3, **options), points(5, 6))


def comet(name: str, options: Mapping[str, int] = MappingProxyType({}), **expected: Any) -> Callable[[], None]:
    x = points(4, 3, 16, 16).sigmoid()

    def build() -> torch.nn.Module:
        torch.manual_seed(0)  # the missing part of the gradient is small, and beyond the tolerance for this seed
        return ce.get("encoder", name, size=16, components=3, **options).encoder

    return lambda: check_encoder(build, x, **expected)


HERE: Mapping[str, Mapping[str, Callable[[], object]]] = {
    "energy": {
        "effort": lambda: check_energy(lambda: ce.load("effort", weight=2.0, order=2), points(4, 5, 2)),
        "generated-faces": lambda: check_energy("generated-faces", points(4, 64)),
        "over-time": lambda: check_energy(
            lambda: ce.load("over-time", pair=ce.energies.CallableEnergy(pair, event_shape=(2, 2)), horizon=5), points(4, 5, 2)
        ),
        "plane": lambda: [check_energy(f"plane/{name}", points(4, 2)) for name in ce.installed()["plane"].members],
        "reward": lambda: check_energy(
            lambda: ce.reward(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Flatten(0)), 1.5), points(4, 2)
        ),
        "transition": lambda: check_energy(lambda: ce.load("transition", size=2, hidden=8), points(4, 2, 2)),
        "waypoint": lambda: check_energy(lambda: ce.load("waypoint", target=[0.5, -0.5], time=3), points(4, 5, 2)),
    },
    "sampler": {"trajectories": lambda: check_sampler(Trajectories(step_size=0.5, metric=Metric(None, torch.Size([2]))), exact=True)},
    "encoder": {
        "code-heads": heads("code-heads", code=6),
        "comet": comet("comet", expected_failures=LATER),
        "comet-global": comet("comet-global"),
        "comet-window": comet("comet-window", {"window": 8, "seen": 16}, expected_failures=LATER),
        "latent-heads": heads("latent-heads", inputs=6),
    },
    "recipe": {
        row.name: lambda name=row.name: check_recipe(name, expected_failures=NO_MODEL if name == "energy" else None)
        for row in ce.plugins()
        if row.group == "composable_energy.recipes" and row.distribution == "composable-energy"
    },
    "world": {
        name: lambda name=name: check_world(name) for name in ("colored-sprites", "objects", "one-object", "room", "sprites", "tetris")
    },
}
# Where the kit is applied to the others.
ELSEWHERE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "energy": {
        "comet/tests/test_comet_contract.py": ("comet-conv", "comet-quadratic", "comet-window"),
        "diffusion/tests/test_diffusion_energy.py": ("diffusion",),
        "diffusion/tests/test_diffusion_pipelines.py": ("diffusers",),
        "faces/tests/test_generated_faces.py": ("faces",),
        "image/tests/test_image_attributes.py": ("code-base",),
        "image/tests/test_image_contract.py": (
            *("compositional-128", "compositional-64", "energy-unet", "igebm-dsprites", "igebm-mnist", "igebm-resnet32"),
            *("igebm-resnet32-large", "igebm-resnet32-wider", "improved-cd", "jem"),
        ),
        "molecules/tests/test_molecules_energy.py": ("side-chains",),
        "molecules/tests/test_molecules_generated.py": ("generated-rotamers",),
        "molecules/tests/test_molecules_terms.py": ("side-chain-clash",),
        "observed/tests/test_observed_bad_input.py": ("observed",),
        "training/tests/test_training_toys.py": ("mlp",),
        "worlds/tests/test_scenes_contract.py": ("scenes",),
        "worlds/tests/test_scenes_multi_object.py": ("code-conditional",),
    },
    "sampler": {
        "comet/tests/test_comet_second_look.py": ("inner-descent",),
        "diffusion/tests/test_diffusion_samplers.py": ("ode", "sde"),
        "latent/tests/test_latent_flow.py": ("lace",),
        "mcmc/tests/test_mcmc_contract.py": (
            *("annealed", "chees", "descent", "feynman-kac", "hmc", "langevin", "mala", "smc", "tempering", "underdamped"),
        ),
    },
    "encoder": {"latent/tests/test_latent_loaders.py": ("generator",)},
    "kernel": {"triton/tests/interpreted.py": ("triton",)},
}
CASES = [(kind, name) for kind, checks in HERE.items() for name in checks]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_plugin_of_the_library_conforms(kind, name):
    HERE[kind][name]()


@pytest.mark.parametrize("kind", ["energy", "sampler", "encoder", "kernel", "recipe", "world"])
def test_no_plugin_of_the_library_is_left_out(kind):
    group = "composable_energy.energies" if kind == "energy" else f"composable_energy.{kind}s"
    offered = {row.name for row in ce.plugins() if row.group == group and row.distribution == "composable-energy"}
    elsewhere = [name for names in ELSEWHERE.get(kind, {}).values() for name in names]
    assert sorted([*HERE.get(kind, {}), *elsewhere]) == sorted(offered)


@pytest.mark.parametrize("file", [file for files in ELSEWHERE.values() for file in files])
def test_the_tests_of_a_package_use_the_kit(file):
    text = (PLUGINS / file).read_text(encoding="utf-8")
    names = ("check_energy", "energy_checks", "check_sampler", "sampler_checks", "check_encoder", "kernel_checks")
    assert any(f"{name}(" in text for name in names)
