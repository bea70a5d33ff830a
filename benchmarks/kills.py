"""Kills training runs at random moments and compares what their restarts end with: `python benchmarks/kills.py [--kills N] [--write]`.

Each run, of one of the five objectives in turn, is killed once (SIGKILL) at a random moment of its training, then started again to its
end. Model, averaged weights, moments of Adam, and chains must be those of a run that was never killed, bit by bit; so must the table
`log.csv`, but for its times. `--write` puts the counts into `results/kills.json`.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import composable_energy as ce
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

RESULTS = Path(__file__).parent / "results" / "kills.json"
CHAINS = {"steps": 5, "options": {"step_size": 0.1, "temperature": 1e-3, "clamp": (0, 1)}, "buffer": 128}
OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "contrastive divergence": lambda: ContrastiveDivergence(**CHAINS),
    "improved contrastive divergence": lambda: ImprovedContrastiveDivergence(**CHAINS, entropy_after=10),
    "denoising score matching": lambda: DenoisingScoreMatching(0.1, 1.0),
    "attribute heads": lambda: AttributeHeads({"class": 3}, 0.1, 1.0),
    "joint energy and classifier": lambda: JointEnergyClassifier(**CHAINS, l2=0.1),
}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    norm = nn.utils.parametrizations.spectral_norm
    down = norm(nn.Conv2d(2, 16, 3, 2, 1)), nn.SiLU(), nn.Dropout(0.1), norm(nn.Conv2d(16, 32, 3, 2, 1)), nn.SiLU()
    return nn.Sequential(*down, nn.Flatten(), nn.Linear(128, 3))


def with_level(x: Tensor, sigma: float | Tensor) -> Tensor:
    level = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
    return torch.cat([x, level[:, None, None, None].expand(-1, -1, *x.shape[2:])], 1)


class Net(ce.Energy):
    """An energy and a classifier at once, at a noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def logits(self, x: Tensor, sigma: float | Tensor = 0.5) -> Tensor:
        return self.net(with_level(x, sigma))

    def forward(self, x: Tensor, sigma: float | Tensor = 0.5) -> Tensor:
        return -self.logits(x, sigma).logsumexp(1)


class Heads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = network()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.net(with_level(x, sigma))


def train(kind: str, out: Path, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    data = torch.rand(64, 1, 8, 8, generator=generator), {"class": torch.randint(3, (64,), generator=generator)}
    options = {"steps": steps, "batch_size": 16, "ema": 0.99, "checkpoint_every": 5, "callbacks": [CSVLog(2)], "monitor": None}
    model = Heads() if kind == "attribute heads" else Net()
    Trainer(model, OBJECTIVES[kind](), data, out=out, **options).fit()


def child(call: Callable[[], None], kill_after: float | None = None) -> bool:
    """Calls something in a child of this process; returns whether it was killed before its end."""
    number = os.fork()
    if number == 0:
        try:
            call()
            os._exit(0)
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        finally:
            os._exit(1)
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(number, signal.SIGKILL)
    status = os.waitpid(number, 0)[1]
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("A run ended with an error.")
    return os.WIFSIGNALED(status)


def differences(one: Path, other: Path) -> list[str]:
    """Names of what is not the same in two finished runs."""
    ends = [load_file(sorted((out / "checkpoints").iterdir())[-1]) for out in (one, other)]
    tables = []
    for out in (one, other):
        with (out / "log.csv").open() as file:
            tables.append([{**row, "seconds": ""} for row in csv.DictReader(file)])
    wrong = [name for name in ends[0].keys() | ends[1].keys() if not torch.equal(ends[0][name], ends[1][name])]
    return wrong + (["log.csv"] if tables[0] != tables[1] else [])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition(":")[0])
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--write", action="store_true", help=f"put the counts into {RESULTS.name}")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    moments, kinds = random.Random(0), list(OBJECTIVES)
    counts = {kind: {"kills": 0, "equal": 0, "tensors": 0, "killed_at_steps": []} for kind in kinds}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        took = {}
        for kind in kinds:
            train(kind, folder / "warm", 1)  # what is imported late, once and not in each child
            for path in sorted((folder / "warm").rglob("*"), reverse=True):
                path.unlink() if path.is_file() else path.rmdir()
            began = time.monotonic()
            child(lambda kind=kind: train(kind, folder / kind, asked.steps))
            took[kind] = time.monotonic() - began
            counts[kind]["tensors"] = len(load_file(sorted((folder / kind / "checkpoints").iterdir())[-1]))
        done = 0
        while done < asked.kills:
            kind, out = kinds[done % len(kinds)], folder / f"killed {done}"
            if not child(lambda: train(kind, out, asked.steps), moments.uniform(0.02, 0.95) * took[kind]):  # noqa: B023
                for path in sorted(out.rglob("*"), reverse=True):
                    path.unlink() if path.is_file() else path.rmdir()
                took[kind] *= 0.9
                continue  # it ended first
            here = [int(path.stem[5:]) for path in (out / "checkpoints").glob("step-*")] if (out / "checkpoints").is_dir() else []
            child(lambda: train(kind, out, asked.steps))  # noqa: B023
            wrong = differences(folder / kind, out)
            counts[kind]["kills"] += 1
            counts[kind]["equal"] += not wrong
            counts[kind]["killed_at_steps"].append(max(here, default=0))
            done += 1
            print(f"{done:3} {kind}: killed after the checkpoint of step {max(here, default=0)}, {wrong or 'equal'}", flush=True)
    print(f"\n{'objective':34}{'kills':>6}{'equal':>6}{'tensors':>9}")
    for kind, told in counts.items():
        print(f"{kind:34}{told['kills']:6}{told['equal']:6}{told['tensors']:9}")
    if asked.write:
        about = {"torch": torch.__version__, "machine": platform.machine(), "steps": asked.steps, "checkpoint_every": 5}
        RESULTS.write_text(json.dumps({**about, "objectives": counts}, indent=1) + "\n")


if __name__ == "__main__":
    main()
