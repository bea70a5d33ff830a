"""The energies of the comparisons, as formulas in plain torch and as energies of this library."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.energies import Mixture, Perceptron


@dataclass(frozen=True)
class Case:
    """One comparison of speed."""

    title: str  # its name in tables
    shape: tuple[int, ...]  # shape of the points
    steps: int  # steps of one call; so many that the fixed cost of a call is a small part
    step_size: float  # $h$ of $x - h \\nabla E + \\sqrt{2 h} \\xi$
    leapfrog: float  # $\\varepsilon$ of a leapfrog
    formula: nn.Module  # energy in plain torch, with shape $(B,)$
    energy: ce.Energy  # same as an energy of this library


class Gaussian(nn.Module):
    """100 coordinates, a random rotation, variances from .1 to 10."""

    def __init__(self) -> None:
        super().__init__()
        axes, _ = np.linalg.qr(np.random.RandomState(0).randn(100, 100))
        self.register_buffer("precision", torch.tensor((axes / np.logspace(-1, 1, 100)) @ axes.T, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.get_buffer("precision") * x).sum(1) / 2


class Convolutions(nn.Module):
    """Three convolutions of pictures with three colors, and a quadratic term."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        layers = ((nn.Conv2d(channels, width, 3, padding=1), nn.SiLU()) for channels in (3, width, width))
        self.net = nn.Sequential(*(layer for pair in layers for layer in pair))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3)).sum(1) + x.square().flatten(1).sum(1) / 2


class Pictures(nn.Module):
    """Three convolutions of 127,489 weights on pictures of 3 x 8 x 8, and a quadratic term."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.net = nn.Sequential(
            *(nn.Conv2d(3, 48, 3, padding=1), nn.SiLU(), nn.Conv2d(48, 96, 3, stride=2, padding=1), nn.SiLU()),
            *(nn.Conv2d(96, 96, 3, padding=1), nn.SiLU(), nn.Flatten(), nn.Linear(1536, 1)),
        )
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x.unflatten(1, (3, 8, 8))).squeeze(1) + x.square().sum(1) / 2


class Composed(nn.Module):
    """`(A | B) & C & ~D` as a plain formula; `~D` is outside of where the energy of D is below a level."""

    def __init__(self, terms: list[nn.Module], level: float) -> None:
        super().__init__()
        self.terms, self.level = nn.ModuleList(terms), level

    def forward(self, x: Tensor) -> Tensor:
        a, b, c, d = (term(x) for term in self.terms)
        return -torch.logaddexp(-a, -b) + c + nn.functional.softplus((self.level - d) / 0.1)


def _frozen(module: nn.Module) -> Any:
    return module.requires_grad_(False)


def _alone(title: str, shape: tuple[int, ...], steps: int, leapfrog: float, make: Callable[[], nn.Module]) -> Case:
    formula = _frozen(make())
    return Case(title, shape, steps, 0.005, leapfrog, formula, ce.as_energy(formula))


def _composed(title: str) -> Case:
    terms = [_frozen(Perceptron(64, 296)) for _ in range(4)]
    a, b, c, d = (ce.as_energy(term) for term in terms)
    level = 42.0  # about that of `~d`, which would be estimated
    return Case(title, (64, 64), 100, 0.005, 0.2, Composed(terms, level), (a | b) & c & ce.negate(d, level=level))


def case(name: str) -> Case:
    """Returns a comparison by name; its weights are always the same."""
    torch.manual_seed(0)
    return _CASES[name]()


_CASES: dict[str, Callable[[], Case]] = {
    "mixture": lambda: _alone("mixture on a plane, 4,096 chains", (4096, 2), 200, 0.15, Mixture),
    "mixture-64": lambda: _alone("mixture on a plane, 64 chains", (64, 2), 500, 0.15, Mixture),
    "gaussian-64": lambda: _alone("correlated Gaussian in 100-D, 64 chains", (64, 100), 500, 0.2, Gaussian),
    "gaussian-1024": lambda: _alone("correlated Gaussian in 100-D, 1,024 chains", (1024, 100), 200, 0.2, Gaussian),
    "convolutions": lambda: _alone("3 convolutions, 16 pictures 3 x 32 x 32", (16, 3, 32, 32), 60, 0.1, Convolutions),
    "composed": lambda: _composed("4 perceptrons under or, and, not; 64 latents in 64-D"),
}
