r"""Slot attention on the worlds with objects, what users would otherwise take, in the same time and scored in the same way.

    pip install -e '.[scenes,metrics]' -c constraints.txt
    python benchmarks/papers/comet_2021/slot_objects.py --only sprites --seed 0 [--seconds N] [--data FOLDER] [--parts FOLDER]
    python benchmarks/papers/comet_2021/slot_objects.py --gather [--write]

The first trains one model in one thread and scores it; figures go to the folder of parts, and what lies there is not done again. Without
`--only` all worlds are done, for seeds 0 and 1. The second makes the table.

There are 5 slots, one for the background, and the pictures, splits and seconds of `objects.py`. A pixel belongs to the slot whose mask is
the largest there. Nothing is chosen on validation pictures. Rate 4e-4, as in the paper of slot attention, which trains 500,000 steps of 64.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from comet_common import CACHE, PICTURES, RESULTS, Scenes, about, objects, show, strip, write
from objects import TEST, TRAIN, floors
from slots import SlotAttention, trained
from torch import Tensor

from composable_energy_comet.metrics import adjusted_rand_index, mean_segmentation_covering, territory_labels

__all__ = ["SECONDS", "scored"]

SLOTS = 5
SECONDS: Mapping[str, float] = {"sprites": 350, "objects-16": 300}
"""How long each world is trained: as long as COMET."""


@torch.no_grad()
def scored(model: SlotAttention, test: Scenes) -> dict[str, Any]:
    """Returns the scores of masks on test pictures, and the error of reconstructions."""
    torch.manual_seed(0)  # of where slots begin
    found = [model(some) for some in test.images.split(64)]
    rebuilt, labels = (torch.cat(part) for part in zip(*((image, masks.argmax(1)) for image, masks in found), strict=True))
    each = adjusted_rand_index(test.masks, labels, foreground=True)
    return {
        "error": float((rebuilt - test.images).square().mean()),
        "FG-ARI": float(each.nanmean()),
        "s.e.": float(each.std() / len(each) ** 0.5),
        "all-pixel ARI": float(adjusted_rand_index(test.masks, labels).mean()),
        "mSC": float(mean_segmentation_covering(test.masks, labels).nanmean()),
        "territory": _foreground(test.masks, territory_labels(labels)),
    }


def _foreground(masks: Tensor, labels: Tensor) -> float:
    return float(adjusted_rand_index(masks, labels, foreground=True).nanmean())


@torch.no_grad()
def pictured(model: SlotAttention, test: Scenes) -> Tensor:
    """Returns rows of pictures: six of the test, their reconstructions, and each slot's share of them."""
    x = test.images[:6]
    torch.manual_seed(0)
    colors, masks = model.decode(model.encode(x))
    shown = colors * masks[:, :, None]
    return strip([x, shown.sum(1), *shown.unbind(1)], 2 if x.shape[-1] >= 32 else 4)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=list(SECONDS), help="one world; all if not given")
    parser.add_argument("--seed", type=int, help="one seed; 0 and 1 if not given")
    parser.add_argument("--seconds", type=float, help="of one processor, instead of what each world gets")
    parser.add_argument("--gather", action="store_true", help="make the table of what is there")
    parser.add_argument("--write", action="store_true", help="write the table, and pictures")
    parser.add_argument("--data", type=Path, default=CACHE, help="where renders are kept")
    parser.add_argument("--parts", type=Path, default=CACHE / "slots", help="where models and figures are kept")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if not asked.gather:
        for world in [asked.only] if asked.only else SECONDS:
            for seed in (0, 1) if asked.seed is None else (asked.seed,):
                _one(world, seed, SECONDS[world] if asked.seconds is None else asked.seconds, asked.parts, asked.data)
    rows = [json.loads(path.read_text()) for path in sorted(asked.parts.glob("*.json"))]
    found = {world: floors(objects(world, TEST, "test", asked.data)) for world in sorted({row["world"] for row in rows})}
    show("Slot attention", rows)
    show("Floors", [{"world": world, **values} for world, values in found.items()])
    if asked.write:
        write(RESULTS / "slots.json", {"about": about(train=TRAIN, test=TEST, slots=SLOTS), "rows": rows, "floors": found})
        for world in found:
            if (weights := asked.parts / f"{world}-0.pt").exists():
                test = objects(world, TEST, "test", asked.data)
                model = SlotAttention(SLOTS, test.images.shape[-1])
                model.load_state_dict(torch.load(weights))
                write(PICTURES / f"slots-{world}.png", pictured(model.eval(), test))


def _one(world: str, seed: int, seconds: float, parts: Path, data: Path) -> None:
    target = parts / f"{world}-{seed}.json"
    if target.exists():
        return
    model, told = trained(objects(world, TRAIN, "train", data).images, SLOTS, seconds, seed)
    result = {"world": world, "seed": seed, **told, **scored(model, objects(world, TEST, "test", data))}
    write(target, result)
    torch.save(model.state_dict(), target.with_suffix(".pt"))
    show(f"{world}, seed {seed}", [result])


if __name__ == "__main__":
    main()
