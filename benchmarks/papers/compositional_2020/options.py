"""The command line of the experiments with the 2020 paper."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from benchmarks.harness import read_options
from benchmarks.papers.compositional_2020.evaluation import Attributes, Evaluator, evaluate, load_evaluator
from benchmarks.papers.experiment import COMPOSITIONAL
from composable_energy_scenes import Concepts, load_concepts
from composable_energy_scenes.weights import FOLDER


@dataclass(frozen=True)
class Options:
    """Options of an experiment."""

    samples: int = 1000  # pictures of each row
    seed: int = 11  # seed of conditions and samples; settings were chosen on other seeds
    weights: Path = FOLDER  # folder of weights

    @cached_property
    def concepts(self) -> Concepts:
        """The energies of the concepts."""
        return load_concepts(self.weights)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The network that evaluates pictures."""
        return load_evaluator(self.weights)

    def evaluate(self, images: Tensor) -> Attributes:
        """Returns the attributes that the evaluator reads from pictures."""
        return evaluate(images, self.evaluator)


def run_experiment(name: str, doc: str | None, run: Callable[[Options], dict[str, Any]], **defaults: Any) -> None:
    """Runs an experiment from the command line."""
    default = Options(**defaults)
    args = read_options(doc, COMPOSITIONAL.results / f"{name}.json", samples=default.samples, seed=default.seed, weights=default.weights)
    started = time.perf_counter()
    figures = run(Options(args.samples, args.seed, args.weights))
    picture, seconds = figures.pop("picture", None), time.perf_counter() - started
    print(f"\n{seconds:.0f} s")
    if args.write:
        COMPOSITIONAL.write(name, figures, picture, samples=args.samples, seed=args.seed, seconds=seconds)
