"""The blocks of the page `docs/results/lace.md`, from the file of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import RESULTS, ROOT, read_json
from benchmarks.pages import Blocks, code_cell, format_number, markdown_table

PATH, PAGE = RESULTS / "lace.json", ROOT / "docs" / "results" / "lace.md"
Row = Mapping[str, Any]


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    found = read_json(PATH)
    return {
        "closed": lambda: closed_forms(found["closed"]),
        "fit": lambda: attributes(found["fit"]),
        "faces": lambda: expressions(found["faces"]),
        "costs": lambda: costs(found["costs"]),
        "edits": lambda: edits(found["edits"]),
        "unseen": lambda: unseen_generator(found["unseen"]["rows"]),
    }


def closed_forms(rows: Sequence[Row]) -> str:
    """Returns the table of moments beside quadrature, the worst of all dimensions."""
    header = ["slope, offset", "sampler", "mean, s.e.", "variance, s.e.", "shift, 32-D", "variance ratio, 32-D", "evaluations", "seconds"]
    cells = []
    for row in rows:
        dimensions = row["dimensions"]
        last = dimensions[-1]
        worst = [max(abs(part[key]) for part in dimensions) for key in ("mean", "variance")]
        measured = [f"{last['shift']:+.3f}", f"{last['ratio']:.2f}", f"{last['evaluations']:.0f}", f"{last['seconds']:.1f}"]
        cells.append([f"{row['slope']:g}, {row['offset']:g}", f"`{row['sampler']}`", *(f"{value:.1f}" for value in worst), *measured])
    return markdown_table(header, cells)


def attributes(rows: Sequence[Row]) -> str:
    """Returns the table of fitted attributes."""
    cells = [[f"`{row['name']}`", *(format_number(row[key]) for key in ("accuracy", "share", "ece"))] for row in rows]
    return markdown_table(["attribute", "accuracy", "guess", "calibration error"], cells)


def expressions(rows: Sequence[Row]) -> str:
    """Returns the table of expressions by sampler."""
    cells = []
    for row in rows:
        if row["sampler"] == "exact":
            cells.append([code_cell(row["expression"]), "exact", format_number(row["accuracy"]), "", "", "", "", ""])
            continue
        branches = ", ".join(map(format_number, row["branches"])) if len(row["branches"]) > 1 else ""
        cost = [f"{row['evaluations']:,.0f}", f"{row['seconds']:.0f}", format_number(row["nearest"]), f"{row['frechet']:.2f}"]
        cells.append([code_cell(row["expression"]), f"`{row['sampler']}`", format_number(row["accuracy"]), branches, *cost])
    return markdown_table(["expression", "sampler", "accuracy", "branches", "evaluations", "seconds", "nearest", "Frechet"], cells)


def costs(rows: Sequence[Row]) -> str:
    """Returns the table of settings of the flow and of Langevin dynamics."""
    cells = []
    for row in rows:
        quality = [format_number(row["accuracy"]), f"{row['seconds']:.1f}", format_number(row["nearest"]), f"{row['frechet']:.2f}"]
        cells.append([f"`{row['sampler']}`", row["setting"], f"{row['evaluations']:.0f}", *quality])
    return markdown_table(["sampler", "setting", "evaluations", "accuracy", "seconds", "nearest", "Frechet"], cells)


def edits(found: Row) -> str:
    """Returns the table of edits one after another, with conditioning afresh as its last row."""
    keys = ("new", "earlier", "untouched", "distance", "pixels")
    cells = [[f"`{row['edit']}`", *(format_number(row[key]) for key in keys), f"{row['evaluations']:.0f}"] for row in found["rows"]]
    cells.append(["all, afresh", "", "", "", format_number(found["afresh"]), format_number(found["afresh_pixels"]), ""])
    return markdown_table(["edit", "new", "earlier ones", "untouched", "identity distance", "pixels", "evaluations"], cells)


def unseen_generator(rows: Sequence[Row]) -> str:
    """Returns the table of a generator in a file of TorchScript."""
    cells = [
        [code_cell(row["expression"]), format_number(row["accuracy"]), format_number(row["kept"]) if "kept" in row else ""] for row in rows
    ]
    return markdown_table(["", "accuracy", "kept"], cells)
