"""How many pictures of each world one core draws in a second, and how far what draws agrees: `python benchmarks/rendering.py [--write]`.

Every world at 64 and 128 pixels (those of a board at 70 and 126), with and without masks; those of MuJoCo by EGL and by OSMesa, each in a
process of its own on one core. Seconds are those of the processor, so that other programs count little; labels are drawn and checked
within them, starting what draws is not; the median of three runs counts. Of EGL and OSMesa the same pictures are compared: the largest
difference in grey levels, the share of values that differ, and whether labels and masks are equal.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled

RESULTS = Path(__file__).parent / "results" / "rendering.json"
RENDERED = ("one-object", "objects", "room")
FLAT = {"sprites": (64, 128), "colored-sprites": (64, 128), "tetris": (70, 126)}
BACKENDS = ("egl", "osmesa")
LEAST = 600.0  # pictures of one object in a second, 64 pixels
COMPARED = 64
REPEATS = 3


def measure(backend: str, n: int, keep: Path) -> dict[str, Any]:
    """Draws what a back end draws; `numpy` stands for the worlds that need none."""
    rows, seconds = [], {}
    for name in FLAT if backend == "numpy" else RENDERED:
        for size in FLAT.get(name, (64, 128)):
            began = time.process_time()
            world = ce.get_world(name, size=size)
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
    """The same in a process of its own, because what draws is chosen once for each; or why it does not."""
    variables = {**os.environ, "MUJOCO_GL": backend if backend != "numpy" else "", "LP_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    variables.pop("PYOPENGL_PLATFORM", None)
    command = [sys.executable, __file__, "--measure", backend, "--keep", str(keep), "-n", str(n)]
    done = subprocess.run(command, env=variables, capture_output=True, text=True)
    if done.returncode:
        return done.stderr.strip().splitlines()[-1]
    return json.loads(done.stdout)


def agreement(keep: Path) -> list[dict[str, Any]]:
    """How far the pictures of both back ends agree."""
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=200, help="pictures of each row, drawn three times")
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/rendering.json")
    parser.add_argument("--measure", choices=(*BACKENDS, "numpy"), help=argparse.SUPPRESS)
    parser.add_argument("--keep", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.measure:
        try:
            print(json.dumps(measure(asked.measure, asked.n, asked.keep)))
        except ExtraNotInstalled as error:
            sys.exit(str(error))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows, starts, missing = [], {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for backend in (*BACKENDS, "numpy"):
            found = in_a_process(backend, asked.n, Path(folder))
            if isinstance(found, str):
                missing[backend] = found
                print(f"{backend} does not draw here: {found}")
                continue
            rows += found["rows"]
            starts[backend] = found["start_seconds"]
        agree = agreement(Path(folder)) if not missing.keys() & set(BACKENDS) else []
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
    print(f"one object, 64 pixels: {one:.0f}/s on one core (at least {LEAST:.0f} are asked for)")
    if asked.write:
        told = {
            "settings": {
                "pictures": asked.n,
                "repeats": REPEATS,
                "seconds": "of the processor, labels included",
                "mujoco": _version("mujoco"),
            },
            "machine": {
                "python": platform.python_version(),
                "numpy": np.__version__,
                "cores": os.cpu_count(),
                "machine": platform.machine(),
            },
            "rows": rows,
            "start_seconds": starts,
            "agreement": agree,
            "missing": missing,
        }
        RESULTS.write_text(json.dumps(told, indent=2) + "\n")


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


if __name__ == "__main__":
    main()
