"""Runs all experiments of the 2020 paper, two at a time, and prints their tables.

    pip install -e '.[scenes]' scipy -c constraints.txt
    python benchmarks/papers/compositional_2020/everything.py [--write] [--samples N] [--jobs 2] [--only NAME ...]

Each experiment is a process with one thread: its networks are so small that two threads wait for each other.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

HERE = Path(__file__).parent
EXPERIMENTS = (  # the longest first, so that none is left to run alone at the end
    "extrapolation",
    "continual",
    "paper_method",
    "table1",
    "several_objects",
    "inference",
    "two_cubes",
    "implication",
    "recursion",
    "partition",
)


def ran(name: str, options: list[str]) -> tuple[str, int, float, str]:
    """Runs an experiment; returns its name, exit code, seconds and what it printed."""
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(HERE / f"{name}.py"), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=False,
    )
    return name, done.returncode, time.perf_counter() - started, done.stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS, metavar="NAME", help=", ".join(EXPERIMENTS))
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (default 2)")
    parser.add_argument("--samples", type=int, help="pictures of each row, instead of what each experiment takes")
    parser.add_argument("--write", action="store_true", help="write figures and pictures into the repository")
    asked = parser.parse_args()
    options = (["--write"] if asked.write else []) + ([] if asked.samples is None else ["--samples", str(asked.samples)])
    started, failed = time.perf_counter(), []
    with ThreadPoolExecutor(asked.jobs) as pool:
        for future in as_completed([pool.submit(ran, name, options) for name in asked.only]):
            name, code, seconds, printed = future.result()
            print(f"\n{'=' * 20} {name}: {seconds:.0f} s\n{printed.strip()}", flush=True)
            if code:
                failed.append(name)
    print(f"\n{len(asked.only)} experiments in {(time.perf_counter() - started) / 60:.1f} minutes; failed: {', '.join(failed) or 'none'}")
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
