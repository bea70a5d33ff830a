r"""Pictures of components from two models that were trained separately: sprites in a room, and a sprite among solids.

    python -m benchmarks.papers.comet_2021.mixed [--data FOLDER] [--parts FOLDER] [--write]

Components are energies, so a conjunction joins those of two models of the same size:

- **room**: `comet-warm` represents light and camera of the room as factors of the whole picture, `sprites-conv` objects on black. All
  components of both are joined, with a weight for those of the sprites.
- **solids**: `objects-32-quadratic` represents solids under a lamp, `sprites-quadratic` sprites. All components of the first are joined
  with the component of the largest sprite; true masks select that component.

The figures are shares of the way from the picture of the first model alone to that of the sprites' model alone: outside of the sprites'
masks, where the picture of the first model should remain, and inside, where the sprites should appear.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.comet_2021.factor_models import load_model
from benchmarks.papers.comet_2021.options import SEEDS, experiment_parser
from benchmarks.papers.comet_2021.worlds import Scenes, render_objects, render_room
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture
from composable_energy_comet import Comet, InnerDescent, join_parts, load_comet

WEIGHTS = (0.5, 1.0, 2.0)
MANY, SHOWN = 64, 6

Pair = tuple[dict[float, Tensor], Tensor, Tensor, Tensor, Tensor]


def in_room(rooms: Comet, sprites: Comet, room_images: Tensor, sprite_images: Tensor, weight: float) -> Tensor:
    """Returns pictures of all components of rooms and all components of sprites.

    Args:
        rooms: The model of rooms.
        sprites: The model of sprites.
        room_images: Rooms, with shape $(B, 3, S, S)$.
        sprite_images: Pictures of sprites, with the same shape.
        weight: Weight of the sprites' energies.
    """
    expression = join_parts(rooms.decompose(room_images)) & weight * join_parts(sprites.decompose(sprite_images))
    descent = InnerDescent(rooms.energy.iterations, start_image=rooms.energy.image)
    return expression.sample(len(room_images), sampler=descent, seed=0)


def largest_sprite(sprites: Comet, scenes: Scenes) -> tuple[ce.Energy, Tensor]:
    """Returns the component with most pixels of each picture's largest sprite, and the mask of that sprite, with shape $(B, S, S)$."""
    counts = torch.stack([(scenes.masks == i + 1).flatten(1).sum(1) for i in range(int(scenes.masks.max()))], 1)
    masks = scenes.masks == counts.argmax(1)[:, None, None] + 1
    owners = sprites.scores(scenes.images).argmax(1)
    chosen = [torch.bincount(owner[mask], minlength=sprites.components).argmax() for owner, mask in zip(owners, masks, strict=True)]
    z = sprites.encode(scenes.images)
    return sprites.energy.given(z=z[torch.arange(len(z)), torch.stack(chosen)]), masks


def way_shares(pictures: Tensor, first: Tensor, sprites: Tensor, masks: Tensor) -> dict[str, float]:
    """Returns the shares of the way to the sprites' pictures, outside and inside of masks.

    Args:
        pictures: Mixed pictures, with shape $(B, 3, S, S)$.
        first: Pictures of the other model alone.
        sprites: Pictures of the sprites' model alone.
        masks: Masks of the sprites, with shape $(B, S, S)$.
    """
    way = sprites - first
    parts = ((pictures - first) * way).sum(1), way.square().sum(1)
    return {name: float(parts[0][where].sum() / parts[1][where].sum()) for name, where in (("outside", ~masks), ("inside", masks))}


def main(arguments: Sequence[str] | None = None) -> None:
    args = experiment_parser("mixed", __doc__).parse_args(arguments)
    torch.set_num_threads(1)
    scenes = render_objects("sprites", 320, "test", args.data)
    scenes = Scenes(scenes.images[:MANY], scenes.masks[:MANY])
    results = {}
    for name, pair in (("room", room_pair), ("solids", solid_pair)):
        pictures, first, second, masks, x = pair(scenes, args.data, args.parts)
        rows = [{"weight": weight, **way_shares(found, first, second, masks)} for weight, found in pictures.items()]
        print_table(f"Shares of the way from the {name} to the sprites", rows)
        results[name] = rows
        if args.write:
            rows_of_pictures = [x, scenes.images, first, second, *pictures.values()]
            write_picture(COMET.pictures / f"mixed-{name}.png", arrange_rows([some[:SHOWN] for some in rows_of_pictures]))
    if args.write:
        COMET.write("mixed", {"rows": results}, pictures=MANY)


def room_pair(scenes: Scenes, data: Path, parts: Path) -> Pair:
    """Returns rooms with sprites by weight, both drawn alone, the sprites' masks, and the rooms."""
    found = render_room(data)
    rooms: Any = load_model("comet-warm", SEEDS[0], found.train, parts / "factors")[0]
    sprites, x = load_comet(parts / "objects" / f"sprites-conv-{SEEDS[0]}"), found.test[:MANY]
    pictures = {weight: in_room(rooms, sprites, x, scenes.images, weight) for weight in WEIGHTS}
    return pictures, rooms.decode(rooms.encode(x)), sprites.decode(sprites.encode(scenes.images)), scenes.masks > 0, x


def solid_pair(scenes: Scenes, data: Path, parts: Path) -> Pair:
    """Returns solids with a sprite, both drawn alone, the sprite's mask, and the solids."""
    solids, sprites = (load_comet(parts / "objects" / f"{name}-{SEEDS[0]}") for name in ("objects-32-quadratic", "sprites-quadratic"))
    x, (sprite, masks) = render_objects("objects-32", 320, "test", data).images[:MANY], largest_sprite(sprites, scenes)
    pictures = {1.0: solids.recombine([*solids.decompose(x), sprite])}
    return pictures, solids.decode(solids.encode(x)), sprites.decode(sprites.encode(scenes.images)), masks, x


if __name__ == "__main__":
    main()
