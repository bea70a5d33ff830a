r"""Table 1 of the 2020 paper, with more rows: the share of pictures with the requested attributes, which are random for each picture.

    python -m benchmarks.papers.compositional_2020.table1 [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

One draw of each picture and one setting for all rows. A position is correct within .4 on both axes (the paper's rule), a size within .1;
`joint` is the share of pictures with all requested attributes. Positions are requested within .2; negated ones outside .5, so that they are
outside the tolerance too. In rows with `|` the two positions are in opposite corners. The rules share heads, sampler and seed:

- **grounded**, the main rule: evidence of heads, sharpened by `WEIGHT`, over the conditional energy of one positive concept in place of the
  base: `(position(p) & color(c)).sharpened(w)` with heads whose base is `of_color(c)`; under `|`, the mixture of both;
- **grounded, weight 1**: the same unsharpened;
- **weight 1**: unsharpened over the base, so that each concept is only a head: the exact posterior of base and heads.

All but the first are evaluated on half of the pictures. The main rule, the weight and the sampler were chosen by the scores on seeds 77,
101 and 102; the figures are of seed 11, which chose nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import and_, or_
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import (
    SAMPLER,
    WEIGHT,
    Attributes,
    Heads,
    Options,
    draw,
    near,
    random_conditions,
    render,
    run_experiment,
    share,
)
from benchmarks.papers.experiment import arrange_grid, print_table
from composable_energy_scenes import Concepts

OUTSIDE = 0.5
RULES = ("grounded", "grounded, weight 1", "weight 1")
SIZE_TOLERANCE = 0.1
Conditions = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    text: str  # expression
    branches: tuple[tuple[str, ...], ...]  # alternatives, each the names of its terms
    paper: tuple[float | None, ...] = ()  # paper's figures for each part; None where it has none

    def build(self, heads: Heads, c: Conditions) -> ce.Energy:
        return self.combine(lambda name: _energy(name, heads, c))

    def combine(self, term: Callable[[str], Any]) -> Any:
        """Returns the expression of terms by their names."""
        return reduce(or_, [reduce(and_, map(term, branch)) for branch in self.branches])

    def ground(self, concepts: Concepts, c: Conditions) -> ce.Energy:
        """Returns the conditional energy that replaces the base: of a positive color, else of a position."""
        firsts = [
            min((name for name in branch if "not" not in name), key=lambda name: not name.startswith("color")) for branch in self.branches
        ]
        return reduce(or_, [getattr(concepts, f"of_{name.rstrip('12')}")(c[name]) for name in firsts])

    def right(self, found: Attributes, c: Conditions) -> dict[str, Tensor]:
        """Returns which pictures have each part of the expression; alternatives are `first` and `second`."""
        if len(self.branches) == 1:
            return {name.rstrip("12"): _holds(name, found, c) for name in self.branches[0]}
        holds = [reduce(and_, (_holds(name, found, c) for name in branch)) for branch in self.branches]
        return dict(zip(("first", "second"), holds, strict=True))

    def scores(self, found: Attributes, c: Conditions) -> dict[str, float]:
        """Returns the share of pictures with each part, and with all, or with any if they are alternatives."""
        right = self.right(found, c)
        joint = reduce(and_ if len(self.branches) == 1 else or_, right.values())
        return {name: share(value) for name, value in right.items()} | ({} if len(right) == 1 else {"joint": share(joint)})


def _energy(name: str, heads: Heads, c: Conditions) -> ce.Energy:
    kind, negated = name.removeprefix("not ").rstrip("12"), name.startswith("not ")
    value = c[name.removeprefix("not ")]
    if kind == "position":
        return ~heads.position.near(value, OUTSIDE) if negated else heads.place(value)
    energy = heads.size(value[:, None]) if kind == "size" else getattr(heads, kind)(value)
    return ~energy if negated else energy


def _holds(name: str, found: Attributes, c: Conditions) -> Tensor:
    kind, value = name.removeprefix("not ").rstrip("12"), c[name.removeprefix("not ")]
    if kind == "position":
        holds = near(found.position, value)
    elif kind == "size":
        holds = (found.size - value).abs() < SIZE_TOLERANCE
    else:
        holds = getattr(found, kind) == value
    return ~holds if name.startswith("not ") else holds


ROWS = (
    Row("color", (("color",),), (0.997,)),
    Row("position", (("position",),), (0.984,)),
    Row("position & color", (("position", "color"),), (0.801, 0.8125)),
    Row("position & ~color", (("position", "not color"),), (0.872, 0.904)),
    Row("~position & color", (("not position", "color"),), (0.967, 0.971)),
    Row("position1", (("position1",),), (0.875,)),
    Row("position1 & color1", (("position1", "color1"),), (None, None, 0.46)),
    Row("position1 | position2", (("position1",), ("position2",)), (0.432, 0.413, 0.845)),
    Row("(position1 & color1) | (position2 & color2)", (("position1", "color1"), ("position2", "color2")), (0.21, 0.217, 0.427)),
    Row("position & color & shape & size", (("position", "color", "shape", "size"),)),
)


def conditions(n: int, seed: int) -> Conditions:
    """Returns the conditions of all rows: `random_conditions`, two positions in opposite corners, and another color."""
    found = random_conditions(n, seed)
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, n, 2, generator=random) * 0.5 + 0.4
    other = torch.randint(1, 8, (n,), generator=random)
    two = {"position1": -corner[0], "position2": corner[1], "color1": found["color"], "color2": (found["color"] + other) % 8}
    return found | two


def measure(row: Row, rule: str, c: Conditions, options: Options) -> tuple[dict[str, Any], Tensor]:
    """Returns a row's scores under a rule, and its pictures."""
    if rule != "grounded":
        options = replace(options, samples=options.samples // 2)
        c = {name: value[: options.samples] for name, value in c.items()}
    heads = Heads(options.concepts, row.ground(options.concepts, c) if rule.startswith("grounded") else None)
    energy = row.build(heads, c).sharpened(1.0 if rule.endswith("weight 1") else WEIGHT)
    images = draw(energy, options.samples, options.seed)
    return {"text": row.text, "scores": row.scores(options.evaluate(images), c)}, images


def run(options: Options) -> dict[str, Any]:
    c = conditions(options.samples, options.seed)
    truth = options.evaluate(render(options.samples, options.seed)[0])
    chances = {row.text: row.scores(truth, c) for row in ROWS}
    tables: dict[str, list[dict[str, Any]]] = {}
    pictures: list[Tensor] = []
    for rule in RULES:
        found = [measure(row, rule, c, options) for row in ROWS]
        tables[rule] = [figures for figures, _ in found]
        pictures += [images[:16] for _, images in found if rule == "grounded"]
        print_table(f"Table 1, {rule}", [{"row": row["text"], **row["scores"]} for row in tables[rule]])
    return {
        "settings": {**SAMPLER, "weight": WEIGHT, "negated position outside": OUTSIDE},
        "paper": {row.text: row.paper for row in ROWS},
        "chance": chances,
        "rules": tables,
        "pictures": {"table1": arrange_grid(torch.cat(pictures))},
    }


if __name__ == "__main__":
    run_experiment("table1", __doc__, run)
