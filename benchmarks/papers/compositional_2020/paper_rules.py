r"""The 2020 paper's rules for NOT and OR, a NOT with a bound beside them, and the rows of its table by these rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from common import drawn
from paper_energies import NOISE, SIZE, STEP, load, numbers_of, shown
from torch import Tensor

import composable_energy as ce
from composable_energy_scenes import COLORS, Concepts

__all__ = ["IMPLICATION", "Method", "bounded", "either", "expressions", "named", "no", "of_codes", "of_pixels"]

IMPLICATION = "position & ~each other color"


def no(energy: Any, alpha: float) -> ce.Energy:
    r"""Returns the paper's NOT, $-\alpha E$, which has no lower bound."""
    return ce.negate(energy, mode="power", weight=alpha)


def either(*energies: Any, scale: float, log_z: list[float] | None = None) -> ce.Energy:
    r"""Returns the paper's OR, $-\log \sum_k e^{-s E_k - \log Z_k} / s$ with a scale $s$, and with no $\log Z_k$."""
    return ce.Disjunction(*(scale * energy for energy in energies), log_z=log_z) / scale


def bounded(energy: Any, at: float, scale: float) -> ce.Energy:
    r"""Returns a NOT with a bound, $\operatorname{softplus}(s (b - E)) / s$: it pushes a picture only until its energy is above $b$."""
    return ce.negate(scale * energy, mode="contrast", offset=scale * at) / scale


def named(of: Callable[[Tensor], ce.Energy], classes: int, scale: float) -> ce.ClassifierEnergy:
    r"""Returns the events of the classifier that conditional energies make, $p(k \mid x) \propto e^{-s E(x \mid k)}$; `~` of them is exact.

    Args:
        of: The energy of a class, with shape $(1,)$.
        classes: How many there are.
        scale: $s$.
    """
    energies = [of(torch.tensor([k])) for k in range(classes)]
    return ce.ClassifierEnergy(lambda x: -scale * torch.stack([energy(x) for energy in energies], 1), labels=classes)


@dataclass(frozen=True)
class Method:
    """Conditional energies, and how they are drawn from.

    Attributes:
        of: For each concept, the energies of pictures of some values of it.
        draw: Turns an energy, a number of pictures and a seed into pictures of 64 pixels.
        alpha: How strongly NOT pushes.
        scale: By what OR multiplies energies.
    """

    of: Mapping[str, Callable[[Tensor], ce.Energy]]
    draw: Callable[[ce.Energy, int, int], Tensor]
    alpha: float
    scale: float


def of_pixels(chain: int, alpha: float, scale: float) -> Method:
    """Returns the paper's method: energies of pixels, and chains of so many steps from uniform noise, in bfloat16 as in training."""
    energies = load()
    options = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}

    def draw(energy: ce.Energy, n: int, seed: int) -> Tensor:
        start = torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        settings = {"steps": chain, "init": start, "seed": seed, "batch_size": 125, "allow_improper": True, **options}
        with torch.autocast("cpu", torch.bfloat16):
            return shown(energy.sample(n, sampler="langevin", **settings))

    def bind(concept: str) -> Callable[[Tensor], ce.Energy]:
        return lambda values: energies[concept].given(y=numbers_of(concept, values))

    return Method({concept: bind(concept) for concept in energies}, draw, alpha, scale)


def of_codes(concepts: Concepts, alpha: float) -> Method:
    """Returns the paper's rules with conditional energies of codes that were trained by denoising; they are in units of log densities."""
    of = {"position": concepts.of_position, "color": concepts.of_color}
    return Method(of, lambda energy, n, seed: drawn(energy, n, seed, allow_improper=True), alpha, 1.0)


def expressions(method: Method, c: Mapping[str, Tensor]) -> dict[str, ce.Energy]:
    """Returns the rows of `table1`, and the implication, by the paper's rules.

    Args:
        method: Its energies and how NOT and OR are made of them.
        c: The conditions of `table1`.
    """
    place, color = method.of["position"](c["position"]), method.of["color"](c["color"])
    here, there = (method.of["position"](c[name]) for name in ("position1", "position2"))
    other = method.of["color"](c["color2"])
    rest = [method.of["color"]((c["color"] + k) % len(COLORS)) for k in range(1, len(COLORS))]
    rows = {
        "color": color,
        "position": place,
        "position & color": place & color,
        "position & ~color": place & no(color, method.alpha),
        "~position & color": no(place, method.alpha) & color,
        "position1": here,
        "position1 & color1": here & color,
        "position1 | position2": either(here, there, scale=method.scale),
        "(position1 & color1) | (position2 & color2)": either(here & color, there & other, scale=method.scale),
        IMPLICATION: ce.all_of(place, *(no(energy, method.alpha) for energy in rest)),
    }
    if "shape" in method.of:
        shape, size = (method.of[concept](c[concept]) for concept in ("shape", "size"))
        rows["position & color & shape & size"] = ce.all_of(place, color, shape, size)
    return rows
