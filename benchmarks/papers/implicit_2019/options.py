"""The command line of the experiments with the 2019 paper."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, stdev
from typing import Any

from benchmarks.harness import read_options
from benchmarks.papers.experiment import IMPLICIT

SEEDS = (0, 1, 2)  # settings were chosen on the split of seed 100


def run_experiment(name: str, doc: str | None, run: Callable[[Sequence[int]], dict[str, Any]]) -> None:
    """Runs an experiment from the command line."""
    args = read_options(doc, IMPLICIT.results / f"{name}.json", seeds=SEEDS)
    wall, processor = time.perf_counter(), time.process_time()
    figures = run(args.seeds)
    seconds: dict[str, Any] = {"seconds": time.perf_counter() - wall, "processor_seconds": time.process_time() - processor}
    print(f"\n{seconds['seconds']:.0f} s, of which {seconds['processor_seconds']:.0f} s of the processor")
    if args.write:
        IMPLICIT.write(name, figures, seeds=list(args.seeds), **seconds)


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns the mean and the standard deviation of each figure over seeds."""
    return {
        key: {"mean": mean(row[key] for row in rows), "deviation": stdev(row[key] for row in rows) if len(rows) > 1 else 0.0}
        for key in rows[0]
    }
