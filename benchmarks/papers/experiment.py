"""The base of all experiments of the papers: folders, tables, pictures, and files of results."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.harness import RESULTS, ROOT, environment, read_options, write_json
from benchmarks.pages import format_number


@dataclass(frozen=True)
class Paper:
    """The folders of a paper."""

    name: str  # name of the folders and of the page with its results
    root: Path = ROOT  # checkout

    @property
    def results(self) -> Path:
        return self.root / RESULTS.relative_to(ROOT) / self.name

    @property
    def pictures(self) -> Path:
        return self.root / "docs" / "img" / self.name

    @property
    def cache(self) -> Path:
        return self.root / ".cache" / self.name

    def run(
        self,
        name: str,
        doc: str | None,
        experiment: Callable[[Any], Iterable[Mapping[str, Any]]],
        arguments: Sequence[str] | None = None,
        **defaults: Any,
    ) -> None:
        """Runs an experiment from the command line.

        What it has found is printed and written each time that it yields, so that a stop loses little.
        """
        args = read_options(doc, self.results / f"{name}.json", arguments, **defaults)
        wall, processor = time.perf_counter(), time.process_time()
        options = {key: value for key, value in vars(args).items() if key != "write" and not isinstance(value, Path)}
        for found in experiment(args):
            spent = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
            for title, rows in found.items():
                if isinstance(rows, list) and title != "runs":  # the figures of single seeds
                    print_table(f"{name}: {title}", rows)
            if args.write:
                self.write(name, found, **options, **spent)
        print(f"\n{time.perf_counter() - wall:.0f} s, of which {time.process_time() - processor:.0f} s of the processor")

    def write(self, name: str, found: Mapping[str, Any], **settings: Any) -> None:
        """Writes the figures of an experiment as JSON, and its `pictures` for the documentation by their names."""
        figures = {key: value for key, value in found.items() if key != "pictures"}
        write_rounded(self.results / f"{name}.json", {"about": environment(**settings), **figures})
        for title, picture in found.get("pictures", {}).items():
            write_picture(self.pictures / f"{title}.png", picture)


COMPOSITIONAL, COMET, IMPLICIT = Paper("compositional-2020"), Paper("comet-2021"), Paper("implicit-2019")


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Prints a table; its columns are the keys of the rows, in the order in which they first appear."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    cells = [columns, *([_format(row.get(name, "")) for name in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in cells]
    print("\n".join(["", title, lines[0], "  ".join("-" * width for width in widths), *lines[1:]]), flush=True)


def write_rounded(path: Path, figures: Any) -> None:
    """Writes JSON with floats rounded to 5 digits after the point."""
    write_json(path, _round(figures))


def write_picture(path: Path, picture: Tensor) -> None:
    """Writes a picture in [0, 1], with shape $(3, H, W)$, as PNG with 256 colors."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = picture.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).contiguous().numpy()
    small = Image.fromarray(pixels).quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)  # others merge rare, bright colors
    small.save(path, optimize=True)


def arrange_grid(images: Tensor, columns: int = 16) -> Tensor:
    """Returns pictures with shape $(B, 3, S, S)$ side by side, with shape $(3, H, W)$; an incomplete last row is left out."""
    rows = images[: len(images) // columns * columns].unflatten(0, (-1, columns))
    return rows.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def arrange_rows(rows: Sequence[Tensor], scale: int = 2, gap: int = 2) -> Tensor:
    """Returns rows of pictures as one picture with white gaps, with shape $(3, H, W)$."""
    size, most = rows[0].shape[-1], max(len(row) for row in rows)
    sheet = torch.ones(3, len(rows) * (size + gap) - gap, most * (size + gap) - gap)
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            top, left = i * (size + gap), j * (size + gap)
            sheet[:, top : top + size, left : left + size] = image.detach().clamp(0, 1)
    return sheet.repeat_interleave(scale, 1).repeat_interleave(scale, 2)


def _format(value: Any) -> str:
    if isinstance(value, float):
        return format_number(value) if abs(value) >= 0.1 else f"{value:.3g}"
    return " ".join(map(_format, value)) if isinstance(value, list | tuple) else str(value)


def _round(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 5)
    if isinstance(value, Mapping):
        return {str(key): _round(part) for key, part in value.items()}
    return [_round(part) for part in value] if isinstance(value, list | tuple) else value
