"""What more attributes cost: `python -m benchmarks.attributes [--write]`; writes a table of `docs/speed.md`.

The gradient of an expression of 8 attributes over that of one: of the faces by name, whose bases are copies of one, and of a network with
8 yes-or-no heads over the base of the faces. Processor time on one thread, in turns; medians of the ratios.
"""

import statistics
import time
from collections.abc import Iterator
from typing import Any

import torch

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, run_benchmark
from composable_energy.sampling import energy_and_gradient, twin
from composable_energy_image import CodeHeads

PATH = RESULTS / "attributes.json"
NAMES = ("male", "smiling", "glasses", "hat", "old", "hair=black", "hair=brown", "hair=red")
POINTS = (16, 64, 256)
REPEATS = 4


def expressions() -> dict[str, dict[str, ce.Energy]]:
    """Returns the expressions by family and title; the first one of a family is the unit."""
    found: dict[str, dict[str, ce.Energy]] = {}
    faces = [ce.get("energy", f"faces/{name}") for name in NAMES]
    base = ce.get("energy", "faces")
    torch.manual_seed(0)
    network = CodeHeads(len(NAMES)).eval()
    heads = [ce.ClassifierEnergy(network, 1, base, columns=column, name=f"head {column}") for column in range(len(NAMES))]
    for family, (a, b, c, d, *rest) in {"faces by name": faces, "a network of 8 heads": heads}.items():
        e, f, g, h = rest
        mixed = ((a & b) | (c & ~d)) & (e | f) & (~g | h)
        found[family] = {"1": a, "& ~": ce.all_of(a, b, c, d, e, ~f, ~g, ~h), "& | ~": mixed}
    return {family: {name: twin(energy) for name, energy in some.items()} for family, some in found.items()}


def measure(energies: dict[str, ce.Energy], points: int, rounds: int) -> dict[str, dict[str, float]]:
    """Returns the microseconds of a gradient and the ratio to the first expression, by title."""
    x = torch.randn(points, 64, generator=torch.Generator().manual_seed(0))
    times: dict[str, list[float]] = {name: [] for name in energies}
    for round_ in range(rounds + 1):
        for name, energy in energies.items():
            began = time.process_time()
            for _ in range(REPEATS):
                energy_and_gradient(energy, x, sigma=0.5)
            if round_:  # the first round is a warm-up
                times[name].append((time.process_time() - began) / REPEATS)
    unit = next(iter(times.values()))
    return {
        name: {
            "microseconds": round(statistics.median(some) * 1e6, 1),
            "ratio": round(statistics.median(a / b for a, b in zip(some, unit, strict=True)), 3),
        }
        for name, some in times.items()
    }


def run(args: Any) -> Iterator[dict[str, Any]]:
    rows: dict[str, Any] = {}
    for family, energies in expressions().items():
        rows[family] = {str(points): measure(energies, points, args.rounds) for points in POINTS}
        print(family, rows[family], flush=True)
    yield {**environment(rounds=args.rounds), "rows": rows}


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, rounds=40)
