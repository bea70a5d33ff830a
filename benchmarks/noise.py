"""What keyed noise costs beside `torch.randn` of the same shape: `python -m benchmarks.noise --write`.

Three ways to get the noise of a step: *added* to points as in a Langevin step, less the cost of the addition; *drawn* as new numbers; and
Philox noise, drawn. One thread.
"""

from __future__ import annotations

from itertools import count

import torch

from benchmarks.harness import RESULTS, argument_parser, environment, least_seconds, write_json
from composable_energy.sampling.noise import Noise

PATH = RESULTS / "noise.json"
SHAPES = ((64, 3, 64, 64), (16, 3, 32, 32), (1024, 100), (4096, 2), (64, 64), (64, 2))


def measure(shape: tuple[int, ...]) -> dict[str, float]:
    """Returns the microseconds of `torch.randn`, and the cost of each kind of noise as a multiple of it."""
    x, chains = torch.zeros(shape), range(shape[0])
    added, drawn, philox, numbers = Noise(0, chains), Noise(1, chains), Noise(0, chains, kind="philox"), torch.randn(shape)
    steps, other_steps, more_steps = count(), count(), count()  # in succession, as a sampler takes them
    found = least_seconds(
        {
            "randn": lambda: torch.randn(shape),
            "add": lambda: x.add_(numbers, alpha=0.1),
            "added": lambda: added.at(next(steps)).add_normal_(x, 0.1),
            "drawn": lambda: drawn.at(next(other_steps)).normal(x),
            "philox": lambda: philox.at(next(more_steps)).normal(x),
        },
        rounds=15,
        seconds=0.02,
    )
    randn = found["randn"]
    ratios = {"added": (found["added"] - found["add"]) / randn, "drawn": found["drawn"] / randn, "philox": found["philox"] / randn}
    return {"randn_microseconds": round(randn * 1e6, 1), **{name: round(ratio, 3) for name, ratio in ratios.items()}}


def main() -> None:
    args = argument_parser(__doc__, PATH).parse_args()
    torch.set_num_threads(1)
    rows = {}
    print(f"{'shape':20}{'randn':>12}{'added':>10}{'drawn':>10}{'philox':>10}")
    for shape in SHAPES:
        row = rows[str(shape)] = measure(shape)
        print(f"{shape!s:20}{row['randn_microseconds']:9.1f} us{row['added']:10.2f}{row['drawn']:10.2f}{row['philox']:10.2f}", flush=True)
    if args.write:
        write_json(PATH, {**environment(), "times_randn": rows})


if __name__ == "__main__":
    main()
