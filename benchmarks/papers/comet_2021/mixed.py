r"""Pictures of parts that were learnt apart: sprites in a room, and parts of two worlds in one picture.

    python benchmarks/papers/comet_2021/mixed.py [--data FOLDER] [--objects FOLDER] [--factors FOLDER] [--write]

Two models of the same size that never met: `sprites-conv` knows objects on black, `comet-warm` the light and the camera of the room as
factors of the whole picture. Their components are energies, so a conjunction joins them; a weight says how much each counts. What is told
is how far pictures have gone from what the room model draws alone to what the sprite model draws alone, as shares of that way: outside of
the sprites' masks, where the room should stay, and inside, where the sprites should come through.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comet_common import CACHE, PICTURES, RESULTS, about, objects, room, show, strip, write
from composable_energy_comet import Comet, InnerDescent, joined, load_comet
from factors import model_of
from torch import Tensor

WEIGHTS = (0.5, 1.0, 2.0)
SHOWN = 6


def mixed(rooms: Comet, sprites: Comet, room_images: Tensor, sprite_images: Tensor, weight: float) -> Tensor:
    """Returns pictures of all parts of rooms with all parts of sprites, which count with a weight.

    Args:
        rooms: The model of rooms.
        sprites: The model of sprites.
        room_images: Rooms, with shape $(B, 3, S, S)$.
        sprite_images: As many pictures of sprites.
        weight: Of the sprites' energies.
    """
    expression = joined(rooms.decompose(room_images)) & weight * joined(sprites.decompose(sprite_images))
    descent = InnerDescent(rooms.energy.iterations, start_image=rooms.energy.image)
    return expression.sample(len(room_images), sampler=descent, seed=0)


def told(pictures: Tensor, rooms: Tensor, sprites: Tensor, masks: Tensor) -> dict[str, float]:
    """Returns shares of the way from rooms to sprites that pictures have gone, outside and inside of masks.

    Args:
        pictures: Mixed ones, with shape $(B, 3, S, S)$.
        rooms: What the room model alone draws.
        sprites: What the sprite model alone draws.
        masks: Where sprites are, with shape $(B, S, S)$; 0 elsewhere.
    """
    way = sprites - rooms
    gone = ((pictures - rooms) * way).sum(1), way.square().sum(1)
    inside = masks > 0
    return {name: float(gone[0][where].sum() / gone[1][where].sum()) for name, where in (("outside", ~inside), ("inside", inside))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=CACHE, help="where renders are kept")
    parser.add_argument("--objects", type=Path, default=CACHE / "objects", help="where objects.py keeps its models")
    parser.add_argument("--factors", type=Path, default=CACHE / "factors", help="where factors.py keeps its models")
    parser.add_argument("--write", action="store_true", help="write figures and the picture")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, scenes = room(asked.data), objects("sprites", 320, "test", asked.data)
    rooms: Any = model_of("comet-warm", 0, data.train, asked.factors)[0].eval()
    sprites = load_comet(asked.objects / "sprites-conv-0")
    x, y, masks = data.test[:64], scenes.images[:64], scenes.masks[:64]
    room_alone, sprite_alone = rooms.decode(rooms.encode(x)), sprites.decode(sprites.encode(y))
    pictures = {weight: mixed(rooms, sprites, x, y, weight) for weight in WEIGHTS}
    rows = [{"weight": weight, **told(found, room_alone, sprite_alone, masks)} for weight, found in pictures.items()]
    show("Shares of the way from the room to the sprites", rows)
    if asked.write:
        write(RESULTS / "mixed.json", {"about": about(pictures=len(x)), "rows": rows})
        shown = [x, y, room_alone, sprite_alone, *pictures.values()]
        write(PICTURES / "mixed.png", strip([some[:SHOWN] for some in shown]))


if __name__ == "__main__":
    main()
