"""Plug-ins with one planted fault each, and the correct ones that they derive from."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_image.data import Field, Scenes, World
from composable_energy_training import Recipe


class Bowl(ce.Energy):
    """An energy with a learnable scale and an option."""

    def __init__(self, power: float = 2.0) -> None:
        super().__init__()
        self.power = power
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.event_shape = torch.Size([2])

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * x.abs().pow(self.power).sum(1)

    def config(self) -> dict[str, Any]:
        return {"power": self.power}


class ForgetsAnOption(Bowl):
    def config(self):
        return {}


class Encoder(nn.Module):
    """A small network, of what a function does to its inputs."""

    def __init__(self, before: Callable[[Tensor], Tensor] = lambda x: x) -> None:
        super().__init__()
        self.before, self.first, self.last = before, nn.Linear(2, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(self.before(x)).tanh())


class WithoutGradient(Encoder):
    def forward(self, x):
        with torch.no_grad():
            return super().forward(x)


class HidesATensor(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.offset = torch.randn(3)

    def forward(self, x):
        return super().forward(x) + self.offset.to(x)


class LeavesALayerOut(Encoder):
    def __init__(self) -> None:
        super().__init__()
        self.middle = nn.Linear(8, 8)


@dataclass(frozen=True)
class Fit(Recipe):
    """Writes the mean of the numbers in a file as weights of a bowl."""

    def run(self, data: str | Path, out: str | Path, *, progress: bool = False) -> Path:
        self.save(out)
        energy = Bowl()
        with torch.no_grad():
            energy.scale.fill_(float(Path(data).read_text()) + self.jitter())
        folder = Path(out) / "energy"
        folder.mkdir(exist_ok=True)
        save_file({"scale": energy.scale.detach()}, folder / "model.safetensors")
        return folder

    def jitter(self) -> float:
        return torch.rand((), generator=torch.Generator().manual_seed(self.settings["training"]["seed"])).item()


SETTINGS: Mapping[str, Any] = {"data": {"labels": "none", "limit": "none"}, "training": {"seed": 0, "steps": 10, "device": "none"}}
TEXTS = ("A bowl", "Nowhere", "A number in a file", "No time")


class DrawsWithoutSeed(Fit):
    def jitter(self):
        return torch.rand(()).item()


class TakesAnySetting(Fit):
    def with_changes(self, changes):
        return super().with_changes({key: value for key, value in changes.items() if key in self.setting_types({})})


class Squares(World):
    """A grey square on black."""

    name = "squares"
    channels = 1
    fields = {"tone": Field((), "int64", "tone of the square", ("dark", "bright")), "place": Field((), "float32", "from 0 to 1")}

    def __init__(self, size: int = 8) -> None:
        self.size = size

    def sample_labels(self, random: np.random.Generator) -> dict[str, Any]:
        return {"tone": random.integers(2), "place": random.uniform()}

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        values = self.check_labels(labels)
        inside = (abs(np.arange(self.size) / self.size - values["place"][:, None]) < 0.2)[:, None, :].repeat(self.size, 1)
        images = (inside * np.array([90, 250])[values["tone"]][:, None, None]).astype(np.uint8)
        return Scenes(self.shown(images)[:, None], values, inside.astype(np.uint8) if masks else None)

    def shown(self, images: np.ndarray) -> np.ndarray:
        return images


class NoisySquares(Squares):
    def __init__(self, size: int = 8) -> None:
        super().__init__(size)
        self.random = np.random.default_rng(0)

    def shown(self, images):
        return images | self.random.integers(0, 2, images.shape, np.uint8)


class FloatSquares(Squares):
    def shown(self, images):
        return images / 255


class ThreeTones(Squares):
    def sample_labels(self, random):
        return {**super().sample_labels(random), "tone": random.integers(3)}


class ForgetsItsSize(Squares):
    def __init__(self, size: int = 8, count: int = 1) -> None:
        super().__init__(size)
        self._count = count

    def shown(self, images):
        return images // self._count


def number_file() -> Path:
    """A file with a number, the data of `Fit`."""
    folder = Path(tempfile.mkdtemp())
    (folder / "number").write_text("0.5")
    return folder / "number"
