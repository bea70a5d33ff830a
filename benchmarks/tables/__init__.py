"""The tables of the pages of the documentation, from the files of results: `python -m benchmarks.tables` writes all of them."""

from collections.abc import Callable, Mapping

from benchmarks.harness import ROOT
from benchmarks.pages import Blocks, write_page
from benchmarks.tables import papers, samplers, speed, training, uses

DOCS = ROOT / "docs"
PAGES: Mapping[str, Callable[[], Blocks]] = {
    "benchmarks": speed.blocks,
    "diffusion": samplers.noise_levels,
    "samplers": samplers.blocks,
    "results/comet-2021": papers.comet,
    "results/compositional-2020": papers.compositional,
    "results/continual": training.continual,
    "results/diffusers": uses.diffusers,
    "results/discrete": samplers.discrete,
    "results/faces-shares": uses.faces_shares,
    "results/lace": uses.lace,
    "results/objectives": training.objectives,
    "results/observations": uses.observations,
    "results/planning": uses.planning,
    "results/posteriors": samplers.posteriors,
    "results/robustness": training.robustness,
    "results/scaling": speed.scaling,
    "results/score-expressions": uses.score_expressions,
    "results/side-chains": uses.side_chains,
    "results/training": training.training,
}
"""Each returns the functions of the blocks of a page under `docs/`, by its name."""


def write_tables() -> None:
    for name, blocks in PAGES.items():
        write_page(DOCS / f"{name}.md", blocks())
