r"""Table 1 by the paper's method: energies of pixels by contrastive divergence, `&` as their sum, NOT as $-\alpha E$, OR by logsumexp.

    python -m benchmarks.papers.compositional_2020.paper_method [--write]
    python -m benchmarks.papers.compositional_2020.paper_method --train FOLDER     (trains the energies first, or continues a training)

After the table, it tests what NOT and OR of such energies need: $\alpha$ from .001 to 1, a bounded complement, and the complement of the
classifier that the energies define; and the scale of the energies under the logsumexp, which is 100 in a line of the released code whose
result the next line discards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import Options, accuracy, compare, near, render, run_experiment, share
from benchmarks.papers.compositional_2020.paper_energies import NOISE, SETTINGS, SIZE, STEP, condition_of, enlarge, load, reduce, train
from benchmarks.papers.compositional_2020.table1 import ROWS, conditions
from benchmarks.papers.experiment import print_table
from composable_energy_faces.judge import frechet_distance
from composable_energy_scenes import COLORS

CHAIN = 40
"""Steps of a chain that draws a picture; chosen on another seed, like the settings below."""

ALPHA, ALPHAS = 0.001, (0.001, 0.01, 0.1, 0.3, 1.0)
"""The factors of NOT: in the table, as in the released code, and in the test."""

SCALE, SCALES = 100.0, (1.0, 1e2, 1e4)
"""The factors of energies under OR: in the table, as in the released code, and in the test."""

MARGIN = 8.0
"""Units of evidence that a bounded complement has between pictures of a concept and others."""


def paper_not(energy: Any, alpha: float) -> ce.Energy:
    r"""Returns the paper's NOT, $-\alpha E$, which has no lower bound."""
    return ce.negate(energy, mode="power", weight=alpha)


def paper_or(*energies: Any, scale: float) -> ce.Energy:
    r"""Returns the paper's OR, $-\log \sum_k e^{-s E_k} / s$ with a scale $s$."""
    return ce.Disjunction(*(scale * energy for energy in energies)) / scale


def bounded_not(energy: Any, at: float, scale: float) -> ce.Energy:
    r"""Returns a bounded NOT, $\operatorname{softplus}(s (b - E)) / s$: it acts on a picture only until its energy is above $b$."""
    return ce.negate(scale * energy, mode="contrast", offset=scale * at) / scale


def energy_classifier(of: Callable[[Tensor], ce.Energy], classes: int, scale: float) -> ce.ClassifierEnergy:
    r"""Returns the classifier of conditional energies, $p(k \mid x) \propto e^{-s E(x \mid k)}$; `~` of its events is exact."""
    energies = [of(torch.tensor([k])) for k in range(classes)]
    return ce.ClassifierEnergy(lambda x: -scale * torch.stack([energy(x) for energy in energies], 1), labels=classes)


@dataclass(frozen=True)
class Method:
    """Conditional energies with a sampler."""

    of: Mapping[str, Callable[[Tensor], ce.Energy]]
    draw: Callable[[ce.Energy, int, int], Tensor]  # function from an energy, a number of pictures and a seed to pictures of 64 pixels
    alpha: float  # factor of NOT
    scale: float  # factor of energies under OR


def of_pixels(chain: int, alpha: float, scale: float) -> Method:
    """Returns the paper's method: energies of pixels, and chains of a number of steps from uniform noise, in bfloat16 as in training."""
    energies = load()
    options = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}

    def draw(energy: ce.Energy, n: int, seed: int) -> Tensor:
        start = torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        settings = {"steps": chain, "init": start, "seed": seed, "batch_size": 125, "allow_improper": True, **options}
        with torch.autocast("cpu", torch.bfloat16):
            return enlarge(energy.sample(n, sampler="langevin", **settings))

    def bind(concept: str) -> Callable[[Tensor], ce.Energy]:
        return lambda values: energies[concept].given(y=condition_of(concept, values))

    return Method({concept: bind(concept) for concept in energies}, draw, alpha, scale)


def expressions(method: Method, c: Mapping[str, Tensor]) -> dict[str, ce.Energy]:
    """Returns the rows of `table1` by the paper's rules."""
    place, color = method.of["position"](c["position"]), method.of["color"](c["color"])
    here, there = (method.of["position"](c[name]) for name in ("position1", "position2"))
    other = method.of["color"](c["color2"])
    rows = {
        "color": color,
        "position": place,
        "position & color": place & color,
        "position & ~color": place & paper_not(color, method.alpha),
        "~position & color": paper_not(place, method.alpha) & color,
        "position1": here,
        "position1 & color1": here & color,
        "position1 | position2": paper_or(here, there, scale=method.scale),
        "(position1 & color1) | (position2 & color2)": paper_or(here & color, there & other, scale=method.scale),
    }
    if "shape" in method.of:
        shape, size = (method.of[concept](c[concept]) for concept in ("shape", "size"))
        rows["position & color & shape & size"] = ce.all_of(place, color, shape, size)
    return rows


def run(options: Options) -> dict[str, Any]:
    """Prints the tables and returns their figures."""
    pixels = of_pixels(CHAIN, ALPHA, SCALE)
    real, truth = render(max(2000, options.samples), 12)
    lowered = enlarge(reduce(real))
    known = compare(options.evaluate(lowered), truth)
    for name, value in SETTINGS.items():
        print(f"{name}: {value}")
    print(f"chains: {CHAIN} steps from uniform noise; NOT: alpha {ALPHA}; OR: scale {SCALE:g}")
    print_table(f"Accuracy of the evaluator on renders, and on renders of {SIZE} pixels", [accuracy(options.evaluator), known])
    table = _rows(pixels, options, lowered)
    print_table("Table 1 by the paper's method: [paper], (chance)", table)
    some = replace(options, samples=max(2, options.samples // 4), seed=options.seed + 1)
    nots = _nots(pixels, some, lowered)
    print_table(f"NOT: {some.samples} pictures a line", nots)
    ors = _ors(pixels, some)
    print_table(f"OR of two positions: {some.samples} pictures a line", ors)
    return {"settings": dict(SETTINGS), "evaluator": known, "table": table, "not": nots, "or": ors}


def _rows(method: Method, options: Options, real: Tensor) -> list[dict[str, Any]]:
    """Draws and evaluates the rows of the table; chance is the score of renders."""
    c = conditions(options.samples, options.seed)
    nothing, features = options.evaluate(real[: options.samples]), options.evaluator.features(real)
    known, rows = {row.text: row for row in ROWS}, []
    for text, energy in expressions(method, c).items():
        images = method.draw(energy, options.samples, options.seed)
        attributes, row = options.evaluate(images), known[text]
        chance, line = row.scores(nothing, c), {"row": text}
        for number, (name, value) in enumerate(row.scores(attributes, c).items()):
            paper = f" [{row.paper[number]:g}]" if number < len(row.paper) and row.paper[number] is not None else ""
            line[f"{number + 1}"] = f"{name} {value:.3f}{paper} ({chance[name]:.2f})"
        rows.append(line | {"Frechet": frechet_distance(options.evaluator.features(images), features)})
    return rows


def _nots(method: Method, options: Options, real: Tensor) -> list[dict[str, Any]]:
    """Returns rows of `position & ~color` by several factors, by a bounded NOT, and by the classifier of the energies."""
    c, features = conditions(options.samples, options.seed), options.evaluator.features(real)
    place, color = (method.of[concept](c[concept]) for concept in ("position", "color"))
    tint, scale = _bounds("color")
    event = energy_classifier(method.of["color"], len(COLORS), scale)
    kinds = {f"{alpha:g} E": paper_not(color, alpha) for alpha in ALPHAS}
    kinds |= {"bounded": bounded_not(color, tint, scale), "classifier": ~event.given(y=c["color"]) / scale}
    rows = []
    for name, negated in kinds.items():
        images = method.draw(place & negated, options.samples, options.seed)
        found = options.evaluate(images)
        right = {"position": share(near(found.position, c["position"])), "& ~color": share(found.color != c["color"])}
        far = frechet_distance(options.evaluator.features(images), features)
        rows.append({"NOT": name, **right, "Frechet of position & ~color": far})
    return rows


def _bounds(concept: str) -> tuple[float, float]:
    """Returns the mean of the energies for true and for wrong values of a concept, and a scale for their difference."""
    images, truth = render(1000, 21)
    values = condition_of(concept, truth[concept])
    with torch.no_grad():
        own, other = (float(load()[concept](reduce(images), y=value).mean()) for value in (values, values.roll(1, 0)))
    return (own + other) / 2, MARGIN / max(other - own, 1e-9)


def _ors(method: Method, options: Options) -> list[dict[str, Any]]:
    """Returns rows of the OR of two positions at several scales."""
    c, rows = conditions(options.samples, options.seed), []
    spots = [c[name] for name in ("position1", "position2")]
    branches = [method.of["position"](spot) for spot in spots]
    for scale in SCALES:
        images = method.draw(paper_or(*branches, scale=scale), options.samples, options.seed)
        position = options.evaluate(images).position
        first, second = (near(position, spot) for spot in spots)
        rows.append({"scale": f"{scale:g}", "either": share(first | second), "first": share(first), "second": share(second)})
    return rows


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--train", type=Path, metavar="FOLDER")
    args, sys.argv[1:] = own.parse_known_args()
    if args.train is not None:
        train(args.train)
    run_experiment("paper_method", __doc__, run)
