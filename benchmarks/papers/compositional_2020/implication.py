r"""Implication, written in four ways: which color follows where all others are denied, and what follows from "red is on the left".

    python benchmarks/papers/compositional_2020/implication.py [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

The paper asks for a position and denies all colors but one, `(P & ~c1) & ... & (P & ~ck)`, and counts how often the last color is there:
.982 with four denials of five colors. Here there are eight colors, so seven denials, with a random position and color for each picture.

- **denied one by one**: the paper's term; events of one classifier make one formula, so that seven negations are `P & c8` exactly;
- **denied together**: `P & ~(c1 | ... | c7)`, the same energy;
- **grounded**: the same over a conditional energy in place of the base, as in Table 1: of the position, or of the color that is left;
- **by classifiers apart**: each denial has a classifier of its own, as networks would be that were trained apart: a sum of seven negations;
- **modus ponens**: `c8 & (c8 >> P)`; and `c8 >> P` alone, which says nothing of pictures of other colors.

P is the event that the position is within .2, so that `P & ... & P` is P; it is right within .4 as in Table 1.
"""

from __future__ import annotations

from typing import Any

import torch
from common import WEIGHT, Claim, Heads, Options, accuracy, asked, near, renders, share
from reporting import grid, main, show
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_scenes import COLORS, judge_images
from composable_energy_scenes.concepts import CODE

OTHERS = len(COLORS) - 1
EXACT = ("denied together", "by classifiers apart")  # those that are drawn at weight 1 as well


def claims(options: Options, c: dict[str, Tensor], base: ce.Energy | None = None) -> dict[str, Claim]:
    """Returns the ways by name, for random positions and colors, over the base of the concepts or another."""
    base = options.concepts.base if base is None else base
    heads = Heads(options.concepts, base)
    color = Claim(heads.color(c["color"]), lambda v: v.color == c["color"], "c8")
    position = Claim(heads.place(c["position"]), lambda v: near(v.position, c["position"]), "P")
    others = [(c["color"] + k) % len(COLORS) for k in range(1, OTHERS + 1)]

    def other(k: int, apart: bool = False) -> Claim:
        logits = options.concepts.color().logits
        event = ce.ClassifierEnergy(nn.Sequential(logits) if apart else logits, None, base, labels=len(COLORS)).given(y=others[k])
        return Claim(event, lambda v: v.color == others[k], f"c{k + 1}")

    one_by_one, apart, together = position & ~other(0), position & ~other(0, True), other(0)
    for k in range(1, OTHERS):
        one_by_one, apart, together = one_by_one & (position & ~other(k)), apart & ~other(k, True), together | other(k)
    return {
        "denied one by one": one_by_one,
        "denied together": position & ~together,
        "by classifiers apart": apart,
        "P & c8, for comparison": position & color,
        "modus ponens, c8 & (c8 >> P)": color & (color >> position),
        "c8 >> P, alone": color >> position,
    }


def run(options: Options) -> dict[str, Any]:
    """Prints the table and returns its figures."""
    c = asked(options.samples, options.seed)
    known = accuracy(options.judge)
    show("The judge on renders", [known])
    chance = judge_images(renders(options.samples, options.seed)[0], options.judge)
    found, pictures = [], []
    ways = claims(options, c)
    grounds = {"position": options.concepts.of_position(c["position"]), "color that is left": options.concepts.of_color(c["color"])}
    ways |= {f"denied together, grounded in the {name}": claims(options, c, ground)["denied together"] for name, ground in grounds.items()}
    for name, claim in ways.items():
        for weight in (WEIGHT, 1.0) if name in EXACT else (WEIGHT,):
            holds, images, seen = claim.drawn(options, weight)
            has = seen.color == c["color"]
            place = near(seen.position, c["position"])
            line = {"way": name, "weight": weight, "holds": holds, "chance": share(claim.holds(chance)), "color": share(has)}
            found.append(line | {"position": share(place), "position if color": share(place[has])})
            if weight == WEIGHT:
                pictures.append(images[:16])
    show("Implication (paper: color .982)", found)
    x = torch.randn(64, CODE, generator=torch.Generator().manual_seed(0))
    few = claims(options, asked(64, 0))
    with torch.no_grad():
        first, second = (few[name].energy.evidence(x, sigma=1.0) for name in ("denied one by one", "P & c8, for comparison"))
    apart = float((first - second).abs().max())
    print(f"\nThe evidence of seven denials, {float(second.mean()):.1f} on average, is that of the color itself but for {apart:.1e}.")
    result = {"judge": known, "rows": found, "paper": 0.982, "largest difference of evidence": apart}
    return result | {"picture": grid(torch.cat(pictures))}


if __name__ == "__main__":
    main("implication", __doc__, run)
