r"""Log densities and scores, $\log p(x) = -E(x) - \log Z$ and $\nabla_x \log p(x) = -\nabla E(x)$; and whether $Z$ is finite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from composable_energy.energies.checks import check_value
from composable_energy.energies.lift import ScoreEnergy
from composable_energy.errors import CalibrationError, ExpressionError, UngroundedError

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
        CalibrationError: $\log Z$ is not known.
    """
    check_value(energy, "`log_prob`")
    known = energy.log_normalizer if log_z is None else log_z
    if known is None:
        raise CalibrationError(
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
        points = _normal(0, points.shape, points)
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
    size, center = flat.shape[1], flat.median(0).values
    spread = max(1.0, (flat - center).abs().median().item())
    # Lines along coordinates of large spread, random ones, and one with the least gradients; and rays from the middle.
    widest = (flat - flat.mean(0)).square().mean(0).argsort(descending=True)[:_COORDINATES]
    lines = [torch.eye(size).to(flat)[widest], _normal(1, (_RANDOM, size), flat)]
    if 1 < size <= _COORDINATES:
        wide = _normal(2, (2 * size, size), flat) + flat.mean(0)
        gradients = energy.with_gradient(wide.reshape(-1, *points.shape[1:]), **conditions)[1].reshape(-1, size)
        lines.append(torch.linalg.svd(normalize(gradients[gradients.isfinite().all(1)], dim=1)).Vh[-1:])
    every = normalize(torch.cat(lines), dim=1)
    ways = [(flat, line, 1) for line in (*every, *-every)]
    ways.append((center.expand_as(flat), normalize(flat - center + 1e-3 * spread, dim=1), size))
    worst, needed = math.inf, 1
    for start, line, need in ways:
        x = torch.cat([start + spread * radius * line for radius in _RADII])
        with torch.no_grad():
            energies = energy(x.reshape(-1, *points.shape[1:]), **conditions).double().reshape(len(_RADII), -1)
        # By which multiple of log t the energies grow, at least somewhere; infinity if it is unknown.
        rounding = torch.finfo(x.dtype).eps * energies.abs().amax(0)
        growth = energies.diff(dim=0).masked_fill(energies[:-1] == -math.inf, -math.inf)
        growth = growth.nan_to_num(nan=math.inf, posinf=math.inf, neginf=-math.inf).amax(0)
        known = energies[0].isfinite() & ((rounding < 0.1) | (growth < 0))
        exponents = torch.where(known, growth / math.log(_RADII[1] / _RADII[0]), math.inf).sort().values
        found = exponents[math.ceil(_SHARE * len(exponents)) - 1].item()
        if found - need < worst - needed:
            worst, needed = found, need
    return worst, needed


def _normal(seed: int, shape: Sequence[int], like: Tensor) -> Tensor:
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed)).to(like)
