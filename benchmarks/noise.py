"""What keyed noise costs beside `torch.randn` of the same shape: `python benchmarks/noise.py`.

Three ways to get the noise of a step: *added* to points, as a Langevin step does it, less the cost of adding; *drawn*, as new numbers; and
Philox, drawn. They are measured in turns, one thread, and the least processor time of several rounds counts, which other programs change
little. Writes `benchmarks/results/noise.json`.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch

from composable_energy.noise import Noise

RESULTS = Path(__file__).parent / "results" / "noise.json"
SHAPES = ((64, 3, 64, 64), (16, 3, 32, 32), (1024, 100), (4096, 2), (64, 64), (64, 2))
ROUNDS, SECONDS = 15, 0.02


def times(works: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Returns the least seconds of each, measured in turns."""
    repeats = {}
    for name, work in works.items():
        work()
        begin = time.process_time()
        work()
        repeats[name] = max(1, int(SECONDS / max(time.process_time() - begin, 1e-6)))
    least = dict.fromkeys(works, float("inf"))
    for _ in range(ROUNDS):
        for name, work in works.items():
            begin = time.process_time()
            for _ in range(repeats[name]):
                work()
            least[name] = min(least[name], (time.process_time() - begin) / repeats[name])
    return least


def measure(shape: tuple[int, ...]) -> dict[str, float]:
    """Returns the microseconds of `torch.randn`, and how many of them each kind of noise costs."""
    x, chains = torch.zeros(shape), range(shape[0])
    blocks, philox, numbers = Noise(0, chains), Noise(0, chains, kind="philox"), torch.randn(shape)
    found = times(
        {
            "randn": lambda: torch.randn(shape),
            "add": lambda: x.add_(numbers, alpha=0.1),
            "added": lambda: blocks.at(1).add_normal_(x, 0.1),
            "drawn": lambda: blocks.at(1).normal(x),
            "philox": lambda: philox.at(1).normal(x),
        }
    )
    randn = found["randn"]
    ratios = {"added": (found["added"] - found["add"]) / randn, "drawn": found["drawn"] / randn, "philox": found["philox"] / randn}
    return {"randn_microseconds": round(randn * 1e6, 1), **{name: round(ratio, 3) for name, ratio in ratios.items()}}


def main() -> None:
    """Prints the table and saves it."""
    torch.set_num_threads(1)
    rows = {}
    print(f"{'shape':20}{'randn':>12}{'added':>10}{'drawn':>10}{'philox':>10}")
    for shape in SHAPES:
        row = rows[str(shape)] = measure(shape)
        print(f"{shape!s:20}{row['randn_microseconds']:9.1f} us{row['added']:10.2f}{row['drawn']:10.2f}{row['philox']:10.2f}", flush=True)
    about = {"command": "python benchmarks/noise.py", "python": platform.python_version(), "torch": torch.__version__}
    RESULTS.write_text(json.dumps({**about, "machine": platform.machine(), "times_randn": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
