"""Runs the Python blocks of Markdown pages in temporary folders.

    python docs/scripts/run_blocks.py README.md --first

Each block runs alone, as if pasted into a new session. A page that tells its readers
"Run its blocks in order." runs as one session. A comment with a reason
before a block excludes it: `<!-- not run: needs a GPU -->`. A block of language `text`
directly after a block is its expected output: words must be equal, numbers within 2 %.
Only the standard library is used, so an environment with only the wheel can run it.
"""

import argparse
import contextlib
import io
import math
import os
import re
import sys
import tempfile
import types
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_IN_ORDER = "Run its blocks in order."

_FENCE = re.compile(
    r"^(?P<indent>[ \t]*)(?P<fence>```+|~~~+)[ \t]*(?P<language>\w*)[^\n]*\n"
    r"(?P<code>.*?)^(?P=indent)(?P=fence)[ \t]*$",
    re.M | re.S,
)
_SHOWN = re.compile(
    r"\s*^(?P<indent>[ \t]*)```text[ \t]*\n(?P<text>.*?)^(?P=indent)```[ \t]*$",
    re.M | re.S,
)
_NUMBER = re.compile(r"(?<![\w.])-?\d+\.?\d*(?:e-?\d+)?(?![\w.]*\d)")
_OPT_OUT = re.compile(r"<!--[ \t]*not run:(?P<reason>.*?)-->\s*\Z", re.S)


@dataclass(frozen=True)
class Block:
    """A block of code on a page.

    Attributes:
        code: The code, without the indentation of the fence.
        line: Line number of its start on the page, from 1.
        reason: Why it does not run, or None.
        shown: The expected output, or None.
    """

    code: str
    line: int
    reason: str | None
    shown: str | None = None


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
        shown = _SHOWN.match(text, match.end())
        found.append(
            Block(
                _dedented(match["code"], match["indent"]),
                line,
                opt_out["reason"].strip() if opt_out else None,
                _dedented(shown["text"], shown["indent"]) if shown else None,
            )
        )
    return found


def sessions(page: Path) -> list[list[Block]]:
    """Returns the blocks of a page that run, by the session that they run in."""
    found = [block for block in blocks(page) if block.reason is None]
    if found and _IN_ORDER in " ".join(page.read_text(encoding="utf-8").split()):
        return [found]
    return [[block] for block in found]


def run(page: Path, found: list[Block]) -> dict[str, Any]:
    """Runs blocks of a page in one namespace and returns it.

    Tracebacks show the line numbers of the page.

    Raises:
        AssertionError: A block prints something different from the page.
    """
    module = types.ModuleType(f"page_{page.stem}")
    namespace = vars(module)
    sys.modules[module.__name__] = (
        module  # pickle and dataclasses need it for classes of the page
    )
    for block in found:
        if block.reason is not None:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(
                compile(
                    "\n" * (block.line - 1) + block.code,
                    str(page),
                    "exec",
                    dont_inherit=True,
                ),
                namespace,
            )
        print(printed.getvalue(), end="")
        if block.shown is not None and not _alike(printed.getvalue(), block.shown):
            raise AssertionError(
                f"{page}:{block.line}: the block prints\n{printed.getvalue()}\n"
                f"and the page shows\n{block.shown}"
            )
    return namespace


def _alike(printed: str, shown: str) -> bool:
    words = [_NUMBER.sub("0", text).split() for text in (printed, shown)]
    numbers = zip(_NUMBER.findall(printed), _NUMBER.findall(shown), strict=False)
    return words[0] == words[1] and all(
        math.isclose(float(a), float(b), rel_tol=0.02, abs_tol=0.002)
        for a, b in numbers
    )


def _dedented(code: str, indent: str) -> str:
    return "\n".join(row.removeprefix(indent) for row in code.split("\n"))


def main() -> None:
    """Runs the blocks of the pages named on the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n")[0] if __doc__ else None
    )
    parser.add_argument("pages", nargs="+", type=Path)
    parser.add_argument(
        "--first", action="store_true", help="only the first block of each page"
    )
    options = parser.parse_args()
    for page in [page.resolve() for page in options.pages]:
        found = [blocks(page)[:1]] if options.first else sessions(page)
        for session in found:
            with tempfile.TemporaryDirectory() as folder:
                os.chdir(folder)
                run(page, session)
                os.chdir(Path(__file__).parent)
        print(f"{page.name}: {sum(map(len, found))} blocks ran")


if __name__ == "__main__":
    main()
