r"""Table 1 by the paper's own method: energies of pixels by contrastive divergence, `&` as their sum, NOT as $-\alpha E$, OR by logsumexp.

    python benchmarks/papers/compositional_2020/paper_method.py [--write]
    python benchmarks/papers/compositional_2020/paper_method.py --train FOLDER     (trains the energies first, or goes on with that)

After the table it tells what NOT and OR of such energies need to work at all: $\alpha$ from .001 to 1 beside a complement that is bounded
and that of the classifier which the energies make; and the scale of the energies under the logsumexp, which is 100 in a line of the
released code whose result the next line discards. Last come the same rules with conditional energies that were trained by denoising.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from common import Options, accuracy, free, near, renders, share
from paper_energies import SETTINGS, SIZE, load, numbers_of, shown, small, train
from paper_rules import IMPLICATION, Method, bounded, either, expressions, named, no, of_codes, of_pixels
from reporting import grid, main, show
from table1 import ROWS, conditions
from torch import Tensor

import composable_energy as ce
from composable_energy_faces.judge import frechet_distance
from composable_energy_scenes import COLORS, Verdict

__all__ = ["run"]

CHAIN = 40
"""Steps of a chain that draws a picture; chosen on another seed, as all that follows."""

ALPHA, CODE_ALPHA, ALPHAS, MIDDLE = 0.001, 0.01, (0.001, 0.01, 0.1, 0.3, 1.0), 0.03
"""How strongly NOT pushes: in the table, as in the released code, and in the list of what it needs."""

SCALE, SCALES, APART = 100.0, (1.0, 1e2, 1e4), 1e4
"""By what OR multiplies energies: in the table, as in the released code; in the list; and where it first works."""

COLUMNS = 12
TEXTS = (*(row.text for row in ROWS), IMPLICATION)

MARGIN = 8.0
"""How many units of evidence a bounded complement has between pictures of a concept and others."""


def run(options: Options) -> dict[str, Any]:
    """Prints the tables and returns their figures."""
    pixels, codes = of_pixels(CHAIN, ALPHA, SCALE), of_codes(options.concepts, CODE_ALPHA)
    real, truth = renders(max(2000, options.samples), 12)
    lowered = shown(small(real))
    seen = options.judged(lowered)
    told = {
        "position within .4": share(near(seen.position, truth["position"])),
        "position error": float((seen.position - truth["position"]).abs().mean()),
        "size error": float((seen.size - truth["size"]).abs().mean()),
        "shape": share(seen.shape == truth["shape"]),
        "color": share(seen.color == truth["color"]),
    }
    for name, value in SETTINGS.items():
        print(f"{name}: {value}")
    print(f"chains: {CHAIN} steps from uniform noise; NOT: alpha {ALPHA}; OR: scale {SCALE:g}")
    show(f"The judge itself, on renders and on renders of {SIZE} pixels", [accuracy(options.judge), told])
    table, tiles = _rows(pixels, options, lowered)
    show("Table 1 by the paper's method: [paper], (chance)", table)
    apart, _ = _rows(replace(pixels, scale=APART), options, lowered, [text for text in TEXTS if "|" in text])
    show(f"Its ORs with the scale {APART:g}", apart)
    some = replace(options, samples=max(2, options.samples // 4), seed=options.seed + 1)
    nots, implications, images = _nots(pixels, some, lowered)
    show(f"NOT: {some.samples} pictures a line", nots)
    show("NOT of all other colors", implications)
    ors = _ors(pixels, some, lowered)
    show(f"OR of two positions: {some.samples} pictures a line", ors)
    denoised, _ = _rows(codes, some, real)
    show(f"The same rules with energies of codes by denoising: alpha {CODE_ALPHA}, scale 1, {some.samples} pictures a row", denoised)
    picture = grid(torch.cat([*tiles, *images]), COLUMNS)[:, ::2, ::2]
    figures = {"settings": dict(SETTINGS), "judge": told, "table": table, "apart": apart, "not": nots, "implication": implications}
    return figures | {"or": ors, "denoised": denoised, "picture": picture}


def _rows(method: Method, options: Options, real: Tensor, texts: Sequence[str] = TEXTS) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Draws the rows of the table, and judges them; chance is what pictures reach of which nothing was asked."""
    c = conditions(options.samples, options.seed)
    nothing, features = options.judged(real[: options.samples]), options.judge.features(real)
    known = {row.text: row for row in ROWS}
    known[IMPLICATION] = replace(known["position & color"], text=IMPLICATION, paper=(None, 0.982))
    rows, tiles = [], []
    for text, energy in expressions(method, c).items():
        if text not in texts:
            continue
        images = method.draw(energy, options.samples, options.seed)
        seen, row = options.judged(images), known[text]
        chance, line = row.scores(nothing, c), {"row": text}
        for number, (name, value) in enumerate(row.scores(seen, c).items()):
            paper = f" [{row.paper[number]:g}]" if number < len(row.paper) and row.paper[number] is not None else ""
            line[f"{number + 1}"] = f"{name} {value:.3f}{paper} ({chance[name]:.2f})"
        spread = free(seen)
        line |= {"Frechet": frechet_distance(options.judge.features(images), features)}
        rows.append(line | {name: spread[name] for name in ("size", "shapes")})
        tiles.append(images[:COLUMNS])
    return rows, tiles


def _nots(method: Method, options: Options, real: Tensor) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[Tensor]]:
    """Rows of the table with NOT of several strengths, with a bounded one, and with that of the classifier that the energies make.

    Returns:
        Rows with one negation; those of the implication, in which all other colors are negated; pictures.
    """
    c, features = conditions(options.samples, options.seed), options.judge.features(real)
    place, color = (method.of[concept](c[concept]) for concept in ("position", "color"))
    rest = [(c["color"] + k) % len(COLORS) for k in range(1, len(COLORS))]
    (spot, apart), (tint, scale) = _bounds("position"), _bounds("color")
    event = named(method.of["color"], len(COLORS), scale)
    tiles: list[Tensor] = []

    def told(energy: ce.Energy, first: str, second: str, right: Callable[[Verdict], tuple[Tensor, Tensor]]) -> dict[str, float]:
        images = method.draw(energy, options.samples, options.seed)
        tiles.append(images[:COLUMNS])
        one, other = right(options.judged(images))
        far = frechet_distance(options.judge.features(images), features)
        return {first: share(one), second: share(other), f"Frechet of {first} {second}": far}

    def uncolored(energy: ce.Energy) -> dict[str, float]:
        return told(energy, "position", "& ~color", lambda seen: (near(seen.position, c["position"]), seen.color != c["color"]))

    def elsewhere(energy: ce.Energy) -> dict[str, float]:
        return told(energy, "~position", "& color", lambda seen: (~near(seen.position, c["position"]), seen.color == c["color"]))

    def implied(energy: ce.Energy) -> dict[str, float]:
        return told(energy, "position", "& color", lambda seen: (near(seen.position, c["position"]), seen.color == c["color"]))

    nots = [{"NOT": f"{a:g} E"} | uncolored(place & no(color, a)) | elsewhere(no(place, a) & color) for a in ALPHAS]
    nots.append({"NOT": "bounded"} | uncolored(place & bounded(color, tint, scale)) | elsewhere(bounded(place, spot, apart) & color))
    nots.append({"NOT": "classifier"} | uncolored(place & ~event.given(y=c["color"]) / scale))
    others = ce.all_of(*(~event.given(y=values) for values in rest)) / scale
    implications = [
        {"NOT": f"{MIDDLE:g} E"} | implied(ce.all_of(place, *(no(method.of["color"](values), MIDDLE) for values in rest))),
        {"NOT": "classifier"} | implied(place & others),
    ]
    return nots, implications, tiles


def _bounds(concept: str) -> tuple[float, float]:
    """The energy halfway between pictures with their own value of a concept and with another's, and the scale that sets both apart."""
    images, truth = renders(1000, 21)
    values = numbers_of(concept, truth[concept])
    with torch.no_grad():
        own, other = (float(load()[concept](small(images), y=told).mean()) for told in (values, values.roll(1, 0)))
    return (own + other) / 2, MARGIN / max(other - own, 1e-9)


def _ors(method: Method, options: Options, real: Tensor) -> list[dict[str, Any]]:
    """The OR of two positions at several scales, and with a mean energy of each branch in place of its normalizer."""
    c, n, features = conditions(options.samples, options.seed), options.samples, options.judge.features(real)
    spots = [c[name] for name in ("position1", "position2")]
    branches = [method.of["position"](spot) for spot in spots]
    noise = torch.rand(options.samples, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(options.seed))
    with torch.no_grad():
        own = [float(branch(small(method.draw(branch, n, options.seed))).mean()) for branch in branches]
        first = [float(branch(noise).mean()) for branch in branches]
    kinds = {f"{scale:g}": either(*branches, scale=scale) for scale in SCALES}
    for where, means in (("its own draws", own), ("noise", first)):
        kinds[f"{APART:g}, less the mean at {where}"] = either(*branches, scale=APART, log_z=[-APART * mean for mean in means])
    rows = []
    for name, energy in kinds.items():
        images = method.draw(energy, n, options.seed)
        seen = options.judged(images)
        first, second = (near(seen.position, spot) for spot in spots)
        told = {"scale": name, "either": share(first | second), "first": share(first), "second": share(second)}
        rows.append(told | {"Frechet": frechet_distance(options.judge.features(images), features)})
    return rows


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--train", type=Path, metavar="FOLDER")
    told, rest = own.parse_known_args()
    if told.train is not None:
        train(told.train)
    sys.argv[1:] = rest
    main("paper_method", __doc__, run)
