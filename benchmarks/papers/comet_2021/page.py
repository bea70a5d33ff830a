"""The blocks of the page `docs/results/comet-2021.md`, from the files of results."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.comet_2021 import factor_blocks, style_blocks, window_blocks
from benchmarks.papers.experiment import COMET

WORLDS = {
    "sprites": "sprites, 32 pixels",
    "objects-16": "objects, 16 pixels",
    "objects-32": "objects, 32 pixels",
    "tetris-16": "tetris, 16 pixels",
}


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    own = (objects, object_baselines, territories, ablation, ablation_baselines, paper_form, recombination, removal, slots)
    times = (speed_of_training, speed_of_finding, memory)
    others = factor_blocks.blocks() | style_blocks.blocks() | window_blocks.blocks()
    return {function.__name__.replace("_", " "): function for function in (*own, *times)} | others


def objects() -> str:
    """Returns the table of objects."""
    result, goals, rows = _read("objects"), _read("goals")["FG-ARI"], []
    for row in sorted(result["rows"] + _read("window-sprites")["masks"], key=lambda row: (list(goals).index(row["plan"]), row["seed"])):
        highest = max(value for name, value in result["baselines"][_world(row["plan"])].items() if "all-pixel" not in name)
        merge = "none" if row["merge"] is None else f"{row['merge']:g}"
        rows.append(
            [
                *(f"`{row['plan']}`", str(row["seed"]), f"{row['seconds'] / 60:.1f}", f"**{_n(row['FG-ARI'])}** ± {_n(row['s.e.'])}"),
                *(_n(goals[row["plan"]], 2), _n(row["unmerged"]), _n(highest), _n(row["FG-mSC"]), _n(row["all-pixel ARI"])),
                *(_n(row["mSC"]), _n(row["error"], 4), f"{row['read']}, {merge}"),
            ]
        )
    head = [
        "model",
        "seed",
        "minutes of a core",
        "FG-ARI",
        "goal",
        "unmerged",
        "highest baseline",
        "FG-mSC",
        "all-pixel ARI",
        "mSC",
        "error",
    ]
    return markdown_table([*head, "reading, threshold"], rows)


def object_baselines() -> str:
    """Returns the baselines of each world."""
    rows = [
        [WORLDS[world], *(_n(found[name]) for name in ("quadrants", "k-means", "k-means all-pixel"))]
        for world, found in _read("objects")["baselines"].items()
    ]
    return markdown_table(["world", "quadrants", "k-means on colors, with the true number", "the same, all pixels"], rows)


def territories() -> str:
    """Returns the scores of the territories of each model."""
    found = {(row["plan"], row["seed"]): row["territory"] for row in _read("objects")["rows"]}
    seeds = sorted({seed for _, seed in found})
    rows = [[f"`{plan}`", *(_n(found[plan, seed]) for seed in seeds)] for plan in _read("goals")["FG-ARI"] if (plan, seeds[0]) in found]
    return markdown_table(["territories of", *(f"seed {seed}" for seed in seeds)], rows)


def ablation() -> str:
    """Returns the table of the ablation."""
    published = _read("published")["ablation, ARI on CLEVR"]
    rows = []
    for row in _read("ablation")["table"]:
        scores = [_n(row["error"], 4), *(_n(row[name]) for name in ("FG-ARI", "unmerged", "territory"))]
        reading = row["each"].partition("(")[2].rstrip(")")
        rows.append(
            [f"`{row['row']}`", f"{row['steps']:.0f}", *scores, reading, _n(published[row["row"]]) if row["row"] in published else ""]
        )
    return markdown_table(["row", "steps", "error", "FG-ARI", "unmerged", "its territories", "reading", "paper, CLEVR"], rows)


def ablation_baselines() -> str:
    """Returns the baselines of the ablation."""
    found = _read("ablation")["baselines"]
    names = {"quadrants": "quadrants", "k-means": "k-means on colors", "k-means all-pixel": "the same, all pixels"}
    return markdown_table(list(names.values()), [[_n(found[name]) for name in names]])


def paper_form() -> str:
    """Returns the scores of the paper's form over the time of its training, then those of windows."""
    found, rows = _read("paper-form"), []
    for name, some in (("the paper's form", found["paper"]), ("`comet-window`", found["windows"])):
        for row in some:
            ari = f"{_n(row['FG-ARI'])} ± {_n(row['s.e.'])}"
            scores = [_n(row["error"], 4), ari, *(_n(row[key]) for key in ("unmerged", "territory"))]
            rows.append([name, f"{row['minutes']:.1f}", f"{row['steps']:,}", *scores])
    ground = "; ".join(_n(found["baselines"][key]) for key in ("quadrants", "k-means"))
    rows.append(["quadrants; k-means on colors", "", "", "", ground, "", ""])
    return markdown_table(["model", "minutes of a core", "steps", "error", "FG-ARI", "unmerged", "its territories"], rows)


def recombination() -> str:
    """Returns the table of recombined pictures."""
    rows = []
    for run in _recombined():
        for row in run["rows"]:
            if row["pictures"] in window_blocks.PICTURES:
                scores = [_n(row[name]) for name in ("shape", "color", "both")]
                goal = _n(_read("goals")["recombination"], 2) if row["pictures"] == "swapped" else ""
                rows.append([f"`{run['model']}`", str(run["seed"]), window_blocks.PICTURES[row["pictures"]], *scores, goal])
        rows.append([f"`{run['model']}`", str(run["seed"]), "chance", "", "", _n(run["chance"]), ""])
    return markdown_table(["model", "seed", "pictures", "shape", "color", "both", "goal"], rows)


def removal() -> str:
    """Returns the share of pairs in which nothing remains at the place of A's object."""
    rows = []
    for run in _recombined():
        (gone,) = (row for row in run["rows"] if row["pictures"] == "gone")
        rows.append([f"`{run['model']}`", str(run["seed"]), _n(gone["nothing"]), str(gone["of"])])
    return markdown_table(["model", "seed", "nothing remains", "pairs"], rows)


def slots() -> str:
    """Returns the table of slot attention, with the quadratic energies of the same world."""
    result = _read("slots")
    quadratic = {row["seed"]: row for row in _read("objects")["rows"] if row["plan"] == f"{result['rows'][0]['world']}-quadratic"}
    rows = [("slot attention", row) for row in result["rows"]] + [(f"`{row['plan']}`", row) for row in quadratic.values()]
    lines = []
    for name, row in rows:
        scores = [_n(row[key]) for key in ("all-pixel ARI", "mSC")]
        ari = f"{_n(row['FG-ARI'])} ± {_n(row['s.e.'])}"
        lines.append([name, str(row["seed"]), f"{row['seconds'] / 60:.1f}", str(row["steps"]), ari, *scores, _n(row["error"], 4)])
    return markdown_table(["model", "seed", "minutes of a core", "steps", "FG-ARI", "all-pixel ARI", "mSC", "error"], lines)


def speed_of_training() -> str:
    """Returns the table of training steps."""
    rows = []
    for row in _read("speed")["steps"]:
        rows.append([str(row["N"]), "one random iterate", _n(row["one random"]), "1"])
        rows += [[str(row["N"]), name, _n(row[name]), f"{row[f'{name}: times']:.2f}"] for name in row if f"{name}: times" in row]
    return markdown_table(["inner steps", "a training step", "seconds", "times the first"], rows)


def speed_of_finding() -> str:
    """Returns the table of the time for 16 pictures."""
    return markdown_table(["16 pictures", "seconds"], [[name, _n(value)] for name, value in _read("speed")["16 pictures"].items()])


def memory() -> str:
    """Returns the table of the memory of a training."""
    names = ("one random iterate", "all iterates", "through all steps")
    return markdown_table(
        ["inner steps", *names], [[str(row["inner steps"]), *(f"{row[name]:.0f}" for name in names)] for row in _read("speed")["MB"]]
    )


def _recombined() -> list[dict[str, Any]]:
    return _read("recombination")["runs"] + _read("window-sprites")["runs"]


def _world(plan: str) -> str:
    return plan.rpartition("-")[0]


def _n(value: float, digits: int = 3) -> str:
    return format_number(value, digits)


def _read(name: str) -> dict[str, Any]:
    return read_json(COMET.results / f"{name}.json")
