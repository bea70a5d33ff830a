r"""Trains the weights of the face energies, reproducibly from seeds.

    python -m composable_energy_faces.train --out FOLDER [--effort 1.0] [--install]

The steps: draw faces; train the judge; train the autoencoder, the base and the heads by the recipe `base-and-attributes`; score. Results
are kept in FOLDER, and after an interruption the same command resumes. The weights and the model card are in `FOLDER/weights` and
`FOLDER/MODEL_CARD.md`; `--install` copies both into the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from composable_energy.files import replace_file
from composable_energy_faces import weights
from composable_energy_faces.model_card import build_model_card, evaluate_run
from composable_energy_faces.training_run import TrainingRun


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: The arguments; those of the command line if None.
    """
    parser = argparse.ArgumentParser(prog="python -m composable_energy_faces.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="the run folder; it needs 2 GB")
    parser.add_argument("--effort", type=float, default=1.0, help="factor of the steps of each stage and, below 1, of the number of faces")
    parser.add_argument("--samples", type=int, default=1000, help="samples for each expression")
    parser.add_argument("--threads", type=int, default=1, help="threads of an operation")
    parser.add_argument("--install", action="store_true", help="copy the weights and the model card into the package")
    options = parser.parse_args(arguments)
    if not options.effort > 0:
        parser.error(f"--effort must be positive, got {options.effort}.")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    run = TrainingRun(options.out, options.effort)
    run.train()
    scores = evaluate_run(run, options.samples)
    replace_file(run.folder / "scores.json", f"{json.dumps(scores, indent=1)}\n".encode())
    replace_file(run.folder / "MODEL_CARD.md", build_model_card(run, scores).encode())
    if options.install:
        weights.FOLDER.mkdir(exist_ok=True)
        for path in run.weights.glob("*.safetensors"):
            shutil.copy(path, weights.FOLDER)
        shutil.copy(run.folder / "MODEL_CARD.md", Path(__file__).parent)


if __name__ == "__main__":
    main()
