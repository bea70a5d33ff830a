"""Draws random expressions by five samplers and compares the draws with quadrature: `python -m tests.truth`. A run is *wrong* if a p-value
is below the limit that the number of all tests sets, and never above that of 4.5 standard errors. A wrong run needs a warning from the
call; a warning of a right run is counted as false."""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from scipy import stats

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, SupportWarning
from tests.truth.comparison import Comparison, compare_independent, compare_runs
from tests.truth.expressions import Case, draw_case
from tests.truth.plants import PLANTS

SAMPLERS = ("chees", "mala", "hmc", "tempering", "smc")
_DRAWS, _RUNS, _DRAWS_OF_A_RUN = 1000, 12, 200
_ERRORS, _FAMILY = 4.5, 0.01
_DEPENDENT = ("smc",)  # particles share ancestors


@dataclass(frozen=True)
class Run:
    """The draws of an expression by a sampler: the smallest of so many p-values, and the warnings or the error of the call."""

    number: int
    expression: str
    sampler: str
    p: float = 1.0
    tests: int = 0
    where: str = ""
    warned: tuple[str, ...] = ()
    refused: str = ""
    crashed: str = ""


def _draw(case: Case, energy: ce.Energy, sampler: str | ce.samplers.Sampler, seed: int) -> Comparison:
    draw = partial(energy.sample, sampler=ce.get("sampler", sampler) if isinstance(sampler, str) else sampler, allow_improper=True)
    shape = (case.space.event,)
    if sampler not in _DEPENDENT:
        return compare_independent(case, draw((_DRAWS, *shape), seed=seed))
    return compare_runs(case, [draw((_DRAWS_OF_A_RUN, *shape), seed=seed + i) for i in range(_RUNS)])


def run_case(seed: int, number: int, samplers: Sequence[str] = SAMPLERS) -> list[Run]:
    """Returns the runs of one expression by all samplers."""
    torch.set_num_threads(1)
    case = draw_case(seed, number)
    return [_run(case, case.energy, number, sampler, seed) for sampler in samplers]


def _run(case: Case, energy: ce.Energy, number: int, sampler: str | ce.samplers.Sampler, seed: int) -> Run:
    run = partial(Run, number, str(case), sampler if isinstance(sampler, str) else type(sampler).__name__)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = _draw(case, energy, sampler, seed)
        except Exception as error:
            return run(**{"refused" if isinstance(error, ComposableEnergyError) else "crashed": f"{type(error).__name__}: {error}"})
    about_draws = (ce.SamplingWarning, SupportWarning)
    said = {str(w.message) for w in caught if issubclass(w.category, about_draws) and not _of_the_expression(w.message)}
    return run(found.p, found.count, found.where, tuple(sorted(said)))


def _of_the_expression(warning: Warning | str) -> bool:
    """Returns whether a warning says that right draws hardly show a formula."""
    return isinstance(warning, ce.SamplingWarning) and warning.kind == "formula"


def run_plant(name: str, seed: int, count: int) -> list[Run]:
    """Returns runs of expressions with a planted error."""
    spaces, plant = PLANTS[name]
    runs, number = [], 0
    while len(runs) < count:
        case = draw_case(seed, number)
        if case.space.name in spaces:
            energy, sampler = plant(case)
            runs.append(_run(case, energy, number, sampler or "chees", seed))
        number += 1
    return runs


def limit(runs: Sequence[Run]) -> float:
    """Returns the p-value below which a run is wrong."""
    return min(2 * stats.norm.sf(_ERRORS), _FAMILY / max(1, sum(run.tests for run in runs)))


def judge(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs that are silently wrong, wrong with a warning, right, right with a warning, refused and crashed."""
    least = limit(runs)
    found: dict[str, list[Run]] = {k: [] for k in ("silent", "wrong and warned", "right", "right and warned", "refused", "crashed")}
    for run in runs:
        judged = ("silent", "wrong and warned") if run.p < least else ("right", "right and warned")
        found["crashed" if run.crashed else "refused" if run.refused else judged[bool(run.warned)]].append(run)
    return found


def report(runs: Sequence[Run]) -> bool:
    """Prints what was found, and returns whether no run is silently wrong and few warnings are false."""
    found = judge(runs)
    print(f"{len(runs)} runs, {sum(run.tests for run in runs):,} tests, limit p = {limit(runs):.2g}")
    for kind, some in found.items():
        by_sampler = ", ".join(f"{name} {count}" for name, count in sorted(Counter(run.sampler for run in some).items()))
        print(f"{kind:>18}: {len(some):4}  {by_sampler}")
    for kind in ("silent", "crashed", "wrong and warned", "right and warned", "refused"):
        for run in found[kind]:
            what = run.crashed or run.refused or f"p = {run.p:.1e} at {run.where}  {' | '.join(run.warned)}"
            print(f"\n{kind}: {run.sampler}, expression {run.number}: {run.expression}\n    {what[:600]}")
    right = len(found["right"]) + len(found["right and warned"])
    false = len(found["right and warned"]) / max(1, right)
    print(f"\nsilently wrong {len(found['silent'])}, crashed {len(found['crashed'])}, false warnings {false:.1%} of {right} right runs")
    return not found["silent"] and not found["crashed"] and false <= 0.02


def main() -> int:
    """Runs the comparison."""
    parser = argparse.ArgumentParser(prog="python -m tests.truth", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=200, help="number of expressions")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--seed", type=int, default=2026, help="the seed of expressions and draws")
    parser.add_argument("--samplers", nargs="+", default=SAMPLERS)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, help="a JSON file for the runs")
    parser.add_argument("--plant", choices=sorted(PLANTS), help="plant an error, which has to be found")
    options = parser.parse_args()
    if options.plant:
        runs = run_plant(options.plant, options.seed, options.count)
        found = judge(runs)
        print(f"{options.plant}: found in {len(found['silent']) + len(found['wrong and warned'])} of {len(runs)} runs")
        return 0 if found["silent"] or found["wrong and warned"] else 1
    with ProcessPoolExecutor(options.workers) as pool:
        numbers = range(options.first, options.first + options.count)
        runs: list[Run] = []
        for some in pool.map(partial(run_case, options.seed, samplers=options.samplers), numbers):
            runs += some
            print(f"\r{len(runs)} runs", end="", file=sys.stderr)
            if options.out:  # what an interrupted command has found stays
                options.out.write_text(json.dumps([asdict(run) for run in runs], indent=1) + "\n", encoding="utf-8")
    return 0 if report(runs) else 1


if __name__ == "__main__":
    sys.exit(main())
