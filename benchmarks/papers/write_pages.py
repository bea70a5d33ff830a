"""Writes the figures of files of results into pages of the documentation: `python -m benchmarks.papers.write_pages`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks import objectives_page, samplers_page, training_page
from benchmarks.harness import ROOT
from benchmarks.pages import Blocks, write_page
from benchmarks.papers.comet_2021 import page as comet_page
from benchmarks.papers.compositional_2020 import page as compositional_page
from benchmarks.papers.implicit_2019 import continual_page, robustness_page

FOLDER = ROOT / "docs" / "results"
PAGES: Mapping[str, Callable[[], Blocks]] = {
    "comet-2021": comet_page.blocks,
    "compositional-2020": compositional_page.blocks,
    "continual": continual_page.blocks,
    "objectives": objectives_page.blocks,
    "robustness": robustness_page.blocks,
    "training": training_page.blocks,
}
"""The blocks of each page under `docs/results/` by its name."""


def write_pages() -> None:
    """Writes the blocks of all pages."""
    for name, blocks in PAGES.items():
        write_page(FOLDER / f"{name}.md", blocks())
    write_page(samplers_page.PAGE, samplers_page.blocks())


if __name__ == "__main__":
    write_pages()
