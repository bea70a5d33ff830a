"""Small energies under the name `toys`, and functions that run the command line in tests."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import composable_energy as ce
from composable_energy_cli import main


class Tiles(torch.nn.Module):
    """Four numbers to a picture of 16 x 16 in quarters, and back."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        quarters = torch.sigmoid(z).view(-1, 1, 2, 2)
        return quarters.repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)

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
