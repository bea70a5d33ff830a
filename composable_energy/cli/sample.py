"""The command `sample`: draws from an expression."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.cli.names import add_expression, read_expression
from composable_energy.cli.pictures import PICTURES, check_target, write_array
from composable_energy.cli.tables import json_text
from composable_energy.cli.terms import add_range, add_sigma, at_level, json_rows, terms_table, value_range
from composable_energy.cli.trial import foreign_output
from composable_energy.errors import OptionError
from composable_energy.printable import printable
from composable_energy.registry import Command

if TYPE_CHECKING:
    from torch import Tensor

    from composable_energy.energy import Energy
    from composable_energy.sampling import Trace

__all__ = ["Sample"]

_FLAGS = {"sampler", "steps", "seed", "batch_size", "best_of", "checkpoint"}
_IN_PYTHON = {"shape", "init", "callback", "progress", "trace", "burn_in", "resume", "latents", "dtype", "device", "first_chain"}
_IN_PYTHON |= {"compile", "checkpoint_every", "ranks"}
_WORDS = {"true": True, "false": False, "none": None}


class Sample(Command):
    """The command `composable-energy sample EXPR`: draws from an expression and shows the energy of each term."""

    summary = "draw from an expression"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_expression(parser)
        parser.add_argument("-n", type=int, default=16, metavar="N", help="number of draws (default: 16)")
        parser.add_argument("--seed", type=int, metavar="SEED", help="the seed (default: a new one, which is printed)")
        parser.add_argument(
            "-o",
            "--output",
            type=Path,
            default=Path("samples.png"),
            metavar="FILE",
            help="a grid of images (.png, .jpg, .webp) or an array (.npy, .npz) (default: samples.png)",
        )
        parser.add_argument("--sampler", metavar="NAME", help="the sampler (default: the one that the energy recommends)")
        parser.add_argument("--steps", type=int, metavar="N", help="number of steps (default: that of the sampler)")
        parser.add_argument("--batch-size", type=int, metavar="N", help="number of chains that run together (default: all)")
        parser.add_argument(
            "--checkpoint",
            type=Path,
            metavar="FILE",
            help="file for the state of a long run; the same command resumes from it",
        )
        parser.add_argument(
            "--option", type=_option, action="append", default=[], metavar="NAME=VALUE", help="an option of the sampler; may be repeated"
        )
        parser.add_argument("--best-of", type=int, default=1, metavar="K", help="draw K for each, keep the one with the lowest evidence")
        parser.add_argument("--sharpen", type=float, metavar="W", help="weight of the evidence (guidance); less diverse for W above 1")
        add_range(parser)
        add_sigma(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        """Draws, writes the file, and prints the energies of the terms."""
        options, black_to_white = _options(arguments.option), value_range(arguments)
        with foreign_output():
            energy = read_expression(arguments)
        if arguments.sharpen is not None:
            energy = energy.sharpened(arguments.sharpen)
        from composable_energy.sampling import twin
        from composable_energy.sampling.points import resolve_points

        target = arguments.output.expanduser()
        check_target(target, tuple(resolve_points(energy, arguments.n).shape[1:]))
        shown = at_level(energy, arguments.sigma)
        start = time.perf_counter()
        points, trace = energy.sample(
            arguments.n,
            sampler=arguments.sampler,
            steps=arguments.steps,
            seed=arguments.seed,
            batch_size=arguments.batch_size,
            best_of=arguments.best_of,
            checkpoint=arguments.checkpoint,
            latents=True,
            trace=True,
            progress=sys.stderr.isatty(),
            **options,
        )
        seen = _decode(energy, points)
        seconds = time.perf_counter() - start
        about = {
            "expression": str(energy),
            "seed": trace.seed,
            "sampler": repr(trace.sampler),
            "steps": trace.steps,
            "best_of": trace.best_of,
        }
        if target.suffix.lower() in PICTURES:
            from composable_energy.grids import write_grid

            write_grid(target, seen, black_to_white, about)
        else:
            write_array(target, seen)
        explanation = twin(shown).explain(points)
        if arguments.json:
            print(json_text({"file": str(target), **about, "n": len(seen), "seconds": seconds, "terms": json_rows(explanation)}))
            return 0
        drawn = f"{len(seen)} {_describe_draws(arguments.n, seen, trace)} of {energy}"
        print(printable(f"{target}: {drawn} in {seconds:.1f} s with {trace.sampler!r}, seed {trace.seed}"))
        print(f"\n{terms_table(explanation)}")
        return 0


def _decode(energy: Energy, points: Tensor) -> Tensor:
    if energy.decoder is None or not len(points):
        return points
    from composable_energy.sampling import twin
    from composable_energy.sampling.points import decode

    return decode(twin(energy.decoder), points)


def _describe_draws(wanted: int, seen: Tensor, trace: Trace) -> str:
    best = f", each the best of {trace.best_of}," if trace.best_of > 1 else ""
    fewer = f" (of {wanted}; the others diverged)" if len(seen) < wanted else ""
    return f"{'draw' if len(seen) == 1 else 'draws'}{best}{fewer}"


def _option(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not (equals and name.strip().isidentifier()):
        raise argparse.ArgumentTypeError(f"an option is written NAME=VALUE, got {text!r}")
    return name.strip(), _value(value.strip())


def _value(text: str) -> Any:
    """Returns text as a number, True, False or None, if it is one."""
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _options(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    options = dict(pairs)
    for name in options:
        if name in _FLAGS:
            raise OptionError(f"--option {name}: write --{name.replace('_', '-')} instead.")
        if name in _IN_PYTHON:
            raise OptionError(f"--option {name}: this option works in Python only.")
    if len(options) < len(pairs):
        raise OptionError("--option: each name may be given once.")
    return options
