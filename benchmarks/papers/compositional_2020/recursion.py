r"""Expressions of expressions: the share of pictures that satisfy them, from two to seven nested operators.

    python -m benchmarks.papers.compositional_2020.recursion [--write] [--samples 500] [--seed 11] [--weights FOLDER]

The paper shows pictures of such compositions without figures. The concepts were trained separately, each on pictures of its own; an
expression of them is one formula, with an exact probability at any depth. Regions are requested with a margin on both sides of the border:
`left` requests x below -.15 and is correct for x below 0; `~` denies what is neither left nor right.
"""

from typing import Any

import torch

from benchmarks.papers.compositional_2020.claims import WEIGHT, Claim, Heads, Options, render, run_experiment, share
from benchmarks.papers.experiment import arrange_grid
from composable_energy_scenes import COLORS, KINDS

MARGIN = 0.15
INFINITE = float("inf")


class Words:
    """Claims by name: colors, shapes, `left`, `right`, `far`, `close`, `large`, `small`."""

    def __init__(self, heads: Heads) -> None:
        self._heads = heads

    def __getattr__(self, name: str) -> Claim:
        heads = self._heads
        if name in COLORS:
            return Claim(heads.color(COLORS.index(name)), lambda found: found.color == COLORS.index(name), name)
        if name in KINDS:
            return Claim(heads.shape(KINDS.index(name)), lambda found: found.shape == KINDS.index(name), name)
        if name in ("large", "small"):
            low, high = (0.52, INFINITE) if name == "large" else (-INFINITE, 0.48)
            return Claim(heads.size.between(low, high), lambda found: (found.size > 0.5) == (name == "large"), name)
        axis, up = {"left": (0, False), "right": (0, True), "close": (1, False), "far": (1, True)}[name]
        low, high = [-INFINITE, -INFINITE], [INFINITE, INFINITE]
        (low if up else high)[axis] = MARGIN if up else -MARGIN
        return Claim(heads.position.between(low, high), lambda found: (found.position[:, axis] > 0) == up, name)


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
    chance = options.evaluate(render(options.samples, options.seed)[0])
    rows, pictures = [], []
    for claim in sorted(claims(Heads(options.concepts)), key=lambda claim: claim.depth):
        holds, images, _ = claim.draw(options)
        exact, _, _ = claim.draw(options, 1.0)
        line = {"depth": claim.depth, "holds": holds, "weight 1": exact, "chance": share(claim.holds(chance))}
        rows.append(line | {"expression": claim.text[1:-1] if claim.text[0] == "(" else claim.text})
        pictures.append(images[:16])
    return {"weight": WEIGHT, "rows": rows, "pictures": {"recursion": arrange_grid(torch.cat(pictures))}}


if __name__ == "__main__":
    run_experiment("recursion", __doc__, run, samples=500)
