import argparse
import logging
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import composable_energy as ce
from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import exists, expanded, is_directory, is_file
from composable_energy.options import printable
from composable_energy_cli import Command, json_text, saved_in, whole_number
from composable_energy_cli.parser import each_once
from composable_energy_cli.parsing import quoted

_SETTINGS = {"labels": "data.labels", "limit": "data.limit", "seed": "training.seed", "device": "training.device"}


class Train(Command):
    """`composable-energy train --recipe NAME --data FOLDER --out FOLDER`: trains an energy on pictures."""

    summary = "train an energy on pictures"
    description = (
        "Trains an energy with a recipe. If it is interrupted, the same command resumes. `composable-energy recipes` lists the recipes, "
        "`composable-energy recipes NAME` shows the settings of one."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--recipe", required=True, metavar="NAME", help="the name of a recipe, or a file that ends in .toml")
        parser.add_argument("--data", required=True, type=Path, metavar="FOLDER", help="the pictures, in any supported format")
        parser.add_argument("--out", required=True, type=Path, metavar="FOLDER", help="the folder for checkpoints and the energy")
        parser.add_argument("--steps", type=whole_number(1), metavar="N", help="the number of steps (default: that of the recipe)")
        about = "change a setting, such as optimizer.rate=1e-4; may be repeated"
        parser.add_argument("--set", type=_parse_setting, action="append", default=[], metavar="KEY=VALUE", help=about)
        parser.add_argument("--labels", metavar="CSV", help="a table of attributes, for a folder of pictures (default: that in the folder)")
        parser.add_argument("--limit", type=whole_number(1), metavar="N", help="the largest number of pictures (default: all)")
        parser.add_argument("--seed", type=int, metavar="SEED", help="the seed (default: that of the recipe)")
        parser.add_argument("--device", metavar="D", help="cpu, cuda or cuda:1 (default: a GPU if there is one)")
        parser.add_argument("--quiet", action="store_true", help="show no progress bar and no report")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        data, out = expanded(arguments.data), expanded(arguments.out)
        if not exists(data):
            raise FileFormatError(f"--data: there is no file or folder {str(data)!r}.")
        if exists(out) and not is_directory(out):
            raise OptionError(f"--out: {out} is a file; give a folder.")
        if out.resolve() == data.resolve():
            raise OptionError(f"--out: {out} is the folder of the pictures, which would then hold sheets of samples, too; give another.")
        from composable_energy_training import open_recipe
        from composable_energy_training.ranks import join, leave
        from composable_energy_training.toml import parse_value

        given = [(key, parse_value(text)) for key, text in arguments.set]
        given += [(key, getattr(arguments, flag)) for flag, key in _SETTINGS.items() if getattr(arguments, flag) is not None]
        recipe = open_recipe(arguments.recipe).with_changes(each_once(given))
        table = recipe.settings.get("data", {}).get("labels")
        if isinstance(table, str | Path) and not is_file(expanded(table)):
            setting = "--labels" if arguments.labels else "data.labels"
            raise FileFormatError(f"{setting}: there is no file {str(table)!r}; it names the CSV of attributes, one line for each picture.")
        _check_device(recipe.settings.get("training", {}).get("device"))
        if arguments.steps is not None:
            recipe = recipe.with_steps(arguments.steps)
        first, start = join().is_first, time.perf_counter()
        terminal = sys.stderr.isatty()
        try:
            with _log_lines(first and not arguments.quiet and not terminal):
                folder = recipe.run(data, out, progress=not arguments.quiet and terminal)
        except (KeyboardInterrupt, SystemExit):
            if first:
                print(printable(f"Stopped. The last checkpoint is in {out}; the same command resumes from it."), file=sys.stderr)
            raise
        finally:
            leave()
        seconds = time.perf_counter() - start
        if first and arguments.json:
            print(json_text({"recipe": recipe.name, "folder": str(folder), "energies": list(saved_in(folder)), "seconds": seconds}))
        elif first and not arguments.quiet:
            usage = recipe.usage(folder) or f"To sample it:\n  {_sample_command(folder)}"
            print(printable(f"{folder}: {recipe.name} in {seconds:.1f} s\n\n{usage}"))
        return 0


class _Printable(logging.Formatter):
    """Shows the names that others gave to stages and scalars with escapes."""

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))


@contextmanager
def _log_lines(enabled: bool) -> Iterator[None]:
    """A context in which the trainer's log goes to stderr: the precision and device of each stage, and a line a minute."""
    if not enabled:
        yield
        return
    log, lines = logging.getLogger("composable_energy_training"), logging.StreamHandler()
    lines.setFormatter(_Printable("%(asctime)s %(message)s", "%H:%M:%S"))
    level = log.level
    log.addHandler(lines)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(lines)
        log.setLevel(level)


def _check_device(device: Any) -> None:
    """Raises OptionError if this machine does not have a device."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count())), *["mps"] * torch.backends.mps.is_available()]
        raise OptionError(f"There is no device {device!r}; this machine has {', '.join(found)}. ({str(error).splitlines()[0]})") from error


def _sample_command(folder: Path) -> str:
    """Returns the command that samples the energies in a folder."""
    place = f"./{folder}" if not folder.is_absolute() and not str(folder).startswith((".", "~")) else str(folder)
    if names := saved_in(folder):
        one_of_each = {name.partition("=")[0]: name for name in names if name != "base"}  # values of one attribute exclude one another
        return shlex.join(["composable-energy", "sample", " & ".join(map(quoted, [*one_of_each.values()][:2] or names)), "--in", place])
    given = [word for name in sorted(ce.load(folder).required_conditions - {"sigma"}) for word in ("--given", f"{name}=0")]
    return shlex.join(["composable-energy", "sample", quoted(place), *given])


def _parse_setting(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not (equals and key.strip()):
        raise argparse.ArgumentTypeError(f"a setting must be written as TABLE.KEY=VALUE, got {text!r}")
    return key.strip(), value.strip()
