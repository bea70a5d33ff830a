"""What a run returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from composable_energy_training.monitor import Event
from composable_energy_training.precision import Precision

__all__ = ["Report"]


@dataclass(frozen=True)
class Report:
    """How a run went.

    Args:
        steps: How many were made, by all calls together.
        scalars: What the last step told.
        skipped: Steps without effect, as something was not finite.
        events: What the monitor saw.
        seconds: How long this call took.
        rows_per_second: Of this call, all processes together.
        checkpoint: The last one; None without a folder.
        precision: What networks computed in.
    """

    steps: int
    scalars: Mapping[str, float]
    skipped: int
    events: tuple[Event, ...]
    seconds: float
    rows_per_second: float
    checkpoint: Path | None
    precision: Precision
