"""The tables of the pages of the documentation, from the files of results: `python -m benchmarks.tables` writes all of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from benchmarks.harness import ROOT
from benchmarks.pages import Blocks, write_page
from benchmarks.tables import comet, compositional, samplers, scaling, speed, training, uses

DOCS = ROOT / "docs"
PAGES: Mapping[str, Callable[[], Blocks]] = {
    "benchmarks": speed.blocks,
    "diffusion": samplers.noise_levels,
    "samplers": samplers.blocks,
    "speed": lambda: {"attributes": speed.attributes},
    "results/comet-2021": comet.blocks,
    "results/compositional-2020": compositional.blocks,
    "results/continual": training.continual,
    "results/diffusers": uses.diffusers,
    "results/faces-shares": uses.faces_shares,
    "results/lace": uses.lace,
    "results/objectives": training.objectives,
    "results/observations": uses.observations,
    "results/planning": uses.planning,
    "results/posteriors": samplers.posteriors,
    "results/robustness": training.robustness,
    "results/scaling": scaling.blocks,
    "results/score-expressions": uses.score_expressions,
    "results/side-chains": uses.side_chains,
    "results/training": training.training,
}
"""The functions of the blocks of each page under `docs/` with tables, by its name."""


def write_tables() -> None:
    """Writes the blocks of all pages."""
    for name, blocks in PAGES.items():
        write_page(DOCS / f"{name}.md", blocks())
