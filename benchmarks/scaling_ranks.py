"""Chains that two processes share: time beside one process, and what they say to each other; a part of `benchmarks.scaling`.

Each measurement starts its processes by `torchrun`. Processes count the calls of `torch.distributed` and the bytes that each of them
gives: tensors as they are, objects as they are pickled.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import composable_energy as ce
from benchmarks.energies import Mixture, Perceptron
from composable_energy import distributed as shared

FACES, LATENTS, CHAINS = 1_024, 8_192, 20_000
STEPS = (10, 30)
TIMED = {
    "faces": (f"{FACES:,} faces, `faces/male`", lambda: ce.load("faces/male"), FACES, {}),
    "perceptron": (f"{LATENTS:,} latents of 64, perceptron", Perceptron, LATENTS, {"sampler": "langevin", "step_size": 0.01, "steps": 40}),
}
SPOKEN: dict[str, dict[str, Any]] = {
    "shard": {"gather": False},
    "gather": {"gather": True},
}


class Spoken:
    """Counts what this process gives to the others, while it is active."""

    def __init__(self) -> None:
        self.calls = self.bytes = 0

    def __enter__(self) -> Spoken:
        self.own = {name: getattr(distributed, name) for name in ("all_gather", "all_gather_object", "broadcast_object_list")}
        sizes: dict[str, Callable[..., int]] = {
            "all_gather": lambda parts, own: own.numel() * own.element_size(),
            "all_gather_object": lambda parts, own: len(pickle.dumps(own)),
            "broadcast_object_list": lambda box: len(pickle.dumps(box[0])) if distributed.get_rank() == 0 else 0,
        }
        for name, size in sizes.items():
            setattr(distributed, name, self._counting(self.own[name], size))
        return self

    def __exit__(self, *_: object) -> None:
        for name, function in self.own.items():
            setattr(distributed, name, function)

    def _counting(self, function: Callable[..., Any], size: Callable[..., int]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.calls += 1
            self.bytes += size(*args)
            return function(*args)

        return counted


def measure_ranks(rounds: int) -> dict[str, Any]:
    """Returns the seconds of one and of two processes in turns, and the calls and bytes between two processes."""
    times: dict[str, Any] = {}
    for name, (title, *_) in TIMED.items():
        rows: dict[str, list[Any]] = {"1": [], "2": []}
        for _ in range(rounds):
            for size in (1, 2):
                said = _start(size, name)
                rows[str(size)].append({kind: [round(part[kind], 3) for part in said] for kind in ("processor", "wall")})
        times[name] = {"title": title, "turns": rows}
        print(name, rows, flush=True)
    spoken = {}
    for name in SPOKEN:
        few, many = ([part["spoken"] for part in _start(2, name, steps)] for steps in STEPS)
        spoken[name] = {
            "calls_a_step": (many[0][0] - few[0][0]) / (STEPS[1] - STEPS[0]),
            "bytes_a_step": (max(part[1] for part in many) - max(part[1] for part in few)) / (STEPS[1] - STEPS[0]),
            "calls": few[0][0],
            "bytes": max(part[1] for part in few),
        }
        print(name, spoken[name], flush=True)
    return {"cores": os.cpu_count(), "load": os.getloadavg()[0], "chains": CHAINS, "few_steps": STEPS[0], "times": times, "spoken": spoken}


def _start(size: int, work: str, steps: int = 0) -> list[dict[str, Any]]:
    """Starts processes and returns what each of them wrote."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)]
        own = ["-m", "benchmarks.scaling_ranks", work, "--folder", folder, "--steps", str(steps)]
        subprocess.run([*run, *own], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True)
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(size)]


def _time(name: str) -> dict[str, Any]:
    """Returns the seconds of this process for its part of the chains."""
    _, make, chains, options = TIMED[name]
    energy = make().eval().requires_grad_(False)
    shared.sample(energy, chains, gather=False, seed=1, **{**options, "steps": 2})
    distributed.barrier()
    began, wall = time.process_time(), time.monotonic()
    shared.sample(energy, chains, gather=False, seed=0, **options)
    spent = time.process_time() - began
    distributed.barrier()
    return {"processor": spent, "wall": time.monotonic() - wall}


def _speak(name: str, steps: int) -> dict[str, Any]:
    """Returns the calls and bytes of a call."""
    options = {"sampler": "langevin", "step_size": 0.01, "steps": steps, **SPOKEN[name]}
    with Spoken() as spoken:
        shared.sample(Mixture().eval(), CHAINS, seed=0, **options)
    return {"spoken": [spoken.calls, spoken.bytes]}


def main() -> None:
    parser = argparse.ArgumentParser(description="One of the processes of `benchmarks.scaling ranks`.")
    parser.add_argument("work", choices=[*TIMED, *SPOKEN])
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    said = _time(args.work) if args.work in TIMED else _speak(args.work, args.steps)
    (args.folder / f"{distributed.get_rank()}.json").write_text(json.dumps(said))
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
