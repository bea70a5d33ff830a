"""Runs all experiments of a paper, two at a time, and prints their tables.

    pip install -e '.[metrics]' -e 'plugins/worlds[mujoco]' -c constraints.txt
    python -m benchmarks.papers.run_all compositional_2020 [--write] [--jobs 2] [--only NAME ...]
    python -m benchmarks.papers.run_all implicit_2019 [--write] [--jobs 2] [--only NAME ...]
    python -m benchmarks.papers.run_all comet_2021 [--write] [--jobs 2] [--only NAME ...] [--data FOLDER] [--parts FOLDER]

All other options are passed to each experiment. Each experiment is a process with one thread: its networks are so small that two threads
would wait for each other. With `--write` the figures go to `benchmarks/results/` and the pictures to `docs/img/`; then the blocks of the
page under `docs/results/` are written.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed, wait
from typing import Any

from benchmarks.harness import KEEP_MEMORY, ROOT, argument_parser
from benchmarks.tables import write_tables

STAGES: Mapping[str, Sequence[Sequence[str]]] = {
    "compositional_2020": [  # the longest first, so that no long one runs alone at the end
        ("extrapolation", "continual", "paper_method", "table1", "several_objects", "inference", "implication", "recursion", "partition")
    ],
    "comet_2021": [("objects", "factors", "window_objects", "two_worlds", "light", "recombination")],
    "implicit_2019": [
        ("robustness", "continual", "benchmarks.planning", "benchmarks.side_chains", "cross_class"),
        ("benchmarks.objectives",),  # alone, because its trainings have equal time
    ],
}
"""The experiments of each paper, or modules of other benchmarks; one stage runs after the other."""

NEEDS: Mapping[str, str] = dict.fromkeys(("window_objects", "two_worlds", "light", "recombination"), "objects")
"""Experiments that load the models or judges of another one, which stands before them in their stage."""


def module_of(paper: str, name: str) -> str:
    return name if "." in name else f"benchmarks.papers.{paper}.{name}"


def run(paper: str, name: str, options: Sequence[str], needed: Future[Any] | None = None) -> tuple[str, int, float, str]:
    """Runs an experiment once a needed one has ended; returns its name, exit code, seconds, and output.

    An experiment that is alone in its stage measures time or memory, so it has the allocator that users have.
    """
    if needed is not None:
        wait([needed])
    alone = (name,) in STAGES[paper]
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", module_of(paper, name), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | ({} if alone else KEEP_MEMORY),
        check=False,
    )
    return name, done.returncode, time.perf_counter() - started, done.stdout


def main(arguments: Sequence[str] | None = None) -> int:
    names = [name for stages in STAGES.values() for stage in stages for name in stage]
    parser = argument_parser(__doc__)
    parser.add_argument("paper", choices=STAGES)
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--write", action="store_true", help="write figures, pictures and the page into the repository")
    args, options = parser.parse_known_args(arguments)
    options += ["--write"] if args.write else []
    started, failed = time.perf_counter(), []
    for stage in STAGES[args.paper]:
        with ThreadPoolExecutor(args.jobs) as pool:
            futures: dict[str, Future[tuple[str, int, float, str]]] = {}
            for name in stage:
                if name in args.only:
                    futures[name] = pool.submit(run, args.paper, name, options, futures.get(NEEDS.get(name, "")))
            for future in as_completed(futures.values()):
                name, code, seconds, printed = future.result()
                print(f"\n{'=' * 20} {name}: {seconds:.0f} s\n{printed.strip()}", flush=True)
                if code:
                    failed.append(name)
    if args.write:
        write_tables()
    print(f"\n{(time.perf_counter() - started) / 60:.1f} minutes; failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
