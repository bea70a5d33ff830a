"""The command line of the experiments with COMET."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from benchmarks.harness import read_options
from benchmarks.papers.experiment import COMET

SEEDS = (5, 6, 7)
"""Seeds of the trainings in the tables; settings were chosen on others."""


def read_experiment(name: str, doc: str | None, arguments: Sequence[str] | None, **defaults: Any) -> argparse.Namespace:
    """Returns the options of an experiment; all have a folder of renders, and one of models and figures of parts."""
    return read_options(doc, COMET.results / f"{name}.json", arguments, data=COMET.cache, parts=COMET.cache, **defaults)
