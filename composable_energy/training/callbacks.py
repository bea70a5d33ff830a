"""What people want to see of a run while it goes on."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from composable_energy.training.monitor import Event

if TYPE_CHECKING:
    from composable_energy.training.trainer import Report, Trainer

__all__ = ["Callback"]


class Callback(ABC):  # noqa: B024  (each hook is there to be left out)
    """Abstract callback: a subclass writes the hooks that it needs. They are called in the first process only."""

    def on_start(self, trainer: Trainer) -> None:  # noqa: B027
        """The run begins, or goes on from `trainer.step`."""

    def on_step(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:  # noqa: B027
        """A step was made.

        Args:
            trainer: With its `step`, its `rate`, its `attempt`.
            scalars: The loss, the norm of the gradient, and what the objective tells, means over the batch.
        """

    def on_checkpoint(self, trainer: Trainer, path: Path | None) -> None:  # noqa: B027
        """A checkpoint was written; a run without a folder has no path."""

    def on_event(self, trainer: Trainer, event: Event) -> None:  # noqa: B027
        """The monitor saw something; what it does comes afterwards."""

    def on_end(self, trainer: Trainer, report: Report) -> None:  # noqa: B027
        """The run is over, and the model has its final weights."""
