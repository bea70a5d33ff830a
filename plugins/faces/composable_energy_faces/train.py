r"""Trains the weights of the face energies, reproducibly from seeds.

    python -m composable_energy_faces.train --out FOLDER [--effort 1.0] [--install]

The steps: draw faces; train the judge; train the autoencoder, the base and the heads by the recipe `base-and-attributes`; score. Results
are kept in FOLDER, and after an interruption the same command resumes. The weights and the model card are in `FOLDER/weights` and
`FOLDER/MODEL_CARD.md`; `--install` copies both into the package.
"""

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from composable_energy.files import replace_file
from composable_energy_faces import weights
from composable_energy_faces.data import SEEDS
from composable_energy_faces.draw import ATTRIBUTES, draw
from composable_energy_faces.energies import Faces
from composable_energy_faces.judge import accuracy, judge
from composable_energy_faces.networks import Judge
from composable_energy_faces.scores import CRITERIA, build_expression, score
from composable_energy_faces.training_run import JUDGE_FACES, TRAINING_FACES, TrainingRun

_CARD = Path(__file__).parent / "model_card_template.md"

TEST_FACES = 2_000
"""Number of test faces, on which the judge's accuracy is measured."""


def evaluate_run(run: TrainingRun, samples: int) -> dict[str, Any]:
    """Evaluates the weights of a run."""
    network = weights.read(Judge(), "judge", run.weights)
    faces, family = draw(TEST_FACES, seed=SEEDS["test"]), Faces(str(run.weights))
    coder = family.base.autoencoder
    with torch.no_grad():
        decoded = torch.cat([coder(coder.encode(part)) for part in faces.images.split(250)])
    energies = {name: family.load(name) for name in family.members()}
    rows = [score(build_expression(row, energies), row, samples=samples, network=network)[0] for row in tqdm(CRITERIA, desc="scores")]
    return {
        "drawn": accuracy(judge(faces.images, network), faces),
        "decoded": accuracy(judge(decoded, network), faces),
        "recommended": vars(family.base.recommended),
        "samples": samples,
        "rows": rows,
    }


def build_model_card(run: TrainingRun, scores: dict[str, Any]) -> str:
    """Returns the model card of an evaluated run, in Markdown: the template with figures and three tables."""
    costs, names, recommended = run.costs(), (*ATTRIBUTES, "hair"), scores["recommended"]
    rows = []
    for row, result in zip(CRITERIA, scores["rows"], strict=True):
        branches = ", ".join(f"{share:.3f}" for share in result["branches"]) if len(result["branches"]) > 1 else ""
        free = result["free"].values()
        span = f"{min(free):.2f} to {max(free):.2f}" if free else ""
        text = row.text.replace("|", "\\|")
        rows.append(f"| `{text}` | {row.target:.2f} | {result['joint']:.3f} | {branches} | {span} |")
    return _CARD.read_text(encoding="utf-8").format(
        effort=run.effort,
        torch=torch.__version__,
        seeds=SEEDS,
        training=TRAINING_FACES,
        judged=JUDGE_FACES,
        tested=TEST_FACES,
        size=sum(path.stat().st_size for path in run.weights.glob("*.safetensors")) / 2**20,
        costs="\n".join(f"| {name} | {r['steps']:,} | {r['cpu_seconds']:.0f} | {r['loss']:.4f} |" for name, r in costs.items()),
        minutes=sum(r["cpu_seconds"] for r in costs.values()) / 60,
        names=" | ".join(names),
        rule="---|" * len(names),
        accuracy="\n".join(f"| {kind} | {' | '.join(f'{scores[kind][name]:.4f}' for name in names)} |" for kind in ("drawn", "decoded")),
        samples=scores["samples"],
        sampler=recommended["sampler"],
        options=", ".join(f"{name}={value:g}" for name, value in recommended["options"].items()),
        rows="\n".join(rows),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
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
