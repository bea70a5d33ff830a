"""A callback that logs the progress of a run once a minute, for runs whose output is a file."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from composable_energy.options import check_number
from composable_energy_training.callbacks import Callback

if TYPE_CHECKING:
    from composable_energy_training.report import Report
    from composable_energy_training.trainer import Trainer

_LOG = logging.getLogger("composable_energy_training")


class ProgressLog(Callback):
    """Logs stage, step, loss and time left to the logger `composable_energy_training`, at level INFO.

    The stage is the name of the folder of the run, or the class of the model. Every trainer has this callback. The command `train` shows
    the lines if its output is no terminal.

    Args:
        every: Seconds between lines.

    Raises:
        OptionError: `every` is negative.
    """

    def __init__(self, every: float = 60.0) -> None:
        self.every = check_number("every", every, least=0)
        self._began, self._first, self._last = 0.0, 0, 0.0

    def on_start(self, trainer: Trainer) -> None:
        self._began, self._first = time.monotonic(), trainer.step
        self._last = self._began

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        now = time.monotonic()
        if now - self._last < self.every:
            return
        self._last = now
        done = trainer.step - self._first
        left = f", {_duration((now - self._began) / done * (trainer.steps - trainer.step))} left" if done > 0 else ""
        _LOG.info("%s: step %d of %d, loss %.4g%s", _stage(trainer), trainer.step, trainer.steps, scalars["loss"], left)

    def on_end(self, trainer: Trainer, report: Report) -> None:
        if report.seconds >= self.every:
            _LOG.info("%s: %d steps finished in %s", _stage(trainer), report.steps, _duration(report.seconds))


def _stage(trainer: Trainer) -> str:
    return type(trainer.model).__name__ if trainer.out is None else trainer.out.name


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"
