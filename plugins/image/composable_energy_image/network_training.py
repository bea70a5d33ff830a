"""The training of one network in a folder of its own: it resumes after an interruption, and its costs are recorded. The command of it."""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.files import replace_file
from composable_energy_training import Callback, Checkpoints, Monitor, Objective, Optimizer, ProgressBar, Trainer

_FILE = "costs.json"
_WINDOW = 200  # steps of the running loss


def train_network(
    folder: Path,
    model: nn.Module,
    objective: Objective,
    data: Any,
    *,
    steps: int,
    batch_size: int,
    seed: int = 0,
    store: Mapping[str, int] | None = None,
    callbacks: Sequence[Callback] = (Monitor(None),),
    progress: bool = False,
    **optimizer: Any,
) -> None:
    """Trains a network with checkpoints in a folder, as `store` says, or resumes; `optimizer` changes usual options of small networks."""
    usual = {"betas": (0.9, 0.999), "weight_decay": 1e-4, "warm_up": min(200, steps // 10), "decay": 0.7, "clip": 1.0}
    Trainer(
        model,
        objective,
        data,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        optimizer=Optimizer(**{**usual, **optimizer}),
        callbacks=[Checkpoints(folder, **(store or {})), *callbacks, CostLog(), *[ProgressBar()] * progress],
    ).fit()


def scaled(steps: int, effort: float) -> int:
    """Returns a number of steps times an effort, at least 5."""
    return max(5, round(steps * effort))


@contextmanager
def seeded(seed: int, part: str) -> Iterator[None]:
    """Seeds initial weights by a seed and the name of a part, and restores the random state on exit."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int.from_bytes(blake2b(f"{seed} {part}".encode(), digest_size=8).digest(), "little"))
        yield


def set_standardization(layer: nn.Module, codes: Tensor) -> None:
    """Sets the mean and variance of a batch norm to those of all codes; the running averages of training lag behind the weights."""
    axes = [axis for axis in range(codes.ndim) if axis != 1]
    layer.get_buffer("running_mean").copy_(codes.mean(axes))
    layer.get_buffer("running_var").copy_(codes.var(axes))


class CostLog(Callback):
    """Records the steps, processor seconds and running loss of a training in its folder, accumulated over interruptions."""

    def __init__(self) -> None:
        self._began, self._seconds, self._loss = time.process_time(), 0.0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        before = read_costs(trainer.out or Path()) if trainer.step else {}
        self._seconds, self._loss = before.get("cpu_seconds", 0.0), before.get("loss", 0.0)

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        self._loss += (scalars["loss"] - self._loss) / min(trainer.step, _WINDOW)

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:
        now = time.process_time()
        self._seconds, self._began = self._seconds + now - self._began, now
        write_costs(trainer.out or Path(), trainer.step, self._seconds, self._loss)


def write_costs(folder: Path, steps: int, seconds: float, loss: float) -> None:
    """Records the costs of a training in its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / _FILE, json.dumps({"steps": steps, "cpu_seconds": seconds, "loss": loss}).encode())


def read_costs(folder: Path) -> dict[str, float]:
    """Returns `steps`, `cpu_seconds` and `loss` of a training at its last checkpoint; an empty dictionary if there is none."""
    return json.loads(file.read_text()) if (file := folder / _FILE).is_file() else {}


def run_command(train: Callable[[Path, float], None], home: Path, arguments: Sequence[str] | None) -> None:
    """Runs the training command of a module, whose first line is the description of `--help`, with one thread. `train` takes a run folder
    and a factor `effort`, and writes the folder `weights` and `report.json`; `--install` copies them to `home`."""
    module = sys.modules[train.__module__]
    name = module.__spec__.name if module.__spec__ else train.__module__
    parser = argparse.ArgumentParser(prog=f"python -m {name}", description=(module.__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the run folder; it needs 2 GB")
    parser.add_argument("--effort", type=float, default=1.0, help="factor of the training steps and, below 1, of the pictures (default: 1)")
    parser.add_argument("--install", action="store_true", help="copy the weights into the package")
    if not (options := parser.parse_args(arguments)).effort > 0:
        parser.error(f"--effort must be positive, got {options.effort}.")
    torch.set_num_threads(1)
    train(options.out, options.effort)
    if options.install:
        shutil.copytree(options.out / "weights", home, dirs_exist_ok=True)
        shutil.copy(options.out / "report.json", home)
