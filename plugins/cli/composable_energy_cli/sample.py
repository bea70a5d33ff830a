from __future__ import annotations

import argparse
import sys
import time
import warnings
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from composable_energy.errors import OptionError
from composable_energy.files import expanded
from composable_energy.options import printable
from composable_energy.registry import Command
from composable_energy_cli.foreign import foreign_output
from composable_energy_cli.names import add_expression, check_trained, read_expression
from composable_energy_cli.parser import add_options, own_spelling, read_options, whole_number
from composable_energy_cli.pictures import PICTURES, check_target, write_array
from composable_energy_cli.terms import add_range, add_sigma, at_level, explain_terms, json_rows, json_text, terms_table, value_range
from composable_energy_viz.files import is_picture, write_grid

if TYPE_CHECKING:
    from composable_energy.sampling import Sampler

_SHEET = 512
_FLAGS = ("sampler", "steps", "seed", "batch_size", "checkpoint", "progress")


class Sample(Command):
    """The command `composable-energy sample EXPR`: draws from an expression and shows the energy of each term."""

    summary = "draw from an expression"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_expression(parser)
        parser.add_argument("-n", type=whole_number(1), default=16, metavar="N", help="number of draws (default: 16)")
        parser.add_argument("--seed", type=whole_number(-(2**63), 2**64 - 1), help="the seed (default: a new one, which is printed)")
        about = "a grid of images (.png, .jpg, .webp) or an array (.npy, .npz) (default: samples.png for images, else samples.npy)"
        parser.add_argument("-o", "--output", type=Path, metavar="FILE", help=about)
        parser.add_argument("--sampler", metavar="NAME", help="the sampler (default: the one that the energy recommends)")
        parser.add_argument("--steps", type=whole_number(1), metavar="N", help="number of steps (default: that of the sampler)")
        add_options(parser, "an option of the sampler, such as step-size=0.1, also written --step-size 0.1")
        parser.add_argument("--batch-size", type=whole_number(1), metavar="N", help="number of chains that run together (default: all)")
        parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="file for the state of a long run; the same command resumes it")
        parser.add_argument("--sharpen", type=float, metavar="W", help="weight of the evidence (guidance); less diverse for W above 1")
        parser.add_argument("--untrained", action="store_true", help="also sample networks with random weights, which `energies` lists")
        add_range(parser)
        add_sigma(parser)
        parser.add_argument("--progress", action=argparse.BooleanOptionalAction, help="show how far sampling is (default: on a terminal)")
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        options, black_to_white = read_options(arguments.option, _FLAGS), value_range(arguments)
        with foreign_output():
            if not arguments.untrained:
                check_trained(arguments.expression, arguments.family, "add --untrained")
            energy = read_expression(arguments)
        if arguments.sharpen is not None:
            energy = energy.sharpened(arguments.sharpen)
        from composable_energy.sampling import Checkpoint, Progress, twin
        from composable_energy.sampling.problem import resolve_points

        shows = sys.stderr.isatty() if arguments.progress is None else arguments.progress
        observers = [*[Progress()] * shows, *([] if arguments.checkpoint is None else [Checkpoint(arguments.checkpoint)])]
        try:
            spec = resolve_points(twin(energy), arguments.n)  # it checks that the draws fit into memory
        except OptionError as error:
            raise OptionError(f"-n {arguments.n}: {error}") from error
        target = expanded(arguments.output or Path("samples.png" if is_picture(spec.shape[1:]) else "samples.npy"))
        check_target(target, spec.shape[1:])
        shown = at_level(energy, arguments.sigma)
        start = time.perf_counter()
        with own_spelling(options, _FLAGS):
            own = {name: getattr(arguments, name) for name in ("sampler", "steps", "seed", "batch_size")}
            points, trace = energy.latents.sample(arguments.n, trace=True, observers=observers, **own, **options)
        if trace.steps < (total := trace.sampler.total_steps or 0):  # `sample` itself is silent about it with a trace
            warnings.warn(f"{trace.steps} of {total} steps of the schedule are taken: these are no draws. Leave out --steps.", stacklevel=1)
        points = points[~trace.diverged]  # others under on_divergence=keep are no draws
        seen = replace(spec, coordinates=None).decode(points) if len(points) else points
        seconds = time.perf_counter() - start
        about = {"expression": str(energy), "seed": trace.seed, "sampler": repr(trace.sampler), "steps": trace.steps}
        if target.suffix.lower() in PICTURES:
            write_grid(target, seen, black_to_white, about, least=_SHEET)
        else:
            write_array(target, seen)
        explanation = explain_terms(shown, points)
        if arguments.json:
            print(json_text({"file": str(target), **about, "n": len(seen), "seconds": seconds, "terms": json_rows(explanation)}))
            return 0
        fewer = f" (of {arguments.n}; the others diverged)" if len(seen) < arguments.n else ""
        drawn = f"{len(seen)} {'draw' if len(seen) == 1 else 'draws'}{fewer} of {energy}"
        steps = f"{trace.steps} {'step' if trace.steps == 1 else 'steps'} of {_describe_sampler(trace.sampler)}"
        print(printable(f"{target}: {drawn} in {seconds:.1f} s, {steps}, seed {trace.seed}"))
        print(f"\n{terms_table(explanation)}")
        return 0


def _describe_sampler(sampler: Sampler) -> str:
    """Returns the name of a sampler, with the numbers among its options that are not its defaults."""
    changed = {field.name: getattr(sampler, field.name) for field in (fields(sampler) if is_dataclass(sampler) else ()) if field.init}
    changed = {name: value for name, value in changed.items() if value != getattr(type(sampler), name, None)}
    written = [f"{name}={value:.3g}" for name, value in changed.items() if isinstance(value, int | float)]
    return type(sampler).__name__ + (f"({', '.join(written)})" if written else "")
