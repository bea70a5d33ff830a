r"""Log densities and scores, $\log p(x) = -E(x) - \log Z$ and $\nabla_x \log p(x) = -\nabla E(x)$; and whether $Z$ is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from composable_energy.energies.checks import check_value
from composable_energy.energies.lift import ScoreEnergy
from composable_energy.errors import ExpressionError, NormalizerError, UngroundedError

if TYPE_CHECKING:
    from composable_energy.energies.energy import Energy

_RADII = (2.0**10, 2.0**20, 2.0**30, 2.0**40)  # where tails are looked at, in spreads of the points
_POINTS, _COORDINATES, _RANDOM = 16, 32, 4
_SHARE = 0.25  # of the points, from which the energy grows too slowly
_ROUNDING, _FALLS = 0.005, 0.5  # of exponents
_FARTHEST = 1e8  # points farther away have lost their place to rounding


def log_prob(energy: Energy, x: Tensor, log_z: Any = None, **conditions: Any) -> Tensor:
    r"""Returns $\log p(x) = -E(x) - \log Z$, with shape $(B,)$.

    Args:
        energy: The energy.
        x: Points, with shape $(B, *)$.
        log_z: A number or the result of `composable_energy.log_z`; None takes `log_normalizer`.
        **conditions: One value for all points, or one row for each.

    Raises:
        NormalizerError: $\log Z$ is not known.
    """
    check_value(energy, "`log_prob`")
    known = energy.log_normalizer if log_z is None else log_z
    if known is None:
        raise NormalizerError(
            f"log Z of {energy} is not known, so its energies are log densities up to a constant only. Estimate it: "
            "`E.log_prob(x, log_z=composable_energy.log_z(E))`; for a mixture `composable_energy.calibrate(E).log_prob(x)`."
        )
    return -energy(x, **conditions) - (known if isinstance(known, Tensor) else float(known))


def score(energy: Energy, x: Tensor, *, create_graph: bool = False, **conditions: Any) -> Tensor:
    r"""Returns the score $\nabla_x \log p(x) = -\nabla E(x)$, with shape $(B, *)$; with `create_graph` it can be differentiated."""
    if not create_graph:
        return -energy.with_gradient(x, **conditions)[1]
    if isinstance(energy, ScoreEnergy):
        return energy.predict(x, **conditions)
    if not energy.has_value:
        raise ExpressionError(
            f"{energy} has a gradient and no value, so its score has no graph. Train the score models in it one by one, by "
            "`score(x, create_graph=True)` of each."
        )
    with torch.enable_grad():
        point = x if x.requires_grad else x.detach().requires_grad_()
        values = energy(point, **conditions)
        found = torch.autograd.grad(values.sum(), point, create_graph=True, allow_unused=True) if values.requires_grad else (None,)
    if found[0] is None:
        raise ExpressionError(f"{energy} has no gradient at its points: it is constant, or detaches them (`detach`, `no_grad`, NumPy).")
    return -found[0]


def check_tails(energy: Energy, points: Tensor, conditions: Mapping[str, Any]) -> None:
    r"""Raises if an energy grows too slowly for $\int e^{-E(x)}\, dx$ to be finite, far from given points.

    A density has a finite integral along almost all parallels of any line, so $E \ge s \log t$ with $s > 1$ there; and along almost all
    rays, with $s > d$. The exponent $s$ is measured along coordinates, a few other lines, and rays, from $2^{10}$ to $2^{40}$ spreads of
    the points. An energy that grows too slowly along other lines alone is not found.

    Args:
        energy: An energy on all of $\mathbb{R}^n$, such as one in unconstrained coordinates.
        points: Points where to begin, with shape $(n, *)$; standard normal ones take their place if one is not finite.
        conditions: Values of its conditions.

    Raises:
        UngroundedError: From a quarter of the points the energy grows too slowly.
    """
    points = points.detach()[:: -(-len(points) // _POINTS)]
    if not points.isfinite().all() or points.abs().max() > _FARTHEST:
        points = torch.randn(points.shape, generator=torch.Generator().manual_seed(0)).to(points)
    for x in (points.double(), points) if points.device.type != "mps" else (points,):  # weights may be in another dtype
        try:
            found, needed = _slowest_growth(energy, x, conditions)
            break
        except Exception:  # of a function that was not written for points so far away
            continue
    else:
        return
    if found <= needed + _ROUNDING:
        falls = "falls" if found < -_FALLS else f"grows like {max(found, 0):.2g} log r"
        hint = "Is this a log density? An energy is minus a log density: negate it. Else" if found < -_FALLS else "So"
        raise UngroundedError(
            f"{energy} has no density: at a large distance r it {falls}, and e^-E has a finite integral only if it grows by more than "
            f"{needed:g} log r. {hint} join it with `&` to a density, or restrict it, as in `E.on(constraints.interval(-10, 10))`; or "
            "insist, in `sample`, with allow_improper=True."
        )


def _slowest_growth(energy: Energy, points: Tensor, conditions: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the exponent along the line where it is least in relation to what it must be, and what it must be."""
    flat = points.flatten(1) if points.ndim > 1 else points[:, None]
    center = flat.median(0).values
    spread = max(1.0, (flat - center).abs().median().item())
    rays = torch.nn.functional.normalize(flat - center + 1e-3 * spread, dim=1)
    ways = [(flat, line, 1) for line in _lines(energy, flat, points.shape[1:], conditions)]
    ways.append((center.expand_as(flat), rays, flat.shape[1]))
    worst, needed = math.inf, 1
    for start, line, need in ways:
        x = torch.cat([start + spread * radius * line for radius in _RADII])
        with torch.no_grad():
            energies = energy(x.reshape(-1, *points.shape[1:]), **conditions).double().reshape(len(_RADII), -1)
        exponents = _exponents(energies, torch.finfo(x.dtype).eps).sort().values
        found = exponents[math.ceil(_SHARE * len(exponents)) - 1].item()
        if found - need < worst - needed:
            worst, needed = found, need
    return worst, needed


def _lines(energy: Energy, flat: Tensor, event: torch.Size, conditions: Mapping[str, Any]) -> Tensor:
    """Returns directions, with shape (lines, d): coordinates of large spread, random ones, and one with the least gradients."""
    size = flat.shape[1]
    widest = (flat - flat.mean(0)).square().mean(0).argsort(descending=True)[:_COORDINATES]
    lines = [torch.eye(size).to(flat)[widest], torch.randn((_RANDOM, size), generator=torch.Generator().manual_seed(1)).to(flat)]
    if 1 < size <= _COORDINATES:
        wide = torch.randn((2 * size, size), generator=torch.Generator().manual_seed(2)).to(flat) + flat.mean(0)
        gradients = energy.with_gradient(wide.reshape(-1, *event), **conditions)[1].reshape(-1, size)
        gradients = gradients[gradients.isfinite().all(1)]
        lines.append(torch.linalg.svd(torch.nn.functional.normalize(gradients, dim=1)).Vh[-1:])
    every = torch.nn.functional.normalize(torch.cat(lines), dim=1)
    return torch.cat([every, -every])


def _exponents(energies: Tensor, eps: float) -> Tensor:
    r"""Returns by which multiple of $\log t$ energies grow, of shape (radii, n), at least somewhere; infinity if it is unknown."""
    rounding = eps * energies.abs().amax(0)
    growth = energies.diff(dim=0).masked_fill(energies[:-1] == -math.inf, -math.inf)
    growth = growth.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).amax(0)
    known = energies[0].isfinite() & ((rounding < 0.1) | (growth < 0))
    return torch.where(known, growth / math.log(_RADII[1] / _RADII[0]), math.inf)
