r"""Where components are: a score of each component at each pixel, read out of energies, and masks of scores."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from composable_energy.errors import ExpressionError
from composable_energy.sampling import Noise
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.descent import SPREAD, descended, stepped
from composable_energy_comet.quadratic import QuadraticEnergy

__all__ = ["READINGS", "component_scores", "merged"]

READINGS = {ConvEnergy: ("share", "single"), QuadraticEnergy: ("weight", "single")}
"""What can be read out of each kind of energy, the best first."""

_TOLERANCE = 0.2  # of squared color, in which a component that draws a pixel right counts


def component_scores(energy: ConvEnergy | QuadraticEnergy, x: Tensor, z: Tensor, noise: Noise, read: str | None = None) -> Tensor:
    r"""Returns how much of each pixel is each component's, with shape $(B, K, S, S)$.

    - `"share"`, for convolutional energies: what each component's own gradient added, over all steps of the joint descent, to the way from
      the start to the end;
    - `"single"`, for either: whether it draws the pixel's color alone, away from the start: stricter, and fit for any start;
    - `"weight"`: for quadratic energies, its share of the weights times how far what it wants is from the start.

    Args:
        energy: The energy of components.
        x: Pictures, with shape $(B, C, S, S)$; `"single"` compares with them.
        z: Their latents, with shape $(B, K, D)$.
        noise: Of the start.
        read: One of them; if None `"weight"` for quadratic energies, else `"share"`, or `"single"` where the start is noise.

    Raises:
        ExpressionError: The energy knows no places, or not this reading.
    """
    if energy.coordinates == "none":
        raise ExpressionError(
            f"{energy} has no masks: with coordinates='none' its components are factors of the whole picture. Ask `swap` or `interpolate` "
            "for what they do, or train one with coordinates='relative'."
        )
    known = READINGS[type(energy)]
    best = "single" if energy.start == "uniform" and "share" in known else known[0]
    if read is not None and read not in known:
        raise ExpressionError(f"{energy} is read by {' or '.join(map(repr, known))}, got {read!r}.")
    read = read or best
    if isinstance(energy, QuadraticEnergy) and read == "weight":
        pictures, weights = energy.wanted(z)
        return (weights.softmax(1) * (pictures - energy.image).abs()).sum(2)
    if isinstance(energy, ConvEnergy) and read == "share":
        return F.avg_pool2d(_shares(energy, z, energy.begun(x, noise, SPREAD)), 3, 1, 1)
    alone = _alone(energy, z, energy.begun(x, noise, SPREAD))
    away, off = (alone - energy.image).abs().sum(2), (alone - x[:, None]).square().sum(2)
    return F.avg_pool2d(away * (-off / _TOLERANCE).exp(), 3, 1, 1)


def merged(scores: Tensor, threshold: float | None) -> Tensor:
    """Returns the component of the highest score at each pixel, with shape $(B, S, S)$.

    Args:
        scores: With shape $(B, K, S, S)$.
        threshold: Components whose scores, less their lowest value, have a cosine above it count as the first of them; None for none.
    """
    labels = scores.argmax(1)
    if threshold is None:
        return labels
    flat = scores.flatten(2)
    flat = F.normalize(flat - flat.amin(2, keepdim=True), dim=2)
    alike = flat @ flat.transpose(1, 2) > threshold
    first = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores), 1)
    for k in range(1, scores.shape[1]):
        for j in range(k):
            joins = (first[:, k] == k) & alike[:, j, k]
            first[:, k] = torch.where(joins, first[:, j], first[:, k])
    return first.gather(1, labels.flatten(1)).view_as(labels)


def _shares(energy: ConvEnergy, z: Tensor, start: Tensor) -> Tensor:
    components, x = z.shape[1], start
    apart = z.flatten(0, 1)[:, None]
    own = torch.zeros(z.shape[:2] + start.shape[1:]).to(start)
    for _ in range(energy.iterations):
        here = x.repeat_interleave(components, 0)
        moved = (stepped(energy, apart, here) - here).unflatten(0, z.shape[:2])
        own, x = own + moved, (x + moved.sum(1)).clamp(0, 1)
    return (own * (x - start)[:, None]).sum(2).clamp(min=0)


def _alone(energy: ConvEnergy | QuadraticEnergy, z: Tensor, start: Tensor) -> Tensor:
    """Returns what each component draws alone, with shape $(B, K, C, S, S)$."""
    each = z.flatten(0, 1)[:, None]
    if isinstance(energy, QuadraticEnergy):
        return energy.minimum(each).unflatten(0, z.shape[:2])
    repeated = each.expand(-1, z.shape[1], -1)  # alone it has to move pictures as far as all did together
    return descended(energy, repeated, start.repeat_interleave(z.shape[1], 0), energy.iterations).unflatten(0, z.shape[:2])
