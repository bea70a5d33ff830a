"""Draws each posterior by the defaults of `sample`, and compares with the references: `python -m benchmarks.posteriors`.

Each row is one call `as_energy(f, event_shape=(d,)).sample(64, seed=s, trace=1)`: 64 chains, default sampler, steps and options. All
points that the trace kept are pooled. Errors are in standard deviations of the reference, the largest over all statistics; standard errors
come from effective sample sizes over chains. A row is right if each mean is within .1 sd, or 4 standard errors, and each sd within 5 %, or
4 standard errors. It is undecided where a standard error exceeds .05 sd.

The starts: `default` gives none; `zeros` starts all chains at 0; `far` starts each coordinate 10 sds from its mean, to a random side.
Warnings are those that the call emits and those of its trace. Gradients are points at which the energy was evaluated: all of the call,
tuning included, and those after the first recorded step, per least effective draw of any statistic and its square.

`--peers` also runs NumPyro's NUTS and BlackJAX' ChEES (the environment of `make bench-peers`). A few rows, quickly:

    python -m benchmarks.posteriors --rows logistic funnel --seeds 0 --starts default
"""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, read_options, replace_rows, write_json
from benchmarks.posteriors.accuracy import OURS, Reference, compare, print_row, read_reference
from benchmarks.posteriors.target import Target
from benchmarks.posteriors.targets import TARGETS, get_target
from composable_energy.errors import ComposableEnergyError

PATH = RESULTS / "posteriors.json"
STARTS = ("default", "zeros", "far")
CHAINS = 64
Figures = dict[str, Any]


class Counter:
    """Counts the points at which a function was evaluated. The count is a tensor, which copies of the function share."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        self.function, self.points = function, torch.zeros((), dtype=torch.int64)

    def lifted(self) -> Callable[[Tensor], Tensor]:
        """Returns a plain function, as users lift one."""
        function, points = self.function, self.points

        def energy(x: Tensor) -> Tensor:
            points.add_(len(x))
            return function(x)

        return energy


def start_points(start: str, target: Target, reference: Reference, seed: int) -> Tensor | None:
    """Returns the points where 64 chains start, with shape $(64, d)$; None for the default."""
    center, scale = torch.tensor(reference.center), torch.tensor(reference.scale)
    if start == "default":
        return None
    if start == "zeros":
        return torch.tensor(target.origin or [0.0] * target.dimension).repeat(CHAINS, 1)
    generator = torch.Generator().manual_seed(seed)
    sides = 2.0 * torch.randint(2, (CHAINS, len(center)), generator=generator) - 1
    return center + 10 * scale * sides


def measure(target: Target, reference: Reference, seed: int, start: str) -> Figures:
    """Returns the figures of one call with the defaults of `sample`."""
    counter, marks = Counter(target.energy), []
    energy = ce.as_energy(counter.lifted(), name=target.name, event_shape=(target.dimension,))
    row: Figures = {"row": target.name, "sampler": OURS, "seed": seed, "start": start}
    watch, init = ce.sampling.Stop(lambda *_: marks.append(int(counter.points))), start_points(start, target, reference, seed)
    began = time.process_time()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            _, trace = energy.sample(CHAINS, seed=seed, trace=1, init=init, observers=[watch])
        except ComposableEnergyError as error:
            failed = {"error": f"{type(error).__name__}: {str(error)[:300]}", "warnings": sorted({_kind(some.message) for some in caught})}
            return {**row, **failed, "gradients": int(counter.points), "seconds": time.process_time() - began}
        seconds = time.process_time() - began
        found = {_kind(some.message) for some in caught} | {_kind(some) for some in trace.warnings()}
    values = target.statistics(trace.points.double().flatten(0, 1)).unflatten(0, trace.points.shape[:2])
    recorded = (marks[-1] - marks[0]) * len(marks) / max(len(marks) - 1, 1)
    return {**row, "draws": len(values), **figures(values, reference, int(counter.points), recorded, seconds), "warnings": sorted(found)}


def figures(values: Tensor, reference: Reference, gradients: int, recorded: float, seconds: float) -> Figures:
    accuracy = asdict(compare(values, reference))
    size = max(accuracy["ess"], 1.0)
    costs = {"gradients": gradients, "gradients_per_effective": recorded / size, "all_gradients_per_effective": gradients / size}
    return {**accuracy, **costs, "seconds": seconds, "seconds_per_effective": seconds / size}


def _kind(warning: Warning | str) -> str:
    return str(getattr(warning, "kind", type(warning).__name__))


def rows(names: Sequence[str], seeds: Sequence[int], starts: Sequence[str], peers: bool) -> Iterator[Figures]:
    """Yields the rows of the table. Peers start by their own defaults."""
    for name in names:
        target = get_target(name)
        reference = read_reference(target)
        for seed in seeds:
            for start in starts:
                yield measure(target, reference, seed, start)
            if peers:
                from benchmarks.posteriors.peers import measure_peers  # needs JAX

                yield from measure_peers(target, reference, seed, figures)


def main(arguments: Sequence[str] | None = None) -> None:
    options = read_options(__doc__, PATH, arguments, rows=list(TARGETS), seeds=[0, 1, 2], starts=list(STARTS), peers=False)
    found = []
    for row in rows(options.rows, options.seeds, options.starts, options.peers):
        print_row(row)
        found.append(row)
    if options.write:
        all_rows = replace_rows(PATH, found, ("row", "sampler", "seed", "start"))
        places = {name: place for place, name in enumerate(TARGETS)}
        ordered = sorted(all_rows, key=lambda row: (places[row["row"]], row["sampler"] != OURS, row["sampler"], row["start"], row["seed"]))
        about = environment("composable-energy", "numpyro", "blackjax", "jax", chains=CHAINS)
        write_json(PATH, {"settings": about, "rows": ordered})


if __name__ == "__main__":
    main()
