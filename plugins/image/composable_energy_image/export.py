"""Exports a run: a folder for each energy, a contact sheet of samples, and a report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import composable_energy as ce
from composable_energy.files import replace_file
from composable_energy_image.sheets import write_rows

_ROWS, _COLUMNS = 16, 8


def export_run(out: Path, energies: Sequence[ce.Energy], stages: Mapping[str, Mapping[str, float]], accuracy: Mapping[str, float]) -> None:
    """Writes the energies, the contact sheet and the report of a run.

    Args:
        out: The run folder.
        energies: The energies; each gets a folder of its name, and a row of the sheet (16 at most).
        stages: Steps, processor seconds and loss of each stage.
        accuracy: Accuracy of heads, by attribute.
    """
    for energy in energies:
        energy.save(out / energy.name)
    write_rows(out / "samples.png", [energy.sample(_COLUMNS, seed=0) for energy in energies[:_ROWS]])
    report = {
        "energies": [energy.name for energy in energies],
        "stages": stages,
        "cpu_seconds": sum(stage["cpu_seconds"] for stage in stages.values()),
        "held_out_accuracy": accuracy,
    }
    replace_file(out / "report.json", f"{json.dumps(report, indent=1)}\n".encode())
