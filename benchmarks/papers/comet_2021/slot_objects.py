r"""Slot attention on the worlds with objects, a common alternative, with the same time and the same scores.

    python -m benchmarks.papers.comet_2021.slot_objects [--only sprites] [--seed 0] [--seconds N] [--data FOLDER] [--parts FOLDER]
    python -m benchmarks.papers.comet_2021.slot_objects --gather [--write]

The first trains and scores models in one thread, by default on all worlds for seeds 0 and 1; figures go to the folder of parts, and
existing ones are used again. Both print the table of all parts that exist.

There are 5 slots, one for the background, and the pictures, splits and seconds of `objects.py`. A pixel belongs to the slot with the
largest mask there. Nothing is chosen on validation pictures. The rate is 4e-4, as in the paper of slot attention, which trains 500,000
steps of 64.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.objects import TEST, TRAIN
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.comet_2021.segmentation import foreground_ari, segmentation_baselines
from benchmarks.papers.comet_2021.slots import SlotAttention, train_slots
from benchmarks.papers.comet_2021.worlds import Scenes, render_objects
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture, write_rounded
from composable_energy_comet.metrics import adjusted_rand_index, mean_segmentation_covering, territory_labels

__all__ = ["SECONDS", "score"]

SLOTS = 5
SECONDS: Mapping[str, float] = {"sprites": 350, "objects-16": 300}
"""Seconds of training on each world, the same as for COMET."""


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


@torch.no_grad()
def sheet(model: SlotAttention, test: Scenes) -> Tensor:
    """Returns a picture with rows: test pictures, reconstructions, and each slot's share of them."""
    x = test.images[:6]
    torch.manual_seed(0)
    colors, masks = model.decode(model.encode(x))
    parts = colors * masks[:, :, None]
    return arrange_rows([x, parts.sum(1), *parts.unbind(1)], 2 if x.shape[-1] >= 32 else 4)


def gather(parts: Path, data: Path, write: bool) -> None:
    """Prints the table of all parts that exist, and writes it with the pictures."""
    rows = [read_json(path) for path in sorted(parts.glob("*.json"))]
    found = {world: segmentation_baselines(render_objects(world, TEST, "test", data)) for world in sorted({row["world"] for row in rows})}
    print_table("Slot attention", rows)
    print_table("Baselines", [{"world": world, **values} for world, values in found.items()])
    if write:
        COMET.write("slots", {"rows": rows, "baselines": found}, train=TRAIN, test=TEST, slots=SLOTS)
        for world in found:
            if (weights := parts / f"{world}-0.pt").exists():
                test = render_objects(world, TEST, "test", data)
                model = SlotAttention(SLOTS, test.images.shape[-1])
                model.load_state_dict(torch.load(weights))
                write_picture(COMET.pictures / f"slots-{world}.png", sheet(model.eval(), test))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("slots", __doc__)
    parser.add_argument("--only", nargs="+", choices=list(SECONDS), default=list(SECONDS), metavar="WORLD", help=", ".join(SECONDS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--seconds", type=float, help="of one processor, instead of those of each world")
    parser.add_argument("--gather", action="store_true", help="train nothing, and print the table of what exists")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = args.parts / "slots"
    if not args.gather:
        for world in args.only:
            for seed in args.seed:
                _train_and_score(world, seed, SECONDS[world] if args.seconds is None else args.seconds, parts, args.data)
    gather(parts, args.data, args.write)


def _train_and_score(world: str, seed: int, seconds: float, parts: Path, data: Path) -> None:
    target = parts / f"{world}-{seed}.json"
    if target.exists():
        return
    model, figures = train_slots(render_objects(world, TRAIN, "train", data).images, SLOTS, seconds, seed)
    result = {"world": world, "seed": seed, **figures, **score(model, render_objects(world, TEST, "test", data))}
    write_rounded(target, result)
    torch.save(model.state_dict(), target.with_suffix(".pt"))
    print_table(f"{world}, seed {seed}", [result])


if __name__ == "__main__":
    main()
