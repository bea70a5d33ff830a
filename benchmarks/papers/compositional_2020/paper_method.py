r"""Table 1 by the paper's method: energies of pixels by contrastive divergence, `&` as their sum, NOT as $-\alpha E$, OR by logsumexp.

    python -m benchmarks.papers.compositional_2020.paper_method [--write]
    python -m benchmarks.papers.compositional_2020.paper_method --train FOLDER     (trains the energies first, or continues a training)

After the table, it tests what NOT and OR of such energies need: $\alpha$ from .001 to 1, a bounded complement, and the complement of the
classifier that the energies define; and the scale of the energies under the logsumexp, which is 100 in a line of the released code whose
result the next line discards. Last come the same rules with conditional energies that were trained by denoising.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.evaluation import Attributes, accuracy, compare, free_attributes, near, render, share
from benchmarks.papers.compositional_2020.options import Options, run_experiment
from benchmarks.papers.compositional_2020.paper_energies import SETTINGS, SIZE, condition_of, enlarge, load, reduce, train
from benchmarks.papers.compositional_2020.paper_rules import (
    IMPLICATION,
    Method,
    bounded_not,
    energy_classifier,
    expressions,
    of_codes,
    of_pixels,
    paper_not,
    paper_or,
)
from benchmarks.papers.compositional_2020.table1 import ROWS, conditions
from benchmarks.papers.experiment import arrange_grid, print_table
from composable_energy_faces.judge import frechet_distance
from composable_energy_scenes import COLORS

CHAIN = 40
"""Steps of a chain that draws a picture; chosen on another seed, like the settings below."""

ALPHA, CODE_ALPHA, ALPHAS, MIDDLE = 0.001, 0.01, (0.001, 0.01, 0.1, 0.3, 1.0), 0.03
"""The factors of NOT: in the table, as in the released code, and in the test."""

SCALE, SCALES, APART = 100.0, (1.0, 1e2, 1e4), 1e4
"""The factors of energies under OR: in the table, as in the released code; in the test; and the first one that works."""

COLUMNS = 12
TEXTS = (*(row.text for row in ROWS), IMPLICATION)

MARGIN = 8.0
"""Units of evidence that a bounded complement has between pictures of a concept and others."""


def run(options: Options) -> dict[str, Any]:
    """Prints the tables and returns their figures."""
    pixels, codes = of_pixels(CHAIN, ALPHA, SCALE), of_codes(options.concepts, CODE_ALPHA)
    real, truth = render(max(2000, options.samples), 12)
    lowered = enlarge(reduce(real))
    known = compare(options.evaluate(lowered), truth)
    for name, value in SETTINGS.items():
        print(f"{name}: {value}")
    print(f"chains: {CHAIN} steps from uniform noise; NOT: alpha {ALPHA}; OR: scale {SCALE:g}")
    print_table(f"Accuracy of the evaluator on renders, and on renders of {SIZE} pixels", [accuracy(options.evaluator), known])
    table, tiles = _rows(pixels, options, lowered)
    print_table("Table 1 by the paper's method: [paper], (chance)", table)
    apart, _ = _rows(replace(pixels, scale=APART), options, lowered, [text for text in TEXTS if "|" in text])
    print_table(f"Its ORs with the scale {APART:g}", apart)
    some = replace(options, samples=max(2, options.samples // 4), seed=options.seed + 1)
    nots, implications, images = _nots(pixels, some, lowered)
    print_table(f"NOT: {some.samples} pictures a line", nots)
    print_table("NOT of all other colors", implications)
    ors = _ors(pixels, some, lowered)
    print_table(f"OR of two positions: {some.samples} pictures a line", ors)
    denoised, _ = _rows(codes, some, real)
    print_table(f"The same rules with energies of codes by denoising: alpha {CODE_ALPHA}, scale 1, {some.samples} pictures a row", denoised)
    picture = arrange_grid(torch.cat([*tiles, *images]), COLUMNS)[:, ::2, ::2]
    figures = {"settings": dict(SETTINGS), "evaluator": known, "table": table, "apart": apart, "not": nots, "implication": implications}
    return figures | {"or": ors, "denoised": denoised, "picture": picture}


def _rows(method: Method, options: Options, real: Tensor, texts: Sequence[str] = TEXTS) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Draws and evaluates the rows of the table; chance is the score of renders."""
    c = conditions(options.samples, options.seed)
    nothing, features = options.evaluate(real[: options.samples]), options.evaluator.features(real)
    known = {row.text: row for row in ROWS}
    known[IMPLICATION] = replace(known["position & color"], text=IMPLICATION, paper=(None, 0.982))
    rows, tiles = [], []
    for text, energy in expressions(method, c).items():
        if text not in texts:
            continue
        images = method.draw(energy, options.samples, options.seed)
        attributes, row = options.evaluate(images), known[text]
        chance, line = row.scores(nothing, c), {"row": text}
        for number, (name, value) in enumerate(row.scores(attributes, c).items()):
            paper = f" [{row.paper[number]:g}]" if number < len(row.paper) and row.paper[number] is not None else ""
            line[f"{number + 1}"] = f"{name} {value:.3f}{paper} ({chance[name]:.2f})"
        spread = free_attributes(attributes)
        line |= {"Frechet": frechet_distance(options.evaluator.features(images), features)}
        rows.append(line | {name: spread[name] for name in ("size", "shapes")})
        tiles.append(images[:COLUMNS])
    return rows, tiles


def _nots(method: Method, options: Options, real: Tensor) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Tensor]]:
    """Returns rows of the table with NOT by several factors, with a bounded one, and with that of the classifier of the energies.

    Returns:
        Rows with one negation; rows of the implication, with all other colors negated; pictures.
    """
    c, features = conditions(options.samples, options.seed), options.evaluator.features(real)
    place, color = (method.of[concept](c[concept]) for concept in ("position", "color"))
    rest = [(c["color"] + k) % len(COLORS) for k in range(1, len(COLORS))]
    (spot, apart), (tint, scale) = _bounds("position"), _bounds("color")
    event = energy_classifier(method.of["color"], len(COLORS), scale)
    tiles: list[Tensor] = []

    def evaluated(energy: ce.Energy, first: str, second: str, right: Callable[[Attributes], tuple[Tensor, Tensor]]) -> dict[str, float]:
        images = method.draw(energy, options.samples, options.seed)
        tiles.append(images[:COLUMNS])
        one, other = right(options.evaluate(images))
        far = frechet_distance(options.evaluator.features(images), features)
        return {first: share(one), second: share(other), f"Frechet of {first} {second}": far}

    def uncolored(energy: ce.Energy) -> dict[str, float]:
        return evaluated(
            energy, "position", "& ~color", lambda attributes: (near(attributes.position, c["position"]), attributes.color != c["color"])
        )

    def elsewhere(energy: ce.Energy) -> dict[str, float]:
        return evaluated(
            energy, "~position", "& color", lambda attributes: (~near(attributes.position, c["position"]), attributes.color == c["color"])
        )

    def implied(energy: ce.Energy) -> dict[str, float]:
        return evaluated(
            energy, "position", "& color", lambda attributes: (near(attributes.position, c["position"]), attributes.color == c["color"])
        )

    nots = [{"NOT": f"{a:g} E"} | uncolored(place & paper_not(color, a)) | elsewhere(paper_not(place, a) & color) for a in ALPHAS]
    nots.append(
        {"NOT": "bounded"} | uncolored(place & bounded_not(color, tint, scale)) | elsewhere(bounded_not(place, spot, apart) & color)
    )
    nots.append({"NOT": "classifier"} | uncolored(place & ~event.given(y=c["color"]) / scale))
    others = ce.all_of(*(~event.given(y=values) for values in rest)) / scale
    implications = [
        {"NOT": f"{MIDDLE:g} E"} | implied(ce.all_of(place, *(paper_not(method.of["color"](values), MIDDLE) for values in rest))),
        {"NOT": "classifier"} | implied(place & others),
    ]
    return nots, implications, tiles


def _bounds(concept: str) -> tuple[float, float]:
    """Returns the mean of the energies for true and for wrong values of a concept, and a scale for their difference."""
    images, truth = render(1000, 21)
    values = condition_of(concept, truth[concept])
    with torch.no_grad():
        own, other = (float(load()[concept](reduce(images), y=value).mean()) for value in (values, values.roll(1, 0)))
    return (own + other) / 2, MARGIN / max(other - own, 1e-9)


def _ors(method: Method, options: Options, real: Tensor) -> list[dict[str, Any]]:
    """Returns rows of the OR of two positions at several scales, and with a mean energy of each branch in place of its normalizer."""
    c, n, features = conditions(options.samples, options.seed), options.samples, options.evaluator.features(real)
    spots = [c[name] for name in ("position1", "position2")]
    branches = [method.of["position"](spot) for spot in spots]
    noise = torch.rand(options.samples, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(options.seed))
    with torch.no_grad():
        own = [float(branch(reduce(method.draw(branch, n, options.seed))).mean()) for branch in branches]
        first = [float(branch(noise).mean()) for branch in branches]
    kinds = {f"{scale:g}": paper_or(*branches, scale=scale) for scale in SCALES}
    for where, means in (("its own draws", own), ("noise", first)):
        kinds[f"{APART:g}, less the mean at {where}"] = paper_or(*branches, scale=APART, log_z=[-APART * mean for mean in means])
    rows = []
    for name, energy in kinds.items():
        images = method.draw(energy, n, options.seed)
        attributes = options.evaluate(images)
        first, second = (near(attributes.position, spot) for spot in spots)
        figures = {"scale": name, "either": share(first | second), "first": share(first), "second": share(second)}
        rows.append(figures | {"Frechet": frechet_distance(options.evaluator.features(images), features)})
    return rows


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--train", type=Path, metavar="FOLDER")
    args, sys.argv[1:] = own.parse_known_args()
    if args.train is not None:
        train(args.train)
    run_experiment("paper_method", __doc__, run)
