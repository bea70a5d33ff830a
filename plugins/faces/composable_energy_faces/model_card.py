"""The model card: how the weights were made, and how they score."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from composable_energy_faces import weights
from composable_energy_faces.data import SEEDS
from composable_energy_faces.draw import ATTRIBUTES, Drawn, draw
from composable_energy_faces.energies import Faces
from composable_energy_faces.judge import judge
from composable_energy_faces.networks import Judge
from composable_energy_faces.scores import ROWS, expression, score
from composable_energy_faces.training_run import JUDGE_FACES, TRAINING_FACES, Run

__all__ = ["model_card", "scores_of"]

TEST_FACES = 2_000
"""How many faces, unseen by any network, tell how right the judge is."""


def scores_of(run: Run, samples: int) -> dict[str, Any]:
    """Scores the weights of a run.

    Args:
        run: The run, with all its stages done.
        samples: How many pictures for each expression.

    Returns:
        As plain data, the judge's accuracy on drawn and decoded faces that nothing was trained on, and each row of `ROWS`.
    """
    network = weights.read(Judge(), "judge", run.trained)
    faces, family = draw(TEST_FACES, seed=SEEDS["test"]), Faces(str(run.trained))
    coder = family.base.autoencoder
    with torch.no_grad():
        decoded = torch.cat([coder(coder.encode(part)) for part in faces.images.split(250)])
    energies = {name: family.load(name) for name in family.members()}
    rows = [score(expression(row, energies), row, samples=samples, network=network)[0] for row in tqdm(ROWS, desc="scores")]
    return {
        "drawn": _right(faces, faces.images, network),
        "decoded": _right(faces, decoded, network),
        "recommended": vars(family.base.recommended),
        "samples": samples,
        "rows": rows,
    }


def _right(faces: Drawn, images: Tensor, network: Judge) -> dict[str, float]:
    verdict = judge(images, network)
    right = (verdict.attributes == (faces.attributes > 0.5)).float().mean(0).tolist()
    return dict(zip(ATTRIBUTES, right, strict=True)) | {"hair": float((verdict.hair == faces.hair).float().mean())}


def model_card(run: Run, scores: dict[str, Any]) -> str:
    """Returns the card of a scored run, in Markdown."""
    reports = run.reports()
    size = sum(path.stat().st_size for path in run.trained.glob("*.safetensors")) / 2**20
    names = (*ATTRIBUTES, "hair")
    recommended = scores["recommended"]
    lines = [
        "# Model card: drawn faces",
        "",
        "Energies over the code of an autoencoder for drawn 64 x 64 faces: one noise-conditional base and one head for each attribute.",
        "They know drawings only, and say nothing about people.",
        "",
        "## How they were made",
        "",
        f"    python -m composable_energy_faces.train --out FOLDER --effort {run.effort:g} --install",
        "",
        f"torch {torch.__version__}, one thread. Seeds of the drawn faces: {SEEDS['train']} to train ({TRAINING_FACES:,} faces), "
        f"{SEEDS['judge']} for the judge ({JUDGE_FACES:,}), {SEEDS['test']} for the scores below.",
        f"Weights: {size:.1f} MB in half precision, read back in single precision.",
        "",
        "| network | steps | processor seconds | final loss |",
        "|---|---|---|---|",
        *(f"| {name} | {r['steps']:,} | {r['cpu_seconds']:.0f} | {r['loss']:.4f} |" for name, r in reports.items()),
        "",
        f"Together {sum(r['cpu_seconds'] for r in reports.values()) / 60:.0f} minutes of one core, and some five to draw the faces.",
        "Initial weights and batches depend on names and steps alone, so an interrupted run ends as any other.",
        "",
        "## The judge",
        "",
        "An image network, trained on other faces and without part in training these. "
        f"Right on {TEST_FACES:,} faces that no network has seen:",
        "",
        "| faces | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
        *(f"| {kind} | " + " | ".join(f"{scores[kind][name]:.4f}" for name in names) + " |" for kind in ("drawn", "decoded")),
        "",
        "## Scores",
        "",
        f"Share of {scores['samples']:,} samples in which the judge sees the expression hold; concept weight 1, seed 0, sampler "
        f"`{recommended['sampler']}` with {', '.join(f'{k}={v:g}' for k, v in recommended['options'].items())}.",
        "The last column is the range of the shares of binary attributes that were not asked for; .5 is right.",
        "The judge took no part in training, but the sampler's setting was chosen by its verdicts at this seed, on four of these rows,",
        "and by Frechet distances in its features; `benchmarks/faces.py --seed` scores at another.",
        "",
        "| expression | required | reached | alternatives | free attributes |",
        "|---|---|---|---|---|",
    ]
    for row, result in zip(ROWS, scores["rows"], strict=True):
        branches = ", ".join(f"{share:.3f}" for share in result["branches"]) if len(result["branches"]) > 1 else ""
        free = result["free"].values()
        between = f"{min(free):.2f} to {max(free):.2f}" if free else ""
        text = row.text.replace("|", "\\|")
        lines.append(f"| `{text}` | {row.target:.2f} | {result['joint']:.3f} | {branches} | {between} |")
    return "\n".join(lines) + "\n"
