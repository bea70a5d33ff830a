"""The speed of samplers beside loops by hand and other libraries: `make bench`, or `pytest benchmarks --benchmark-json=FILE`.

Turns are the outer loop: every contestant runs once, then every one again, so that a machine whose speed drifts drifts for all. The time is
that of the processor, with one thread. `report.py` makes ratios inside each turn, and takes their medians.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peers.contestants import LEAPFROGS, hmc, langevin
from peers.energies import Case, case

KINDS: dict[str, Callable[[Case], Any]] = {"langevin": langevin, "hmc": hmc}
CASES = [
    ("langevin", "mixture"),
    ("langevin", "mixture-64"),
    ("langevin", "gaussian-64"),
    ("langevin", "gaussian-1024"),
    ("langevin", "convolutions"),
    ("langevin", "composed"),
    ("hmc", "mixture"),
    ("hmc", "gaussian-64"),
    ("hmc", "convolutions"),
]
TURNS = 9


@functools.lru_cache(maxsize=1)  # what was compiled for one case is in nobody's way in the next
def contestants(kind: str, name: str) -> tuple[Case, Any]:
    torch.set_num_threads(1)
    torch.compiler.reset()
    chosen = case(name)
    return chosen, KINDS[kind](chosen)


@functools.lru_cache(maxsize=32)
def ready(kind: str, name: str, who: str) -> tuple[Callable[[int], Any], float]:
    """Returns a contestant that has run before, and how many seconds it took to come that far."""
    began = time.perf_counter()
    run = contestants(kind, name)[1][who]()
    run(2)
    return run, time.perf_counter() - began


NAMES = {kind: list(make(case("gaussian-64"))) for kind, make in KINDS.items()}


@pytest.mark.parametrize(
    ("kind", "name", "turn", "who"), [(kind, name, turn, who) for kind, name in CASES for turn in range(TURNS) for who in NAMES[kind]]
)
def test_speed(benchmark: Any, kind: str, name: str, turn: int, who: str) -> None:
    chosen = contestants(kind, name)[0]
    run, first = ready(kind, name, who)
    steps = chosen.steps if kind == "langevin" else max(2, chosen.steps // LEAPFROGS)
    torch.manual_seed(turn)
    points = benchmark.pedantic(run, args=(steps,), rounds=1)
    began = time.process_time()
    run(1)
    single = time.process_time() - began
    benchmark.extra_info.update(kind=kind, case=chosen.title, turn=turn, who=who, steps=steps, first=first, single=single)
    assert points.shape[0] == chosen.shape[0] and bool(points.isfinite().all())
