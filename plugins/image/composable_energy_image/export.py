"""What a run leaves: a folder for each energy, a sheet of samples, and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

import composable_energy as ce

__all__ = ["export_run"]

_ROWS, _COLUMNS, _GAP = 16, 8, 2


def export_run(out: Path, energies: Sequence[ce.Energy], stages: Mapping[str, Mapping[str, float]], accuracy: Mapping[str, float]) -> None:
    """Writes what a run leaves.

    Args:
        out: The folder of the run.
        energies: Each gets a folder of its name; the sheet has a row for each, 16 at most.
        stages: For each stage its steps, processor seconds and loss.
        accuracy: How often heads are right, by attribute.
    """
    for energy in energies:
        energy.save(out / energy.name)
    _write_sheet(out / "samples.png", [energy.sample(_COLUMNS, seed=0) for energy in energies[:_ROWS]])
    report = {
        "energies": [energy.name for energy in energies],
        "stages": stages,
        "cpu_seconds": sum(stage["cpu_seconds"] for stage in stages.values()),
        "held_out_accuracy": accuracy,
    }
    (out / "report.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def _write_sheet(path: Path, rows: Sequence[Tensor]) -> None:
    """Writes rows of pictures, each with shape $(B, C, S, S)$, below one another."""
    from PIL import Image

    tiles = torch.nn.functional.pad(torch.stack(list(rows)), (0, _GAP, 0, _GAP), value=1.0)
    sheet = tiles.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    Image.fromarray(sheet.mul(255).round().byte().cpu().squeeze(-1).numpy()).save(path, optimize=True)
