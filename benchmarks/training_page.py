"""The blocks of the page `docs/results/training.md`, from the files of results."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import RESULTS, read_json
from benchmarks.pages import Blocks, format_number, markdown_table

EXPRESSIONS = (
    *("male & ~smiling", "male & smiling", "~male & glasses", "~(male | hat)", "(male & smiling) | (~male & glasses)"),
    *("male & smiling & glasses & hat", "hair=red & old & ~glasses"),
)


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    runs = {f"contrastive, {run}": (lambda run=run: contrastive(run)) for run in ("monitored", "improved")}
    runs |= {"digits, parts": digits_parts}
    functions = (
        training_cost,
        expressions,
        new_attribute,
        frechet,
        digits,
        careless,
        out_of_distribution,
        kills,
        two_hosts,
        lost_host,
        speed,
    )
    return {function.__name__.replace("_", " "): function for function in functions} | runs


def training_cost() -> str:
    """Returns the processor seconds of the trainings."""
    result, rows = _read("own_pictures"), []
    for recipe in ("base-and-attributes", "attribute"):
        rows.append([f"`{recipe}`", "whole command", "", f"{result[recipe]['cpu_seconds']:.0f}"])
        rows += [["", name, f"{stage['steps']:,}", f"{stage['cpu_seconds']:.0f}"] for name, stage in result[recipe]["stages"].items()]
    return markdown_table(["recipe", "stage", "steps", "processor seconds"], rows)


def expressions() -> str:
    """Returns the table of expressions."""
    result, rows = _read("own_pictures"), []
    for text in EXPRESSIONS:
        found = result["rows"][text]
        free = [format_number(value) for value in found["free"].values()]
        branches = ", ".join(map(format_number, found["branches"])) if len(found["branches"]) > 1 else ""
        rows.append([f"`{text}`", format_number(found["joint"]), branches, f"{min(free)} to {max(free)}" if free else ""])
    return markdown_table(["expression", "correct", "each branch", "attributes that are free"], rows)


def new_attribute() -> str:
    """Returns the table of expressions with the new attribute."""
    rows = [
        [f"`{text.replace('smiling', 'new')}`", format_number(found["joint"])]
        for text, found in _read("own_pictures")["rows with the new attribute"].items()
    ]
    return markdown_table(["expression", "correct"], rows)


def frechet() -> str:
    """Returns the Frechet distances to drawn faces."""
    found = _read("own_pictures")["frechet"]
    return markdown_table(
        ["pictures", "Frechet distance"], [["samples", f"{found['samples']:.2f}"], ["other drawn faces", f"{found['drawn']:.2f}"]]
    )


def digits() -> str:
    """Returns the table of expressions of digits, and those below the target."""
    result, rows, names = _read("digits"), [], ("share", "share of best", "real")
    for text, found in result["rows"].items():
        if "share" in found:
            rows.append([f"`{text}`", *(format_number(found[name]) for name in names)])
    target, verdicts = result["targets"]["expressions"], []
    for name, title in zip(names[:2], ("One sample", "The better of two"), strict=True):
        below = [f"`{text}`" for text, found in result["rows"].items() if name in found and found[name] < target]
        verdicts.append(f"{title}, below the target of {format_number(target, 2)}: {', '.join(below) or 'none'}.")
    return f"{markdown_table(['expression', 'correct', 'correct, better of two', 'of real digits'], rows)}\n\n{' '.join(verdicts)}"


def digits_parts() -> str:
    """Returns the table of the cost and of the parts that may fail."""
    result = _read("digits")
    parts, training = result["parts"], result["training"]
    rows = [[f"processor seconds, {name}", f"{stage['cpu_seconds']:.0f}"] for name, stage in training["stages"].items()]
    rows += [["processor seconds, whole command", f"{training['cpu_seconds']:.0f}"]]
    rows += [[name, format_number(value)] for name, value in parts.items() if name.startswith("judge") and isinstance(value, float)]
    rows += [
        [f"Frechet distance of pixels, {name.removeprefix('frechet of ')}", f"{parts[name]:.2f}"] for name in parts if "frechet" in name
    ]
    rows += [
        [name.replace("distance", "distance to the nearest training digit,", 1).replace(", of", ","), f"{parts[name]:.2f}"]
        for name in parts
        if name.startswith("distance")
    ]
    return markdown_table(["measure", "value"], rows)


def contrastive(run: str) -> str:
    """Returns the curve of a long run, with the distance between two sets of drawn faces."""
    result, rows = _read("contrastive"), []
    for row in result[run][1:]:
        figures = [f"{row['seconds'] / 60:.0f}", f"{row['frechet']:.2f}", f"{row['gap']:.4f}", f"{row['magnitude']:.4f}"]
        rows.append([f"{row['step']:,}", *figures])
    rows.append(["drawn faces", "", f"{result['about']['real against real']:.2f}", "", ""])
    return markdown_table(["step", "minutes", "Frechet distance", "gap", "mean size of energies"], rows)


def careless() -> str:
    """Returns the curves of the careless runs."""
    rows = []
    for run in ("careless-unmonitored", "careless-monitored"):
        rows += [[run, f"{row['step']:,}", str(row["attempt"]), f"{row['frechet']:.1f}"] for row in _read("contrastive")[run]]
    return markdown_table(["run", "step", "returns to a checkpoint", "Frechet distance"], rows)


def out_of_distribution() -> str:
    """Returns the table of areas under the ROC curve."""
    result = {name: row for name, row in _read("out_of_distribution").items() if name != "about"}
    kinds = list(next(iter(result.values())))
    return markdown_table(["score", *kinds], [[name, *(format_number(row[kind]) for kind in kinds)] for name, row in result.items()])


def kills() -> str:
    """Returns the table of killed runs."""
    rows = [[kind, str(row["kills"]), str(row["equal"]), str(row["tensors"])] for kind, row in _read("kills")["objectives"].items()]
    return markdown_table(["objective", "killed runs", "equal after the restart", "tensors"], rows)


def two_hosts() -> str:
    """Returns the table of two hosts."""
    result, rows = _read("two_hosts"), []
    for kind in ("contrastive", "denoising"):
        largest = [f"{max(result[kind][dtype]['largest_differences'].values()):.0e}" for dtype in ("float32", "float64")]
        speeds = result[kind]["float32"]["images_per_second"]
        rows.append([kind, *largest, f"{speeds['1']:.0f}", f"{speeds['2']:.0f}"])
    return markdown_table(["objective", "largest difference, float32", "float64", "images/s, one process", "two processes"], rows)


def lost_host() -> str:
    """Returns the sentence about a cut cable."""
    found = _read("two_hosts")["lost host"]
    both = "both sides end" if all(found["ended_with_errors"]) else "not all sides end"
    return f"After a cut of the cable {both} with an error after {found['seconds_until_error']:.0f} s."


def speed() -> str:
    """Returns the table of training steps beside other libraries."""
    rows = []
    for task, found in _read("training_speed").items():
        if task != "about":
            for name, row in found.items():
                faster = f"{row['ours_is_faster_by']:.2f}" if "ours_is_faster_by" in row else ""
                rows.append([task, name, f"{row['images_per_second']:.0f}", faster, f"{row['memory_mb']:.0f}"])
    return markdown_table(["step, pictures", "library", "images/s", "this library is faster by", "memory in MB"], rows)


def _read(name: str) -> Any:
    return read_json(RESULTS / f"{name}.json")
