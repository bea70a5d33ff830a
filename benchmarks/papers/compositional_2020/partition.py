r"""`A | B` of energies with different partition functions: the shares of the branches, before and after `calibrate`.

    python -m benchmarks.papers.compositional_2020.partition [--write] [--samples 1000] [--seed 11] [--weights FOLDER]

An energy that is trained alone has a free constant. `A | B` adds $e^{-E_A}$ and $e^{-E_B}$, which assumes equal partition functions
(equation 7 of the paper). Here A and B are conditional energies of two positions, or of two colors, trained separately; then a constant is
added to A, or A is sharpened. `any_of(A, B, weights=...)` requests shares, and `calibrate` estimates $\log Z$ of each branch by annealed
importance sampling, on 48 coordinates of codes at noise level 1, where positions are nearly decided and colors half decided.

Mixtures are drawn at that level by tempered sequential Monte Carlo, whose shares are those of the density. Annealing under the base turns
the draws into pictures, and the evaluator assigns each to a branch; the shares are compared with those of each branch alone.
"""

from typing import Any, cast

import torch
from torch.distributions import Normal

import composable_energy as ce
from benchmarks.papers.compositional_2020.claims import SAMPLER, Options, run_experiment, share
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
    constant.decoder = energy.decoder  # the energy is of codes, too
    return energy & constant


def pairs(options: Options) -> dict[str, tuple[str, ce.Energy, ce.Energy]]:
    """Returns for each case the concept and both branches."""
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


def branch_shares(options: Options, kind: str, energy: ce.Energy) -> float:
    """Returns the share of A minus that of B among draws at `LEVEL` whose noise the base removed; much is undecided at that level."""
    n, seed = options.samples, options.seed
    codes = energy.latents.sample(n, sampler="smc", mean=0.0, scale=SPREAD, seed=seed)
    images = options.concepts.base.sample(n, init=codes, seed=seed + 1, **{**SAMPLER, "sigma_max": LEVEL, "levels": 25})
    attributes = options.evaluate(images)
    if kind == "color":
        first, second = (attributes.color == NAMES.index(color) for color in COLORS)
    else:
        first, second = ((attributes.position - torch.tensor(point)).norm(dim=1) < 0.5 for point in POINTS)
    return share(first) - share(second)


def run(options: Options) -> dict[str, Any]:
    base = Normal(torch.zeros(CODE), SPREAD)
    found = []
    for name, (kind, a, b) in pairs(options).items():
        of_a, of_b = branch_shares(options, kind, a), branch_shares(options, kind, b)
        equal = ce.calibrate(ce.any_of(a, b, weights=[0.5, 0.5]), seed=options.seed, base=base, particles=512)
        first, second = cast("tuple[float, float]", cast(Disjunction, equal).log_z)
        for requested in SHARES:
            mixture = ce.any_of(a, b, weights=[requested, 1 - requested])
            calibrated = Disjunction(a, b, weights=[requested, 1 - requested], log_z=[first, second])  # the same as `calibrate(mixture)`
            # The figure of a mixture is the average of those of its branches by their shares, whatever is undecided.
            before, after = ((branch_shares(options, kind, energy) - of_b) / (of_a - of_b) for energy in (mixture, calibrated))
            line = {"branches": name, "requested": requested, "as it is": before, "calibrated": after, "off by": abs(after - requested)}
            found.append(line | {"log Z_A - log Z_B": first - second, "A, B alone": [of_a, of_b]})
    return {"level": LEVEL, "rows": found}


if __name__ == "__main__":
    run_experiment("partition", __doc__, run)
