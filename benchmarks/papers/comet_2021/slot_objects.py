r"""Slot attention on solids of 16 pixels, a common alternative, beside the models of `objects.py` and with their scores.

    python -m benchmarks.papers.comet_2021.slot_objects [--seed 5 6 7] [--steps 4400] [--write] [--data FOLDER] [--parts FOLDER]

Models train in one thread; weights and figures go to the folder of parts, and existing ones are used again.

There are 5 slots, one for the background, and the pictures and splits of `objects.py`. A pixel belongs to the slot with the largest
mask there. Nothing is chosen on validation pictures. The rate is 4e-4, as in the paper of slot attention, which trains 500,000
steps of 64.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.objects import TEST, TRAIN
from benchmarks.papers.comet_2021.options import SEEDS, experiment_parser
from benchmarks.papers.comet_2021.segmentation import foreground_ari
from benchmarks.papers.comet_2021.slots import SlotAttention, train_slots
from benchmarks.papers.comet_2021.training import PRECISION
from benchmarks.papers.comet_2021.worlds import Scenes, render_objects
from benchmarks.papers.experiment import COMET, print_table, write_rounded
from composable_energy_comet.metrics import adjusted_rand_index, mean_segmentation_covering, territory_labels

SLOTS = 5
WORLD = "objects-16"


@torch.no_grad()
def score(model: SlotAttention, test: Scenes) -> dict[str, Any]:
    """Returns the scores of masks on test pictures, and the error of reconstructions."""
    torch.manual_seed(0)  # of the first slots
    found = [model(some) for some in test.images.split(64)]
    rebuilt, labels = (torch.cat(part) for part in zip(*((image, masks.argmax(1)) for image, masks in found), strict=True))
    each = adjusted_rand_index(test.masks, labels, foreground=True)
    return {
        "error": float((rebuilt - test.images).square().mean()),
        "FG-ARI": float(each.nanmean()),
        "s.e.": float(each.std() / len(each) ** 0.5),
        "all-pixel ARI": float(adjusted_rand_index(test.masks, labels).mean()),
        "mSC": float(mean_segmentation_covering(test.masks, labels).nanmean()),
        "territory": foreground_ari(test.masks, territory_labels(labels)),
    }


def train(seed: int, steps: int, parts: Path, data: Path) -> dict[str, Any]:
    """Returns the scores of a model; trains it if they do not exist."""
    target = parts / f"{WORLD}-{seed}.json"
    if not target.exists():
        model, figures = train_slots(render_objects(WORLD, TRAIN, "train", data).images, SLOTS, seed, steps)
        found = score(model, render_objects(WORLD, TEST, "test", data))
        write_rounded(target, {"world": WORLD, "seed": seed, **figures, **found})
    return read_json(target)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("slots", __doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=SEEDS)
    parser.add_argument("--steps", type=int, default=4_400, help="of each training, which take as long as `objects-16-quadratic`")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [train(seed, args.steps, args.parts / "slots", args.data) for seed in args.seed]
    print_table(f"Slot attention on {WORLD}", rows)
    if args.write:
        COMET.write("slots", {"rows": rows}, train=TRAIN, test=TEST, slots=SLOTS, steps=args.steps, precision=PRECISION)


if __name__ == "__main__":
    main()
