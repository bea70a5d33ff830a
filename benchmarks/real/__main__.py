"""The recipe `base-and-attributes` on real pictures, beside what a judge says of real ones.

    make real-data
    python -m benchmarks.real [--only fashion type digits few-digits] [--seeds 0] [--samples 1000] [--device cuda] [--out FILE]

Of pictures that were asked to fulfil an expression, a row has the share for which a judge, a classifier that was trained on other pictures,
says so: of real held-out ones that do fulfil it, of their reconstructions, and of draws of the expression with weight 1 and 2. The judge
errs, so the first share is what a perfect sampler would reach. Below is the Frechet distance in features of the judge to pictures of the
judge's part, the mean of up to four sets of as many pictures as there are draws of an expression. Rows of `EDITS` have the share of real
pictures that are edited to what is asked, and how much a pixel changes on average, beside its difference between two real pictures. A
training is kept in `.real-data/runs` and used again; delete its folder to train anew. Each process takes a set and a seed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import KEEP_MEMORY, environment, read_json, read_options, write_json
from benchmarks.pages import code_cell, columns, number
from benchmarks.real.data import SETS, RealSet, open_set
from benchmarks.real.fetch import REAL
from benchmarks.real.judges import Judge, fulfils, load_judge
from composable_energy_cli.parsing import parse
from composable_energy_image.base_and_attributes import base_and_attributes
from composable_energy_image.metrics import frechet_distance
from composable_energy_latent import edit

EXPRESSIONS = {
    "fashion": """dress, footwear & bright, bag ^ dress, ~bright & bag, ~footwear & ~upper, upper & ~bright & ~wide,
        (upper | dress) & ~wide & bright, (footwear | bag) & ~bright, upper & (bright >> wide), (upper ^ wide) & bright,
        ~footwear & ~bag & wide, (dress | trousers) & bright & ~wide, (upper & wide) | (trousers & bright),
        ~(upper | dress | bag) & bright & ~wide""",
    "digits": """even & has_loop, prime & ~even, above4 >> has_loop, ~even & ~prime, has_loop & above4 & ~even, has_loop & ~above4,
        (prime ^ even) & ~has_loop""",
    "type": """bold & italic, serif & ~bold, monospaced ^ handwritten, bold >> capital, capital & bold & ~serif, italic & ~bold & ~serif,
        (serif | italic) & bold & capital, letter=a & capital & bold, (letter=b | letter=r) & capital""",
}
EXPRESSIONS["few-digits"] = EXPRESSIONS["digits"]
"""Expressions of each set, between commas."""

EDITS = {"fashion": (("upper & ~bright", "bright", "upper"), ("dress & ~wide", "wide", "dress"), ("trousers & bright", "dress", "bright"))}
"""For each set pictures, what is asked, and what is kept."""
EDITED = slice(200, 300)  # others of these pictures chose the settings of edits

KINDS = ("real", "reconstructed", "weight 1", "weight 2")
REFERENCE, PARTS, FRECHET, CHANGE = 5000, 4, "Frechet distance", "change of pixels,"  # distances of two sets of 1,000 differ by up to 5


def train(real: RealSet, scale: float, seed: int, device: str = "cpu") -> Path:
    """Returns the folder of a run of the recipe; one that is finished is used again."""
    out = REAL / "runs" / (f"{real.name}-{seed}" + f"-steps-{scale:g}" * (scale != 1))
    if not (out / "report.json").exists():
        recipe = base_and_attributes()
        steps = {f"{name}.steps": max(1, round(scale * table["steps"])) for name, table in recipe.settings.items() if "steps" in table}
        recipe = recipe.with_changes({"training.seed": seed, "training.device": device, **steps})
        recipe.run(real.write_library(REAL / "runs" / f"{real.name}.npz"), out)
    return out


def measure(real: RealSet, judge: Judge, run: Path, samples: int, seed: int, device: str) -> Iterator[dict[str, Any]]:
    """Yields a row for each expression, and one of Frechet distances. The judge runs on the CPU."""
    energies = {name: energy.to(device) for name, energy in ce.load(run).items()}
    base, pictures = energies["base"], real.held_out.images
    reconstructed = torch.cat([base.decoder(base.decoder.encode(some.to(device))).detach().cpu() for some in pictures.split(250)])
    truths = real.truths(pictures, real.held_out.marks)
    seen = [real.truths(images, judge.marks(images)) for images in (pictures, reconstructed)]
    for text in map(str.strip, EXPRESSIONS[real.name].split(",")):
        rows = fulfils(text, truths)
        shares = [fulfils(text, found)[rows] for found in seen]
        for energy in (parse(words).build(energies) for words in (text, f"2 * ({text})")):
            images = energy.sample(samples, seed=seed).cpu()
            shares.append(fulfils(text, real.truths(images, judge.marks(images))))
        yield {"set": real.name, "row": text, **{kind: float(some.float().mean()) for kind, some in zip(KINDS, shares, strict=True)}}

    for text, asked, kept in EDITS.get(real.name, ()):
        rows, goal = fulfils(text, truths).nonzero()[EDITED, 0], f"{asked} & {kept}"
        own = pictures[rows]
        images = edit(base.decoder.encode(own.to(device)).detach(), energies[asked], keep=[energies[kept]]).images.cpu()
        shares = (
            fulfils(goal, seen[0])[fulfils(goal, truths)],
            fulfils(goal, seen[1])[rows],
            fulfils(goal, real.truths(images, judge.marks(images))),
        )
        changes = [(some - own).abs() for some in (own.roll(1, 0), reconstructed[rows], images)]
        for row, values in ((f"edit {text} to {goal}", shares), (f"{CHANGE} {text} to {goal}", changes)):
            yield {"set": real.name, "row": row, **{kind: float(some.float().mean()) for kind, some in zip(KINDS[:3], values, strict=True)}}

    def distance(images: Tensor) -> float:
        parts = [some for some in images.split(samples)[:PARTS] if len(some) == min(samples, len(images))]
        return sum(frechet_distance(some, real.judge.take(slice(REFERENCE)).images, judge.features) for some in parts) / len(parts)

    sets = (pictures, reconstructed, base.sample(PARTS * samples, seed=seed).cpu())
    yield {"set": real.name, "row": FRECHET, **{kind: distance(images) for kind, images in zip(KINDS[:3], sets, strict=True)}}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    named = {name: lambda row, name=name: str(row[name]) for name in ("seed", "set")}
    named["expression"] = lambda row: row["row"] if row["row"] == FRECHET else code_cell(row["row"])
    return columns(rows, named | {kind: lambda row, kind=kind: number(kind, 1 if row["row"] == FRECHET else 3)(row) for kind in KINDS})


def run(name: str, seed: int, steps_scale: float, samples: int, device: str) -> tuple[list[dict[str, Any]], float]:
    """Returns the rows of a set and a seed, and the processor seconds of their training."""
    torch.set_num_threads(1)
    real = open_set(name)
    judge, folder = load_judge(real), train(real, steps_scale, seed, device)
    began, rows, seconds = time.process_time(), [], read_json(folder / "report.json")["cpu_seconds"]
    for row in measure(real, judge, folder, samples, seed, device):
        rows.append({"seed": seed, **row})
        print(rows[-1], flush=True)
    print(f"{name}, {seed}: {seconds:.0f} processor seconds of training, {time.process_time() - began:.0f} of measuring", flush=True)
    return rows, seconds


def main(arguments: Sequence[str] | None = None) -> None:
    numbers = {"steps_scale": 1.0, "seeds": [0], "samples": 1000, "processes": 2}
    options = read_options(__doc__, None, arguments, only=list(SETS), device="cpu", out="", **numbers)
    settings = {name: getattr(options, name) for name in ("steps_scale", "samples", "device")}
    work = partial(import_module("benchmarks.real.__main__").run, **settings)  # a process that is spawned does not find `__main__`
    os.environ.update(KEEP_MEMORY)  # of the processes that are started
    with ProcessPoolExecutor(options.processes, get_context("spawn")) as pool:
        jobs = [(name, seed) for name in options.only for seed in options.seeds]
        found = list(pool.map(work, *zip(*jobs, strict=True)))
    print(table(rows := [row for some, _ in found for row in some]))
    if options.out:
        about = {f"{name}, {seed}": seconds for (name, seed), (_, seconds) in zip(jobs, found, strict=True)}
        write_json(Path(options.out), {**environment(**settings, cpu_seconds=about), "rows": rows})


if __name__ == "__main__":
    main()
