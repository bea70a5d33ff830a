"""What a training cost, kept beside its checkpoints."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path

from composable_energy_training import Callback, Trainer

__all__ = ["CostLog", "read_costs"]

_FILE = "costs.json"
_WINDOW = 200  # steps of a running loss


class CostLog(Callback):
    """Keeps the steps, the processor seconds and the running loss of a training, over all its calls, in the folder of the run."""

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
        beside = _folder(trainer) / f".{_FILE}"
        beside.write_text(json.dumps({"steps": trainer.step, "cpu_seconds": self._seconds, "loss": self._loss}))
        beside.replace(_folder(trainer) / _FILE)


def read_costs(folder: Path) -> dict[str, float]:
    """Returns `steps`, `cpu_seconds` and `loss` of the training in a folder, as far as its last checkpoint; nothing if there is none."""
    file = folder / _FILE
    return json.loads(file.read_text()) if file.is_file() else {}


def _folder(trainer: Trainer) -> Path:
    return trainer.out or Path()
