r"""Factors of drawn faces, without labels: what codes know of attributes, and what moves when one component of another face is put in.

    pip install -e '.[scenes,metrics]' -c constraints.txt
    python benchmarks/papers/comet_2021/drawn_faces.py [--write] [--seed 0] [--data FOLDER] [--parts FOLDER]

8,000 faces of 32 pixels to train on (seed 1), 2,000 to test (seed 3), each with five attributes, fair coins that training does not see. The
model is `comet-warm` of `factors.py`, with its networks, batches and seconds. Told are:

- **R2** of each attribute, as 0 or 1, by least squares from the 64 numbers of a code and, beside it, from the 768 of pixels;
- the **shares** of `swaps.py`: how much of an attribute's way from A to B each component goes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from baselines import codes_of, pixels
from comet_common import CACHE, PICTURES, RESULTS, Room, about, show, write
from factors import COMPONENTS, model_of
from swaps import measured, picture
from torch import Tensor

from composable_energy_comet.metrics import linear_r2
from composable_energy_faces.draw import ATTRIBUTES, draw

__all__ = ["faces"]

SEEDS = {"train": (8000, 1), "test": (2000, 3)}


def faces(data: Path) -> Room:
    """Draws faces with their attributes, or reads them; there is no grid of all combinations."""
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (n, seed) in SEEDS.items():
        kept = data / f"faces-{name}.pt"
        if not kept.exists():
            drawn = draw(n, seed=seed, size=32)
            kept.parent.mkdir(parents=True, exist_ok=True)
            torch.save((drawn.images.mul(255).round().byte(), drawn.attributes.float()), kept)
        images, attributes = torch.load(kept)
        found[name] = images.float() / 255, attributes
    nothing = torch.empty(0)
    return Room(*found["train"], *found["test"], nothing, nothing)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, help="of each of the two trainings, instead of those of factors.py")
    parser.add_argument("--data", type=Path, default=CACHE, help="where faces are kept")
    parser.add_argument("--parts", type=Path, default=CACHE / "faces", help="where weights are kept")
    parser.add_argument("--write", action="store_true", help="write figures and picture into the repository")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    data = faces(asked.data)
    model, told = model_of("comet-warm", asked.seed, data.train, asked.parts, asked.seconds)
    known = {
        name: linear_r2(codes_of(encode, data.train), data.train_factors, codes_of(encode, data.test), data.test_factors).tolist()
        for name, encode in (("codes", model.encode), ("pixels", pixels))
    }
    plain = float((data.test - model.energy.image).square().mean())
    result = {"seed": asked.seed, **told, "error of the start": plain, "R2": known, **measured(model, data, asked.seed)}
    columns = [f"component {k + 1}" for k in range(COMPONENTS)]
    show("Training", [{key: value for key, value in result.items() if not isinstance(value, list | dict)}])
    rows = zip(ATTRIBUTES, known["codes"], known["pixels"], result["matrix"], result["R2 of the regressor"], strict=True)
    show(
        "R2 of attributes, and the share of each one's way that a component goes",
        [{"attribute": name, "codes": a, "pixels": b, **dict(zip(columns, row, strict=True)), "reader": r} for name, a, b, row, r in rows],
    )
    if asked.write:
        write(RESULTS / "faces.json", about(attributes=ATTRIBUTES, **result))
        write(PICTURES / "faces.png", picture({"comet": model}, data, 12))


if __name__ == "__main__":
    main()
