"""Kills training runs at random moments and compares the weights after a restart: `python -m benchmarks.kills [--kills N] [--write]`.

Each run, of one of five objectives in turn, is killed once (SIGKILL) at a random moment of its training, then started again and finished.
Model, averaged weights, moments of Adam and chains must equal those of a run that was never killed, bit by bit, and so must the table
`log.csv`, except for its times.
"""

from __future__ import annotations

import csv
import multiprocessing
import os
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from tqdm import tqdm

import composable_energy as ce
from benchmarks.harness import RESULTS, argument_parser, environment, latest_checkpoint, write_json
from composable_energy_training import (
    AttributeHeads,
    ContrastiveDivergence,
    CSVLog,
    DenoisingScoreMatching,
    ImprovedContrastiveDivergence,
    JointEnergyClassifier,
    Objective,
    Trainer,
)

PATH = RESULTS / "kills.json"
EVERY = 5  # steps between checkpoints
CHAINS = {"steps": 5, "options": {"step_size": 0.1, "temperature": 1e-3, "clamp": (0, 1)}, "buffer": 128}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "contrastive divergence": lambda: ContrastiveDivergence(**CHAINS),
    "improved contrastive divergence": lambda: ImprovedContrastiveDivergence(**CHAINS, entropy_after=10),
    "denoising score matching": lambda: DenoisingScoreMatching(0.1, 1.0),
    "attribute heads": lambda: AttributeHeads({"class": 3}, 0.1, 1.0),
    "joint energy and classifier": lambda: JointEnergyClassifier(**CHAINS, l2=0.1),
}


def network() -> nn.Sequential:
    """Returns a small network of points and a noise level."""
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.spectral_norm
    down = norm(nn.Conv2d(2, 16, 3, 2, 1)), nn.SiLU(), nn.Dropout(0.1), norm(nn.Conv2d(16, 32, 3, 2, 1)), nn.SiLU()
    return nn.Sequential(*down, nn.Flatten(), nn.Linear(128, 3))


def with_level(x: Tensor, sigma: float | Tensor) -> Tensor:
    """Returns pictures with the noise level as one more channel."""
    level = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
    return torch.cat([x, level[:, None, None, None].expand(-1, -1, *x.shape[2:])], 1)


class Net(ce.Energy):
    """A joint energy and classifier at a noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def logits(self, x: Tensor, sigma: float | Tensor = 0.5) -> Tensor:
        return self.net(with_level(x, sigma))

    def forward(self, x: Tensor, sigma: float | Tensor = 0.5) -> Tensor:
        return -self.logits(x, sigma).logsumexp(1)


class Heads(nn.Module):
    """A classifier at a noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(with_level(x, sigma))


def train(kind: str, out: Path, steps: int) -> None:
    """Trains a model by one of the objectives."""
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(64, 1, 8, 8, generator=generator), {"class": torch.randint(3, (64,), generator=generator)}
    options = {"steps": steps, "batch_size": 16, "ema": 0.99, "checkpoint_every": EVERY, "callbacks": [CSVLog(2)], "monitor": None}
    model = Heads() if kind == "attribute heads" else Net()
    Trainer(model, OBJECTIVES[kind](), data, out=out, **options).fit()


def run_child(context: BaseContext, kind: str, out: Path, steps: int, kill_after: float | None = None) -> bool:
    """Trains in a process of its own; returns whether it was killed before its end.

    Args:
        context: Starts processes from a server with one thread: a fork of this process, which has threads of torch, may inherit a lock
            that nobody releases.
        kind: The objective.
        out: The folder of the run.
        steps: Steps of the training.
        kill_after: Seconds from the start of the training after which the process is killed; never if None.
    """
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_train_and_report, args=(there, kind, out, steps), daemon=True)
    process.start()
    there.close()
    with here:
        here.recv()  # the process has imported everything
    process.join(kill_after)
    killed = process.is_alive()
    if killed:
        process.kill()
        process.join()
    if process.exitcode and not killed:
        raise SystemExit("A run ended with an error.")
    return killed


def _train_and_report(there: Any, kind: str, out: Path, steps: int) -> None:
    torch.set_num_threads(1)
    tqdm.set_lock(threading.RLock())  # its default is a semaphore of the system, which a killed process leaves behind
    there.send("ready")
    train(kind, out, steps)


def start_forkserver() -> BaseContext:
    """Starts the server that processes are forked from; it imports what trainings need, once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["safetensors.torch", "torch._dynamo", "composable_energy_training", "composable_energy_mcmc"])
    os.environ["OMP_NUM_THREADS"] = "1"  # numpy's BLAS would start threads when it is imported
    forkserver.ensure_running()
    return context


def differences(one: Path, other: Path) -> list[str]:
    """Returns the names of the tensors, and of the table, that differ between two finished runs."""
    ends = [load_file(latest_checkpoint(out)) for out in (one, other)]
    tables = []
    for out in (one, other):
        with (out / "log.csv").open() as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    wrong = [name for name in ends[0].keys() | ends[1].keys() if not torch.equal(ends[0][name], ends[1][name])]
    return wrong + (["log.csv"] if tables[0] != tables[1] else [])


def measure(kills: int, steps: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Kills runs and returns the counts of each objective."""
    context, moments, kinds = start_forkserver(), random.Random(0), list(OBJECTIVES)
    counts: dict[str, dict[str, Any]] = {kind: {"kills": 0, "equal": 0, "tensors": 0, "killed_at_steps": []} for kind in kinds}
    took = {}
    for kind in kinds:
        began = time.monotonic()
        run_child(context, kind, folder / kind, steps)
        took[kind] = time.monotonic() - began
        counts[kind]["tensors"] = len(load_file(latest_checkpoint(folder / kind)))
    done = 0
    while done < kills:
        kind, out = kinds[done % len(kinds)], folder / f"killed {done}"
        if not run_child(context, kind, out, steps, moments.uniform(0.02, 0.95) * took[kind]):  # it ended before the kill
            shutil.rmtree(out)
            took[kind] *= 0.9
            continue
        reached = max((int(path.stem[5:]) for path in (out / "checkpoints").glob("step-*")), default=0)
        run_child(context, kind, out, steps)
        wrong = differences(folder / kind, out)
        counts[kind]["kills"] += 1
        counts[kind]["equal"] += not wrong
        counts[kind]["killed_at_steps"].append(reached)
        done += 1
        print(f"{done:3} {kind}: killed after the checkpoint of step {reached}, {wrong or 'equal'}", flush=True)
    return counts


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--steps", type=int, default=60)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        counts = measure(args.kills, args.steps, Path(folder))
    print(f"\n{'objective':34}{'kills':>6}{'equal':>6}{'tensors':>9}")
    for kind, row in counts.items():
        print(f"{kind:34}{row['kills']:6}{row['equal']:6}{row['tensors']:9}")
    if args.write:
        write_json(PATH, {**environment(steps=args.steps, checkpoint_every=EVERY), "objectives": counts})


if __name__ == "__main__":
    main()
