"""Output of commands: aligned tables and JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from composable_energy.printable import one_line, printable

__all__ = ["json_text", "table"]


def table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Returns a table with aligned columns.

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


def json_text(value: Any) -> str:
    """Returns JSON with null for numbers that are not finite, and escapes for control characters."""
    text = json.dumps(_replace_nonfinite(value), indent=2, ensure_ascii=False, allow_nan=False)
    return "".join(char if printable(char) == char else json.dumps(char)[1:-1] for char in text)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _replace_nonfinite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_replace_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
