"""The command line of the experiments with COMET."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.harness import argument_parser
from benchmarks.papers.experiment import COMET

SEEDS = (5, 6, 7)
"""Seeds of the trainings in the tables; settings were chosen on others."""


def experiment_parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Returns a parser with the options of all experiments."""
    parser = argument_parser(doc, COMET.results / f"{name}.json", whole=True)
    parser.add_argument("--data", type=Path, default=COMET.cache, help="where renders are kept")
    parser.add_argument("--parts", type=Path, default=COMET.cache, help="where models and figures of parts are kept, each kind in a folder")
    return parser
