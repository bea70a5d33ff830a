"""The speed of samplers beside plain loops and other libraries: `make bench-speed`.

Turns are the outer loop: every implementation runs once, then every one again, so that a slow minute of the machine is slow for all. Times
are processor seconds of one thread. `report.py` computes ratios within each turn, and their medians.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from benchmarks.peers.energies import Case, case
from benchmarks.peers.implementations import LEAPFROGS, hmc, langevin

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


@functools.lru_cache(maxsize=1)  # compiled code of one case does not disturb the next
def implementations(kind: str, name: str) -> tuple[Case, Any]:
    torch.set_num_threads(1)
    torch.compiler.reset()
    chosen = case(name)
    return chosen, KINDS[kind](chosen)


@functools.lru_cache(maxsize=32)
def ready(kind: str, name: str, who: str) -> tuple[Callable[[int], Any], float]:
    """Returns an implementation after its first run, and the seconds of that run."""
    began = time.perf_counter()
    run = implementations(kind, name)[1][who]()
    run(2)
    return run, time.perf_counter() - began


NAMES = {kind: list(make(case("gaussian-64"))) for kind, make in KINDS.items()}


@pytest.mark.parametrize(
    ("kind", "name", "turn", "who"), [(kind, name, turn, who) for kind, name in CASES for turn in range(TURNS) for who in NAMES[kind]]
)
def test_speed(benchmark: Any, kind: str, name: str, turn: int, who: str) -> None:
    chosen = implementations(kind, name)[0]
    run, first = ready(kind, name, who)
    steps = chosen.steps if kind == "langevin" else max(2, chosen.steps // LEAPFROGS)
    torch.manual_seed(turn)
    points = benchmark.pedantic(run, args=(steps,), rounds=1)
    began = time.process_time()
    run(1)
    single = time.process_time() - began
    benchmark.extra_info.update(kind=kind, case=chosen.title, turn=turn, who=who, steps=steps, first=first, single=single)
    assert points.shape[0] == chosen.shape[0] and bool(points.isfinite().all())
    if turn == 0:
        points = points.reshape(chosen.shape)
        torch.testing.assert_close(chosen.energy(points), chosen.formula(points), rtol=1e-4, atol=1e-4)
