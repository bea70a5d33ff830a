"""The blocks about windows on the page of the 2021 paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.experiment import COMET

PICTURES = {
    "renders": "B itself: the accuracy of the classifier",
    "rebuilt": "B, reconstructed without a swap",
    "swapped": "**A with the object of B**",
    "kept": "A's other objects in the swapped pictures",
    "before": "A at that place before the swap",
}
LIT = {
    "A": "A itself",
    "rebuilt": "A, reconstructed",
    "grounded": "A with the ground of B alone",
    "swapped": "**A with the light of B**",
    "renders": "renders of A's objects under the light of B",
}
JOINED, LARGE = "**joined**", "large, error, 32 pixels"


def blocks() -> Blocks:
    """Returns the functions of these blocks."""
    functions = (window_goals, window_masks, window_recombination, window_removal, eight_objects, four_objects, light, light_goals)
    return {function.__name__.replace("_", " "): function for function in functions}


def window_goals() -> str:
    """Returns the table of goals, with the worst seed of each."""
    found, goals = _read("window-objects"), _read("goals")["window"]
    swapped = [row for row in found["recombined"] if row["pictures"] == "swapped"]
    joined = [row for row in found["eight"] if row["pictures"] == JOINED]
    rows = [
        _goal("FG-ARI, merged", [row["FG-ARI"] for row in found["masks"]], goals["FG-ARI"]),
        _goal("shape of recombined objects", [row["shape"] for row in swapped], goals["shape"]),
        _goal("color of recombined objects", [row["color"] for row in swapped], goals["color"]),
        _goal("objects found of eight", [row["each found"] for row in joined], goals["each found"]),
    ]
    errors, goal = [row[LARGE] for row in found["masks"]], goals["error"]
    rows.append(["error of large solids at 32 pixels, at most", *_each(errors, 5), _n(goal, 5), "yes" if max(errors) <= goal else "**no**"])
    return markdown_table(["goal", "means over seeds", "worst seed", "goal", "reached by all"], rows)


def window_masks() -> str:
    """Returns the table of masks and errors."""
    rows, found = [], _read("window-objects")
    for row in found["masks"]:
        read = f"{row['read']}, {'none' if row['merge'] is None else format_number(row['merge'], 1)}"
        scores = [f"**{_n(row['FG-ARI'])}** ± {_n(row['s.e.'])}", *(_n(row[name]) for name in ("unmerged", "all-pixel ARI", "mSC"))]
        errors = [_n(row[name], 5) for name in ("error", "large, error", LARGE)]
        rows.append([str(row["seed"]), f"{row['seconds'] / 60:.1f}", *scores, *errors, read])
    floors = [_n(found["baselines"][name]) for name in ("quadrants", "k-means")]
    rows.append(["quadrants; k-means on colors", "", "; ".join(floors), *[""] * 7])
    head = ["seed", "minutes of a core", "FG-ARI", "unmerged", "all-pixel ARI", "mSC", "error", "of large solids", "the same, 32 pixels"]
    return markdown_table([*head, "reading, threshold"], rows)


def window_recombination() -> str:
    """Returns the table of recombined pictures."""
    rows = [
        [str(row["seed"]), PICTURES[row["pictures"]], *(_n(row[name]) for name in ("shape", "color", "both"))]
        for row in _read("window-objects")["recombined"]
        if row["pictures"] in PICTURES
    ]
    return markdown_table(["seed", "pictures", "shape", "color", "both"], rows)


def window_removal() -> str:
    """Returns the share of pairs in which nothing remains at the place of A's object."""
    gone = [row for row in _read("window-objects")["recombined"] if row["pictures"] == "gone"]
    return markdown_table(["seed", "nothing remains", "pairs"], [[str(row["seed"]), _n(row["nothing"]), str(row["of"])] for row in gone])


def eight_objects() -> str:
    """Returns the table of eight objects from two pictures of four."""
    return _joined(_read("window-objects")["eight"], "eight")


def four_objects() -> str:
    """Returns the table of four objects from a model of two, with its goal."""
    found, goal = _read("four-objects"), _read("goals")["four"]
    joined = [row["each found"] for row in found["four"] if row["pictures"] == JOINED]
    minutes = ", ".join(f"{row['seconds'] / 60:.1f}" for row in found["masks"])
    masks = ", ".join(_n(row["FG-ARI"]) for row in found["masks"])
    goals = ["goal", "means over seeds", "worst seed", "goal", "reached by all", "minutes of a core", "FG-ARI of two objects"]
    head = markdown_table(goals, [[*_goal("objects found of four", joined, goal), minutes, masks]])
    return f"{head}\n\n{_joined(found['four'], 'four')}"


def light() -> str:
    """Returns the table of pictures with the light of others."""
    digits = {"light of A": 1, "light of B": 1, "each found": 3, "error": 3, "color": 3, "shape": 3, "to renders": 5}
    rows = [
        [str(row["seed"]), LIT[row["pictures"]], *(_n(row[name], many) for name, many in digits.items())] for row in _read("light")["rows"]
    ]
    head = ["seed", "pictures", "degrees from the light of A", "from that of B", "of A's objects found", "mean error of places"]
    return markdown_table([*head, "color", "shape", "error, to the renders"], rows)


def light_goals() -> str:
    """Returns the table of goals of light."""
    found, goals = _read("light"), _read("goals")["light"]
    swapped = [row for row in found["rows"] if row["pictures"] == "swapped"]
    rows = [
        _most("degrees from the light of B", [row["light of B"] for row in swapped], goals["degrees"], 1),
        _most("mean error of places", [row["error"] for row in swapped], goals["error"], 3),
        _goal("color of A's objects", [row["color"] for row in swapped], goals["color"]),
    ]
    return markdown_table(["goal", "means over seeds", "worst seed", "goal", "reached by all"], rows)


def _joined(found: Sequence[Mapping[str, Any]], number: str) -> str:
    names = ("each found", "all found", "as many", "error")
    rows = [[str(row["seed"]), row["pictures"], str(row["pairs"]), *(_n(row[name]) for name in names)] for row in found]
    head = ["seed", "pictures", "pairs", "of the objects found", f"all {number}", f"exactly {number}", "mean error of places"]
    return markdown_table(head, rows)


def _most(name: str, values: Sequence[float], goal: float, digits: int) -> list[str]:
    shown = [_n(value, digits) for value in (sum(values) / len(values), max(values), goal)]
    return [name, *shown, "yes" if max(values) <= goal else "**no**"]


def _goal(name: str, values: Sequence[float], goal: float) -> list[str]:
    return [name, _n(sum(values) / len(values)), _n(min(values)), _n(goal, 2), "yes" if min(values) >= goal else "**no**"]


def _each(errors: Sequence[float], digits: int) -> tuple[str, str]:
    return _n(sum(errors) / len(errors), digits), _n(max(errors), digits)


def _n(value: float, digits: int = 3) -> str:
    return format_number(value, digits)


def _read(name: str) -> dict[str, Any]:
    return read_json(COMET.results / f"{name}.json")
