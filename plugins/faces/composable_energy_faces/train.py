r"""Makes the weights of the face energies from nothing but a seed.

    python -m composable_energy_faces.train --out FOLDER [--effort 1.0] [--install]

In order: draw the faces, train the judge, then the autoencoder, the base and the heads by the recipe `base-and-attributes`, score. Each
keeps what it has in FOLDER; the same command after a kill goes on from there. The finished weights and the model card lie in
`FOLDER/weights` and `FOLDER/MODEL_CARD.md`; `--install` copies both into the package.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch

from composable_energy_faces import weights
from composable_energy_faces.model_card import model_card, scores_of
from composable_energy_faces.training_run import Run

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command.

    Args:
        arguments: Those of the command line, or None to read them.
    """
    parser = argparse.ArgumentParser(prog="python -m composable_energy_faces.train", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where everything is kept; 2 GB")
    parser.add_argument("--effort", type=float, default=1.0, help="multiplies the steps of each stage and, below 1, the faces drawn")
    parser.add_argument("--samples", type=int, default=1000, help="how many samples score each expression")
    parser.add_argument("--threads", type=int, default=1, help="threads inside an operation")
    parser.add_argument("--install", action="store_true", help="copy weights and model card into the package")
    options = parser.parse_args(arguments)
    if not options.effort > 0:
        parser.error(f"--effort must be positive, got {options.effort}.")
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    run = Run(options.out, options.effort)
    run.make()
    scores = scores_of(run, options.samples)
    (run.folder / "scores.json").write_text(json.dumps(scores, indent=1) + "\n")
    (run.folder / "MODEL_CARD.md").write_text(model_card(run, scores))
    if options.install:
        weights.FOLDER.mkdir(exist_ok=True)
        for path in run.trained.glob("*.safetensors"):
            shutil.copy(path, weights.FOLDER)
        shutil.copy(run.folder / "MODEL_CARD.md", Path(__file__).parent)


if __name__ == "__main__":
    main()
