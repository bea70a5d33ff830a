"""Runs all experiments with COMET, two at a time, and prints their tables.

    pip install -e '.[scenes,metrics]' -e plugins/comet -c constraints.txt
    python benchmarks/papers/comet_2021/everything.py [--write] [--jobs 2] [--data FOLDER] [--parts FOLDER] [--only NAME ...]

Each experiment is a process with one thread. Trainings that others need come first: the models of `objects` are those of `recombination`,
the models of `factors` those of `swaps`, and `mixed` has one of each. What lies in the folders of parts is not trained again. With
`--write` figures go to `benchmarks/results/comet-2021` and pictures to `docs/img/comet-2021`. All budgets together are three and a half
hours of one processor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

from comet_common import CACHE

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Experiment:
    """A program and how it is called.

    Attributes:
        folder: Where it keeps its parts, below that of all; none if empty.
        data: Whether it reads rendered pictures.
        options: Of its own.
        gathers: Whether its table is made by a call of its own, after its trainings.
    """

    folder: str = ""
    data: bool = True
    options: tuple[str, ...] = ()
    gathers: bool = False


STAGES: Sequence[dict[str, Experiment]] = (
    {"objects": Experiment("objects", gathers=True), "factors": Experiment("factors")},
    {
        "swaps": Experiment("factors"),
        "ablation": Experiment("ablation"),
        "slot_objects": Experiment("slots"),
        "recombination": Experiment("objects"),
        "mixed": Experiment("."),
        "drawn_faces": Experiment("faces"),
    },
    {"speed": Experiment(data=False)},
)
"""One stage after the other; the last is alone, as it measures time."""


def calls(name: str, experiment: Experiment, data: Path, parts: Path, keep: bool) -> list[list[str]]:
    """Returns the command lines of an experiment, in order."""
    command = [sys.executable, str(HERE / f"{name}.py"), *experiment.options]
    command += ["--data", str(data)] if experiment.data else []
    command += ["--parts", str(parts / experiment.folder)] if experiment.folder else []
    written = ["--write"] if keep else []
    return [command, [*command, "--gather", *written]] if experiment.gathers else [[*command, *written]]


def ran(name: str, lines: Sequence[Sequence[str]]) -> tuple[str, int, float, str]:
    """Runs an experiment; returns its name, exit code, seconds and what it printed."""
    started, printed, code = time.perf_counter(), "", 0
    for line in lines:
        done = subprocess.run(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False
        )
        printed, code = printed + done.stdout, code or done.returncode
    return name, code, time.perf_counter() - started, printed


def main() -> int:
    names = [name for stage in STAGES for name in stage]
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--data", type=Path, default=CACHE, help="where renders are kept")
    parser.add_argument("--parts", type=Path, default=CACHE, help="where models and figures of parts are kept")
    parser.add_argument("--write", action="store_true", help="write figures and pictures into the repository")
    asked = parser.parse_args()
    started, failed = time.perf_counter(), []
    for stage in STAGES:
        with ThreadPoolExecutor(asked.jobs) as pool:
            chosen = {name: experiment for name, experiment in stage.items() if name in asked.only}
            waiting = [
                pool.submit(ran, name, calls(name, experiment, asked.data, asked.parts, asked.write)) for name, experiment in chosen.items()
            ]
            for future in as_completed(waiting):
                name, code, seconds, printed = future.result()
                print(f"\n{'=' * 20} {name}: {seconds:.0f} s\n{printed.strip()}", flush=True)
                if code:
                    failed.append(name)
    print(f"\n{len(asked.only)} experiments in {(time.perf_counter() - started) / 60:.1f} minutes; failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
