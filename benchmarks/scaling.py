"""Time and memory from 100 to a million chains, and two processes: `python -m benchmarks.scaling [PART ...] [--write]`.

Processor time on one thread. A step is the difference of a longer and a shorter call, both the least of several rounds in which all sizes
and variants take turns. Memory is the peak of a process of its own above that of the same call with 100 chains. One and two processes take
turns too. `python -m benchmarks.tables` writes the page.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

import composable_energy as ce
from benchmarks.energies import Mixture, Perceptron
from benchmarks.harness import RESULTS, argument_parser, environment, peak_memory, read_json, write_json
from composable_energy import distributed as shared
from composable_energy.sampling import Checkpoint, sample
from composable_energy_mcmc import Langevin

PATH = RESULTS / "scaling.json"
COUNTS = (100, 1_000, 10_000, 100_000, 1_000_000)
BATCH = 10_000
RETURNED = 262_144  # bytes of a block that glibc returns to the system
STEP = 0.01
FACES, LATENTS = 1_024, 8_192


class Gaussian(nn.Module):
    """A correlated Gaussian in 16 dimensions."""

    precision: Tensor

    def __init__(self) -> None:
        super().__init__()
        root = torch.randn(16, 16, generator=torch.Generator().manual_seed(0)) / 4
        self.register_buffer("precision", root @ root.T + torch.eye(16))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.precision).mul(x).sum(1) / 2


def network() -> ce.Energy:
    torch.manual_seed(0)
    return ce.as_energy(Perceptron(2, 64), event_shape=(2,))


CASES: dict[str, Callable[[], ce.Energy]] = {
    "mixture of 8 Gaussians on a plane": lambda: ce.as_energy(Mixture(), event_shape=(2,)),
    "correlated Gaussian in 16-D": lambda: ce.as_energy(Gaussian(), event_shape=(16,)),
    "network of 4,417 weights on a plane": network,
}
WAYS = ("plain", "batches", "trace", "checkpoint")
SHARED: dict[str, tuple[str, Callable[[], ce.Energy], int, dict[str, Any]]] = {
    "faces": (f"{FACES:,} faces, `faces/male`", lambda: ce.load("faces/male"), FACES, {}),
    "perceptron": (
        f"{LATENTS:,} latents of 64, perceptron",
        lambda: ce.as_energy(Perceptron(), event_shape=(64,)),
        LATENTS,
        {"sampler": "langevin", "step_size": 0.01, "steps": 40},
    ),
}
"""What processes share: title, energy, chains, and options of `sample`."""


def run(case: str, way: str, chains: int, steps: int, file: Path) -> None:
    """Draws chains by Langevin steps in one of the ways."""
    energy = CASES[case]().eval().requires_grad_(False)
    ways = {"batches": {"batch_size": BATCH}, "trace": {"trace": True}, "checkpoint": {"observers": [Checkpoint(file)]}}
    if way == "checkpoint":
        file.unlink(missing_ok=True)
    sample(energy, chains, sampler=Langevin(STEP), steps=steps, seed=0, **ways.get(way, {}))


def seconds(*call: Any) -> float:
    began = time.process_time()
    run(*call)
    return time.process_time() - began


def measure_steps(rounds: int, counts: tuple[int, ...] = COUNTS) -> dict[str, Any]:
    """Returns the microseconds of a step by case, way and number of chains."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.safetensors"
        for case in CASES:
            sizes: dict[int, int] = {}
            least: dict[tuple[str, int, bool], float] = {}
            for chains in counts:
                run(case, "plain", chains, 1, file)
                sizes[chains] = max(4, min(2000, int(0.4 / max(1e-5, seconds(case, "plain", chains, 4, file) / 4))))
            for _ in range(rounds):
                for key in ((way, chains, long) for chains in counts for way in WAYS for long in (False, True)):
                    way, chains, long = key
                    spent = seconds(case, way, chains, 1 + long * sizes[chains], file)
                    least[key] = min(spent, least.get(key, float("inf")))
            found[case] = {}
            for way in WAYS:
                steps = {str(n): round((least[way, n, True] - least[way, n, False]) / sizes[n] * 1e6, 2) for n in counts}
                found[case][way] = {"step_microseconds": steps}
                print(f"{case:38}{way:12}", steps, flush=True)
    return found


def measure_memory(counts: tuple[int, ...] = COUNTS[2:], steps: int = 10) -> dict[str, Any]:
    """Returns the peak memory in MB above that of 100 chains, by case, way and number of chains."""
    found: dict[str, Any] = {}
    for case in CASES:
        rows = found[case] = {}
        for way in (*WAYS, "returned"):
            returned = way == "returned"
            settings = {**os.environ, **({"MALLOC_MMAP_THRESHOLD_": str(RETURNED)} if returned else {})}
            rows[way] = {}
            for chains in counts:
                own = ["--peak", case, "batches" if returned else way, str(chains), str(steps)]
                said = subprocess.run([sys.executable, "-m", "benchmarks.scaling", *own], check=True, stdout=subprocess.PIPE, env=settings)
                rows[way][str(chains)] = round(float(said.stdout), 1)
            print(f"{case:38}{way:12}", rows[way], flush=True)
    return {"steps": steps, "megabytes": found}


def print_peak(case: str, way: str, chains: int, steps: int) -> None:
    """Prints the peak memory of a call above that of 100 chains, in MB."""
    with tempfile.TemporaryDirectory() as folder:
        run(case, way, 100, steps, Path(folder) / "small.safetensors")
        before = peak_memory()
        run(case, way, chains, steps, Path(folder) / "large.safetensors")
    print(peak_memory() - before)


def measure_ranks(rounds: int) -> dict[str, Any]:
    """Returns the seconds of one and of two processes in turns."""
    times: dict[str, Any] = {}
    for name, (title, *_) in SHARED.items():
        turns: dict[str, list[Any]] = {"1": [], "2": []}
        for size in rounds * (1, 2):
            with tempfile.TemporaryDirectory() as folder:
                own = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
                own += ["-m", "benchmarks.scaling", "--rank", name, folder]
                subprocess.run(own, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
                said = [read_json(Path(folder) / f"{rank}.json") for rank in range(size)]
            turns[str(size)].append({kind: [round(part[kind], 3) for part in said] for kind in ("processor", "wall")})
        times[name] = {"title": title, "turns": turns}
        print(name, turns, flush=True)
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0], "times": times}


def write_rank(name: str, folder: str) -> None:
    """Draws the part of the chains that belongs to this process, and writes its seconds."""
    distributed.init_process_group("gloo")
    _, make, chains, options = SHARED[name]
    energy = make().eval().requires_grad_(False)
    shared.sample(energy, chains, gather=False, seed=1, **{**options, "steps": 2})
    distributed.barrier()
    began, wall = time.process_time(), time.monotonic()
    shared.sample(energy, chains, gather=False, seed=0, **options)
    spent = time.process_time() - began
    distributed.barrier()
    write_json(Path(folder) / f"{distributed.get_rank()}.json", {"processor": spent, "wall": time.monotonic() - wall})
    distributed.destroy_process_group()


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("parts", nargs="*", choices=["steps", "memory", "ranks"], help="what to measure; all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peak", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.peak:
        print_peak(*args.peak[:2], *map(int, args.peak[2:]))
        return
    if args.rank:
        write_rank(*args.rank)
        return
    steps, ranks = (partial(some, args.rounds) for some in (measure_steps, measure_ranks))
    measures = {"steps": steps, "memory": measure_memory, "ranks": ranks}
    for part in args.parts or measures:
        result = measures[part]()
        if args.write:  # after each part, so that an interruption loses one part only
            about = environment(batch_size=BATCH, rounds=args.rounds)
            write_json(PATH, {**(read_json(PATH) if PATH.exists() else {}), "about": about, part: result})


if __name__ == "__main__":
    main()
