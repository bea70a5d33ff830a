"""The blocks about the paper's own method on the page of the 2020 paper."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.experiment import COMPOSITIONAL

CELL = re.compile(r"(?P<part>.+?) (?P<value>[\d.]+)(?: \[(?P<paper>[\d.]+)\])? \((?P<chance>[\d.]+)\)")
NOTS = {"bounded": 'bounded: `ce.negate(s * E, mode="contrast", offset=...) / s`', "classifier": "`~` of the energies' classifier"}


def blocks() -> Blocks:
    """Returns the functions of these blocks."""
    functions = (settings, small_evaluator, paper_method, scaled_ors, nots, implied_colors, ors, denoised)
    return {function.__name__.replace("_", " "): function for function in functions}


def parsed_table(key: str) -> dict[str, dict[str, dict[str, str]]]:
    """Returns a table of the results by row and part: the value, the paper's value or nothing, and chance."""
    table = {}
    for row in _read()[key]:
        cells = [CELL.fullmatch(row[str(number)]) for number in range(1, 6) if str(number) in row]
        table[row["row"]] = {
            cell["part"]: {name: _shorten(cell[name] or "") for name in ("value", "paper", "chance")} for cell in cells if cell
        }
    return table


def settings() -> str:
    """Returns the table of settings and those of the paper."""
    return markdown_table(["setting", "here, and in the paper"], [[name, text] for name, text in _read()["settings"].items()], align="---")


def small_evaluator() -> str:
    """Returns the sentence about the accuracy of the evaluator on small pictures."""
    known = _read()["evaluator"]
    return (
        "The accuracy of the evaluator on renders that were reduced to the size of these energies and enlarged again: positions "
        f"{_n(known['position within .4'])}, colors {_n(known['color'])}, shapes {_n(known['shape'])}; the mean error of sizes is "
        f"{_n(known['size error'])}."
    )


def paper_method() -> str:
    """Returns the paper's table by its own method."""
    return _table("table")


def scaled_ors() -> str:
    """Returns the disjunctions with a larger scale."""
    return _table("apart")


def denoised() -> str:
    """Returns the paper's table with energies that were trained by denoising."""
    return _table("denoised")


def nots() -> str:
    """Returns the table of negations."""
    rows = []
    for row in _read()["not"]:
        other = ["", "", ""]
        if "~position" in row:
            other = [_n(row["~position"]), _n(row["& color"]), f"{row['Frechet of ~position & color']:.1f}"]
        first = [_n(row["position"]), _n(row["& ~color"]), f"{row['Frechet of position & ~color']:.1f}"]
        rows.append([NOTS.get(row["NOT"], f"$-{row['NOT']}$"), *first, *other])
    head = ["NOT", "`position & ~color`: position", "not color", "Frechet", "`~position & color`: not position", "color", "Frechet"]
    return markdown_table(head, rows)


def implied_colors() -> str:
    """Returns the table of the implication, in which all other colors are negated."""
    rows = [
        [NOTS.get(row["NOT"], f"$-{row['NOT']}$"), _n(row["position"]), _n(row["& color"]), f"{row['Frechet of position & color']:.1f}"]
        for row in _read()["implication"]
    ]
    return markdown_table(["NOT of all other colors", "position", "color", "Frechet"], rows)


def ors() -> str:
    """Returns the table of disjunctions by scale."""
    rows = [[row["scale"], *(_n(row[name]) for name in ("either", "first", "second")), f"{row['Frechet']:.1f}"] for row in _read()["or"]]
    return markdown_table(["scale $s$", "either", "first", "second", "Frechet"], rows)


def _table(key: str) -> str:
    result, rows = {row["row"]: row for row in _read()[key]}, []
    for text, parts in parsed_table(key).items():
        for place, (part, cell) in enumerate(parts.items()):
            extra = [f"{result[text]['Frechet']:.1f}", f"{result[text]['size']:.2f}"] if place == 0 else ["", ""]
            rows.append([f"`{text}`" if place == 0 else "", part, cell["paper"], f"**{cell['value']}**", cell["chance"], *extra])
    return markdown_table(["row", "part", "paper", "here", "chance", "Frechet", "mean size"], rows)


def _shorten(text: str) -> str:
    return format_number(float(text), len(text.partition(".")[2])) if text else ""


def _n(value: float) -> str:
    return format_number(value)


def _read() -> dict[str, Any]:
    return read_json(COMPOSITIONAL.results / "paper_method.json")
