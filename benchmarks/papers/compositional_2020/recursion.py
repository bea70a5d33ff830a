r"""Expressions of expressions: how often pictures have what is asked for, from two operators deep to seven.

    python benchmarks/papers/compositional_2020/recursion.py [--write] [--samples 500] [--seed 11] [--weights FOLDER]

The paper shows pictures of such compositions without figures. Concepts were trained apart, each on pictures of its own; an expression of
them is one formula, whose probability is exact however deep it is. Regions are asked for with a margin on both sides of the judge's border:
`left` means x below -.15 where it is asked for, below 0 where it is judged, and what is neither left nor right is denied with `~`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from common import WEIGHT, Claim, Heads, Options, accuracy, free, renders, share
from reporting import grid, main, show
from torch import Tensor

from composable_energy_scenes import COLORS, KINDS, Verdict, judge_images

MARGIN = 0.15
INFINITE = float("inf")


class Words:
    """Claims by name: colors, shapes, `left`, `right`, `far`, `close`, `large`, `small`."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    def __getattr__(self, name: str) -> Claim:
        heads = self._heads
        if name in COLORS:
            return Claim(heads.color(COLORS.index(name)), lambda v: v.color == COLORS.index(name), name)
        if name in KINDS:
            return Claim(heads.shape(KINDS.index(name)), lambda v: v.shape == KINDS.index(name), name)
        if name in ("large", "small"):
            low, high = (0.52, INFINITE) if name == "large" else (-INFINITE, 0.48)
            return Claim(heads.size.between(low, high), lambda v: (v.size > 0.5) == (name == "large"), name)
        axis, up = {"left": (0, False), "right": (0, True), "close": (1, False), "far": (1, True)}[name]
        low, high = [-INFINITE, -INFINITE], [INFINITE, INFINITE]
        (low if up else high)[axis] = MARGIN if up else -MARGIN
        return Claim(heads.position.between(low, high), _on_side(axis, up), name)


def _on_side(axis: int, up: bool) -> Callable[[Verdict], Tensor]:
    return lambda v: (v.position[:, axis] > 0) == up


def claims(heads: Heads) -> list[Claim]:
    """Returns the expressions."""
    w = Words(heads)
    cube, ball, can = (getattr(w, kind) for kind in KINDS)
    either = (w.red & w.left) | (w.blue & w.right)
    exclusive = (w.green & ~ball) | (~w.green & ball)
    sorted_by_size = (w.large >> w.far) & (w.small >> w.close)
    return [
        (w.red | w.green) & w.left,
        w.yellow & ~(w.left | ball),
        either & ~can,
        exclusive,
        exclusive & (w.left | w.far),
        sorted_by_size & ~(w.red | w.green | w.blue),
        either & ~(cube & (w.large | w.close)),
        (either & sorted_by_size) | (exclusive & w.small & ~(w.left | w.far)),
        ~(~((w.red >> w.left) & (w.blue >> w.right)) | ~(w.red | w.blue)) & ~(~sorted_by_size | (can & ~w.large)),
    ]


def run(options: Options) -> dict[str, Any]:
    """Prints the table and returns its figures."""
    known = accuracy(options.judge)
    show("The judge on renders", [known])
    chance = judge_images(renders(options.samples, options.seed)[0], options.judge)
    found, pictures = [], []
    for claim in sorted(claims(Heads(options.concepts)), key=lambda claim: claim.deep):
        holds, images, seen = claim.drawn(options)
        exact, _, _ = claim.drawn(options, 1.0)
        line = {"deep": claim.deep, "holds": holds, "weight 1": exact, "chance": share(claim.holds(chance)), "size": free(seen)["size"]}
        found.append(line | {"expression": claim.text[1:-1] if claim.text[0] == "(" else claim.text})
        pictures.append(images[:16])
    show(f"Expressions of expressions, weight {WEIGHT:g}", found)
    return {"judge": known, "weight": WEIGHT, "rows": found, "picture": grid(torch.cat(pictures))}


if __name__ == "__main__":
    main("recursion", __doc__, run, samples=500)
