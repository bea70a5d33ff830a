"""The report that `Trainer.fit` returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from composable_energy_training.monitor import Alert
from composable_energy_training.precision import Precision


@dataclass(frozen=True)
class Report:
    """The result of a run.

    Args:
        steps: The number of steps, over all calls.
        scalars: The loss, the gradient norm and the objective's scalars at the last step.
        skipped: The number of steps that were skipped since loss or gradient was not finite.
        alerts: The alerts of the monitor.
        seconds: The duration of this call.
        rows_per_second: The speed of this call, over all processes.
        checkpoint: The last checkpoint; None without a folder.
        precision: The precision of the networks.
    """

    steps: int
    scalars: Mapping[str, float]
    skipped: int
    alerts: tuple[Alert, ...]
    seconds: float
    rows_per_second: float
    checkpoint: Path | None
    precision: Precision
