"""What experiments print and write: tables, pictures, files of results, and the command line that they have in common."""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from common import Options
from PIL import Image
from torch import Tensor

__all__ = ["grid", "main", "show", "write"]

RESULTS = Path(__file__).parents[2] / "results" / "compositional-2020"
PICTURES = Path(__file__).parents[3] / "docs" / "img" / "compositional-2020"


def show(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints rows of a table; their keys are its columns, in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_text(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    print(f"\n{title}")
    for number, line in enumerate(cells):
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
        if number == 0:
            print("  ".join("-" * width for width in widths))


def grid(images: Tensor, columns: int = 16) -> Tensor:
    """Returns pictures, with shape $(B, 3, S, S)$, as one, with shape $(3, H, W)$; an incomplete row is left out."""
    rows = images[: len(images) // columns * columns].unflatten(0, (-1, columns))
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def write(name: str, result: Mapping[str, Any], picture: Tensor | None = None) -> None:
    """Writes figures to `benchmarks/results/` and a picture, with shape $(3, H, W)$, to `docs/img/`, in folders of this paper."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(_rounded(result), indent=1) + "\n")
    if picture is not None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        pixels = picture.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
        few = Image.fromarray(pixels).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)  # others merge rare, bright colors
        few.save(PICTURES / f"{name}.png", optimize=True)


def main(name: str, doc: str | None, run: Callable[[Options], dict[str, Any]], **defaults: Any) -> None:
    """Runs an experiment from the command line.

    Args:
        name: Of its files.
        doc: What it says with `--help`.
        run: Prints tables and returns the figures; under `picture` may be one, with shape $(3, H, W)$.
        **defaults: Other defaults of `Options`.
    """
    usual = Options(**defaults)
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=usual.samples, help=f"pictures of each row (default {usual.samples})")
    parser.add_argument("--seed", type=int, default=usual.seed, help=f"of conditions and samples (default {usual.seed})")
    parser.add_argument("--weights", type=Path, default=usual.weights, help="a folder of weights other than the package's")
    parser.add_argument("--write", action="store_true", help="write the figures and the picture into the repository")
    told = parser.parse_args()
    options, started = Options(told.samples, told.seed, told.weights), time.perf_counter()
    result = run(options)
    picture = result.pop("picture", None)
    about = {"samples": told.samples, "seed": told.seed, "seconds": time.perf_counter() - started}
    about |= {"torch": torch.__version__, "threads": torch.get_num_threads(), "machine": platform.machine()}
    print(f"\n{about['seconds']:.0f} s")
    if told.write:
        write(name, result | {"run": about}, picture)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}".replace("0.", ".", 1) if abs(value) < 1 else f"{value:.3f}"
    return " ".join(map(_text, value)) if isinstance(value, list | tuple) else str(value)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {key: _rounded(part) for key, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
