r"""Trains the weights of the face energies, reproducibly from seeds.

    python -m composable_energy_faces.train --out FOLDER [--effort 1.0] [--install]

The steps: draw faces; train the judge; train the autoencoder, the base and the heads by the recipe `base-and-attributes`. Results are kept
in FOLDER, and after an interruption the same command resumes. The weights are in `FOLDER/weights`, the costs of each training in
`FOLDER/report.json`; `--install` copies both into the package.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from composable_energy.files import replace_file
from composable_energy_faces import weights
from composable_energy_faces.training_run import TrainingRun
from composable_energy_image.network_training import run_command


def _train(folder: Path, effort: float) -> None:
    run = TrainingRun(folder, effort)
    run.train()
    replace_file(folder / "report.json", f"{json.dumps({'trainings': run.costs()}, indent=1)}\n".encode())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command with arguments; those of the command line if None."""
    run_command(_train, weights.FOLDER, arguments)


if __name__ == "__main__":
    main()
