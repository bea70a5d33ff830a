"""Text of others on a terminal, and tables: control characters are shown as escapes, so that they cannot move the cursor or hide text."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def printable(text: object) -> str:
    r"""Returns text with escapes in place of control characters, marks of direction and lone surrogates; newlines and tabs stay.

    Args:
        text: The text, or an object whose `str` may even raise.

    Example:
        >>> print(printable("\x1b[2Jname"))
        \x1b[2Jname
    """
    try:
        found = str.__str__(str(text))
    except Exception as error:
        found = f"(an object of type {type(text).__name__}, whose text raises {type(error).__name__})"
    return "".join(character if _is_harmless(character) else _escaped(character) for character in found)


def one_line(text: object) -> str:
    """Returns text as `printable`, with escapes for newlines and tabs too."""
    return printable(text).replace("\n", "\\n").replace("\t", "\\t")


def describe_error(error: BaseException) -> str:
    """Returns the type and the text of an error of third-party code, whose `str` may raise."""
    return f"{type(error).__name__}: {printable(error)}"


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


def _is_harmless(character: str) -> bool:
    return character in "\n\t" or character.isprintable() or unicodedata.category(character) == "Zs"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()
