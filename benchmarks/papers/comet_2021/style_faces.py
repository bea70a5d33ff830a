r"""Faces in two styles, in color and as pencil sketches, and one model of both: which components carry the style.

    python -m benchmarks.papers.comet_2021.style_faces [--write] [--seed 5] [--data FOLDER] [--parts FOLDER]

8,000 training faces of 32 pixels (seed 1) and 2,000 test faces (seed 3), each with five attributes, independent with probability .5. Half
of them are sketches. The training knows neither attributes nor style. The model has four components of 16 numbers with quadratic energies,
trained by `train_comet`. No setting was chosen here. The figures are

- **R2** of each attribute and of the style, as 0 or 1, by least squares from the 64 numbers of a code, and from the 768 of pixels;
- the **shares** of `swaps.py`: how much of the change of each attribute, and of the style, from A to B each component causes;
- 500 pairs of a face A and a face B of the other style. A gets one component of B, as it is, or moved to the style of A by `restyle`; or
  all four, moved. A network that was trained on other drawn faces reads the style, and the attributes in which A and B differ. A and B,
  both reconstructed, are the ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.papers.comet_2021.baselines import codes_of, encoder, pixels
from benchmarks.papers.comet_2021.factor_models import create_comet, train_comet, train_or_load
from benchmarks.papers.comet_2021.night import draw_nights
from benchmarks.papers.comet_2021.options import SEEDS, experiment_parser
from benchmarks.papers.comet_2021.swaps import SWAPS, measure, train_regressor
from benchmarks.papers.comet_2021.worlds import Room
from benchmarks.papers.experiment import COMET, arrange_rows, print_table, write_picture
from composable_energy_comet.metrics import linear_r2
from composable_energy_faces.draw import ATTRIBUTES, draw

_GREY, _PAPER = (0.30, 0.59, 0.11), (1.0, 0.97, 0.90)
_LEAST, _LINE = 0.72, 0.75  # the grey of black areas, and how dark lines are
DRAWN = {"train": (8_000, 1), "test": (2_000, 3)}
STEPS, JUDGED, FITTED, SHOWN = 2_900, 4_000, 2_000, 12
ROUNDS = 50  # of two means


def draw_faces(data: Path) -> Room:
    """Draws faces with their attributes, or reads them; the grid is empty."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (n, seed) in DRAWN.items():
        path = data / f"faces-{name}.pt"
        if not path.exists():
            drawn = draw(n, seed=seed, size=32)
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.save((drawn.images.mul(255).round().byte(), drawn.attributes.float()), path)
        images, attributes = torch.load(path)
        found[name] = images.float() / 255, attributes
    empty = torch.empty(0)
    return Room(*found["train"], *found["test"], empty, empty)


def sketch(x: Tensor) -> Tensor:
    """Returns faces as pencil sketches on paper, with lines at edges.

    Args:
        x: Faces in color in [0, 1], with shape $(B, 3, S, S)$.
    """
    grey = (x * torch.tensor(_GREY)[:, None, None]).sum(1, keepdim=True)
    wide = F.pad(x, (0, 1, 0, 1), mode="replicate")
    edge = torch.stack([wide[:, :, :-1, 1:] - x, wide[:, :, 1:, :-1] - x]).square().sum((0, 2))[:, None].sqrt()
    return (_LEAST + (1 - _LEAST) * grey) * (1 - _LINE * edge.clamp(max=1)) * torch.tensor(_PAPER)[:, None, None]


def draw_styles(faces: Room) -> Room:
    """Returns the faces, half of them as sketches, with the style as one more factor."""
    images, factors = [], []
    for some, known, seed in ((faces.train, faces.train_factors, 31), (faces.test, faces.test_factors, 32)):
        drawn = draw_nights(len(some), seed)
        images.append(torch.where(drawn[:, None, None, None], sketch(some), some))
        factors.append(torch.cat([known, drawn[:, None].float()], 1))
    return replace(faces, train=images[0], test=images[1], train_factors=factors[0], test_factors=factors[1])


def train_judge(parts: Path, seconds: float) -> nn.Module:
    """Returns a network that reads attributes and style; trains it if it does not exist."""
    path, judge = parts / "judge.pt", encoder(len(ATTRIBUTES) + 1)
    if not path.exists():
        drawn = draw(JUDGED, seed=4, size=32)
        both = torch.cat([drawn.images, sketch(drawn.images)])
        styles = torch.arange(2).repeat_interleave(JUDGED)[:, None]
        path.parent.mkdir(parents=True, exist_ok=True)
        told = torch.cat([drawn.attributes.float().repeat(2, 1), styles], 1)
        torch.save(train_regressor(both, told, 0, seconds).state_dict(), path)
    judge.load_state_dict(torch.load(path))
    return judge.eval()


@torch.no_grad()
def read_pairs(judge: nn.Module, pictures: Tensor, a: Tensor, b: Tensor) -> dict[str, float]:
    """Returns how often the style of pictures is that of A, and the attributes in which A and B differ are those of A.

    Args:
        judge: Reads attributes and the style, which is last, from pictures.
        pictures: Pictures, with shape $(N, 3, S, S)$.
        a: Attributes and style of A, with shape $(N, F)$.
        b: Those of B.
    """
    found = judge(pictures) > 0.5
    as_a, differ = found == (a > 0.5), a != b
    right = {name: float(as_a[differ[:, i], i].float().mean()) for i, name in enumerate(ATTRIBUTES)}
    return {"style": float(as_a[:, -1].float().mean()), "attributes": sum(right.values()) / len(right), **right}


def restyle(others: Tensor, own: Tensor, known: Tensor) -> Tensor:
    """Returns codes in the styles of other codes, moved by the difference of the means of both styles, with shape $(B, K, D)$.

    The style changes most of a picture, so codes fall into two groups along their first principal component. Labels are not used.

    Args:
        others: The codes to move, with shape $(B, K, D)$.
        own: As many codes of pictures that have the styles.
        known: Codes of both styles, with shape $(N, K, D)$.
    """
    mean, codes = known.mean(0), (known - known.mean(0)).flatten(1)
    direction = torch.linalg.eigh(codes.T @ codes).eigenvectors[:, -1]
    along = codes @ direction
    middle = along.mean()
    for _ in range(ROUNDS):
        middle = (along[along > middle].mean() + along[along <= middle].mean()) / 2
    means = torch.stack([known[some].mean(0) for some in (along <= middle, along > middle)])
    before, after = ((((z - mean).flatten(1) @ direction) > middle).long() for z in (others, own))
    return others + means[after] - means[before]


def measure_swaps(model: Any, judge: nn.Module, data: Room) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Returns a row of figures for each exchange of components, and rows of the pictures themselves.

    Args:
        model: The COMET.
        judge: See `read_pairs`.
        data: The faces.
    """
    sketches = data.test_factors[:, -1] > 0.5
    count = min(SWAPS, int(sketches.sum()), int((~sketches).sum()))
    first, second = (where.nonzero()[:count, 0] for where in (sketches, ~sketches))
    even = torch.arange(count) % 2 == 0  # every other A is a sketch
    rows_a, rows_b = torch.where(even, first, second), torch.where(even, second, first)
    a, b, told = data.test[rows_a], data.test[rows_b], (data.test_factors[rows_a], data.test_factors[rows_b])
    own, others = model.encode(a), model.encode(b)
    moved, each = restyle(others, own, model.encode(data.train[:FITTED])), range(model.components)
    chosen = {f"component {k + 1}": (others, [k]) for k in each} | {f"component {k + 1}, moved": (moved, [k]) for k in each}
    versions = {"A": a, "A, rebuilt": model.decode(own)}
    for name, (source, ks) in {**chosen, "all, moved": (moved, list(each))}.items():
        mixed = own.clone()
        mixed[:, ks] = source[:, ks]
        versions[name] = model.decode(mixed)
    versions["B, rebuilt"] = model.decode(others)
    rows = [{"pictures": name, **read_pairs(judge, pictures, *told)} for name, pictures in versions.items()]
    return rows, [a, b, *(versions[name] for name in ("A, rebuilt", "B, rebuilt", *chosen, "all, moved"))]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("style-faces", __doc__)
    parser.add_argument("--seed", type=int, default=SEEDS[0])
    parser.add_argument("--steps", type=int, default=STEPS, help="of the training of the model")
    parser.add_argument("--judge", type=float, default=60.0, help="seconds of training of the network that evaluates faces")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    data, folder, names = draw_styles(draw_faces(args.data)), args.parts / "style-faces", (*ATTRIBUTES, "style")
    model = create_comet("quadratic", args.seed)
    path = folder / f"quadratic-{args.seed}-{args.steps}.pt"
    figures = train_or_load(path, model, lambda: train_comet(model, data.train, args.steps, args.seed))
    known = {
        name: linear_r2(codes_of(encode, data.train), data.train_factors, codes_of(encode, data.test), data.test_factors).tolist()
        for name, encode in (("codes", model.encode), ("pixels", pixels))
    }
    result = {"seed": args.seed, **figures, "R2": known, **measure(model, data, args.seed)}
    rows, pictures = measure_swaps(model, train_judge(folder, args.judge), data)
    shares = [
        {"factor": name, "codes": a, "pixels": b, **{f"component {k + 1}": share for k, share in enumerate(row)}}
        for name, a, b, row in zip(names, known["codes"], known["pixels"], result["matrix"], strict=True)
    ]
    print_table("Training", [{key: value for key, value in result.items() if not isinstance(value, list | dict)}])
    print_table("R2, and the share of each component", shares)
    print_table("Components of faces of the other style", rows)
    if args.write:
        COMET.write("style-faces", {**result, "rows": rows}, attributes=names, judge_seconds=args.judge)
        write_picture(COMET.pictures / "style-faces.png", arrange_rows([some[:SHOWN] for some in pictures]))


if __name__ == "__main__":
    main()
