r"""Implication in several forms: the color that follows when all others are denied, and "if red, then on the left".

    python -m benchmarks.papers.compositional_2020.implication [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

The paper requests a position, denies all colors but one, `(P & ~c1) & ... & (P & ~ck)`, and counts how often the last color appears: in
.982 of the pictures with four denials of five colors. Here there are eight colors, so seven denials, with a random position and color for
each picture.

- **denied one by one**: the paper's term; events of one classifier form one formula, so that seven negations are `P & c8` exactly;
- **denied together**: `P & ~(c1 | ... | c7)`, the same energy;
- **grounded**: the same over a conditional energy in place of the base, as in Table 1: of the position, or of the remaining color;
- **by classifiers apart**: each denial has a classifier of its own, like networks that were trained apart: a sum of seven negations;
- **modus ponens**: `c8 & (c8 >> P)`; and `c8 >> P` alone, which does not restrict pictures of other colors.

Classifiers apart do not know that a picture has one color, so between two denied colors, where each is half certain, all denials hold half.
Chains leave such points at high noise levels. So this form takes larger steps, and more of them there, when it is sharpened: `APART`.

P is the event that the position is within .2, so that `P & ... & P` is P; a position within .4 counts as correct, as in Table 1.
"""

from typing import Any

from torch import Tensor, nn

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import (
    WEIGHT,
    Claim,
    Heads,
    Options,
    near,
    random_conditions,
    render,
    run_experiment,
    share,
)
from composable_energy_scenes import COLORS

OTHERS = len(COLORS) - 1
FORM_APART = "by classifiers apart"
EXACT = ("denied together", FORM_APART)  # also drawn at weight 1
APART = {"levels": 60, "corrector_steps": 3, "delta": 0.5, "averaged": True, "rho": 2.0}
"""Options of the sampler for classifiers apart at `WEIGHT`: 240 gradients; they were chosen on seeds 7 and 8."""


class Apart(nn.Sequential):
    """A network of its own, with the weights of another one, so that its events are not those of that one."""

    def forward(self, z: Tensor, sigma: Tensor | None = None) -> Tensor:
        return self[0](z, sigma)


def claims(options: Options, c: dict[str, Tensor], base: ce.Energy | None = None) -> dict[str, Claim]:
    """Returns the forms by name, for random positions and colors, over the base of the concepts or another."""
    base = options.concepts.base if base is None else base
    heads = Heads(options.concepts, base)
    color = Claim(heads.color(c["color"]), lambda v: v.color == c["color"], "c8")
    position = Claim(heads.place(c["position"]), lambda v: near(v.position, c["position"]), "P")
    others = [(c["color"] + k) % len(COLORS) for k in range(1, OTHERS + 1)]

    def other(k: int, apart: bool = False) -> Claim:
        logits: Any = options.concepts.color().logits
        event = ce.ClassifierEnergy(Apart(logits) if apart else logits, None, base, labels=len(COLORS)).given(y=others[k])
        return Claim(event, lambda v: v.color == others[k], f"c{k + 1}")

    one_by_one, apart, together = position & ~other(0), position & ~other(0, True), other(0)
    for k in range(1, OTHERS):
        one_by_one, apart, together = one_by_one & (position & ~other(k)), apart & ~other(k, True), together | other(k)
    return {
        "denied one by one": one_by_one,
        "denied together": position & ~together,
        FORM_APART: apart,
        "P & c8, for comparison": position & color,
        "modus ponens, c8 & (c8 >> P)": color & (color >> position),
        "c8 >> P, alone": color >> position,
    }


def run(options: Options) -> dict[str, Any]:
    """Draws pictures of each form, and returns how often it holds for them and for renders."""
    c = random_conditions(options.samples, options.seed)
    chance, forms = options.evaluate(render(options.samples, options.seed)[0]), claims(options, c)
    grounds = {"position": options.concepts.of_position(c["position"]), "remaining color": options.concepts.of_color(c["color"])}
    forms |= {f"denied together, grounded in the {name}": claims(options, c, ground)["denied together"] for name, ground in grounds.items()}
    found = []
    for name, claim in forms.items():
        for weight in (WEIGHT, 1.0) if name in EXACT else (WEIGHT,):
            holds, _, _ = claim.draw(options, weight, **(APART if (name, weight) == (FORM_APART, WEIGHT) else {}))
            found.append({"way": name, "weight": weight, "holds": holds, "chance": share(claim.holds(chance))})
    return {"rows": found}


if __name__ == "__main__":
    run_experiment("implication", __doc__, run)
