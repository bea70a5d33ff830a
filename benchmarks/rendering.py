"""How many pictures of each world one core renders per second, and how far the renderers agree: `python -m benchmarks.rendering [--write]`.

Every world at 64 and 128 pixels (worlds on a board at 70 and 126), with and without masks; the worlds of MuJoCo by EGL and by OSMesa, each
in a process of its own on one core. Times are processor seconds, so that other programs count little; they include drawing and checking
the labels, and not the start of the renderer; the median of three runs counts. EGL and OSMesa render the same pictures, compared by the
largest difference in grey levels, the share of values that differ, and the equality of labels and masks.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import composable_energy as ce
from benchmarks.harness import RESULTS, argument_parser, environment, write_json
from composable_energy.errors import ExtraNotInstalled

PATH = RESULTS / "rendering.json"
RENDERED = ("one-object", "objects", "room")
FLAT = {"sprites": (64, 128), "colored-sprites": (64, 128), "tetris": (70, 126)}
BACKENDS = ("egl", "osmesa")
LEAST = 600.0  # pictures of one object in a second, 64 pixels
COMPARED = 64
REPEATS = 3


def measure(backend: str, n: int, keep: Path) -> dict[str, Any]:
    """Returns the rates of a renderer, and the seconds of its start; `numpy` stands for the worlds without a renderer."""
    rows, seconds = [], {}
    for name in FLAT if backend == "numpy" else RENDERED:
        for size in FLAT.get(name, (64, 128)):
            began = time.process_time()
            world = ce.get("world", name, size=size)
            first = world.draw(2, masks=True)
            seconds[f"{name} {size}"] = time.process_time() - began
            assert first.images.any()
            for masks in (False, True):
                rates = []
                for seed in range(REPEATS):
                    began = time.process_time()
                    world.draw(n, seed=seed, masks=masks)
                    rates.append(n / (time.process_time() - began))
                rate = {"rate": statistics.median(rates), "least": min(rates), "most": max(rates)}
                rows.append({"world": name, "size": size, "masks": masks, "by": backend, **rate})
            if backend != "numpy":
                drawn = world.draw(COMPARED, seed=2, masks=True)
                (keep / backend).mkdir(exist_ok=True)
                np.savez(keep / backend / f"{name} {size}.npz", images=drawn.images, masks=drawn.masks, **drawn.labels)
    return {"rows": rows, "start_seconds": seconds}


def in_a_process(backend: str, n: int, keep: Path) -> dict[str, Any] | str:
    """Returns the same from a new process, because a process has one renderer; or the reason why it failed."""
    variables = {**os.environ, "MUJOCO_GL": backend if backend != "numpy" else "", "LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    variables.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, "-m", "benchmarks.rendering", "--measure", backend, "--keep", str(keep), "-n", str(n)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout)


def agreement(keep: Path) -> list[dict[str, Any]]:
    """Returns the differences between the pictures of both renderers."""
    rows = []
    for path in sorted((keep / "egl").glob("*.npz")):
        with np.load(path) as one, np.load(keep / "osmesa" / path.name) as other:
            apart = np.abs(one["images"].astype(int) - other["images"])
            equal = all(np.array_equal(one[name], other[name]) for name in one.files if name != "images")
        name, size = path.stem.split()
        rows.append(
            {
                "world": name,
                "size": int(size),
                "pictures": COMPARED,
                "most_grey_levels": int(apart.max()),
                "share_of_values_that_differ": float((apart > 0).mean()),
                "labels_and_masks_equal": equal,
            }
        )
    return rows


def print_rates(rows: list[dict[str, Any]], agree: list[dict[str, Any]]) -> None:
    """Prints the table of rates and the differences between the renderers."""
    print(f"{'world':<18}{'pixels':>6}{'by':>8}{'pictures/s':>12}{'with masks':>12}")
    for row in rows:
        if not row["masks"]:
            same = ("world", "size", "by")
            other = next(r["rate"] for r in rows if r["masks"] and all(r[key] == row[key] for key in same))
            print(f"{row['world']:<18}{row['size']:>6}{row['by']:>8}{row['rate']:>12.0f}{other:>12.0f}")
    for row in agree:
        print(
            f"EGL and OSMesa, {row['world']} at {row['size']}: at most {row['most_grey_levels']} grey levels apart, "
            f"labels and masks {'equal' if row['labels_and_masks_equal'] else 'DIFFER'}"
        )
    one = min((row["rate"] for row in rows if (row["world"], row["size"], row["masks"]) == ("one-object", 64, False)), default=0.0)
    print(f"one object, 64 pixels: {one:.0f}/s on one core (at least {LEAST:.0f} is the goal)")


def main() -> None:
    parser = argument_parser(__doc__, PATH, whole=True)
    parser.add_argument("-n", type=int, default=200, help="pictures of each row, drawn three times")
    parser.add_argument("--measure", choices=(*BACKENDS, "numpy"), help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        try:
            print(json.dumps(measure(args.measure, args.n, args.keep)))
        except ExtraNotInstalled as error:
            sys.exit(str(error))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows, starts, missing = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in (*BACKENDS, "numpy"):
            found = in_a_process(backend, args.n, Path(folder))
            if isinstance(found, str):
                missing[backend] = found
                print(f"{backend} does not render here: {found}")
                continue
            rows += found["rows"]
            starts[backend] = found["start_seconds"]
        agree = agreement(Path(folder)) if not missing.keys() & set(BACKENDS) else []
    print_rates(rows, agree)
    if args.write:
        settings = environment("mujoco", "numpy", pictures=args.n, repeats=REPEATS, cores=os.cpu_count())
        write_json(PATH, {"about": settings, "rows": rows, "start_seconds": starts, "agreement": agree, "missing": missing})


if __name__ == "__main__":
    main()
