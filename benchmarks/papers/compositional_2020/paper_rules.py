r"""The 2020 paper's rules for NOT and OR, a bounded NOT beside them, and the rows of its table by these rules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.compositional_2020.paper_energies import NOISE, SIZE, STEP, condition_of, enlarge, load


def paper_not(energy: Any, alpha: float) -> ce.Energy:
    r"""Returns the paper's NOT, $-\alpha E$, which has no lower bound."""
    return ce.negate(energy, mode="power", weight=alpha)


def paper_or(*energies: Any, scale: float) -> ce.Energy:
    r"""Returns the paper's OR, $-\log \sum_k e^{-s E_k} / s$ with a scale $s$."""
    return ce.Disjunction(*(scale * energy for energy in energies)) / scale


def bounded_not(energy: Any, at: float, scale: float) -> ce.Energy:
    r"""Returns a bounded NOT, $\operatorname{softplus}(s (b - E)) / s$: it acts on a picture only until its energy is above $b$."""
    return ce.negate(scale * energy, mode="contrast", offset=scale * at) / scale


def energy_classifier(of: Callable[[Tensor], ce.Energy], classes: int, scale: float) -> ce.ClassifierEnergy:
    r"""Returns the classifier of conditional energies, $p(k \mid x) \propto e^{-s E(x \mid k)}$; `~` of its events is exact."""
    energies = [of(torch.tensor([k])) for k in range(classes)]
    return ce.ClassifierEnergy(lambda x: -scale * torch.stack([energy(x) for energy in energies], 1), labels=classes)


@dataclass(frozen=True)
class Method:
    """Conditional energies with a sampler."""

    of: Mapping[str, Callable[[Tensor], ce.Energy]]
    draw: Callable[[ce.Energy, int, int], Tensor]  # function from an energy, a number of pictures and a seed to pictures of 64 pixels
    alpha: float  # factor of NOT
    scale: float  # factor of energies under OR


def of_pixels(chain: int, alpha: float, scale: float) -> Method:
    """Returns the paper's method: energies of pixels, and chains of a number of steps from uniform noise, in bfloat16 as in training."""
    energies = load()
    options = {"step_size": 2 * STEP, "temperature": NOISE**2 / (2 * STEP), "clamp": (0.0, 1.0)}

    def draw(energy: ce.Energy, n: int, seed: int) -> Tensor:
        start = torch.rand(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed))
        settings = {"steps": chain, "init": start, "seed": seed, "batch_size": 125, "allow_improper": True, **options}
        with torch.autocast("cpu", torch.bfloat16):
            return enlarge(energy.sample(n, sampler="langevin", **settings))

    def bind(concept: str) -> Callable[[Tensor], ce.Energy]:
        return lambda values: energies[concept].given(y=condition_of(concept, values))

    return Method({concept: bind(concept) for concept in energies}, draw, alpha, scale)


def expressions(method: Method, c: Mapping[str, Tensor]) -> dict[str, ce.Energy]:
    """Returns the rows of `table1` by the paper's rules."""
    place, color = method.of["position"](c["position"]), method.of["color"](c["color"])
    here, there = (method.of["position"](c[name]) for name in ("position1", "position2"))
    other = method.of["color"](c["color2"])
    rows = {
        "color": color,
        "position": place,
        "position & color": place & color,
        "position & ~color": place & paper_not(color, method.alpha),
        "~position & color": paper_not(place, method.alpha) & color,
        "position1": here,
        "position1 & color1": here & color,
        "position1 | position2": paper_or(here, there, scale=method.scale),
        "(position1 & color1) | (position2 & color2)": paper_or(here & color, there & other, scale=method.scale),
    }
    if "shape" in method.of:
        shape, size = (method.of[concept](c[concept]) for concept in ("shape", "size"))
        rows["position & color & shape & size"] = ce.all_of(place, color, shape, size)
    return rows
