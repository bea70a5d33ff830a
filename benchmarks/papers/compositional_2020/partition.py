r"""`A | B` of energies whose partition functions differ: the shares of the branches, as they are and after `calibrate`.

    python benchmarks/papers/compositional_2020/partition.py [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

An energy that is trained alone has a free constant, and `A | B` adds $e^{-E_A}$ and $e^{-E_B}$ as they are, so that it takes equal
partition functions for granted (equation 7 of the paper). Here A and B are conditional energies of two positions, or of two colors, trained
by themselves; then a constant is added to A, or A is made sharper. `any_of(A, B, weights=...)` asks for shares, `calibrate` estimates
$\log Z$ of each branch by annealed importance sampling, 48 coordinates of codes at noise level 1, where positions are nearly settled and
colors are half open.

Mixtures are drawn at that level by tempered sequential Monte Carlo, whose shares are those of the density. The pictures come from there by
annealing under the base, and the judge says which branch each belongs to, compared with what it says of each branch alone.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import torch
from common import SAMPLER, Options, accuracy, share
from reporting import grid, main, show
from torch import Tensor
from torch.distributions import Normal

import composable_energy as ce
from composable_energy.algebra import Disjunction
from composable_energy_scenes import COLORS as NAMES
from composable_energy_scenes.concepts import CODE

LEVEL = 1.0
POINTS = ((-0.7, -0.6), (0.7, 0.6))
COLORS = ("green", "magenta")
SHARES = (0.5, 0.3)
CONSTANT, SHARPER = 3.0, 1.25
SPREAD = (1 + LEVEL**2) ** 0.5


def raised(energy: ce.Energy, value: float) -> ce.Energy:
    """Returns an energy with a constant added: the same density."""
    constant = ce.as_energy(lambda x: x.flatten(1).sum(1) * 0 + value, name=f"{value:g}")
    constant.decoder = energy.decoder  # of codes, as the energy is
    return energy & constant


def pairs(options: Options) -> dict[str, tuple[str, ce.Energy, ce.Energy]]:
    """Returns what differs, of what, and both branches."""
    concepts = options.concepts
    left, right = (concepts.of_position(point).at(LEVEL) for point in POINTS)
    green, magenta = (concepts.of_color(color).at(LEVEL) for color in COLORS)
    return {
        "positions, as trained": ("position", left, right),
        f"positions, A + {CONSTANT:g}": ("position", raised(left, CONSTANT), right),
        f"positions, {SHARPER:g} A": ("position", SHARPER * left, right),
        "colors, as trained": ("color", green, magenta),
        f"colors, A - {CONSTANT:g}": ("color", raised(green, -CONSTANT), magenta),
    }


def seen(options: Options, kind: str, energy: ce.Energy) -> tuple[float, float, Tensor]:
    """Draws from an energy at `LEVEL`, and lets the base take the noise away.

    Returns:
        The share of A less that of B, by the judge; the share of neither, as much is open at that level; and the pictures.
    """
    n, seed = options.samples, options.seed
    codes = energy.sample(n, sampler="smc", mean=0.0, scale=SPREAD, seed=seed, latents=True)
    images = options.concepts.base.sample(n, init=codes, seed=seed + 1, **{**SAMPLER, "sigma_max": LEVEL, "levels": 25})
    told = options.judged(images)
    if kind == "color":
        first, second = (told.color == NAMES.index(color) for color in COLORS)
    else:
        first, second = ((told.position - torch.tensor(point)).norm(dim=1) < 0.5 for point in POINTS)
    return share(first) - share(second), 1 - share(first | second), images


def run(options: Options) -> dict[str, Any]:
    """Prints the table and returns its figures."""
    known = accuracy(options.judge)
    show("The judge on renders", [known])
    base = Normal(torch.zeros(CODE), SPREAD)
    found, pictures = [], []
    for name, (kind, a, b) in pairs(options).items():
        of_a, of_b = seen(options, kind, a)[0], seen(options, kind, b)[0]
        equal = ce.calibrate(ce.any_of(a, b, weights=[0.5, 0.5]), seed=options.seed, base=base, particles=512)
        first, second = cast("tuple[float, float]", cast(Disjunction, equal).log_z)
        for asked in SHARES:
            mixture = ce.any_of(a, b, weights=[asked, 1 - asked])
            calibrated = Disjunction(a, b, weights=[asked, 1 - asked], log_z=[first, second])  # what calibrate makes of the mixture
            # The judge's figure of a mixture lies between those of its branches as the shares do, whatever is still open.
            before, after = ((seen(options, kind, energy)[0] - of_b) / (of_a - of_b) for energy in (mixture, calibrated))
            line = {"branches": name, "asked": asked, "as it is": before, "calibrated": after, "off by": abs(after - asked)}
            found.append(line | {"log Z_A - log Z_B": first - second, "A, B alone": [of_a, of_b]})
        pictures.append(seen(replace(options, samples=16), kind, calibrated)[2])
    error = (1 / options.samples) ** 0.5
    show(f"The share of A in `A | B`; standard error at most {error / 1.4:.3f} for positions, {error / 0.8:.3f} for colors", found)
    return {"judge": known, "level": LEVEL, "rows": found, "picture": grid(torch.cat(pictures))}


if __name__ == "__main__":
    main("partition", __doc__, run)
