"""What it costs to observe a run: `python -m benchmarks.trace_overhead --write`.

A step of Langevin alone, beside the same step with a trace, with running moments, and with both and a progress bar. Runs alternate in an
order that is shuffled in each round. The figures are medians of the ratios to the plain run of the same round; processor time, one thread.
The progress bar is written to memory, because the time of a terminal does not count.
"""

from __future__ import annotations

import contextlib
import io
import random
import statistics
import time
from typing import Any

import torch

import composable_energy as ce
from benchmarks.energies import Convolutions, Mixture
from benchmarks.harness import RESULTS, argument_parser, environment, write_json
from composable_energy.sampling import sample
from composable_energy_mcmc import Langevin

PATH = RESULTS / "trace_overhead.json"
MOST = 1.05


def ways() -> dict[str, dict[str, Any]]:
    """Returns the options of each variant by name; new ones for each run, because running moments have a state."""
    return {
        "plain": {},
        "progress": {"progress": True},
        "trace": {"trace": True},
        "trace, every point": {"trace": 1},
        "moments": {"callback": ce.diagnostics.RunningMoments()},
        "moments of each chain": {"callback": ce.diagnostics.RunningMoments(chains=True)},
        "trace, moments, progress": {"trace": True, "callback": ce.diagnostics.RunningMoments(), "progress": True},
    }


def seconds(energy: ce.Energy, shape: tuple[int, ...], steps: int, options: dict[str, Any]) -> float:
    """Returns the processor time of a run."""
    with contextlib.redirect_stderr(io.StringIO()):
        began = time.process_time()
        sample(energy, shape, sampler=Langevin(0.01), steps=steps, seed=0, **options)
        return time.process_time() - began


def measure(energy: ce.Energy, shape: tuple[int, ...], steps: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the microseconds of a step of each variant and the ratio to the plain one."""
    names, times = list(ways()), {name: [] for name in ways()}
    order = random.Random(0)
    for round_ in range(rounds + 1):
        order.shuffle(names)
        for name in names:
            spent = seconds(energy, shape, steps, ways()[name])
            if round_:  # the first round is a warm-up
                times[name].append(spent)
    ratios = {name: [a / b for a, b in zip(some, times["plain"], strict=True)] for name, some in times.items()}
    return {
        name: {
            "microseconds": round(statistics.median(times[name]) / steps * 1e6, 1),
            "ratio": round(statistics.median(some), 4),
            "standard_error": round(1.25 * statistics.pstdev(some) / len(some) ** 0.5, 4),
        }
        for name, some in ratios.items()
    }


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--rounds", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [
        ("mixture, 4096 points on a plane", Mixture(), (4096, 2), 100),
        ("convolutions, 16 images 3x32x32", Convolutions(), (16, 3, 32, 32), 20),
    ]
    rows = {name: measure(energy, shape, steps, args.rounds) for name, energy, shape, steps in cases}
    for name, found in rows.items():
        print(f"{name:42}{'a step':>12}{'/ plain':>10}{'+-':>8}")
        for way, row in found.items():
            over = "  more than the goal" if row["ratio"] > MOST else ""
            print(f"  {way:40}{row['microseconds']:9.0f} us{row['ratio']:10.3f}{row['standard_error']:8.3f}{over}")
    if args.write:
        write_json(PATH, {**environment(), "rounds": args.rounds, "rows": rows})


if __name__ == "__main__":
    main()
