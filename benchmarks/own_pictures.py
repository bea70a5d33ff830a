r"""An energy of a folder of pictures, trained from the command line: its cost, and the accuracy of expressions of its attributes.

    python -m benchmarks.own_pictures [--work .cache/own-pictures] [--samples 1000] [--set KEY=VALUE ...] [--write]

Drawn faces stand for a user's own pictures: 20,000 files of 64 x 64 pixels with a table. `base-and-attributes` is trained on them by one
command, then `attribute` on 1,000 others with the label `smiling` alone, and the classifier of the faces evaluates the samples. A run that
was stopped continues with the same command. Processor seconds are those of both commands, with reading the pictures and drawing the sheets
of samples; work between the last checkpoint and a kill is not counted.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import composable_energy as ce
from benchmarks.harness import RESULTS, environment, read_json, run_benchmark, write_json
from composable_energy_faces import draw
from composable_energy_faces.export import export
from composable_energy_faces.judge import features, frechet_distance
from composable_energy_faces.scores import CRITERIA, Criterion, build_expression, score

PATH = RESULTS / "own_pictures.json"


def train(recipe: str, data: Path, out: Path, settings: Sequence[str], steps: int | None = None) -> dict[str, Any]:
    """Trains by the command line, unless the run is finished; returns the report of the run and its cost."""
    cost = out.with_suffix(".json")
    if not cost.exists():
        command = [sys.executable, "-m", "composable_energy", "train", "--recipe", recipe, "--data", str(data), "--out", str(out)]
        command += [word for setting in settings for word in ("--set", setting)]
        command += [] if steps is None else ["--steps", str(steps)]
        before = sum(read_json(file)["cpu_seconds"] for file in out.glob("stages/*/costs.json"))
        began, used = time.perf_counter(), _used()
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        figures = {"cpu_seconds": before + _used() - used, "seconds": time.perf_counter() - began, "resumed": before > 0}
        write_json(cost, figures)
    return {**read_json(out / "report.json"), **read_json(cost)}


def evaluate(rows: Sequence[Criterion], energies: Mapping[str, ce.Energy], samples: int, seed: int) -> dict[str, Any]:
    """Returns for each row the share of samples with the requested attributes."""
    found = {}
    for row in rows:
        found[row.text] = {"joint": score(build_expression(row, energies), row, samples=samples, seed=seed)[0]["joint"]}
        print(f"{row.text:<40}{found[row.text]['joint']:>7.3f}", flush=True)
    return found


def quality(base: ce.Energy, samples: int, seed: int) -> dict[str, float]:
    """Returns the Frechet distances of samples of the base, and of other drawn faces, to drawn faces."""
    faces = draw(2 * samples, seed=3).images
    seen = [features(part) for part in (base.sample(samples, seed=seed), *faces.split(samples))]
    return {"samples": frechet_distance(seen[0], seen[1]), "drawn": frechet_distance(seen[2], seen[1])}


def _used() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def run(args: Any) -> Iterator[dict[str, Any]]:
    faces, others, trained, new = (args.work / name for name in ("faces", "new", "run", "run-new"))
    if not (faces / "attributes.csv").exists():
        export(faces, args.pictures, seed=11, progress=True)
    if not (others / "attributes.csv").exists():
        export(others, 1000, seed=12, attributes=["smiling"])
    report: dict[str, Any] = {**environment(), "pictures": args.pictures}
    report |= {"samples": args.samples, "seed": args.seed, "settings": args.set}
    report["base-and-attributes"] = train("base-and-attributes", faces, trained, args.set)
    report["attribute"] = train("attribute", others, new, [f"model.base={trained / 'base'}"])
    for name in ("base-and-attributes", "attribute"):
        print(name + ": {cpu_seconds:.0f} processor seconds, {seconds:.0f} by the clock".format(**report[name]))
    energies = {name: ce.load(trained / name) for name in report["base-and-attributes"]["energies"]}
    report["rows"] = evaluate(CRITERIA, energies, args.samples, args.seed)
    some = [row for row in CRITERIA if row.text in ("male & smiling", "male & ~smiling")]
    print("with `smiling` from the new head:")
    report["rows with the new attribute"] = evaluate(some, {**energies, "smiling": ce.load(new / "smiling")}, args.samples, args.seed)
    report["frechet"] = quality(energies["base"], args.samples, args.seed)
    print("Frechet distance to drawn faces: {samples:.2f} of samples, {drawn:.2f} of other drawn faces".format(**report["frechet"]))
    yield report


if __name__ == "__main__":
    run_benchmark(__doc__, PATH, run, work=Path(".cache/own-pictures"), pictures=20_000, samples=1000, seed=0, set=())
