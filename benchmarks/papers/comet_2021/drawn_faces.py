r"""Factors of drawn faces without labels: how much codes contain of attributes, and what changes when one component is swapped.

    python -m benchmarks.papers.comet_2021.drawn_faces [--write] [--seed 5] [--data FOLDER] [--parts FOLDER]

8,000 training faces of 32 pixels (seed 1) and 2,000 test faces (seed 3), each with five attributes, independent with probability .5, which
training does not use. The model is `comet-warm` of `factor_models.py`, with its networks, batches and seconds. The figures are

- **R2** of each attribute, as 0 or 1, by least squares from the 64 numbers of a code, and from the 768 of pixels as a baseline;
- the **shares** of `swaps.py`: how much of an attribute's change from A to B each component causes.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from benchmarks.papers.comet_2021.baselines import codes_of, pixels
from benchmarks.papers.comet_2021.factor_models import COMPONENTS, load_model
from benchmarks.papers.comet_2021.options import SEEDS, experiment_parser
from benchmarks.papers.comet_2021.swaps import measure, sheet
from benchmarks.papers.comet_2021.worlds import Room
from benchmarks.papers.experiment import COMET, print_table
from composable_energy_comet.metrics import linear_r2
from composable_energy_faces.draw import ATTRIBUTES, draw

__all__ = ["draw_faces"]

DRAWN = {"train": (8000, 1), "test": (2000, 3)}


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


def main() -> None:
    parser = experiment_parser("faces", __doc__)
    parser.add_argument("--seed", type=int, default=SEEDS[0])
    parser.add_argument("--seconds", type=float, help="of the training of the convolutional energy, instead of those of factor_models.py")
    args = parser.parse_args()
    torch.set_num_threads(1)
    data = draw_faces(args.data)
    model, figures = load_model("comet-warm", args.seed, data.train, args.parts / "faces", args.seconds)
    known = {
        name: linear_r2(codes_of(encode, data.train), data.train_factors, codes_of(encode, data.test), data.test_factors).tolist()
        for name, encode in (("codes", model.encode), ("pixels", pixels))
    }
    plain = float((data.test - model.energy.image).square().mean())
    result = {"seed": args.seed, **figures, "error of the start": plain, "R2": known, **measure(model, data, args.seed)}
    columns = [f"component {k + 1}" for k in range(COMPONENTS)]
    print_table("Training", [{key: value for key, value in result.items() if not isinstance(value, list | dict)}])
    rows = zip(ATTRIBUTES, known["codes"], known["pixels"], result["matrix"], result["R2 of the regressor"], strict=True)
    print_table(
        "R2 of attributes, and the share of each component",
        [{"attribute": name, "codes": a, "pixels": b, **dict(zip(columns, row, strict=True)), "reader": r} for name, a, b, row, r in rows],
    )
    if args.write:
        COMET.write("faces", result, sheet({"comet": model}, data, 12), attributes=ATTRIBUTES)


if __name__ == "__main__":
    main()
