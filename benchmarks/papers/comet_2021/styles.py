r"""One model over two styles, day and night: objects that take the style of the picture they enter, and pictures in the style of others.

    python -m benchmarks.papers.comet_2021.styles [--seed 5] [--write] [--data FOLDER] [--parts FOLDER]

The model is that of the recipe `comet-window`, trained with the 12,000 pictures of `window_objects.py`, half of them at night
(`night.py`). The training is not told which, and neither are `fit_common`, which finds what the objects of a picture have in common, now
light and style, and `fit_styles`, which divides pictures into two styles. No setting was chosen here.

- **Objects**: 500 pairs of pictures of different styles. An object of A is replaced by one of B, as in `recombination.py`; B's latents
  have their own style (the floor), A's common code, or A's style by transport. The ceiling is B's picture in A's style.
- **Pictures**: 500 pictures A of three solids, with the ground of B, the next picture, in the other style: with the ground alone (the
  floor), with the code of B, or with its style, by `swap`; and renders of A's solids under the light and in the style of B.

A classifier of crops reads shape, color and style at the places of objects. It was trained on other renders, in which objects and ground
have styles of their own, so that it cannot read the style of an object from the ground.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.papers.comet_2021.crop_classifier import (
    PICTURES,
    SEED,
    CropClassifier,
    LabelledScenes,
    centers,
    crop,
    pad,
    read_classifier,
    render_labelled,
    train_classifier,
    write_classifier,
)
from benchmarks.papers.comet_2021.light import SCENES, relight
from benchmarks.papers.comet_2021.night import draw_nights, style
from benchmarks.papers.comet_2021.objects import TRAIN
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.comet_2021.recombination import PAIRS, Pairs, draw_pairs, swap_objects
from benchmarks.papers.comet_2021.training import Budget
from benchmarks.papers.comet_2021.window_objects import MERGE, SHOWN, WORLD, read_model, spent, train_on
from benchmarks.papers.comet_2021.worlds import render_objects
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture
from composable_energy_comet import PictureCode, StyleCode, fit_styles
from composable_energy_scenes import COLORS

FITTED = 1_000


def mix_styles(scenes: LabelledScenes) -> LabelledScenes:
    """Returns pictures in which objects and ground have styles of their own; objects at night have another color.

    Args:
        scenes: Pictures by day.
    """
    objects, ground = (draw_nights(len(scenes.images), seed) for seed in (21, 22))
    inside = (scenes.masks > 0)[:, None]
    images = torch.where(inside, style(scenes.images, objects), style(scenes.images, ground))
    color = torch.where(scenes.color >= 0, scenes.color + len(COLORS) * objects[:, None], scenes.color)
    return replace(scenes, images=images, color=color)


def train_judge(parts: Path, data: Path, seconds: float) -> CropClassifier:
    """Returns the classifier of shapes, colors and styles; trains it if it does not exist."""
    path = parts / "classifier-styles.pt"
    if not path.exists():
        scenes = mix_styles(render_labelled(WORLD, PICTURES, SEED, data))
        write_classifier(train_classifier(scenes, Budget(seconds, batch=64, rate=2e-3, cosine=True), turned=False, mirrored=True), path)
    return read_classifier(path)


@torch.no_grad()
def classify_style(
    judge: CropClassifier, images: Tensor, rows: Tensor, places: Tensor, shape: Tensor, color: Tensor, night: Tensor
) -> dict[str, float]:
    """Returns how often the judge finds shapes, colors and styles at places of pictures, and all three.

    Args:
        judge: The classifier, whose last half of colors are those at night.
        images: Pictures, with shape $(B, 3, S, S)$.
        rows: Indices of pictures, with shape $(P,)$.
        places: Rows and columns, with shape $(P, 2)$.
        shape: Shapes, with shape $(P,)$.
        color: Colors.
        night: Whether the style is night.
    """
    shapes, colors = judge(crop(pad(images, judge.margin), rows, places, judge.margin))
    found, here = colors.argmax(1), shapes.argmax(1) < judge.shapes
    right = {"shape": shapes.argmax(1) == shape, "color": here & (found % len(COLORS) == color)}
    right["style"] = here & ((found >= len(COLORS)) == night)
    right["all"] = torch.stack([*right.values()]).all(0)
    return {name: float(some.float().mean()) for name, some in right.items()}


def of_two_styles(pairs: Pairs, nights: Tensor, n: int) -> Pairs:
    """Returns the first n pairs whose pictures differ in style."""
    some = (nights[pairs.a] != nights[pairs.b]).nonzero()[:n, 0]
    return Pairs(pairs.a[some], pairs.b[some], pairs.of_a[some], pairs.of_b[some])


def measure_objects(
    codes: Mapping[str, PictureCode], judge: CropClassifier, day: LabelledScenes, nights: Tensor
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Returns a row of figures for each kind of picture with an object of another style, and rows of the pictures themselves."""
    comet, scenes = codes["code"].comet, replace(day, images=style(day.images, nights))
    pairs = of_two_styles(draw_pairs(day, 3 * PAIRS), nights, PAIRS)
    x, each = scenes.images, torch.arange(len(pairs.a))
    places = centers(day.masks[pairs.b] == pairs.of_b[:, None, None] + 1)
    told = day.shape[pairs.b, pairs.of_b], day.color[pairs.b, pairs.of_b], nights[pairs.a]
    plain = swap_objects(comet, scenes, pairs, MERGE)
    moved = {name: swap_objects(comet, scenes, pairs, MERGE, partial(_move, code)) for name, code in codes.items()}
    versions = {
        "B in the style of A": style(day.images[pairs.b], nights[pairs.a]),
        "B": x[pairs.b],
        "rebuilt": comet.decode(comet.encode(x[pairs.b])),
        "plain": plain,
        **moved,
        "A": x[pairs.a],
    }
    rows = [{"pictures": name, **classify_style(judge, pictures, each, places, *told)} for name, pictures in versions.items()]
    stayed = scenes.shape[pairs.a] >= 0
    stayed[each, pairs.of_a] = False
    pair, one = stayed.nonzero(as_tuple=True)
    own = pairs.a[pair]
    kept = centers(day.masks[own] == one[:, None, None] + 1), day.shape[own, one], day.color[own, one], nights[own]
    rows.append({"pictures": "kept", **classify_style(judge, moved["style"], pair, *kept)})
    return rows, [x[pairs.a], x[pairs.b], plain, *moved.values()]


def _move(code: PictureCode, others: Tensor, own: Tensor) -> Tensor:
    return code.move(others, code.encode(own))


def measure_pictures(
    codes: Mapping[str, PictureCode], judge: CropClassifier, day: LabelledScenes
) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Returns a row of figures for each version of pictures, and the pictures themselves, with B as the second."""
    comet, nights = codes["code"].comet, torch.arange(len(day.images)) % 2 == 0
    other = ~nights  # of the next picture
    x = style(day.images, nights)
    y, wanted = x.roll(-1, 0), style(relight(day), other)
    rebuilt, grounded = comet.decode(comet.encode(x)), comet.swap(x, y, 0)
    moved = {name: code.swap(x, y) for name, code in codes.items()}
    versions = {"A": x, "rebuilt": rebuilt, "grounded": grounded, **moved, "renders": wanted}
    row, one = (day.shape >= 0).nonzero(as_tuple=True)
    places = centers(day.masks[row] == one[:, None, None] + 1)
    told = day.shape[row, one], day.color[row, one], other[row]
    empty = (day.masks == 0)[:, None].expand_as(x)
    rows = []
    for name, pictures in versions.items():
        errors = {
            "to renders": float((pictures - wanted).square().mean()),
            "of the ground": float((pictures - wanted)[empty].square().mean()),
        }
        rows.append({"pictures": name, **classify_style(judge, pictures, row, places, *told), **errors})
    return rows, [x, y, *(versions[name] for name in ("rebuilt", "grounded", *codes, "renders"))]


def separation(code: StyleCode, x: Tensor, nights: Tensor) -> float:
    """Returns the share of pictures whose style is found; the names of the styles do not count."""
    right = float(((code.encode(code.comet.encode(x)) > 0) == nights).float().mean())
    return max(right, 1 - right)


def train(seed: int, folder: Path, data: Path) -> tuple[StyleCode, Mapping[str, Mapping[str, float]]]:
    """Returns the two styles in a model of both, and the report of its training."""
    images = render_objects(WORLD, TRAIN, "train", data).images
    nights = draw_nights(TRAIN)
    for rows in torch.arange(TRAIN).split(FITTED):
        images[rows] = style(images[rows], nights[rows])
    if not (folder / "report.json").exists():
        train_on(images, seed, folder)
    comet, stages = read_model(folder)
    return fit_styles(comet, images[:FITTED]), stages


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("styles", __doc__)
    parser.add_argument("--seed", type=int, nargs="+", default=[5])
    parser.add_argument("--judge", type=float, default=150.0, help="seconds of training of the network that evaluates pictures")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts, fits, objects, pictures = args.parts / "objects", [], [], []
    labelled, three = render_labelled(WORLD, 2 * PAIRS, 3, args.data), render_labelled(SCENES, PAIRS, 3, args.data)
    judge, nights = train_judge(parts, args.data, args.judge), draw_nights(2 * PAIRS, 3)
    for seed in args.seed:
        found, stages = train(seed, parts / f"night-windows-{seed}", args.data)
        codes, tested = {"code": found.common, "style": found}, separation(found, style(labelled.images, nights), nights)
        fits.append({"seed": seed, "seconds": spent(stages), "agreement": found.common.agreement.tolist(), "styles found": tested})
        rows, of_objects = measure_objects(codes, judge, labelled, nights)
        objects += [{"seed": seed, **row} for row in rows]
        rows, of_pictures = measure_pictures(codes, judge, three)
        pictures += [{"seed": seed, **row} for row in rows]
        for title, table in (("Common directions", fits), ("Objects", objects), ("Pictures", pictures)):
            print_table(f"{title}, to seed {seed}", table)
        if args.write and seed == args.seed[0]:
            for name, shown in (("style-objects", of_objects), ("style-pictures", of_pictures)):
                write_picture(COMET.pictures / f"{name}.png", arrange_rows([some[:SHOWN] for some in shown], 4))
        if args.write:  # after each seed, so that a stop loses little
            COMET.write("styles", {"fits": fits, "objects": objects, "pictures": pictures}, pairs=PAIRS, judge_seconds=args.judge)


if __name__ == "__main__":
    main()
