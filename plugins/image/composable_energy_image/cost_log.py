"""A training callback that records steps, processor seconds and loss beside the checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from composable_energy.files import replace_file
from composable_energy_training import Callback, Trainer

_FILE = "costs.json"
_WINDOW = 200  # steps of the running loss


class CostLog(Callback):
    """Records the steps, processor seconds and running loss of a training in its folder, accumulated over interruptions."""

    def __init__(self) -> None:
        self._began, self._seconds, self._loss = time.process_time(), 0.0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        before = read_costs(_folder(trainer)) if trainer.step else {}
        self._seconds, self._loss = before.get("cpu_seconds", 0.0), before.get("loss", 0.0)

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        self._loss += (scalars["loss"] - self._loss) / min(trainer.step, _WINDOW)

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:
        now = time.process_time()
        self._seconds, self._began = self._seconds + now - self._began, now
        costs = {"steps": trainer.step, "cpu_seconds": self._seconds, "loss": self._loss}
        replace_file(_folder(trainer) / _FILE, json.dumps(costs).encode())


def read_costs(folder: Path) -> dict[str, float]:
    """Returns `steps`, `cpu_seconds` and `loss` of a training at its last checkpoint; an empty dictionary if there is none."""
    file = folder / _FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def _folder(trainer: Trainer) -> Path:
    return trainer.out or Path()
