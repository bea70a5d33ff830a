"""Draws of faces in float32 and in bfloat16: `python -m benchmarks.precision [--write]`; writes a table of `docs/speed.md`.

The expression `male & ~smiling`, processor time of one thread, the least of several turns after a first call, and the share of pictures
that the judge of the faces finds correct. The processor needs instructions for bfloat16, or it emulates them, many times as slowly.
"""

from __future__ import annotations

import time
from typing import Any

import torch

import composable_energy as ce
from benchmarks import speed_page
from benchmarks.harness import RESULTS, argument_parser, environment, write_json
from benchmarks.pages import write_page
from composable_energy_faces import judge

PATH = RESULTS / "precision.json"
PICTURES = (16, 64, 1000)
WAYS = [(precision, compile) for compile in (False, True) for precision in ("float32", "bfloat16")]


def measure(pictures: int, rounds: int) -> list[dict[str, Any]]:
    """Returns a row for each way to draw so many pictures; the ways take turns."""
    energy = ce.get_energy("faces/male") & ~ce.get_energy("faces/smiling")
    times: dict[tuple[str, bool], list[float]] = {way: [] for way in WAYS}
    correct = dict.fromkeys(WAYS, 0.0)
    for seed in range(rounds + 1):
        for precision, compile in WAYS:
            began = time.process_time()
            x = energy.sample(pictures, precision=precision, compile=compile, seed=seed)
            seconds, found = time.process_time() - began, judge(x)
            if seed:  # the first round compiles
                times[precision, compile].append(seconds)
                correct[precision, compile] += float((found["male"] & ~found["smiling"]).float().mean()) / rounds
    return [
        {"pictures": pictures, "precision": way[0], "compile": way[1], "seconds": round(min(some), 3), "correct": round(correct[way], 4)}
        for way, some in times.items()
    ]


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for pictures in PICTURES:
        for row in measure(pictures, args.rounds):
            print(row, flush=True)
            rows.append(row)
    if args.write:
        write_json(PATH, {**environment(rounds=args.rounds), "rows": rows})
        write_page(speed_page.PAGE, speed_page.blocks())


if __name__ == "__main__":
    main()
