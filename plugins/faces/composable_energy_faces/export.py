r"""Exports drawn faces to a folder of pictures with a table of attributes, as an example of a user's own data.

    python -m composable_energy_faces.export --out FOLDER -n 20000 --seed 11

The table `attributes.csv` has a column of file names, columns of 0 and 1 for binary attributes, and a column of hair colors.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from tqdm import tqdm

from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS, draw

_CHUNK = 500
_NAMES = (*ATTRIBUTES, "hair")


def export(folder: Path, n: int, *, seed: int = 0, size: int = 64, attributes: Sequence[str] = _NAMES, progress: bool = False) -> None:
    """Writes faces 0 to n - 1 of a seed, with height and width `size`, and a table of `attributes` to a folder, which may be new.

    Raises:
        ValueError: An attribute is unknown, or a number is out of range.
    """
    if unknown := set(attributes) - set(_NAMES):
        raise ValueError(f"Faces have no {', '.join(sorted(unknown))}; the attributes are {', '.join(_NAMES)}.")
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "attributes.csv").open("w", newline="", encoding="utf-8") as file, tqdm(total=n, disable=not progress) as bar:
        table = csv.writer(file)
        table.writerow(["file", *attributes])
        for start in range(0, n, _CHUNK):
            faces = draw(min(_CHUNK, n - start), seed=seed, start=start, size=size)
            pixels = faces.images.mul(255).round_().byte().permute(0, 2, 3, 1).numpy()
            truth: dict[str, list[Any]] = {
                name: column.tolist() for name, column in zip(ATTRIBUTES, faces.attributes.int().unbind(1), strict=True)
            }
            truth["hair"] = [HAIR_COLORS[color] for color in faces.hair.tolist()]
            for row, picture in enumerate(pixels):
                file_name = f"face-{start + row:06d}.png"
                Image.fromarray(picture).save(folder / file_name)
                table.writerow([file_name, *(truth[name][row] for name in attributes)])
            bar.update(len(pixels))


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(prog="python -m composable_energy_faces.export", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="folder of the pictures and the table")
    parser.add_argument("-n", type=int, default=1000, help="number of faces (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the faces (default: %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels (default: %(default)s)")
    parser.add_argument("--attributes", nargs="+", default=_NAMES, choices=_NAMES, metavar="NAME", help=f"columns: {', '.join(_NAMES)}")
    options = parser.parse_args(arguments)
    export(options.out, options.n, seed=options.seed, size=options.size, attributes=options.attributes, progress=True)


if __name__ == "__main__":
    main()
