from __future__ import annotations

import argparse
import colorsys
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from composable_energy.errors import OptionError
from composable_energy.files import exists, expanded, is_directory
from composable_energy.options import printable
from composable_energy_cli import Command, json_text, whole_number
from composable_energy_cli.parser import add_options, each_once

if TYPE_CHECKING:
    from composable_energy_image.data import Scenes

SHEET = "contact-sheet.png"
_SHOWN = 64


class Render(Command):
    """The command `composable-energy render WORLD -n N -o FOLDER`, which renders pictures of a world with labels and masks."""

    summary = "render pictures of a world, with labels and masks"
    description = (
        "Renders pictures of a world into files, with a contact sheet of the first ones. After an interruption, the same command resumes. "
        "`composable-energy plugins` lists the worlds."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("world", metavar="WORLD", help="the name of a world, such as objects")
        parser.add_argument("-n", type=whole_number(0), required=True, metavar="N", help="number of pictures")
        parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER", help="folder of the files")
        parser.add_argument("--seed", type=whole_number(0), default=0, metavar="SEED", help="seed of the pictures (default: 0)")
        parser.add_argument("--size", type=whole_number(1), metavar="PX", help="height and width of the pictures (default: the world's)")
        add_options(parser, "an option of the world, such as count=[2,4], also written --count [2,4]")
        parser.add_argument("--masks", action="store_true", help="also render a mask of the objects")
        parser.add_argument("--quiet", action="store_true", help="show no progress and no report")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        folder: Path = expanded(arguments.output)
        if exists(folder) and not is_directory(folder):
            raise OptionError(f"-o {folder} is a file; give a folder.")
        from composable_energy.registry import get
        from composable_energy_image.data import render_to
        from composable_energy_training.toml import parse_value

        given = [(name, None if text == "none" else parse_value(text)) for name, text in arguments.option]
        given += [("size", arguments.size)] if arguments.size is not None else []
        world, start = get("world", arguments.world, **each_once(given)), time.perf_counter()
        try:
            progress = not arguments.quiet and sys.stderr.isatty()
            scenes = render_to(folder, world, arguments.n, arguments.seed, masks=arguments.masks, progress=progress)
        except KeyboardInterrupt:
            print(printable(f"Stopped. Finished pictures are in {folder}; the same command resumes."), file=sys.stderr)
            raise
        seconds = time.perf_counter() - start
        if arguments.n:
            _write_sheet(folder / SHEET, scenes, arguments.world)
        shapes = {name: list(array.shape[1:]) for name, array in scenes.labels.items()}
        if arguments.json:
            print(json_text({"world": arguments.world, "folder": str(folder), "n": arguments.n, "labels": shapes, "seconds": seconds}))
        elif not arguments.quiet:
            shape = " x ".join(map(str, scenes.images.shape[1:]))
            done = f"{arguments.n} pictures of {arguments.world}, {shape}{', with masks' * arguments.masks}, in {seconds:.1f} s"
            print(printable(f"{folder}: {done}\nlabels: {', '.join(shapes)}"))
            print(f"\nTo open them in Python:\n  from composable_energy_image.data import open_scenes\n  open_scenes({str(folder)!r})")
        return 0


def _write_sheet(path: Path, scenes: Scenes, world: str) -> None:
    """Writes the first pictures; with masks, each beside its mask in colors."""
    import torch

    from composable_energy_viz.files import write_grid

    shown = torch.from_numpy(scenes.images[:_SHOWN].copy())
    if scenes.masks is not None:
        hues = [(k * 0.618034 % 1, 0.55 + 0.45 * (k % 2), 1 - 0.3 * (k % 3 == 2)) for k in range(255)]  # neighbors differ
        palette = torch.tensor([(0.0, 0.0, 0.0)] + [colorsys.hsv_to_rgb(*hue) for hue in hues]).mul(255).byte()
        masks = palette[torch.from_numpy(scenes.masks[:_SHOWN].copy()).long()].permute(0, 3, 1, 2)
        shown = torch.cat([shown.expand(-1, 3, -1, -1), masks], 3)
    write_grid(path, shown, (0, 255), {"world": world})
