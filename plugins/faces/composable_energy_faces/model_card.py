"""Builds the model card: training and scores of the shipped weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from composable_energy_faces import weights
from composable_energy_faces.data import SEEDS
from composable_energy_faces.draw import ATTRIBUTES, DrawnFaces, draw
from composable_energy_faces.energies import Faces
from composable_energy_faces.judge import judge
from composable_energy_faces.networks import Judge
from composable_energy_faces.scores import CRITERIA, build_expression, score
from composable_energy_faces.training_run import JUDGE_FACES, TRAINING_FACES, TrainingRun

TEST_FACES = 2_000
"""Number of test faces, on which the judge's accuracy is measured."""


def evaluate_run(run: TrainingRun, samples: int) -> dict[str, Any]:
    """Evaluates the weights of a run.

    Args:
        run: The finished run.
        samples: Number of samples for each expression.

    Returns:
        Plain data: the judge's accuracy on drawn and on decoded test faces, and the score of each of `CRITERIA`.
    """
    network = weights.read(Judge(), "judge", run.weights)
    faces, family = draw(TEST_FACES, seed=SEEDS["test"]), Faces(str(run.weights))
    coder = family.base.autoencoder
    with torch.no_grad():
        decoded = torch.cat([coder(coder.encode(part)) for part in faces.images.split(250)])
    energies = {name: family.load(name) for name in family.members()}
    rows = [score(build_expression(row, energies), row, samples=samples, network=network)[0] for row in tqdm(CRITERIA, desc="scores")]
    return {
        "drawn": _accuracy(faces, faces.images, network),
        "decoded": _accuracy(faces, decoded, network),
        "recommended": vars(family.base.recommended),
        "samples": samples,
        "rows": rows,
    }


def _accuracy(faces: DrawnFaces, images: Tensor, network: Judge) -> dict[str, float]:
    verdict = judge(images, network)
    right = (verdict.attributes == (faces.attributes > 0.5)).float().mean(0).tolist()
    return dict(zip(ATTRIBUTES, right, strict=True)) | {"hair": float((verdict.hair == faces.hair).float().mean())}


def build_model_card(run: TrainingRun, scores: dict[str, Any]) -> str:
    """Returns the model card of an evaluated run, in Markdown."""
    costs = run.costs()
    size = sum(path.stat().st_size for path in run.weights.glob("*.safetensors")) / 2**20
    names = (*ATTRIBUTES, "hair")
    recommended = scores["recommended"]
    lines = [
        "# Model card: drawn faces",
        "",
        "Energies over the code of an autoencoder for drawn 64 x 64 faces: one noise-conditional base and one head for each attribute.",
        "They model drawings only, and say nothing about people.",
        "",
        "## Training",
        "",
        f"    python -m composable_energy_faces.train --out FOLDER --effort {run.effort:g} --install",
        "",
        f"torch {torch.__version__}, one thread. Seeds of the drawn faces: {SEEDS['train']} for training ({TRAINING_FACES:,} faces), "
        f"{SEEDS['judge']} for the judge ({JUDGE_FACES:,}), {SEEDS['test']} for the scores below.",
        f"Weights: {size:.1f} MB in half precision, loaded in single precision.",
        "",
        "| network | steps | processor seconds | final loss |",
        "|---|---|---|---|",
        *(f"| {name} | {r['steps']:,} | {r['cpu_seconds']:.0f} | {r['loss']:.4f} |" for name, r in costs.items()),
        "",
        f"Together {sum(r['cpu_seconds'] for r in costs.values()) / 60:.0f} minutes of one core, plus about five to draw the faces.",
        "Initial weights and batches depend on names and steps only, so an interrupted run has the same result.",
        "",
        "## The judge",
        "",
        f"An image classifier, trained on other faces and not used to train these energies. Accuracy on {TEST_FACES:,} test faces:",
        "",
        "| faces | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *(f"| {kind} | " + " | ".join(f"{scores[kind][name]:.4f}" for name in names) + " |" for kind in ("drawn", "decoded")),
        "",
        "## Scores",
        "",
        f"Share of {scores['samples']:,} samples that satisfy the expression according to the judge; concept weight 1, seed 0, sampler "
        f"`{recommended['sampler']}` with {', '.join(f'{k}={v:g}' for k, v in recommended['options'].items())}.",
        "The last column is the range of the shares of binary attributes that the expression leaves free; the ideal is .5.",
        "The judge is not used in training, but the sampler's setting was chosen by its verdicts at this seed, on four of these rows,",
        "and by Frechet distances in its features; `benchmarks/faces.py --seed` scores at another seed.",
        "",
        "| expression | required | reached | alternatives | free attributes |",
        "|---|---|---|---|---|",
    ]
    for row, result in zip(CRITERIA, scores["rows"], strict=True):
        branches = ", ".join(f"{share:.3f}" for share in result["branches"]) if len(result["branches"]) > 1 else ""
        free = result["free"].values()
        span = f"{min(free):.2f} to {max(free):.2f}" if free else ""
        text = row.text.replace("|", "\\|")
        lines.append(f"| `{text}` | {row.target:.2f} | {result['joint']:.3f} | {branches} | {span} |")
    return "\n".join(lines) + "\n"
