"""Unusual pictures, told from the pictures of a set by the energy of their codes, a classifier's certainty, and the nearest known picture.

    make real-data
    python -m benchmarks.real.unusual [--only fashion digits] [--seed 0] [--write]

The energy is the base of the recipe `base-and-attributes`, trained by `python -m benchmarks.real` with the same seed, or here. Held-out
pictures are compared with as many of the other set (after Nalisnick et al., 2019), of noise, and with themselves turned by a quarter and
inverted. The area under the ROC curve is 1 if a score separates both, and .5 by chance. The classifier is the judge of the set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, run_benchmark
from benchmarks.real.__main__ import train
from benchmarks.real.data import open_set
from benchmarks.real.judges import load_judge
from composable_energy_classification import auroc, energy_score
from composable_energy_image.metrics import features_of

SETS, PICTURES = ("fashion", "digits"), 1000


def areas(name: str, seed: int) -> Iterator[dict[str, Any]]:
    """Yields a row for each score of the pictures of a set."""
    real, other = open_set(name), open_set(next(some for some in SETS if some != name))
    base: Any = ce.load(train(real, 1.0, seed) / "base")
    known, inside, judge = real.library.images.flatten(1), real.held_out.images[:PICTURES], load_judge(real)
    strange = {
        "the other set": other.held_out.images[:PICTURES],
        "noise": torch.rand(inside.shape, generator=torch.Generator().manual_seed(seed)),
        "turned": inside.rot90(1, (2, 3)),
        "inverted": 1 - inside,
    }
    scores: dict[str, Callable[[Tensor], Tensor]] = {
        "energy of the code": lambda images: torch.cat([energy_score(base, base.decoder.encode(some)) for some in images.split(250)]),
        "softmax probability": lambda images: -features_of(judge, images).softmax(1).amax(1),
        "nearest neighbour": lambda images: torch.cdist(images.flatten(1), known).amin(1),
    }
    for score, function in scores.items():
        with torch.no_grad():
            usual = function(inside)
            found = {kind: auroc(usual, function(images)) for kind, images in strange.items()}
        yield {"set": name, "score": score, **found}


def run(args: Any) -> Iterator[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for name in args.only:
        rows += areas(name, args.seed)
        print(*rows[-3:], sep="\n", flush=True)
        yield {**environment(seed=args.seed), "rows": rows}


if __name__ == "__main__":
    run_benchmark(__doc__, RESULTS / "unusual.json", run, only=SETS, seed=0)
