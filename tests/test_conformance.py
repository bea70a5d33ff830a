"""Every plug-in of the library passes the conformance kit: here, or in the tests of its package."""

import re
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
KIT = ("check_energy", "energy_checks", "check_sampler", "sampler_checks", "check_encoder", "kernel_checks")
CASES = [(kind, name) for kind, checks in HERE.items() for name in checks]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "name"), CASES, ids=[" ".join(case) for case in CASES])
def test_a_plugin_of_the_library_conforms(kind, name):
    HERE[kind][name]()


@pytest.mark.parametrize("kind", ["energy", "sampler", "encoder", "kernel", "recipe", "world"])
def test_no_plugin_of_the_library_is_left_out(kind):
    """Those that are not checked here are named in a test of their package that calls the kit."""
    group = "composable_energy.energies" if kind == "energy" else f"composable_energy.{kind}s"
    here = {"code-conditional", *HERE.get(kind, {})}  # the first is built by another name in its package
    rows = [row for row in ce.plugins() if (row.group, row.distribution) == (group, "composable-energy") and row.name not in here]
    for row in rows:
        package, made = re.match(r"(\w+)[\w.]*:(\w+)", row.value).groups()
        (home,) = PLUGINS.glob(f"*/{package}")
        texts = [path.read_text(encoding="utf-8") for path in (home.parent / "tests").glob("*.py")]
        named = re.compile(rf"[\"'/]{row.name}[\"'/]|\b{made}\b|ce\.{row.name}\(")
        assert any(named.search(text) and any(f"{check}(" in text for check in KIT) for text in texts), row.name
