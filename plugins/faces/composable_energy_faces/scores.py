"""Expressions by which face energies are scored, and the score: how often the judge sees what was asked for."""

from __future__ import annotations

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

__all__ = ["ROWS", "Literal", "Row", "expression", "score"]

Literal = tuple[str, bool]
"""An attribute and whether it is wanted."""


@dataclass(frozen=True)
class Row:
    """An expression to score.

    Attributes:
        text: As it is written.
        branches: Its disjunctive normal form: alternatives, each of literals that hold together.
        target: The share of samples that must obey.
    """

    text: str
    branches: tuple[tuple[Literal, ...], ...]
    target: float

    @property
    def asked(self) -> frozenset[str]:
        """The variables that it speaks of: binary attributes, and hair."""
        return frozenset(name.partition("=")[0] for branch in self.branches for name, _ in branch)

    def obeyed(self, verdict: Verdict) -> Tensor:
        """Returns which pictures obey, with shape $(B,)$."""
        return torch.stack([self.obeyed_by_branch(verdict, index) for index in range(len(self.branches))]).any(0)

    def obeyed_by_branch(self, verdict: Verdict, index: int) -> Tensor:
        """Returns which pictures obey one alternative, with shape $(B,)$."""
        return torch.stack([verdict[name] == wanted for name, wanted in self.branches[index]]).all(0)


def _parsed(text: str) -> tuple[Literal, ...]:
    names = [name.strip() for name in text.split("&")]
    return tuple((name.removeprefix("~"), not name.startswith("~")) for name in names)


ROWS = (
    *(Row(name, (_parsed(name),), 0.98) for name in (*ATTRIBUTES, *(f"hair={color}" for color in HAIR_COLORS))),
    Row("male & smiling", (_parsed("male & smiling"),), 0.95),
    Row("male & ~smiling", (_parsed("male & ~smiling"),), 0.97),
    Row("~male & glasses", (_parsed("~male & glasses"),), 0.98),
    Row("~(male | hat)", (_parsed("~male & ~hat"),), 0.96),
    Row("(male & smiling) | (~male & glasses)", (_parsed("male & smiling"), _parsed("~male & glasses")), 0.96),
    Row("male & smiling & glasses & hat", (_parsed("male & smiling & glasses & hat"),), 0.93),
    Row("hair=red & old & ~glasses", (_parsed("hair=red & old & ~glasses"),), 0.93),
)
"""The rows of the model card and the benchmark, with what is required of the shipped weights."""


def expression(row: Row, energies: Mapping[str, ce.Energy], negate: Callable[[ce.Energy], ce.Energy] = lambda e: ~e) -> ce.Energy:
    """Returns a row's energy, as a disjunction of conjunctions of these energies or their negations."""
    branches = [[energies[name] if wanted else negate(energies[name]) for name, wanted in branch] for branch in row.branches]
    return ce.any_of(*(ce.all_of(*branch) for branch in branches))


def score(
    energy: ce.Energy, row: Row, *, samples: int = 1000, seed: int = 0, network: Judge | None = None
) -> tuple[dict[str, Any], Tensor]:
    """Samples with what the energy recommends and has the pictures judged.

    Args:
        energy: The row's energy.
        row: What should hold.
        samples: How many pictures.
        seed: Of the sampling.
        network: Another judge than the package's.

    Returns:
        The score, as plain data: the share that obeys (`joint`) and obeys each alternative (`branches`), the share of every attribute
        that was not asked for (`free`), and `seconds`; and the pictures, with shape $(samples, 3, 64, 64)$.
    """
    started = time.perf_counter()
    images = energy.sample(samples, seed=seed)
    seconds = time.perf_counter() - started
    verdict = judge(images, network)
    free = {name: float(verdict[name].float().mean()) for name in ATTRIBUTES if name not in row.asked}
    result = {
        "expression": row.text,
        "joint": float(row.obeyed(verdict).float().mean()),
        "branches": [float(row.obeyed_by_branch(verdict, index).float().mean()) for index in range(len(row.branches))],
        "free": free,
        "hair": [] if "hair" in row.asked else [float((verdict.hair == index).float().mean()) for index in range(len(HAIR_COLORS))],
        "seconds": seconds,
    }
    return result, images
