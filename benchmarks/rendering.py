"""How many pictures of each world one core renders per second: `MUJOCO_GL=egl python -m benchmarks.rendering [--write]`.

Every world at 64 and 128 pixels (worlds on a board at 70 and 126), with and without masks. `MUJOCO_GL`, `egl` or `osmesa`, is the renderer
of the worlds of MuJoCo; one process has one renderer. Times are processor seconds, so that other programs count little; they include
drawing and checking the labels, and not the start of the renderer; the median of three runs counts.
"""

import os
import statistics
import time
from collections.abc import Iterator
from typing import Any

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, replace_rows, run_benchmark

PATH = RESULTS / "rendering.json"
RENDERED = dict.fromkeys(("one-object", "objects", "room"), (64, 128))
FLAT = {"sprites": (64, 128), "colored-sprites": (64, 128), "tetris": (70, 126)}
REPEATS = 3


def measure(name: str, size: int, n: int) -> list[dict[str, Any]]:
    """Returns the rates of a world without and with masks."""
    world, rows = ce.get("world", name, size=size), []
    world.draw(2, masks=True)
    for masks in (False, True):
        rates = []
        for seed in range(REPEATS):
            began = time.process_time()
            world.draw(n, seed=seed, masks=masks)
            rates.append(n / (time.process_time() - began))
        by = os.environ.get("MUJOCO_GL", "default") if name in RENDERED else "numpy"
        figures = {"rate": statistics.median(rates), "least": min(rates), "most": max(rates)}
        rows.append({"world": name, "size": size, "masks": masks, "by": by, **figures})
        print(rows[-1], flush=True)
    return rows


def run(args: Any) -> Iterator[dict[str, Any]]:
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = [row for name, sizes in (RENDERED | FLAT).items() for size in sizes for row in measure(name, size, args.n)]
    about = environment("mujoco", "numpy", pictures=args.n, repeats=REPEATS, cores=os.cpu_count())
    yield {**about, "rows": replace_rows(PATH, rows, ("world", "size", "masks", "by"))}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, n=200)
