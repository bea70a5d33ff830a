"""JSON of commands, tables of explanations with their command-line options, and the command `explain`."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from composable_energy.errors import OptionError, ShapeError
from composable_energy.files import expanded
from composable_energy.options import check_number, printable, text_table
from composable_energy.registry import Command
from composable_energy_cli.foreign import foreign_output
from composable_energy_cli.names import add_expression, read_expression
from composable_energy_cli.pictures import read_points

if TYPE_CHECKING:
    from torch import Tensor

    from composable_energy import Energy
    from composable_energy.algebra.explain import Explanation

_LOWEST = 0.05
_SHOWN = 6
_SMALL = 5e-4  # below it three digits would show zero


def json_text(value: Any) -> str:
    """Returns JSON with null for numbers that are not finite, and escapes for control characters."""
    text = json.dumps(_replace_nonfinite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(char if printable(char) == char else json.dumps(char)[1:-1] for char in text)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def add_sigma(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the noise level of the energies that are shown."""
    about = f"noise level of the energies that are shown (default: that of the energy, else the lowest of its sampler, else {_LOWEST})"
    parser.add_argument("--sigma", type=float, metavar="S", help=about)


def add_range(parser: argparse.ArgumentParser) -> None:
    """Adds the option for the values of black and white."""
    about = "the values of black and white in images (default: 0 1)"
    parser.add_argument("--range", type=float, nargs=2, default=(0.0, 1.0), metavar=("LOW", "HIGH"), help=about)


def value_range(arguments: argparse.Namespace) -> tuple[float, float]:
    """Returns the values of black and white."""
    low, high = arguments.range
    if not -float("inf") < low < high < float("inf"):
        raise OptionError(f"--range takes two increasing numbers, such as -1 1, got {low:g} {high:g}.")
    return low, high


def at_level(energy: Energy, sigma: float | None) -> Energy:
    """Returns an energy at a noise level, if it needs one or one is given; raises OptionError for one that does not fit."""
    if sigma is not None:
        check_number("--sigma", sigma, above=0)
        if "sigma" not in energy.conditions:
            raise OptionError(f"{energy} does not depend on a noise level; leave out --sigma.")
        return energy.at(sigma)
    if "sigma" not in energy.required_conditions:
        return energy
    return energy.at(energy.recommended.options.get("sigma_min", _LOWEST) if energy.recommended else _LOWEST)


def explain_terms(energy: Energy, points: Tensor) -> Explanation:
    """Returns the energy of each term at points, with the levels of `~` as `sample` finds them."""
    from composable_energy.algebra import with_levels
    from composable_energy.sampling import twin

    return twin(with_levels(energy, lambda: points.new_zeros(1, *(energy.event_shape or ())))).explain(points)


def terms_table(explanation: Explanation, labels: Sequence[str] = ()) -> str:
    """Returns a table with the energies of the terms, and below it one with the probabilities of events. Up to six points with labels have
    a column each; else there are their mean, lowest and highest energy."""
    rows = list(explanation.rows())
    each = 0 < len(labels) <= _SHOWN
    shares = any(row.share is not None for _, row in rows)
    columns = labels if each else ["mean", "lowest", "highest"]
    header = ["energy of", *columns, *["share"] * shares]
    cells: list[list[str]] = []
    events: dict[str, Tensor] = {}
    for depth, row in rows:
        share = "" if row.share is None else f"{row.share.mean().item():.3f}"
        cells.append(["  " * depth + row.expression, *_numbers(row.energy, each), *[share] * shares])
        if row.probability is not None:
            events[f"({row.expression})" if " | " in row.expression else row.expression] = row.probability
    cells += [[""] * len(header), ["probability", *columns, *[""] * shares]] if events else []
    cells += [[f"p({event} | x)", *_numbers(probability, each), *[""] * shares] for event, probability in events.items()]
    return text_table(header, cells, right=range(1, len(header)))


def json_rows(explanation: Explanation) -> list[dict[str, Any]]:
    """Returns one record for each term: depth, expression, mean; energy, probability and share of each point."""
    return [
        {
            "depth": depth,
            "expression": row.expression,
            "mean": row.energy.mean().item(),
            "energy": row.energy.tolist(),
            "probability": None if row.probability is None else row.probability.tolist(),
            "share": None if row.share is None else row.share.tolist(),
        }
        for depth, row in explanation.rows()
    ]


def _numbers(values: Tensor, each: bool) -> list[str]:
    numbers = values.tolist() if each else [values.mean().item(), values.min().item(), values.max().item()]
    return [f"{number:.0e}" if 0 < abs(number) < _SMALL else f"{number:.3f}" for number in numbers]


class Explain(Command):
    """The command `composable-energy explain EXPR FILE...`: the energy of each term at images or points."""

    summary = "show the energy of each term at images"
    description = (
        "Shows the energy of each term at images, and the share of each branch of |. Images are resized to the shape of the "
        "energy; a PNG grid that `sample` wrote is split into its images."
    )

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_expression(parser)
        parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="images, or arrays in .npy and .npz files")
        add_range(parser)
        add_sigma(parser)
        parser.add_argument("--json", action="store_true", help="print JSON")

    def run(self, arguments: argparse.Namespace) -> int:
        black_to_white = value_range(arguments)
        with foreign_output():
            energy = at_level(read_expression(arguments), arguments.sigma)
        labels, points = _read([expanded(path) for path in arguments.files], energy, black_to_white)
        explanation = explain_terms(energy, points)
        if arguments.json:
            print(json_text({"expression": str(energy), "points": labels, "terms": json_rows(explanation)}))
        else:
            print(terms_table(explanation, labels))
        return 0


def _read(files: list[Path], energy: Energy, black_to_white: tuple[float, float]) -> tuple[list[str], Tensor]:
    """Returns a label for each point and the points of all files."""
    import torch

    from composable_energy.sampling.problem import resolve_points

    if energy.event_shape is None:
        raise ShapeError(f"{energy} has no event_shape, so no points can be read for it.")
    spec = resolve_points(energy, 1)
    shapes = list(dict.fromkeys([tuple(spec.shape[1:]), tuple(spec.event)]))  # decoded, then latent
    read = [(path, read_points(path, shapes, black_to_white).to(spec.dtype)) for path in files]
    if (odd := next((path for path, points in read if points.shape[1:] != read[0][1].shape[1:]), None)) is not None:
        raise ShapeError(f"{read[0][0]} and {odd} have points of different shapes; explain them one after the other.")
    labels = [str(path) if len(points) == 1 else f"{path} {i + 1}" for path, points in read for i in range(len(points))]
    return labels, torch.cat([points for _, points in read])
