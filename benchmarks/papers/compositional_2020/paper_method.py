r"""Table 1 by the paper's own method: energies of pixels by contrastive divergence, `&` as their sum, NOT as $-\alpha E$, OR by logsumexp.

    python benchmarks/papers/compositional_2020/paper_method.py [--write]
    python benchmarks/papers/compositional_2020/paper_method.py --train FOLDER     (trains the energies first, or goes on with that)

After the table it tells what NOT and OR of such energies need to work at all: $\alpha$ from .001 to 1 beside a complement that is bounded,
and the scale of the energies under the logsumexp, which is 100 in a line of the released code whose result the next line discards.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from common import Options, accuracy, asked, free, grid, main, near, renders, share, show
from composable_energy_faces.judge import frechet_distance
from composable_energy_scenes import COLORS, Judge, Verdict, judged
from paper_energies import NOISE, SETTINGS, SIZE, STEP, load, numbers_of, shown, small, train
from torch import Tensor

import composable_energy as ce

__all__ = ["ALPHA", "CHAIN", "Scene", "bounded", "either", "no", "run"]

CHAIN = 100
"""Steps of a chain that draws a picture, from uniform noise."""

ALPHA, ALPHAS = 0.001, (0.001, 0.01, 0.1, 0.3, 1.0)
"""How strongly NOT pushes: in the table, as in the released code, and in the list of what it needs."""

SCALE, SCALES = 100.0, (1.0, 1e2, 1e4, 1e6)
"""By what OR multiplies energies: in the table, as in the released code, and in the list."""

MARGIN = 8.0
"""How many units of evidence a bounded complement has between pictures of a concept and others."""

Test = tuple[str, float | None, Callable[[Verdict], Tensor]]
"""What is counted in a row, its share in the paper, and in which pictures it holds."""


def no(energy: Any, alpha: float = ALPHA) -> ce.Energy:
    r"""Returns the paper's NOT, $-\alpha E$, which has no lower bound."""
    return ce.negate(energy, mode="power", weight=alpha)


def either(*energies: Any, scale: float = SCALE, log_z: list[float] | None = None) -> ce.Energy:
    r"""Returns the paper's OR, $-\log \sum_k e^{-s E_k - \log Z_k} / s$ with a scale $s$, and with no $\log Z_k$."""
    return ce.Disjunction(*(scale * energy for energy in energies), log_z=log_z) / scale


def bounded(energy: Any, at: float, scale: float) -> ce.Energy:
    r"""Returns a NOT with a bound, $\operatorname{softplus}(s (b - E)) / s$: it pushes a picture only until its energy is above $b$."""
    return ce.negate(scale * energy, mode="contrast", offset=scale * at) / scale


class Scene:
    """The conditions of all pictures, the energies that they are bound to, and what a judge looks for.

    Args:
        energies: By concept.
        n: Pictures of a row.
        seed: Of the conditions and the chains.
        judge: Who judges.
    """

    def __init__(self, energies: Mapping[str, ce.Energy], n: int, seed: int, judge: Judge) -> None:
        self.energies, self.n, self.seed, self.judge = energies, n, seed, judge
        self.wanted = asked(n, seed)
        generator = torch.Generator().manual_seed(seed)
        self.places = [low + 0.5 * torch.rand(n, 2, generator=generator) for low in (-0.9, 0.4)]
        first = self.wanted["color"]
        self.colors = [first, (first + torch.randint(1, len(COLORS), (n,), generator=generator)) % len(COLORS)]
        self.start = torch.rand(n, 3, SIZE, SIZE, generator=generator)

    def of(self, concept: str, values: Tensor | None = None) -> ce.Energy:
        """Returns an energy that is bound to what is wanted in each picture, or to other values."""
        return self.energies[concept].given(y=numbers_of(concept, self.wanted[concept] if values is None else values))

    def drawn(self, expression: ce.Energy) -> Tensor:
        """Returns pictures, with shape $(n, 3, 64, 64)$."""
        chain = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}
        options = {"steps": CHAIN, "init": self.start, "seed": self.seed, "batch_size": 125, "allow_improper": True, **chain}
        return shown(expression.sample(self.n, sampler="langevin", **options))

    def seen(self, images: Tensor) -> Verdict:
        return judged(images, self.judge)

    def at(self, place: Tensor | None = None) -> Callable[[Verdict], Tensor]:
        return lambda seen: near(seen.position, self.wanted["position"] if place is None else place)

    def color(self, color: Tensor | None = None) -> Callable[[Verdict], Tensor]:
        return lambda seen: seen.color == (self.wanted["color"] if color is None else color)

    def shaped(self) -> Callable[[Verdict], Tensor]:
        return lambda seen: seen.shape == self.wanted["shape"]

    @cached_property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """For each concept the energy halfway between pictures of it and others, and the scale that sets both `MARGIN` apart."""
        images, truth = renders(1000, 21)
        images, found = small(images), {}
        for concept in ("position", "color"):
            values = numbers_of(concept, truth[concept])
            with torch.no_grad():
                own, other = (self.energies[concept](images, y=told).mean() for told in (values, values.roll(1, 0)))
            found[concept] = float((own + other) / 2), MARGIN / max(float(other - own), 1e-9)
        return found


def run(options: Options) -> dict[str, Any]:
    """Prints the tables and returns their figures."""
    energies = load()
    scene = Scene(energies, options.samples, options.seed, options.judge)
    real, truth = renders(max(2000, scene.n), 12)
    lowered = shown(small(real))
    features = options.judge.features(lowered)
    seen = scene.seen(lowered)
    own = {
        "position within .4": share(near(seen.position, truth["position"])),
        "size error": float((seen.size - truth["size"]).abs().mean()),
        "shape": share(seen.shape == truth["shape"]),
        "color": share(seen.color == truth["color"]),
    }
    for name, value in SETTINGS.items():
        print(f"{name}: {value}")
    print(f"chains: {CHAIN} steps from uniform noise; NOT: alpha {ALPHA}; OR: scale {SCALE:g}")
    show(f"The judge itself, on renders and on renders at {SIZE} pixels", [accuracy(options.judge), own])
    chance = Verdict(**{name: getattr(seen, name)[: scene.n] for name in ("position", "size", "light", "shape", "color")})
    told, tiles = [], []
    for name, (expression, tests) in _table(scene).items():
        images = scene.drawn(expression)
        told += _scores(name, tests, scene.seen(images), chance)
        told[-1] |= {"Frechet": frechet_distance(options.judge.features(images), features)} | _short(free(scene.seen(images)))
        tiles.append(images[:16])
    show("Table 1 by the paper's method", told)
    some = Scene(energies, max(2, scene.n // 4), options.seed + 1, options.judge)
    nots, images = _nots(some, features)
    show(f"NOT: {some.n} pictures a line", nots)
    ors = _ors(some, features)
    show(f"OR of two positions: {some.n} pictures a line", ors)
    picture = grid(torch.cat([*tiles, *images]))[:, ::2, ::2]
    return {"settings": dict(SETTINGS), "judge": own, "table": told, "not": nots, "or": ors, "picture": picture}


def _table(scene: Scene) -> dict[str, tuple[ce.Energy, list[Test]]]:
    """The rows by their expressions."""
    place, color = scene.of("position"), scene.of("color")
    here, there = (scene.of("position", spot) for spot in scene.places)
    one, other = (scene.of("color", value) for value in scene.colors)
    at, red = scene.at(), scene.color()
    in_first, in_second = map(scene.at, scene.places)
    first, second = _both(in_first, scene.color(scene.colors[0])), _both(in_second, scene.color(scene.colors[1]))
    rest = ce.all_of(place, *(no(scene.of("color", (scene.wanted["color"] + k) % len(COLORS))) for k in range(1, len(COLORS))))
    four = ce.all_of(place, color, scene.of("shape"), scene.of("size"))
    shaped = scene.shaped()
    return {
        "Color": (color, [("color", 0.997, red)]),
        "Pos": (place, [("position", 0.984, at)]),
        "Pos & Color": (place & color, [("position", 0.801, at), ("color", 0.8125, red), ("both", None, _both(at, red))]),
        "Pos & ~Color": (place & no(color), [("position", 0.872, at), ("avoided", 0.904, _not(red))]),
        "~Pos & Color": (no(place) & color, [("avoided", 0.967, _not(at)), ("color", 0.971, red)]),
        "Pos1": (here, [("position", 0.875, in_first)]),
        "Pos1 & Color1": (here & one, [("both", 0.460, first)]),
        "Pos1 | Pos2": (
            either(here, there),
            [("either", 0.845, _any(in_first, in_second)), ("first", 0.43, in_first), ("second", 0.41, in_second)],
        ),
        "(P1 & C1) | (P2 & C2)": (
            either(here & one, there & other),
            [("either", 0.427, _any(first, second)), ("first", 0.21, first), ("second", 0.22, second)],
        ),
        "Pos & ~(all other colors)": (rest, [("position", None, at), ("color", 0.982, red)]),
        "four concepts": (
            four,
            [("position", None, at), ("color", None, red), ("shape", None, shaped), ("all three", None, _both(at, red, shaped))],
        ),
    }


def _nots(scene: Scene, real: Tensor) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Two rows of the table with NOT of several strengths, and with a bounded one."""
    place, color = scene.of("position"), scene.of("color")
    kinds = {f"{alpha:g}": (no(place, alpha), no(color, alpha)) for alpha in ALPHAS}
    kinds["bounded"] = bounded(place, *scene.bounds["position"]), bounded(color, *scene.bounds["color"])
    rows, tiles = [], []
    for name, (elsewhere, uncolored) in kinds.items():
        first, second = scene.drawn(place & uncolored), scene.drawn(elsewhere & color)
        seen, other = scene.seen(first), scene.seen(second)
        rows.append(
            {
                "NOT": name,
                "Pos & ~Color: position": share(scene.at()(seen)),
                "avoided": share(_not(scene.color())(seen)),
                "Frechet": frechet_distance(scene.judge.features(first), real),
                "~Pos & Color: avoided": share(_not(scene.at())(other)),
                "color": share(scene.color()(other)),
                "Frechet ": frechet_distance(scene.judge.features(second), real),
            }
        )
        tiles.append(torch.cat([first[:8], second[:8]]) if scene.n >= 8 else first[:0])
    return rows, tiles


def _ors(scene: Scene, real: Tensor) -> list[dict[str, Any]]:
    """The OR of two positions at several scales, and with the mean energy of each branch's own draws in place of its normalizer."""
    branches = [scene.of("position", spot) for spot in scene.places]
    with torch.no_grad():
        own = [float(branch(small(scene.drawn(branch))).mean()) for branch in branches]
    kinds = {f"{scale:g}": either(*branches, scale=scale) for scale in SCALES}
    kinds |= {
        f"{scale:g}, less own energies": either(*branches, scale=scale, log_z=[-scale * mean for mean in own]) for scale in SCALES[2:]
    }
    rows = []
    for name, expression in kinds.items():
        images = scene.drawn(expression)
        first, second = (scene.at(spot)(scene.seen(images)) for spot in scene.places)
        told = {"scale": name, "either": share(first | second), "first": share(first), "second": share(second)}
        rows.append(told | {"Frechet": frechet_distance(scene.judge.features(images), real)})
    return rows


def _scores(name: str, tests: list[Test], seen: Verdict, chance: Verdict) -> list[dict[str, Any]]:
    return [
        {"row": name, "counted": what, "paper": "" if paper is None else paper, "re-run": share(test(seen)), "chance": share(test(chance))}
        for what, paper, test in tests
    ]


def _short(told: Mapping[str, Any]) -> dict[str, Any]:
    return {name: told[name] for name in ("size", "shapes")}


def _both(*tests: Callable[[Verdict], Tensor]) -> Callable[[Verdict], Tensor]:
    return lambda seen: torch.stack([test(seen) for test in tests]).all(0)


def _any(*tests: Callable[[Verdict], Tensor]) -> Callable[[Verdict], Tensor]:
    return lambda seen: torch.stack([test(seen) for test in tests]).any(0)


def _not(test: Callable[[Verdict], Tensor]) -> Callable[[Verdict], Tensor]:
    return lambda seen: ~test(seen)


if __name__ == "__main__":
    own = argparse.ArgumentParser(add_help=False)
    own.add_argument("--train", type=Path, metavar="FOLDER")
    told, rest = own.parse_known_args()
    if told.train is not None:
        train(told.train)
    sys.argv[1:] = rest
    main("paper_method", __doc__, run)
