"""Tables as text and as HTML for notebooks; the HTML is escaped and takes the colours of the page, light or dark."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence

from composable_energy.printable import one_line

__all__ = ["Html", "escape", "html_block", "html_table", "text_table"]

_STYLE = (
    "<style>"
    ".ce-html{font-size:13px;line-height:1.45;max-width:100%;overflow-x:auto}"
    ".ce-html table{border-collapse:collapse;margin:4px 0}"
    ".ce-html th,.ce-html td{text-align:left;vertical-align:top;padding:2px 10px 2px 0;border:0;"
    "border-bottom:1px solid rgba(128,128,128,.3);"
    "background:none;color:inherit}"
    ".ce-html td:first-child{white-space:nowrap}"
    ".ce-html th{font-weight:600;opacity:.75;white-space:nowrap}"
    ".ce-html .ce-right{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}"
    ".ce-html code{font-size:12px;color:inherit;background:none;padding:0;white-space:pre}"
    ".ce-html .ce-muted{opacity:.65}"
    "</style>"
)


class Html(str):
    """Text that is HTML already, so that `escape` leaves it as it is."""

    __slots__ = ()


def escape(value: object) -> Html:
    """Returns a value as HTML; `Html` as it is, None as nothing."""
    if isinstance(value, Html):
        return value
    return Html("" if value is None else html.escape(str(value)))


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Returns a table with aligned columns, and escapes for control characters.

    Args:
        header: The names of the columns.
        rows: The cells; None is empty.
        right: The indices of right-aligned columns.
    """
    cells = [list(header)] + [["" if cell is None else one_line(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = (
        "  ".join(cell.rjust(width) if i in right else cell.ljust(width) for i, (cell, width) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    )
    return "\n".join(line.rstrip() for line in lines)


def html_table(header: Sequence[object], rows: Iterable[Sequence[object]], right: Sequence[int] = ()) -> Html:
    """Returns a table as HTML; cells are escaped, and those of `Html` are not.

    Args:
        header: The names of the columns; none leaves the head out.
        rows: The cells.
        right: The indices of right-aligned columns.
    """

    def line(tag: str, row: Sequence[object]) -> str:
        sides = (' class="ce-right"' if i in right else "" for i in range(len(row)))
        return f"<tr>{''.join(f'<{tag}{side}>{escape(cell)}</{tag}>' for side, cell in zip(sides, row, strict=True))}</tr>"

    head = f"<thead>{line('th', header)}</thead>" if header else ""
    return Html(f"<table>{head}<tbody>{''.join(line('td', row) for row in rows)}</tbody></table>")


def html_block(*parts: object) -> str:
    """Returns parts of HTML below each other, with the style of the tables."""
    return f'<div class="ce-html">{_STYLE}{"".join(f"<div>{escape(part)}</div>" for part in parts if part)}</div>'
