"""Plug-ins of third parties: distributions as an installer leaves them, energies under the name `toys`, and runs of the command line."""

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from unittest import mock

import pytest
import torch

import composable_energy as ce
from composable_energy.registry import registry
from composable_energy_cli import main

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
    entries = {"energies": {"bowl": "third_party_a:Bowl", "ring": "third_party_a:ring"}}
    install(site, "acme-energies", entries, {"third_party_a": GOOD_ENERGY})
    return site


class Tiles(torch.nn.Module):
    """Four numbers to a picture of 16 x 16 in quarters, and back."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(z).view(-1, 1, 2, 2).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return torch.logit(x[:, 0, 4::8, 4::8].flatten(1).clamp(0.001, 0.999))


class AnyTiles(ce.Energy):
    """The base of the toys."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder = Tiles()
        self.name = "toys"
        self.event_shape = torch.Size([4])
        self.recommended = ce.Recommendation("langevin", {"step_size": 0.2})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / 2


class Noisy(ce.Energy):
    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([2])
        self.name = "noisy"

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / (2 * (1 + torch.as_tensor(sigma) ** 2))


class At(Noisy):
    """A narrow Gaussian around `y`."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 50 * (x - y.reshape(len(y), -1)).square().sum(1)


def corners(x: torch.Tensor) -> torch.Tensor:
    return 3 * x[:, :2]


class Toys(ce.EnergyFamily):
    loaded: list[str | None] = []

    def __init__(self) -> None:
        self.base = AnyTiles()

    def members(self) -> tuple[str, ...]:
        return ("bright", "left=dark", "plane", "noisy", "shapeless")

    def load(self, member: str | None) -> ce.Energy:
        self.loaded.append(member)
        if member == "noisy":
            return Noisy()
        if member == "plane":
            return ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0), name="plane")
        if member == "shapeless":
            return ce.as_energy(lambda x: x.square().flatten(1).sum(1), name="shapeless")
        if member is None:
            return self.base
        column = self.members().index(member)
        return ce.ClassifierEnergy(corners, 1, self.base, columns=slice(column, column + 1), name=member)


@pytest.fixture
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    Toys.loaded.clear()
    with ce.register("energy", "toys", Toys):
        yield


def run(*arguments: str) -> int:
    return main(arguments)


def python(*arguments: str, **options) -> subprocess.Popen[str]:
    """Starts the command in a process of its own, with this process's path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "composable_energy", *arguments]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **options)


class Untaught(Noisy):
    comes_trained = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.square().sum(1) / 2


class Broken(ce.EnergyFamily):
    def members(self) -> tuple[str, ...]:
        raise ZeroDivisionError("no members today")

    def load(self, member: str | None) -> ce.Energy:
        raise NotImplementedError


class Unmade(Toys):
    def __init__(self) -> None:
        raise OSError("unwritten weights")
