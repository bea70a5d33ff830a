"""Runs the Python blocks of Markdown pages, in order and in one namespace for each page, in a temporary folder.

    python docs/scripts/run_blocks.py README.md --first

A block opts out by a comment with a reason on the line before it: `<!-- not run: needs a GPU -->`. Standard library only, so that an
environment which holds nothing but the installed wheel can run it.
"""

from __future__ import annotations

import argparse
import os
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Block", "blocks", "run"]

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>```+|~~~+)[ \t]*(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=indent)(?P=fence)[ \t]*$", re.M | re.S
)
_OPT_OUT = re.compile(r"<!--[ \t]*not run:(?P<reason>.*?)-->\s*\Z", re.S)


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        code: The code, without the indentation of the fence.
        line: Where it starts on the page, from 1.
        reason: Why it does not run; None if it does.
    """

    code: str
    line: int
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """Returns the Python blocks of a page.

    Raises:
        ValueError: A block opts out without a reason.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        if match["language"] not in ("python", "py"):
            continue
        line = text.count("\n", 0, match.start("code")) + 1
        opt_out = _OPT_OUT.search(text, 0, match.start())
        if opt_out and not opt_out["reason"].strip():
            raise ValueError(f"{page}:{line}: a block that is not run says why.")
        code = "\n".join(row.removeprefix(match["indent"]) for row in match["code"].split("\n"))
        found.append(Block(code, line, opt_out["reason"].strip() if opt_out else None))
    return found


def run(page: Path, found: list[Block]) -> dict[str, Any]:
    """Runs blocks of a page in one namespace, with the page's own line numbers in tracebacks; returns the namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        if block.reason is None:
            exec(compile("\n" * (block.line - 1) + block.code, str(page), "exec", dont_inherit=True), namespace)
    return namespace


def main() -> None:
    """Runs the blocks of the pages named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument("--first", action="store_true", help="only the first block of each page")
    options = parser.parse_args()
    pages = [page.resolve() for page in options.pages]
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for page in pages:
            found = blocks(page)
            found = found[:1] if options.first else found
            run(page, found)
            print(f"{page.name}: {sum(block.reason is None for block in found)} of {len(found)} blocks ran")
        os.chdir(Path(__file__).parent)


if __name__ == "__main__":
    main()
