"""Third-party plug-ins for tests: distributions written to a folder on the path, as an installer leaves them."""

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import pytest

import composable_energy as ce
from composable_energy.registry import registry

GOOD_ENERGY = """
    import torch
    import composable_energy as ce

    class Bowl(ce.Energy):
        def __init__(self, scale: float = 1.0) -> None:
            super().__init__()
            self.scale = torch.nn.Parameter(torch.tensor(float(scale)))

        def forward(self, x):
            return self.scale * x.flatten(1).square().sum(1) / 2

    def ring(radius: float = 1.0):
        return ce.as_energy(lambda x: (x.flatten(1).norm(dim=1) - radius).square(), name="ring")
"""

GOOD_SAMPLER = """
    from dataclasses import dataclass
    from composable_energy.sampling import Info, Sampler, State, energy_and_gradient

    @dataclass(frozen=True)
    class Walk(Sampler):
        scale: float = 0.1

        def init(self, energy, x, noise):
            return State(x, *energy_and_gradient(energy, x))

        def step(self, energy, state, noise):
            x = state.x + self.scale * noise.normal(state.x)
            return State(x, *energy_and_gradient(energy, x)), Info()
"""


def install(
    folder: Path,
    name: str,
    groups: Mapping[str, Mapping[str, str]],
    modules: Mapping[str, str] | None = None,
    *,
    version: str = "1.0",
    raw: str | bytes | None = None,
) -> None:
    """Writes a distribution to a folder: entry points by group, without `composable_energy.`, or raw; and modules by name."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    text = "\n".join(
        f"[composable_energy.{group}]\n" + "".join(f"{entry} = {value}\n" for entry, value in entries.items())
        for group, entries in groups.items()
    )
    raw = text if raw is None else raw
    (info / "entry_points.txt").write_bytes(raw if isinstance(raw, bytes) else raw.encode())
    for module, source in (modules or {}).items():
        (folder / f"{module}.py").write_text(textwrap.dedent(source))


def row(name: str, distribution: str | None = None) -> ce.registry.PluginRecord:
    """Returns the only record with this name."""
    (found,) = (r for r in ce.plugins() if r.name == name and (distribution is None or r.distribution == distribution))
    return found


@pytest.fixture
def site(tmp_path):
    """A folder on the path, and an empty registry until the fixtures that were set up before end."""
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(registry.registered, clear=True):
        patch.delenv("COMPOSABLE_ENERGY_PLUGINS", raising=False)
        patch.syspath_prepend(tmp_path)
        before = set(sys.modules)
        yield tmp_path
        for name in set(sys.modules) - before:
            if name.startswith("third_party"):
                del sys.modules[name]


@pytest.fixture
def acme(site):
    """The same with one distribution that offers two energies."""
    install(
        site, "acme-energies", {"energies": {"bowl": "third_party_a:Bowl", "ring": "third_party_a:ring"}}, {"third_party_a": GOOD_ENERGY}
    )
    return site
