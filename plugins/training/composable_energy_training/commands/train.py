"""`composable-energy train --recipe NAME --data FOLDER --out FOLDER`: an energy from pictures."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from composable_energy.cli import Command, json_text, saved_in
from composable_energy.errors import FileFormatError, OptionError

__all__ = ["Train"]

_SETTINGS = {"labels": "data.labels", "limit": "data.limit", "seed": "training.seed", "device": "training.device"}


class Train(Command):
    """`composable-energy train --recipe NAME --data FOLDER --out FOLDER`: an energy from pictures."""

    summary = "train an energy on pictures"
    description = (
        "Trains an energy by a recipe. The same command goes on where it was killed. `composable-energy recipes` lists them, "
        "`composable-energy recipes NAME` shows the settings of one."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--recipe", required=True, metavar="NAME", help="the name of a recipe, or a file that ends in .toml")
        parser.add_argument("--data", required=True, type=Path, metavar="FOLDER", help="the pictures, in any format that is known")
        parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="where checkpoints and the energy go")
        parser.add_argument("--steps", type=int, metavar="N", help="how many steps (default: those of the recipe)")
        parser.add_argument(
            "--set",
            type=_setting,
            action="append",
            default=[],
            metavar="KEY=VALUE",
            help="changes a setting: optimizer.rate=1e-4; may be repeated",
        )
        parser.add_argument(
            "--labels", metavar="CSV", help="a table of attributes, for a folder of pictures (default: the one that lies in it)"
        )
        parser.add_argument("--limit", type=int, metavar="N", help="at most so many pictures (default: all)")
        parser.add_argument("--seed", type=int, metavar="SEED", help="the same seed trains the same (default: that of the recipe)")
        parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
        parser.add_argument("--quiet", action="store_true", help="show no bar and no report")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Trains, and prints where the energy is and how to draw from it."""
        data, out = arguments.data.expanduser(), arguments.out.expanduser()
        if not data.exists():
            raise FileFormatError(f"--data: there is nothing at {str(data)!r}.")
        if out.exists() and not out.is_dir():
            raise OptionError(f"--out {out} is a file; name a folder.")
        from composable_energy_training import open_recipe
        from composable_energy_training.ranks import join, leave

        recipe = open_recipe(arguments.recipe).settled(_changes(arguments))
        _check_device(recipe.settings.get("training", {}).get("device"))
        if arguments.steps is not None:
            recipe = recipe.with_steps(arguments.steps)
        first, start = join().first, time.perf_counter()
        try:
            folder = recipe.run(data, out, progress=not arguments.quiet and sys.stderr.isatty())
        except KeyboardInterrupt:
            if first:
                print(
                    f"Stopped. What was done until the last checkpoint is in {out}; the same command goes on from there.", file=sys.stderr
                )
            raise
        finally:
            leave()
        seconds = time.perf_counter() - start
        if first and arguments.json:
            print(json_text({"recipe": recipe.name, "folder": str(folder), "energies": list(saved_in(folder)), "seconds": seconds}))
        elif first and not arguments.quiet:
            usage = recipe.usage(folder) or f"To draw from it:\n  {_command(folder)}"
            print(f"{folder}: {recipe.name} in {seconds:.1f} s\n\n{usage}")
        return 0


def _changes(arguments: argparse.Namespace) -> dict[str, Any]:
    """The settings that the arguments say, each once."""
    from composable_energy_training.toml import read_value

    said = [(key, read_value(text)) for key, text in arguments.set]
    said += [(key, getattr(arguments, flag)) for flag, key in _SETTINGS.items() if getattr(arguments, flag) is not None]
    changes = dict(said)
    if len(changes) < len(said):
        twice = next(key for key, _ in said if [key for key, _ in said].count(key) > 1)
        raise OptionError(f"{twice} is said twice.")
    return changes


def _check_device(device: Any) -> None:
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *["mps"] * torch.backends.mps.is_available()]
        raise OptionError(f"There is no device {device!r} here, but {', '.join(there)}. ({str(error).splitlines()[0]})") from error


def _command(folder: Path) -> str:
    """The line that draws from what lies in a folder."""
    import composable_energy as ce

    names = saved_in(folder)
    place = f"./{folder}" if not folder.is_absolute() and not str(folder).startswith((".", "~")) else str(folder)
    if names:
        return shlex.join(
            ["composable-energy", "sample", " & ".join([name for name in names if name != "base"][:2] or names), "--in", place]
        )
    given = ce.load(folder).required_conditions - {"sigma"}
    expression = f'"{place}"' if " " in place else place
    return shlex.join(["composable-energy", "sample", expression, *(word for name in sorted(given) for word in ("--given", f"{name}=0"))])


def _setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and "." in key.strip()):
        raise argparse.ArgumentTypeError(f"a setting is written TABLE.KEY=VALUE, got {text!r}")
    return key.strip(), value.strip()
