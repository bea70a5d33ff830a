"""The blocks about two worlds and two styles on the page of the 2021 paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.experiment import COMET

WORLDS = {
    "apart": "A itself, B itself",
    "rebuilt": "A and B, each reconstructed by its model",
    "renders": "renders of all six",
    "joined": "**joined**",
    "before": "A alone, at the places of B's toys",
    "strange": "B, reconstructed by the model of solids",
    "another pair": "joined, places of another pair",
}
STYLED = {
    "B in the style of A": "B itself, drawn in the style of A",
    "B": "B itself",
    "rebuilt": "B, reconstructed",
    "plain": "A with the object of B as it is",
    "code": "**A with the object of B, which takes A's code**",
    "style": "**A with the object of B, which takes A's style**",
    "kept": "A's other objects in the last pictures",
    "A": "A at that place before the swap",
}
PICTURES = {
    "A": "A itself",
    "rebuilt": "A, reconstructed",
    "grounded": "A with the ground of B alone",
    "code": "**A with the ground and the code of B**",
    "style": "**A with the ground and the style of B**",
    "renders": "renders of A's objects, light and style of B",
}


def blocks() -> Blocks:
    """Returns the functions of these blocks."""
    functions = (two_worlds, toy_masks, common_styles, style_of_objects, style_of_pictures)
    return {function.__name__.replace("_", " "): function for function in functions}


def two_worlds() -> str:
    """Returns the table of objects of two worlds in one picture."""
    kinds = [f"{part} of {kind}" for kind in ("solids", "toys") for part in ("shape", "color")]
    names = [*kinds, "each found", "as many", "error"]
    head = [*kinds, "of all six found", "exactly six", "mean error of places"]
    return _table(_read("two-worlds")["joined"], WORLDS, names, head)


def toy_masks() -> str:
    """Returns the scores of the model of toys on its own pictures."""
    rows = [
        [
            str(row["seed"]),
            f"{row['seconds'] / 60:.1f}",
            f"{_n(row['FG-ARI'])} ± {_n(row['s.e.'])}",
            _n(row["unmerged"]),
            _n(row["error"], 5),
        ]
        for row in _read("two-worlds")["masks"]
    ]
    return markdown_table(["seed", "minutes of a core", "FG-ARI", "unmerged", "error"], rows)


def common_styles() -> str:
    """Returns how well objects agree, and how well the code separates the styles."""
    rows = [
        [
            *(str(row["seed"]), f"{row['seconds'] / 60:.1f}", ", ".join(_n(value, 2) for value in row["agreement"])),
            _n(row["styles found"]),
        ]
        for row in _read("styles")["fits"]
    ]
    head = ["seed", "minutes of a core", "agreement of objects, by direction", "of pictures, style found"]
    return markdown_table(head, rows)


def style_of_objects() -> str:
    """Returns the table of objects that enter a picture of another style."""
    names = ["style", "shape", "color", "all"]
    return _table(_read("styles")["objects"], STYLED, names, ["style of A", "shape", "color", "all three"])


def style_of_pictures() -> str:
    """Returns the table of pictures in the style of another."""
    names = {"style": 3, "shape": 3, "color": 3, "all": 3, "to renders": 5, "of the ground": 5}
    head = ["style of B", "shape", "color", "all three", "error, to the renders", "of the ground alone"]
    return _table(_read("styles")["pictures"], PICTURES, names, head)


def _table(
    rows: Sequence[Mapping[str, Any]], known: Mapping[str, str], names: Sequence[str] | Mapping[str, int], head: Sequence[str]
) -> str:
    """Returns a table with one row for each kind of picture, and empty cells where it has no figure."""
    digits = names if isinstance(names, Mapping) else dict.fromkeys(names, 3)
    cells = [
        [str(row["seed"]), known[row["pictures"]], *(_n(row[name], many) if name in row else "" for name, many in digits.items())]
        for row in rows
    ]
    return markdown_table(["seed", "pictures", *head], cells)


def _n(value: float, digits: int = 3) -> str:
    return format_number(value, digits)


def _read(name: str) -> dict[str, Any]:
    return read_json(COMET.results / f"{name}.json")
