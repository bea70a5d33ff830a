"""The energy as a score that tells drawn faces from other pictures: the area under the ROC curve.

    python -m benchmarks.out_of_distribution --energy NAME=FOLDER ... [--base FOLDER] [--write]

1,000 drawn faces that no training used are compared with as many pictures of uniform noise, of faces with shuffled 8 x 8 patches, and of
sprites: discs, squares and triangles on a plain ground. 1 is perfect and .5 is chance; below .5 the other pictures have the lower energy.
`--energy` names energies of pixels; `--base` the base of `base-and-attributes`, with two scores: the energy of the code, and that energy
plus the error of the reconstruction.

Two scores without a density are baselines: the distance to the nearest of 5,000 faces of the training set, and the reconstruction error of
the autoencoder.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, argument_parser, environment, write_json
from composable_energy_classification import auroc
from composable_energy_faces.draw import draw

PATH = RESULTS / "out_of_distribution.json"
COUNT, TRAINING, PATCH = 1_000, 5_000, 8
ERROR = 0.05  # the assumed standard deviation of a pixel of a reconstruction


def sprites(count: int, size: int, generator: torch.Generator) -> Tensor:
    """Returns discs, squares and triangles of any color, place and size on a plain ground, with shape (count, 3, size, size)."""
    axis = (torch.arange(size) + 0.5) / size
    y, x = axis[None, :, None], axis[None, None, :]
    place = 0.3 + 0.4 * torch.rand(count, 2, 1, 1, generator=generator)
    radius = 0.1 + 0.15 * torch.rand(count, 1, 1, generator=generator)
    dx, dy = x - place[:, 0], y - place[:, 1]
    disc = (dx.square() + dy.square()).sqrt()
    square = torch.maximum(dx.abs(), dy.abs())
    triangle = torch.maximum(dy, 0.866 * dx.abs() - dy / 2)
    kind = torch.randint(3, (count,), generator=generator)
    distance = torch.stack([disc, square, triangle], 1)[torch.arange(count), kind]
    inside = ((radius - distance) * size).clamp(0, 1)[:, None]
    color, ground = torch.rand(2, count, 3, 1, 1, generator=generator)
    return inside * color + (1 - inside) * ground


def shuffled(images: Tensor, generator: torch.Generator) -> Tensor:
    """Returns pictures with shuffled patches, each in an order of its own."""
    patches = F.unfold(images, PATCH, stride=PATCH)
    order = torch.rand(len(images), patches.shape[2], generator=generator).argsort(1)
    return F.fold(patches.gather(2, order[:, None].expand_as(patches)), images.shape[2:], PATCH, stride=PATCH)


def others(size: int) -> dict[str, Tensor]:
    """Returns pictures that are no faces, by kind."""
    generator = torch.Generator().manual_seed(0)
    return {
        "uniform noise": torch.rand(COUNT, 3, size, size, generator=generator),
        "shuffled patches": shuffled(draw(COUNT, seed=31, size=size).images, generator),
        "sprites": sprites(COUNT, size, generator),
    }


def nearest(images: Tensor) -> Callable[[Tensor], Tensor]:
    """Returns the score that is the distance to the nearest of some pictures."""
    known = images.flatten(1)
    return lambda x: torch.cdist(x.flatten(1), known).amin(1)


def scores(energies: dict[str, ce.Energy], base: ce.Energy | None) -> dict[str, tuple[int, Callable[[Tensor], Tensor]]]:
    """Returns each score with the size of its pictures."""
    found: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {}
    for name, energy in energies.items():
        size = int((energy.event_shape or (32,))[-1])
        found[name] = (size, energy)
        found[f"distance to the nearest face, {size} pixels"] = (size, nearest(draw(TRAINING, seed=11, size=size).images))
    if base is not None and base.decoder is not None:
        coder = base.decoder

        def error(x: Tensor) -> Tensor:
            return (coder(coder.encode(x)) - x).square().flatten(1).sum(1) / (2 * ERROR**2)

        found["code energy"] = (64, lambda x: base(coder.encode(x)))
        found["code energy and reconstruction"] = (64, lambda x: base(coder.encode(x)) + error(x))
        found["reconstruction error"] = (64, error)
    return found


@torch.no_grad()
def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--energy", action="append", default=[], metavar="NAME=FOLDER", help="a saved energy of pixels; may be repeated")
    parser.add_argument("--base", type=Path, metavar="FOLDER", help="the saved base of base-and-attributes; the faces' own if not given")
    args = parser.parse_args()
    torch.set_num_threads(1)
    energies = {name: ce.load(Path(folder)).eval() for name, _, folder in (text.partition("=") for text in args.energy)}
    base = ce.load(args.base) if args.base else ce.load("faces")
    result: dict[str, dict[str, float]] = {}
    for name, (size, score) in scores(energies, base).items():
        inside = torch.cat([score(part) for part in draw(COUNT, seed=32, size=size).images.split(250)])
        outside = {kind: torch.cat([score(part) for part in images.split(250)]) for kind, images in others(size).items()}
        result[name] = {kind: auroc(inside, found) for kind, found in outside.items()}
        print(f"{name}: " + ", ".join(f"{kind} {value:.3f}" for kind, value in result[name].items()), flush=True)
    if args.write:
        write_json(PATH, {"about": environment(pictures=COUNT), **result})


if __name__ == "__main__":
    main()
