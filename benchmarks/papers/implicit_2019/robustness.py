r"""Accuracy under attack: softmax, adversarial training, and a joint energy-based model with and without refinement.

    make real-data
    python -m benchmarks.papers.implicit_2019.robustness [--write] [--sets scikit-learn fashion] [--seeds 0 1 2]

The sets are scikit-learn's digits and Fashion-MNIST. All networks of a set are equal: two hidden layers, 26,122 weights for digits. Each
radius counts the share of 200 test pictures that are still classified rightly after projected gradient descent. Networks without
refinement meet two attacks, by the margin and by the cross entropy; a picture counts only if it withstands both. A refined classifier
meets these attacks on its network, which do not see the refinement, and the adaptive attack, whose gradients go through all Langevin steps
(the mean over four seeds at each step where the refinement is random); it is classified with seeds that the attack does not know. It too
counts only what withstands all of them. Settings were chosen on the seed 100.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.papers.experiment import IMPLICIT
from benchmarks.papers.implicit_2019.training import (
    SEEDS,
    DigitEnergy,
    Joint,
    Split,
    adversarial,
    joint,
    softmax,
    split,
    split_fashion,
    summary,
)
from composable_energy_classification import Classifier, Refinement, calibration_error, pgd

PICTURES, NOISE, RADIUS = 200, 0.25, 0.15
RADII: Mapping[str, Sequence[float]] = {"linf": (0.05, 0.1, 0.15, 0.2, 0.25, 0.3), "l2": (0.5, 1.0, 1.5, 2.0)}
JOINT = {"scikit-learn": Joint(noise=NOISE, step_size=0.03), "fashion": Joint(noise=NOISE, step_size=0.01, weight=10.0)}
SPLITS = {"scikit-learn": split, "fashion": split_fashion}
REFINEMENTS = {
    "JEM, descent": Refinement(steps=10, step_size=0.06, temperature=0.0),
    "JEM, Langevin": Refinement(steps=10, step_size=0.03, temperature=0.1, draws=4, seed=2019),
}
STEPS, ADAPTIVE_STEPS, DRAWS = 40, 20, 4


def networks(data: Split, seed: int, settings: Joint) -> dict[str, DigitEnergy]:
    return {
        "softmax": softmax(data.training, seed),
        "softmax, noise": softmax(data.training, seed, NOISE),
        "adversarial": adversarial(data.training, seed, RADIUS),
        "JEM": joint(data.training, seed, settings),
    }


def attacked(model: DigitEnergy, x: Tensor, y: Tensor, radius: float, norm: str, seed: int) -> list[Tensor]:
    """Returns the pictures of both attacks on a network."""
    losses = ("margin", "cross-entropy")
    return [pgd(model.logits, x, y, radius, norm=norm, steps=STEPS, loss=loss, seed=seed) for loss in losses]


def right(classifier: Classifier, pictures: Sequence[Tensor], y: Tensor) -> Tensor:
    """Returns which pictures are classified rightly in all sets of pictures."""
    return torch.stack([classifier.predict(x) == y for x in pictures]).all(0)


def share(which: Tensor) -> float:
    return which.float().mean().item()


def measure(models: Mapping[str, DigitEnergy], x: Tensor, y: Tensor, seed: int) -> dict[str, dict[str, float]]:
    """Returns the accuracies of all classifiers; of refined ones also those under each kind of attack."""
    joint_model = models["JEM"]
    refined = {name: joint_model.classifier().refined(refinement) for name, refinement in REFINEMENTS.items()}
    plain = {name: model.classifier() for name, model in models.items()}
    found: dict[str, dict[str, float]] = {name: {"clean": share(c.predict(x) == y)} for name, c in (plain | refined).items()}
    for norm, radii in RADII.items():
        for radius in radii:
            key = f"{norm} {radius:g}"
            pictures = {name: attacked(model, x, y, radius, norm, seed) for name, model in models.items()}
            for name, some in pictures.items():
                found[name][key] = share(right(plain[name], some, y))
            for name, classifier in refined.items():
                unaware = right(classifier, pictures["JEM"], y)
                draws = DRAWS if classifier.random else 1
                adaptive = pgd(classifier, x, y, radius, norm=norm, steps=ADAPTIVE_STEPS, draws=draws, seed=seed)
                withstood = right(classifier, [adaptive], y)
                found[name][key] = share(unaware & withstood)
                found[name][f"{key} unaware"], found[name][f"{key} adaptive"] = share(unaware), share(withstood)
    return found


def calibration(models: Mapping[str, DigitEnergy], data: Split) -> dict[str, dict[str, float]]:
    """Returns accuracies, temperatures and calibration errors on all test pictures."""
    found, (x, y) = {}, data.test
    for name, model in models.items():
        first = model.classifier()
        fitted = first.calibrated(*data.held_out)
        errors = [calibration_error(classifier.probabilities(x), y) for classifier in (first, fitted)]
        accuracy = share(first.predict(x) == y)
        found[name] = {"accuracy": accuracy, "temperature": fitted.temperature, "error": errors[0], "fitted error": errors[1]}
    return found


def run(args: Any) -> Iterator[dict[str, Any]]:
    figures: dict[str, Any] = {}
    for name in args.sets:
        measured, calibrated = [], []
        for seed in args.seeds:
            data = SPLITS[name](seed)
            models = networks(data, seed, JOINT[name])
            measured.append(measure(models, data.test[0][:PICTURES], data.test[1][:PICTURES], seed))
            calibrated.append(calibration(models, data))
        parts = {"accuracy": measured, "calibration": calibrated}
        figures[name] = {part: {model: summary([row[model] for row in rows]) for model in rows[0]} for part, rows in parts.items()}
        print(figures[name], flush=True)
        yield figures


if __name__ == "__main__":
    IMPLICIT.run("robustness", __doc__, run, sets=tuple(SPLITS), seeds=SEEDS)
