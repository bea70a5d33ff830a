r"""Pictures of parts that were learnt apart: sprites in a room, and a sprite among solids.

    python benchmarks/papers/comet_2021/mixed.py [--data FOLDER] [--parts FOLDER] [--write]

Models of the same size that never met. Their components are energies, so a conjunction joins them:

- **room**: `comet-warm` knows the light and the camera of the room as factors of the whole picture, `sprites-conv` objects on black. All
  parts of both are join_parts, and a weight says how much the sprites' count.
- **solids**: `objects-32-quadratic` knows solids under a lamp, `sprites-quadratic` sprites. All parts of the first are joined with the part
  of one sprite, the largest; true masks say which part that is.

What is told is how far pictures have gone from what the first model draws alone to what the sprites' draws alone, as shares of that way:
outside of the sprites' masks, where the first should stay, and inside, where the sprites should come through.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from comet_common import CACHE, PICTURES, RESULTS, Scenes, about, objects, room, show, strip, write
from factors import model_of
from torch import Tensor

import composable_energy as ce
from composable_energy_comet import Comet, InnerDescent, join_parts, load_comet

WEIGHTS = (0.5, 1.0, 2.0)
MANY, SHOWN = 64, 6

Pair = tuple[dict[float, Tensor], Tensor, Tensor, Tensor, Tensor]


def in_room(rooms: Comet, sprites: Comet, room_images: Tensor, sprite_images: Tensor, weight: float) -> Tensor:
    """Returns pictures of all parts of rooms with all parts of sprites, which count with a weight.

    Args:
        rooms: The model of rooms.
        sprites: The model of sprites.
        room_images: Rooms, with shape $(B, 3, S, S)$.
        sprite_images: As many pictures of sprites.
        weight: Of the sprites' energies.
    """
    expression = join_parts(rooms.decompose(room_images)) & weight * join_parts(sprites.decompose(sprite_images))
    descent = InnerDescent(rooms.energy.iterations, start_image=rooms.energy.image)
    return expression.sample(len(room_images), sampler=descent, seed=0)


def largest(sprites: Comet, scenes: Scenes) -> tuple[ce.Energy, Tensor]:
    """Returns the part that has most pixels of each picture's largest sprite, and that sprite's mask, with shape $(B, S, S)$."""
    counts = torch.stack([(scenes.masks == i + 1).flatten(1).sum(1) for i in range(int(scenes.masks.max()))], 1)
    masks = scenes.masks == counts.argmax(1)[:, None, None] + 1
    owners = sprites.scores(scenes.images).argmax(1)
    chosen = [torch.bincount(owner[mask], minlength=sprites.components).argmax() for owner, mask in zip(owners, masks, strict=True)]
    z = sprites.encode(scenes.images)
    return sprites.energy.given(z=z[torch.arange(len(z)), torch.stack(chosen)]), masks


def told(pictures: Tensor, first: Tensor, sprites: Tensor, masks: Tensor) -> dict[str, float]:
    """Returns shares of the way to sprites that pictures have gone, outside and inside of masks.

    Args:
        pictures: Mixed ones, with shape $(B, 3, S, S)$.
        first: What the other model alone draws.
        sprites: What the sprite model alone draws.
        masks: Where sprites are, with shape $(B, S, S)$.
    """
    way = sprites - first
    gone = ((pictures - first) * way).sum(1), way.square().sum(1)
    return {name: float(gone[0][where].sum() / gone[1][where].sum()) for name, where in (("outside", ~masks), ("inside", masks))}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, default=CACHE, help="where renders are kept")
    parser.add_argument(
        "--parts", type=Path, default=CACHE, help="where the models of objects.py and factors.py are, in `objects`, `factors`"
    )
    parser.add_argument("--write", action="store_true", help="write figures and the picture")
    asked = parser.parse_args(arguments)
    torch.set_num_threads(1)
    scenes = objects("sprites", 320, "test", asked.data)
    scenes = Scenes(scenes.images[:MANY], scenes.masks[:MANY])
    results = {}
    for name, pair in (("room", room_pair), ("solids", solid_pair)):
        pictures, first, second, masks, x = pair(scenes, asked.data, asked.parts)
        rows = [{"weight": weight, **told(found, first, second, masks)} for weight, found in pictures.items()]
        show(f"Shares of the way from the {name} to the sprites", rows)
        results[name] = rows
        if asked.write:
            shown = [x, scenes.images, first, second, *pictures.values()]
            write(PICTURES / f"mixed-{name}.png", strip([some[:SHOWN] for some in shown]))
    if asked.write:
        write(RESULTS / "mixed.json", {"about": about(pictures=MANY), "rows": results})


def room_pair(scenes: Scenes, data: Path, parts: Path) -> Pair:
    """Returns rooms with sprites by weight, both drawn alone, the sprites' masks, and the rooms."""
    found = room(data)
    rooms: Any = model_of("comet-warm", 0, found.train, parts / "factors")[0]
    sprites, x = load_comet(parts / "objects" / "sprites-conv-0"), found.test[:MANY]
    pictures = {weight: in_room(rooms, sprites, x, scenes.images, weight) for weight in WEIGHTS}
    return pictures, rooms.decode(rooms.encode(x)), sprites.decode(sprites.encode(scenes.images)), scenes.masks > 0, x


def solid_pair(scenes: Scenes, data: Path, parts: Path) -> Pair:
    """Returns solids with a sprite, both drawn alone, the sprite's mask, and the solids."""
    solids, sprites = (load_comet(parts / "objects" / f"{name}-0") for name in ("objects-32-quadratic", "sprites-quadratic"))
    x, (sprite, masks) = objects("objects-32", 320, "test", data).images[:MANY], largest(sprites, scenes)
    pictures = {1.0: solids.recombine([*solids.decompose(x), sprite])}
    return pictures, solids.decode(solids.encode(x)), sprites.decode(sprites.encode(scenes.images)), masks, x


if __name__ == "__main__":
    main()
