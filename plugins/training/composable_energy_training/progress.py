"""A bar that grows with a run."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from composable_energy_training.callbacks import Callback

if TYPE_CHECKING:
    from composable_energy_training.trainer import Trainer

__all__ = ["ProgressBar"]


class ProgressBar(Callback):
    """Shows how far a run is, with loss, gap and rate; it moves back when the run does."""

    def __init__(self) -> None:
        self._bar: Any = None

    def on_start(self, trainer: Trainer) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=trainer.steps, initial=trainer.step, file=sys.stderr, desc="training")

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        shown = {name: f"{scalars[name]:.4g}" for name in ("loss", "gap") if name in scalars}
        self._bar.set_postfix({**shown, "rate": f"{trainer.rate:.2g}"}, refresh=False)
        self._bar.update(trainer.step - self._bar.n)

    def on_exit(self, trainer: Trainer) -> None:
        if self._bar is not None:
            self._bar.close()
