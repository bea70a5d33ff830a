r"""Energies of a small set of real pictures: 1,397 of scikit-learn's 1,797 handwritten digits, by `base-and-attributes`.

    python -m benchmarks.digits [--work .cache/digits] [--samples 500] [--split 0] [--steps N] [--write]

The digits of 8 x 8 pixels are read as 16 x 16 and have the attributes `even`, `above4`, `prime`, `has_loop` and `digit`. A support vector
machine, trained on the other 400 digits and slightly rotated, scaled, shifted and bent copies of them, evaluates the samples. Settings were
chosen on the split 1, those of the judge by its accuracy on real digits of the splits 2, 3 and 4. The judge is not perfect: what it finds
for the 1,397 real digits is part of the result, for each digit with equal weight. Processor seconds are those of the command, with reading
the pictures and drawing the sheet of samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, better_of_two, environment, run_benchmark
from benchmarks.own_pictures import train
from composable_energy.parsing import parse
from composable_energy.sampling.noise import Noise
from composable_energy_image import CodeEnergy
from composable_energy_image.data import Preparation, open_pictures

PATH = RESULTS / "digits.json"
TRAINING, SIZE, COPIES = 1397, 16, 15
ATTRIBUTES: dict[str, Sequence[int]] = {
    "even": (0, 2, 4, 6, 8),
    "above4": (5, 6, 7, 8, 9),
    "prime": (2, 3, 5, 7),
    "has_loop": (0, 6, 8, 9),
}
EXPRESSIONS: dict[str, Sequence[int]] = {
    "even & ~has_loop": (2, 4),
    "even & above4": (6, 8),
    "above4 & has_loop & ~even": (9,),
    "even | prime": (0, 2, 3, 4, 5, 6, 7, 8),
    "even ^ prime": (0, 3, 4, 5, 6, 7, 8),
    **{f"digit={digit}": (digit,) for digit in range(10)},
}
Judge = Callable[[Tensor], np.ndarray]


def split_digits(split: int, folder: Path) -> tuple[Path, Path]:
    """Writes the digits for training with their attributes, and those for the judge; returns both files."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    files = (folder / f"training-{split}.npz", folder / f"judge-{split}.npz")
    pixels, order = (digits.images / 16 * 255).round().astype(np.uint8), np.random.default_rng(split).permutation(len(digits.images))
    folder.mkdir(parents=True, exist_ok=True)
    for file, rows in zip(files, (order[:TRAINING], order[TRAINING:]), strict=True):
        values = digits.target[rows]
        labels: dict[str, Any] = {name: np.isin(values, having) for name, having in ATTRIBUTES.items()}
        np.savez(file, images=pixels[rows], digit=values.astype(str), **labels)
    return files


def open_digits(file: Path) -> tuple[Tensor, np.ndarray]:
    """Returns pictures with shape $(N, 1, 16, 16)$, and their digits."""
    pictures = open_pictures(file, size=SIZE, channels=1)
    return pictures.images(torch.arange(len(pictures))), pictures.variable("digit").values.numpy()


def train_judge(pictures: Tensor, digits: np.ndarray) -> Judge:
    """Returns a classifier of pictures."""
    from sklearn.svm import SVC

    change, noise = Preparation(rotation=10, zoom=0.08, shift=0.06, bend=0.02), Noise(0, range(len(pictures)))
    copies = [pictures, *(change(pictures, noise.at(copy)) for copy in range(COPIES))]
    machine = SVC(C=10, gamma=0.05)  # pyright: ignore[reportArgumentType]
    machine.fit(torch.cat(copies).flatten(1).numpy(), np.tile(digits, COPIES + 1))
    return lambda pictures: machine.predict(pictures.flatten(1).numpy())


def evaluate(run: Path, names: Sequence[str], judge: Judge, samples: int, real: Mapping[int, np.ndarray]) -> dict[str, dict[str, Any]]:
    """Returns for each expression the share of samples that satisfy it, and that of real digits.

    The share of best is that of the better of two samples, by the evidence of the expression.
    """
    energies, found = {name: ce.load(run / name) for name in names}, {}
    for text, allowed in EXPRESSIONS.items():
        energy = energies[text] if text in energies else parse(text).build(energies)
        seen, better = judge(energy.sample(samples, seed=0)), judge(better_of_two(energy, samples, seed=0))
        found[text] = {
            "share": float(np.isin(seen, allowed).mean()),
            "share of best": float(np.isin(better, allowed).mean()),
            "real": float(np.mean([np.isin(real[digit], allowed).mean() for digit in allowed])),
        }
        print(text, found[text], flush=True)
    return found


@torch.no_grad()
def distances(base: CodeEnergy, training: Tensor, other: Tensor) -> dict[str, float]:
    """Returns the distances to the nearest digit for training, which tell new digits from repeated ones."""
    return {"draws": nearest(base.sample(len(other), seed=0), training), "other digits": nearest(other, training)}


def nearest(pictures: Tensor, others: Tensor) -> float:
    """Returns the mean distance of pictures to the nearest of others."""
    return float(torch.cdist(pictures.flatten(1), others.flatten(1)).min(1).values.mean())


def run(args: Any) -> Iterator[dict[str, Any]]:
    data, others = split_digits(args.split, args.work)
    folder = args.work / f"run-{args.split}"
    report: dict[str, Any] = {**environment("scikit-learn"), "pictures": TRAINING}
    report |= {"samples": args.samples, "split": args.split, "steps": args.steps}
    settings = [f"data.size={SIZE}", "data.channels=1"]
    report["training"] = train("base-and-attributes", data, folder, settings, args.steps or None)
    print("{cpu_seconds:.0f} processor seconds, {seconds:.0f} by the clock".format(**report["training"]))
    training, other = open_digits(data), open_digits(others)
    judge = train_judge(*other)
    report["distances"] = distances(cast(CodeEnergy, ce.load(folder / "base")), training[0], other[0])
    print("mean distances to the nearest digit for training:", report["distances"])
    real = {digit: judge(training[0][training[1] == digit]) for digit in range(10)}
    report["rows"] = evaluate(folder, report["training"]["energies"], judge, args.samples, real)
    yield report


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, work=Path(".cache/digits"), samples=500, split=0, steps=0)
