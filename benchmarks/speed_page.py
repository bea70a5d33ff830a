"""The tables of `docs/speed.md`, from the files of results."""

from __future__ import annotations

from benchmarks.harness import RESULTS, ROOT, read_json
from benchmarks.pages import Blocks, code_cell, markdown_table

PAGE = ROOT / "docs" / "speed.md"


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    return {"attributes": attributes}


def attributes() -> str:
    """Returns the table of gradients of several attributes."""
    rows = read_json(RESULTS / "attributes.json")["rows"]
    sizes = list(next(iter(rows.values())))
    lines = []
    for family, found in rows.items():
        for name in list(found[sizes[0]])[1:]:
            lines.append([f"{family}, by {code_cell(name)}", *(f"{found[points][name]['ratio']:.2f}" for points in sizes)])
    return markdown_table(["gradient of 8 attributes / of one", *(f"{points} codes" for points in sizes)], lines)
