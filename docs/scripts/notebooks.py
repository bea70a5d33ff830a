"""Writes the tutorials as executed notebooks.

    python docs/scripts/notebooks.py [--only plane ...]

A notebook has the text and the blocks of its page, with the outputs of a run in place
of those shown on the page. Blocks that a page does not run are text. Writing needs
two more packages: `pip install nbclient ipykernel`.
"""

import argparse
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from run_blocks import blocks

DOCS = Path(__file__).parent.parent
TUTORIALS, NOTEBOOKS = DOCS / "tutorials", DOCS / "notebooks"
_BLOCK = re.compile(r"^```(?:python|py)[ \t]*\n.*?^```[ \t]*\n", re.M | re.S)
_SHOWN = re.compile(r"\A\s*^```text[ \t]*\n.*?^```[ \t]*\n", re.M | re.S)
_LINK = re.compile(r"\]\((?=[\w-]+\.md)")
_KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}


def cells(page: Path) -> list[tuple[str, str]]:
    """Returns kind, `"markdown"` or `"code"`, and source of each cell of a page."""
    text, found, place = page.read_text(encoding="utf-8"), [], 0
    for block, match in zip(blocks(page), _BLOCK.finditer(text), strict=True):
        if block.reason is not None:
            continue
        found += [("markdown", _linked(text[place : match.start()]))]
        found += [("code", block.code)]
        place = match.end()
        shown = _SHOWN.match(text[place:])
        place += shown.end() if shown else 0
    found.append(("markdown", _linked(text[place:])))
    return [(kind, source.strip()) for kind, source in found if source.strip()]


def write(page: Path) -> Path:
    """Executes the cells of a page in a temporary folder, and writes the notebook."""
    import nbformat  # here, so that the tests read `cells` without these packages
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

    make = {"markdown": new_markdown_cell, "code": new_code_cell}
    made: list[Any] = []
    for kind, source in cells(page):
        made.append(make[kind](source, id=f"cell-{len(made)}"))
    notebook = new_notebook(cells=made, metadata={"kernelspec": _KERNEL})
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=1800, resources=place)
        client.record_timing = False
        # tqdm asks for widgets, which a page cannot show, with a path of this machine
        os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
        client.execute()
    notebook.metadata.pop("language_info", None)  # the version of Python
    path = NOTEBOOKS / f"{page.stem}.ipynb"
    path.parent.mkdir(exist_ok=True)
    nbformat.write(notebook, path)
    return path


def main(arguments: Sequence[str] | None = None) -> None:
    """Writes all notebooks, or some."""
    names = [page.stem for page in sorted(TUTORIALS.glob("*.md"))]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, help="tutorials to write"
    )
    for name in parser.parse_args(arguments).only:
        path = write(TUTORIALS / f"{name}.md")
        size = path.stat().st_size / 1000
        print(f"{path.relative_to(DOCS)}: {size:.0f} kB", flush=True)


def _linked(text: str) -> str:
    """Returns text with links between tutorials as seen from the notebooks."""
    return _LINK.sub("](../tutorials/", text)


if __name__ == "__main__":
    main()
