"""Pages of the documentation with figures from files of results.

A page has blocks, `<!-- NAME -->` to `<!-- end -->`. The text between the two markers is generated, so that nobody types a figure.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, read_json

Blocks = dict[str, Callable[[], str]]
"""Functions that return the text of each block by its name."""

BLOCK = re.compile(r"<!-- (?!end -->|not run)(.+?) -->.*?<!-- end -->", re.DOTALL)


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, align: str = "---:") -> str:
    lines = [head, ["---", *[align] * (len(head) - 1)], *rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return text.replace(" ± ", "&nbsp;±&nbsp;")  # on one line


def columns(rows: Iterable[Any], cells: Mapping[str, Callable[[Any], str]], *, align: str = "---:") -> str:
    """Returns a table with a column for each title and function of a row."""
    return markdown_table(list(cells), [[cell(row) for cell in cells.values()] for row in rows], align=align)


def number(key: str, digits: int = 3) -> Callable[[Mapping[str, Any]], str]:
    """Returns the function from a row to one of its numbers, empty where the row has none."""
    return lambda row: "" if row.get(key) is None else format_number(row[key], digits)


def mean(rows: Iterable[Mapping[str, Any]], key: str) -> float:
    values = [float(row[key]) for row in rows]
    return sum(values) / len(values)


def code_cell(text: str) -> str:
    """Returns code for a cell of a table, where a bar would end the cell; Python-Markdown shows the backslash before it."""
    return f"<code>{text.replace('&', '&amp;').replace('|', '&#124;')}</code>" if "|" in text else f"`{text}`"


def read_results(name: str) -> Any:
    return read_json(RESULTS / f"{name}.json")


def format_number(value: float, digits: int = 3) -> str:
    """Returns a number with fixed digits after the point and no zero before it: .950, 1.000, -.240."""
    text = f"{value:.{digits}f}"
    return re.sub(r"^(-?)0\.", r"\1.", text)


def short(value: float) -> str:
    """Returns a number with one digit after the point if it is small, and with none if it is 100 or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def fill_page(page: str, blocks: Blocks) -> str:
    """Returns a page with the text of its blocks generated anew."""
    found = block_names(page)
    if sorted(found) != sorted(blocks):
        raise ValueError(f"The page has the blocks {sorted(found)}, the functions are for {sorted(blocks)}; each needs the other.")
    return BLOCK.sub(lambda match: f"<!-- {match[1]} -->\n\n{blocks[match[1]]().strip()}\n\n<!-- end -->", page)


def block_names(page: str) -> list[str]:
    return [match[1] for match in BLOCK.finditer(page)]


def write_page(path: Path, blocks: Blocks) -> None:
    path.write_text(fill_page(path.read_text(encoding="utf-8"), blocks), encoding="utf-8")
