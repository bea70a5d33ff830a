from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from composable_energy.errors import ShapeError
from composable_energy.files import expanded
from composable_energy.registry import Command
from composable_energy_cli.names import add_expression, read_expression
from composable_energy_cli.pictures import read_points
from composable_energy_cli.terms import add_range, add_sigma, at_level, json_rows, json_text, terms_table, value_range
from composable_energy_cli.trial import foreign_output

if TYPE_CHECKING:
    from torch import Tensor

    from composable_energy import Energy


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
        from composable_energy.sampling import twin

        explanation = twin(energy).explain(points)
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
    odd = next((path for path, points in read if points.shape[1:] != read[0][1].shape[1:]), None)
    if odd is not None:
        raise ShapeError(f"{read[0][0]} and {odd} have points of different shapes; explain them one after the other.")
    labels = [str(path) if len(points) == 1 else f"{path} {i + 1}" for path, points in read for i in range(len(points))]
    return labels, torch.cat([points for _, points in read])
