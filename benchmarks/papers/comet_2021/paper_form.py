r"""The paper's own form of COMET over the time of its training, beside windows on the same pictures.

    python -m benchmarks.papers.comet_2021.paper_form [--minutes 240] [--seed 5] [--write] [--data FOLDER] [--parts FOLDER]

Pictures are solids of 32 pixels, those of `objects-32-quadratic`. The networks, the loss and all settings are those of the recipe
`comet-paper`: recurrent attention, five components of 16 numbers, noise as the start, five steps of size 1,000, the errors of all
iterates, batches of 24, a rate of 1e-4. The recipe's 100,000 steps would take days, so the training stops after processor minutes. It
writes checkpoints, and continues where it stopped. At marks of time it is scored as in `ablation.py`: a reading without coordinates is
possible there. To compare, `comet-window` is trained three times, with a quarter, half and all of its steps.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch

import composable_energy as ce
from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.ablation import score
from benchmarks.papers.comet_2021.objects import TEST, TRAIN, VALIDATION, write_sheet
from benchmarks.papers.comet_2021.objects import score as score_window
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.comet_2021.segmentation import segmentation_baselines
from benchmarks.papers.comet_2021.window_objects import spent, train
from benchmarks.papers.comet_2021.worlds import Scenes, render_objects
from benchmarks.papers.experiment import COMET, print_table, write_rounded
from composable_energy_comet import Comet, Decomposition
from composable_energy_comet.recipe import comet_paper_recipe
from composable_energy_training import Optimizer, Trainer

WORLD, SIZE = "objects-32", 32
MARKS = (2, 5, 10, 20, 40, 60, 90, 120, 150, 180, 210, 240)
CHUNK = 5  # steps between looks at the clock; a stop loses the time of fewer
SHARES = (0.25, 0.5, 1.0)
WINDOWS = {"model.components": 5, "model.window": 16, "quadratic.steps": 4_000, "window.steps": 5_000}


def create_comet(seed: int) -> Comet:
    """Returns the untrained model of the recipe `comet-paper`."""
    settings = comet_paper_recipe().settings
    model, energy = dict(settings["model"]), dict(settings["conv"])
    for name in ("steps", "batch_size", "rate", "reconstruction", "iterates", "truncate"):
        energy.pop(name)
    torch.manual_seed(seed)
    return cast(Comet, ce.get("encoder", model.pop("encoder"), size=SIZE, head="conv", **model, **energy))


def train_paper(comet: Comet, scenes: tuple[Scenes, Scenes, Scenes], minutes: float, seed: int, folder: Path) -> list[dict[str, Any]]:
    """Trains a model for some processor minutes, and returns its scores at the marks of time; continues what exists.

    Args:
        comet: The untrained model; it is trained in place.
        scenes: Pictures for training, validation and test.
        minutes: Processor minutes, together with those before.
        seed: Seed of batches and noise.
        folder: The folder of checkpoints and scores.
    """
    settings, path = comet_paper_recipe().settings["conv"], folder / "curve.json"
    objective = Decomposition(iterates=settings["iterates"], truncate=settings["truncate"])
    optimizer = Optimizer(rate=settings["rate"], betas=(0.9, 0.999), warm_up=200)
    every = {"batch_size": settings["batch_size"], "checkpoint_every": CHUNK, "keep": 2, "monitor": None, "optimizer": optimizer}
    comet.energy.set_image(scenes[0].images)

    def train_to(steps: int) -> float:
        began = time.process_time()
        Trainer(comet, objective, scenes[0].images, steps=steps, out=folder, seed=seed, **every).fit()
        return time.process_time() - began

    found = read_json(path) if path.exists() else {"rows": [], "seconds": 0.0}
    rows, seconds, steps = found["rows"], found["seconds"], _last_step(folder)
    if steps:
        train_to(steps)  # loads the weights
    for mark in (mark for mark in (*(mark for mark in MARKS if mark < minutes), minutes) if not rows or mark > rows[-1]["minutes"]):
        while seconds < 60 * mark:
            steps += CHUNK
            seconds += train_to(steps)
            write_rounded(path, {"rows": rows, "seconds": seconds})
        rows.append({"minutes": mark, "steps": steps, "seconds": seconds, **score(comet, *scenes[1:])})
        write_rounded(path, {"rows": rows, "seconds": seconds})
        print_table(f"The paper's form after {seconds / 60:.1f} minutes", rows[-1:])
    return rows


def _last_step(folder: Path) -> int:
    """Returns the step of the last checkpoint; 0 without one. A stop writes one between two looks at the clock."""
    return max((int(path.stem.rpartition("-")[2]) for path in (folder / "checkpoints").glob("step-*")), default=0)


def train_windows(seed: int, parts: Path, data: Path, validation: Scenes, test: Scenes) -> list[dict[str, Any]]:
    """Returns the scores of `comet-window`, trained with shares of its steps, with the processor minutes of each training."""
    rows = []
    for share in SHARES:
        changes = {name: round(share * value) if name.endswith("steps") else value for name, value in WINDOWS.items()}
        comet, stages = train(WORLD, seed, parts / f"small-windows-{seed}-{share:g}", data, changes)
        steps = sum(int(stage["steps"]) for stage in stages.values())
        rows.append({"minutes": round(spent(stages) / 60, 1), "steps": steps, **score_window(comet, validation, test)})
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("paper-form", __doc__)
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--minutes", type=float, default=240.0, help="of one processor, together with earlier ones of this training")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    pictures, validation, test = (
        render_objects(WORLD, n, split, args.data) for n, split in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test"))
    )
    parts, ground = args.parts / "objects", segmentation_baselines(test)
    windows = train_windows(args.seed, parts, args.data, validation, test)
    print_table("comet-window", windows)
    comet = create_comet(args.seed)
    rows = train_paper(comet, (pictures, validation, test), args.minutes, args.seed, parts / f"paper-form-{args.seed}")
    for title, table in (("The paper's form", rows), ("comet-window", windows), ("Baselines", [ground])):
        print_table(title, table)
    if args.write:
        COMET.write("paper-form", {"paper": rows, "windows": windows, "baselines": ground}, seed=args.seed, train=TRAIN, test=TEST)
        write_sheet(comet, test, "paper-form")


if __name__ == "__main__":
    main()
