"""Scores face energies: the share of samples that satisfy an expression according to the judge."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS
from composable_energy_faces.judge import Verdict, judge
from composable_energy_faces.networks import Judge

Literal = tuple[str, bool]
"""An attribute, and whether it must hold."""


@dataclass(frozen=True)
class Criterion:
    """An expression, and the share of samples that must satisfy it."""

    text: str
    branches: tuple[tuple[Literal, ...], ...]  # alternatives, each a conjunction
    target: float

    @property
    def variables(self) -> frozenset[str]:
        """The variables in the expression: binary attributes, and hair."""
        return frozenset(name.partition("=")[0] for branch in self.branches for name, _ in branch)

    def satisfied(self, verdict: Verdict) -> Tensor:
        """Returns whether each picture satisfies the expression, with shape $(B,)$."""
        return torch.stack([self.branch_satisfied(verdict, index) for index in range(len(self.branches))]).any(0)

    def branch_satisfied(self, verdict: Verdict, index: int) -> Tensor:
        """Returns whether each picture satisfies one alternative, with shape $(B,)$."""
        return torch.stack([verdict[name] == wanted for name, wanted in self.branches[index]]).all(0)


def _parse(text: str) -> tuple[Literal, ...]:
    names = [name.strip() for name in text.split("&")]
    return tuple((name.removeprefix("~"), not name.startswith("~")) for name in names)


CRITERIA = (
    *(Criterion(name, (_parse(name),), 0.98) for name in (*ATTRIBUTES, *(f"hair={color}" for color in HAIR_COLORS))),
    Criterion("male & smiling", (_parse("male & smiling"),), 0.95),
    Criterion("male & ~smiling", (_parse("male & ~smiling"),), 0.97),
    Criterion("~male & glasses", (_parse("~male & glasses"),), 0.98),
    Criterion("~(male | hat)", (_parse("~male & ~hat"),), 0.96),
    Criterion("(male & smiling) | (~male & glasses)", (_parse("male & smiling"), _parse("~male & glasses")), 0.96),
    Criterion("male & smiling & glasses & hat", (_parse("male & smiling & glasses & hat"),), 0.93),
    Criterion("hair=red & old & ~glasses", (_parse("hair=red & old & ~glasses"),), 0.93),
)
"""The expressions of the model card and the benchmark, with the requirements on the shipped weights."""


def build_expression(
    criterion: Criterion, energies: Mapping[str, ce.Energy], negate: Callable[[ce.Energy], ce.Energy] = lambda e: ~e
) -> ce.Energy:
    """Returns the energy of an expression, as a disjunction of conjunctions of energies or their negations."""
    branches = [[energies[name] if wanted else negate(energies[name]) for name, wanted in branch] for branch in criterion.branches]
    return ce.any_of(*(ce.all_of(*branch) for branch in branches))


def score(
    energy: ce.Energy, criterion: Criterion, *, samples: int = 1000, seed: int = 0, network: Judge | None = None
) -> tuple[dict[str, Any], Tensor]:
    """Returns scores of samples by the recommended sampler, as plain data, and the pictures, with shape $(samples, 3, 64, 64)$.

    A score has the share that satisfies the expression (`joint`) and each alternative (`branches`), and of each attribute that is `free`.
    """
    started = time.perf_counter()
    images = energy.sample(samples, seed=seed)
    seconds = time.perf_counter() - started
    verdict = judge(images, network)
    free = {name: float(verdict[name].float().mean()) for name in ATTRIBUTES if name not in criterion.variables}
    result = {
        "expression": criterion.text,
        "joint": float(criterion.satisfied(verdict).float().mean()),
        "branches": [float(criterion.branch_satisfied(verdict, index).float().mean()) for index in range(len(criterion.branches))],
        "free": free,
        "hair": []
        if "hair" in criterion.variables
        else [float((verdict.hair == index).float().mean()) for index in range(len(HAIR_COLORS))],
        "seconds": seconds,
    }
    return result, images
