"""Time, memory and files from 100 to a million chains: `python -m benchmarks.scaling [PART ...] [--write]`; parts are `ALL_PARTS`.

Processor time on one thread. A step is the difference of a longer and a shorter call, both the least of several rounds in which all sizes
and variants take turns. Memory is the peak of a process of its own above that of the same call with 100 chains. `python -m
benchmarks.tables` writes the page.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.energies import Mixture
from benchmarks.harness import RESULTS, argument_parser, environment, peak_memory, read_json, write_json
from benchmarks.scaling_operations import measure_operations
from benchmarks.scaling_ranks import measure_ranks
from composable_energy.sampling import Checkpoint, sample
from composable_energy_mcmc import Langevin

PATH = RESULTS / "scaling.json"
COUNTS = (100, 1_000, 10_000, 100_000, 1_000_000)
BATCH = 10_000
RETURNED = 262_144  # bytes of a block that glibc returns to the system
STEP = 0.01


class Gaussian(ce.Energy):
    """A correlated Gaussian in 16 dimensions."""

    precision: Tensor

    def __init__(self) -> None:
        super().__init__()
        root = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4
        self.register_buffer("precision", root @ root.T + torch.eye(16))
        self.event_shape = torch.Size([16])

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.precision).mul(x).sum(1) / 2


class Network(ce.Energy):
    r"""A perceptron with layers 2-64-64-1, and $\lVert x \rVert^2 / 2$."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))
        self.event_shape = torch.Size([2])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1) + x.square().sum(1) / 2


CASES: dict[str, Callable[[], ce.Energy]] = {
    "mixture of 8 Gaussians on a plane": Mixture,
    "correlated Gaussian in 16-D": Gaussian,
    "network of 4,417 weights on a plane": Network,
}
WAYS = ("plain", "batches", "trace", "checkpoint")


def run(case: str, way: str, chains: int, steps: int, file: Path) -> None:
    """Draws chains by Langevin steps in one of the ways."""
    energy = CASES[case]().eval().requires_grad_(False)
    ways: dict[str, dict[str, Any]] = {
        "batches": {"batch_size": BATCH},
        "trace": {"trace": True},
        "checkpoint": {"observers": [Checkpoint(file)]},
    }
    if way == "checkpoint":
        file.unlink(missing_ok=True)
    sample(energy, chains, sampler=Langevin(STEP), steps=steps, seed=0, **ways.get(way, {}))


def seconds(work: Callable[..., object], *args: Any, **options: Any) -> float:
    """Returns the processor time of a call."""
    began = time.process_time()
    work(*args, **options)
    return time.process_time() - began


def measure_steps(rounds: int, counts: tuple[int, ...] = COUNTS) -> dict[str, Any]:
    """Returns the microseconds of a step, and the milliseconds of a call besides its steps, by case, way and number of chains."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.safetensors"
        for case in CASES:
            sizes: dict[int, int] = {}
            least: dict[tuple[str, int, bool], float] = {}
            for chains in counts:
                run(case, "plain", chains, 1, file)
                one = max(1e-5, seconds(run, case, "plain", chains, 4, file) / 4)
                sizes[chains] = max(4, min(2000, int(0.4 / one)))
            for _ in range(rounds):
                for chains in counts:
                    for way in WAYS:
                        for long in (False, True):
                            steps = 1 + long * sizes[chains]
                            spent = seconds(run, case, way, chains, steps, file)
                            least[way, chains, long] = min(spent, least.get((way, chains, long), float("inf")))
            rows = found[case] = {}
            for way in WAYS:
                steps = {n: (least[way, n, True] - least[way, n, False]) / sizes[n] for n in counts}
                calls = {n: max(0.0, least[way, n, False] - steps[n]) for n in counts}
                rows[way] = {
                    "step_microseconds": {str(n): round(value * 1e6, 2) for n, value in steps.items()},
                    "call_milliseconds": {str(n): round(value * 1e3, 2) for n, value in calls.items()},
                }
                print(f"{case:38}{way:12}", {n: f"{value / n * 1e9:.1f} ns" for n, value in steps.items()}, flush=True)
    return found


def measure_memory(counts: tuple[int, ...] = COUNTS[2:], steps: int = 10) -> dict[str, Any]:
    """Returns the peak memory in MB above that of 100 chains, by case, way and number of chains."""
    found: dict[str, Any] = {}
    for case in CASES:
        rows = found[case] = {}
        for way in (*WAYS[:4], "returned"):
            rows[way] = {}
            for chains in counts:
                of = "batches" if way == "returned" else way
                own = ["-m", "benchmarks.scaling", "--peak", case, "--way", of, "--chains", str(chains), "--steps", str(steps)]
                settings = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": str(RETURNED)} if way == "returned" else {})}
                said = subprocess.run([sys.executable, *own], check=True, capture_output=True, text=True, env=settings).stdout
                rows[way][str(chains)] = round(float(said), 1)
            print(f"{case:38}{way:12}", rows[way], flush=True)
    return {"steps": steps, "megabytes": found}


def print_peak(case: str, way: str, chains: int, steps: int) -> None:
    """Prints the peak memory of a call above that of 100 chains, in MB."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run(case, way, 100, steps, Path(folder) / "small.safetensors")
        before = peak_memory()
        run(case, way, chains, steps, Path(folder) / "large.safetensors")
    print(peak_memory() - before)


def measure_files(rounds: int, counts: tuple[int, ...] = COUNTS[2:]) -> dict[str, Any]:
    """Returns the bytes of checkpoints, and the seconds to write and to read one, by case and number of chains."""
    found: dict[str, Any] = {}
    for case in CASES:
        energy, rows = CASES[case]().eval().requires_grad_(False), found.setdefault(case, {})
        for chains in counts:
            call = {"sampler": Langevin(STEP), "steps": 2, "seed": 0}
            times: dict[str, list[float]] = {"plain": [], "written": [], "read": [], "written_wall": [], "read_wall": []}
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "run.safetensors"
                for _ in range(rounds):
                    file.unlink(missing_ok=True)
                    times["plain"].append(seconds(sample, energy, chains, **call))
                    for name in ("written", "read"):  # the second call finds all steps done
                        began = time.monotonic()
                        times[name].append(seconds(sample, energy, chains, observers=[Checkpoint(file)], **call))
                        times[f"{name}_wall"].append(time.monotonic() - began)
                size = file.stat().st_size
            least = {name: min(values) for name, values in times.items()}
            row = {"bytes": size, "write_seconds": least["written"] - least["plain"], "read_seconds": least["read"]}
            row |= {"write_call_wall": least["written_wall"], "read_call_wall": least["read_wall"]}
            rows[str(chains)] = {name: round(value, 4) for name, value in row.items()}
            print(f"{case:38}{chains:>10,}", rows[str(chains)], flush=True)
    return found


def measure_system(chains: int = COUNTS[-1], steps: int = 4) -> dict[str, Any]:
    """Returns nanoseconds of a step and a chain by the program and by the system, and pages of memory that the system gives it."""
    found: dict[str, Any] = {}
    for case in CASES:
        for way in WAYS[:2]:
            run(case, way, chains, 1, Path())
            ends = []
            for count in (1, 1 + steps):
                before = resource.getrusage(resource.RUSAGE_SELF)
                run(case, way, chains, count, Path())
                after = resource.getrusage(resource.RUSAGE_SELF)
                ends.append([getattr(after, name) - getattr(before, name) for name in ("ru_utime", "ru_stime", "ru_minflt")])
            user, system, pages = ((long - short) / steps / chains for short, long in zip(*ends, strict=True))
            row = {"program": round(user * 1e9, 1), "system": round(system * 1e9, 1), "pages": round(pages, 4)}
            found.setdefault(case, {})[way] = row
            print(f"{case:38}{way:12}", row, flush=True)
    return found


ALL_PARTS = ("steps", "memory", "system", "files", "operations", "ranks")


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"what to measure: {', '.join(ALL_PARTS)}; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    for name, kind in (("peak", str), ("way", str), ("chains", int), ("steps", int)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peak:
        print_peak(args.peak, args.way, args.chains, args.steps)
        return
    torch.set_num_threads(1)
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "steps": lambda: measure_steps(args.rounds),
        "memory": measure_memory,
        "system": measure_system,
        "files": lambda: measure_files(args.rounds),
        "operations": lambda: measure_operations(CASES),
        "ranks": lambda: measure_ranks(args.rounds),
    }
    for part in args.parts or ALL_PARTS:
        result = measures[part]()
        if args.write:  # after each part, so that an interruption loses one part only
            about = environment(batch_size=BATCH, rounds=args.rounds)
            write_json(PATH, {**(read_json(PATH) if PATH.exists() else {}), "about": about, part: result})
        else:
            print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
