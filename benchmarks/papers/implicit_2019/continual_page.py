"""The blocks of the page `docs/results/continual.md`, from the files of results."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.experiment import IMPLICIT


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    return {function.__name__.replace("_", " "): function for function in (tasks, stream, goal, cross_class, judge)}


def tasks() -> str:
    """Returns the table of learners after the last task."""
    found, rows = _read("continual"), []
    for name, row in found["tasks"].items():
        after = ", ".join(format_number(value, 2) for value in row["after each"])
        rows.append([name, _with_deviation(row), after, f"{row['parameters']:,}", f"{row['seconds']:.1f}"])
    rows.append(["softmax, all pictures at once", _with_deviation(found["joint"]), "", "", ""])
    return markdown_table(["learner", "accuracy", "after each task", "parameters", "seconds"], rows)


def stream() -> str:
    """Returns the table of learners in the stream without boundaries."""
    return markdown_table(["learner", "accuracy"], [[name, _with_deviation(row)] for name, row in _read("continual")["stream"].items()])


def goal() -> str:
    """Returns the sentence about the ratio to softmax."""
    result = _read("continual")
    found, paper = result["tasks"], {name: format_number(share) for name, (share, _) in result["paper"].items()}
    softmax, vae = found["softmax"]["mean"], found["VAE"]["mean"]
    best = max((row["mean"], name) for name, row in found.items() if name.startswith("energy"))
    return (
        f"The best energy, {best[1].removeprefix('energy, ')}, has {best[0] / softmax:.1f} times the accuracy of softmax, and "
        f"{best[0] / vae:.1f} times that of the VAE. On the slides, Split MNIST has {paper['energy']} for energies and {paper['VAE']} for "
        "the VAE."
    )


def cross_class() -> str:
    """Returns the table of chains that start at digits of other classes."""
    rows = []
    for row in _read("cross_class")["rows"]:
        noise = [format_number(row[f"{name}, from noise"]) if f"{name}, from noise" in row else "" for name in ("read as b", "distance")]
        rows.append([f"{row['steps']:.0f}", format_number(row["read as b"]), f"{row['distance']:.2f}", *noise])
    return markdown_table(["steps", "read as b", "distance to the start", "read as b, from noise", "distance, from noise"], rows)


def judge() -> str:
    """Returns the sentence with the distances of real digits, and the accuracy of the judge."""
    found = _read("cross_class")
    first = found["rows"][0]
    return (
        f"A random test digit of class b has the distance {first['random of b']:.2f}, the nearest one {first['nearest of b']:.2f}. The "
        f"classifier reads {format_number(found['judge'])} of the test digits rightly."
    )


def _with_deviation(row: dict[str, Any]) -> str:
    return f"{format_number(row['mean'])} ({format_number(row['deviation'])})"


def _read(name: str) -> Any:
    return read_json(IMPLICIT.results / f"{name}.json")
