r"""Table 1 of the 2020 paper, with more rows: the share of pictures with the requested attributes, which are random for each picture.

    python -m benchmarks.papers.compositional_2020.table1 [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

One draw of each picture and one setting for all rows. A position is correct within .4 on both axes (the paper's rule), a size within .1;
`joint` is the share of pictures with all requested attributes. Positions are requested within .2; negated ones outside .5, so that they are
outside the tolerance too. In rows with `|` the two positions are in opposite corners. The rules share heads, sampler and seed:

- **grounded**, the main rule: evidence of heads, sharpened by `WEIGHT`, over the conditional energy of one positive concept in place of the
  base: `(position(p) & color(c)).sharpened(w)` with heads whose base is `of_color(c)`; under `|`, the mixture of both;
- **heads**: the same over the base, so that each concept is only a head;
- **grounded, weight 1** and **weight 1**: both unsharpened; the latter is the exact posterior of base and heads.

All but the first are evaluated on half of the pictures. The main rule, the weight and the sampler were chosen by the scores on seeds 77,
101 and 102; the figures are of seed 11, which chose nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
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
    accuracy,
    draw,
    evaluate,
    free_attributes,
    near,
    random_conditions,
    render,
    run_experiment,
    share,
)
from benchmarks.papers.experiment import arrange_grid, print_table
from composable_energy_scenes import Concepts

OUTSIDE = 0.5
RULES = ("grounded", "heads", "grounded, weight 1", "weight 1")
SIZE_TOLERANCE = 0.1
Conditions = dict[str, Tensor]
Scores = dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """A row of the table."""

    text: str  # expression
    build: Callable[[Heads, Conditions], ce.Energy]  # returns the energy from heads and conditions
    right: Callable[[Attributes, Conditions], Scores]  # returns which pictures have each part of the expression
    paper: tuple[float | None, ...]  # paper's figures for each part; None where it has none
    ground: Callable[[Concepts, Conditions], ce.Energy]  # returns the conditional energy that replaces the base
    branches: bool = False  # whether the parts are alternatives

    def scores(self, found: Attributes, c: Conditions) -> dict[str, float]:
        """Returns the share of pictures with each part, and with all, or with any if they are alternatives."""
        right = self.right(found, c)
        parts = torch.stack(list(right.values()))
        joint = share(parts.any(0) if self.branches else parts.all(0))
        return {name: share(value) for name, value in right.items()} | ({} if len(right) == 1 else {"joint": joint})


ROWS = (
    Row(
        "color",
        lambda h, c: h.color(c["color"]),
        lambda v, c: {"color": v.color == c["color"]},
        (0.997,),
        lambda s, c: s.of_color(c["color"]),
    ),
    Row(
        "position",
        lambda h, c: h.place(c["position"]),
        lambda v, c: {"position": near(v.position, c["position"])},
        (0.984,),
        lambda s, c: s.of_position(c["position"]),
    ),
    Row(
        "position & color",
        lambda h, c: h.place(c["position"]) & h.color(c["color"]),
        lambda v, c: {"position": near(v.position, c["position"]), "color": v.color == c["color"]},
        (0.801, 0.8125),
        lambda s, c: s.of_color(c["color"]),
    ),
    Row(
        "position & ~color",
        lambda h, c: h.place(c["position"]) & ~h.color(c["color"]),
        lambda v, c: {"position": near(v.position, c["position"]), "not color": v.color != c["color"]},
        (0.872, 0.904),
        lambda s, c: s.of_position(c["position"]),
    ),
    Row(
        "~position & color",
        lambda h, c: ~h.position.near(c["position"], OUTSIDE) & h.color(c["color"]),
        lambda v, c: {"not position": ~near(v.position, c["position"]), "color": v.color == c["color"]},
        (0.967, 0.971),
        lambda s, c: s.of_color(c["color"]),
    ),
    Row(
        "position1",
        lambda h, c: h.place(c["position1"]),
        lambda v, c: {"position": near(v.position, c["position1"])},
        (0.875,),
        lambda s, c: s.of_position(c["position1"]),
    ),
    Row(
        "position1 & color1",
        lambda h, c: h.place(c["position1"]) & h.color(c["color"]),
        lambda v, c: {"position": near(v.position, c["position1"]), "color": v.color == c["color"]},
        (None, None, 0.46),
        lambda s, c: s.of_color(c["color"]),
    ),
    Row(
        "position1 | position2",
        lambda h, c: h.place(c["position1"]) | h.place(c["position2"]),
        lambda v, c: {"first": near(v.position, c["position1"]), "second": near(v.position, c["position2"])},
        (0.432, 0.413, 0.845),
        lambda s, c: s.of_position(c["position1"]) | s.of_position(c["position2"]),
        branches=True,
    ),
    Row(
        "(position1 & color1) | (position2 & color2)",
        lambda h, c: (h.place(c["position1"]) & h.color(c["color"])) | (h.place(c["position2"]) & h.color(c["color2"])),
        lambda v, c: {
            "first": near(v.position, c["position1"]) & (v.color == c["color"]),
            "second": near(v.position, c["position2"]) & (v.color == c["color2"]),
        },
        (0.21, 0.217, 0.427),
        lambda s, c: s.of_color(c["color"]) | s.of_color(c["color2"]),
        branches=True,
    ),
    Row(
        "position & color & shape & size",
        lambda h, c: h.place(c["position"]) & h.color(c["color"]) & h.shape(c["shape"]) & h.size(c["size"][:, None]),
        lambda v, c: {
            "position": near(v.position, c["position"]),
            "color": v.color == c["color"],
            "shape": v.shape == c["shape"],
            "size": (v.size - c["size"]).abs() < SIZE_TOLERANCE,
        },
        (),
        lambda s, c: s.of_color(c["color"]),
    ),
)


def conditions(n: int, seed: int) -> Conditions:
    """Returns the conditions of all rows: `random_conditions`, two positions in opposite corners, and another color."""
    found = random_conditions(n, seed)
    random = torch.Generator().manual_seed(seed)
    corner = torch.rand(2, n, 2, generator=random) * 0.5 + 0.4
    other = torch.randint(1, 8, (n,), generator=random)
    return found | {"position1": -corner[0], "position2": corner[1], "color2": (found["color"] + other) % 8}


def measure(row: Row, rule: str, c: Conditions, options: Options, **changes: Any) -> tuple[dict[str, Any], Tensor]:
    """Returns a row's scores under a rule, and its pictures."""
    if rule != "grounded":
        options = replace(options, samples=options.samples // 2)
        c = {name: value[: options.samples] for name, value in c.items()}
    grounded = rule.startswith("grounded")
    heads = Heads(options.concepts, row.ground(options.concepts, c) if grounded else None)
    weight = changes.pop("weight", 1.0 if rule.endswith("weight 1") else WEIGHT)
    energy = row.build(heads, c).sharpened(weight)
    images = draw(energy, options.samples, options.seed, **changes)
    attributes = options.evaluate(images)
    found = {"text": row.text, "scores": row.scores(attributes, c), "free": free_attributes(attributes)}
    return found, images


def run(options: Options, rules: Sequence[str] = RULES) -> dict[str, Any]:
    """Prints the table and returns its figures."""
    c = conditions(options.samples, options.seed)
    known = accuracy(options.evaluator)
    print_table("Accuracy of the evaluator on renders", [known])
    images, _ = render(options.samples, options.seed)
    truth = evaluate(images, options.evaluator)
    chances = {row.text: row.scores(truth, c) for row in ROWS}
    tables: dict[str, list[dict[str, Any]]] = {}
    pictures: list[Tensor] = []
    for rule in rules:
        tables[rule] = []
        for row in ROWS:
            found, images = measure(row, rule, c, options)
            tables[rule].append(found)
            if rule == rules[0]:
                pictures.append(images[:16])
        print_table(f"Table 1, {rule}", [_line(row, found, chances[row.text]) for row, found in zip(ROWS, tables[rule], strict=True)])
    freedom = [{"pictures": "renders", **free_attributes(truth)}, *({"pictures": r["text"], **r["free"]} for r in tables[rules[0]])]
    print_table(f"Attributes that were not requested, {rules[0]}", freedom)
    settings = {**SAMPLER, "weight": WEIGHT, "negated position outside": OUTSIDE}
    return {
        "evaluator": known,
        "settings": settings,
        "paper": {row.text: row.paper for row in ROWS},
        "chance": chances,
        "renders": free_attributes(truth),
        "rules": tables,
        "picture": arrange_grid(torch.cat(pictures)),
    }


def _line(row: Row, found: dict[str, Any], chance: dict[str, float]) -> dict[str, Any]:
    line: dict[str, Any] = {"row": row.text}
    for number, (name, value) in enumerate(found["scores"].items()):
        paper = row.paper[number] if number < len(row.paper) else None
        line[f"{number + 1}"] = f"{name} {value:.3f}" + ("" if paper is None else f" [{paper:g}]") + f" ({chance[name]:.2f})"
    return line | {"size": found["free"]["size"]}


if __name__ == "__main__":
    run_experiment("table1", __doc__, run)
