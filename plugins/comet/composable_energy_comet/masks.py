r"""Masks of components: a score of each component at each pixel, computed from energies, and labels of pixels."""

import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from composable_energy.errors import ExpressionError
from composable_energy.sampling import Noise
from composable_energy_comet.component import QuadraticEnergy, TargetEnergy
from composable_energy_comet.conv import SPREAD, ConvEnergy, WindowEnergy, descend, descent_step

SCORE_METHODS = {ConvEnergy: ("share", "single"), QuadraticEnergy: ("weight", "single"), WindowEnergy: ("weight", "single")}
"""The scores that each class of energy supports, best first."""

_TOLERANCE = 0.2  # squared color error at which the `single` score falls to 1 / e


def component_scores(energy: ConvEnergy | TargetEnergy, x: Tensor, z: Tensor, noise: Noise, read: str | None = None) -> Tensor:
    r"""Returns how much of each pixel belongs to each component, with shape $(B, K, S, S)$.

    - `"share"`, for convolutional energies: the part of the descent's total change that follows the component's own gradient;
    - `"single"`, for either: whether the component alone reproduces the pixel's color, away from the start. It is stricter, and works for
      any start;
    - `"weight"`, for quadratic energies: the component's share of the weights, times the distance of its target from the start.

    Args:
        x: Pictures, with shape $(B, C, S, S)$; `"single"` compares with them.
        z: Their latents, with shape $(B, K, D)$.
        noise: Noise of the start.
        read: The score. None takes `"weight"` for quadratic energies, else `"share"`, or `"single"` if the start is noise.

    Raises:
        ExpressionError: The energy has no coordinates, or does not support this score.
    """
    if energy.coordinates == "none":
        way = "Use `swap` or `interpolate` to see what they do, or train a model with coordinates='relative'."
        raise ExpressionError(f"{energy} has no masks: with coordinates='none' its components are factors of the whole picture. {way}")
    methods = SCORE_METHODS[type(energy)]
    default = "single" if energy.start == "uniform" and "share" in methods else methods[0]
    if read is not None and read not in methods:
        raise ExpressionError(f"{energy} supports the scores {' or '.join(map(repr, methods))}, got {read!r}.")
    read = read or default
    if isinstance(energy, TargetEnergy) and read == "weight":
        pictures, weights = energy.decode_targets(z)
        return (weights.softmax(1) * (pictures - energy.image).abs()).sum(2)
    if isinstance(energy, ConvEnergy) and read == "share":
        return F.avg_pool2d(_gradient_shares(energy, z, energy.draw_start(x, noise, SPREAD)), 3, 1, 1)
    alone = _decode_each(energy, z, energy.draw_start(x, noise, SPREAD))
    change, error = (alone - energy.image).abs().sum(2), (alone - x[:, None]).square().sum(2)
    return F.avg_pool2d(change * (-error / _TOLERANCE).exp(), 3, 1, 1)


def merge_components(scores: Tensor, threshold: float | None) -> Tensor:
    """Returns the component with the highest of $K$ scores at each pixel, with shape $(B, S, S)$; similar components share a label.

    Args:
        threshold: Components whose scores, minus their minima, have a cosine above it get the label of the first of them. None merges none.
    """
    labels = scores.argmax(1)
    if threshold is None:
        return labels
    flat = scores.flatten(2)
    flat = F.normalize(flat - flat.amin(2, keepdim=True), dim=2)
    similar = flat @ flat.transpose(1, 2) > threshold
    first = torch.arange(scores.shape[1], device=scores.device).repeat(len(scores), 1)
    for k in range(1, scores.shape[1]):
        for j in range(k):
            first[:, k] = torch.where((first[:, k] == k) & similar[:, j, k], first[:, j], first[:, k])
    return first.gather(1, labels.flatten(1)).view_as(labels)


def _gradient_shares(energy: ConvEnergy, z: Tensor, start: Tensor) -> Tensor:
    components, x = z.shape[1], start
    each = rearrange(z, "b k d -> (b k) 1 d")
    own = torch.zeros(z.shape[:2] + start.shape[1:]).to(start)
    for _ in range(energy.iterations):
        repeated = x.repeat_interleave(components, 0)
        change = (descent_step(energy, each, repeated) - repeated).unflatten(0, z.shape[:2])
        own, x = own + change, (x + change.sum(1)).clamp(0, 1)
    return (own * (x - start)[:, None]).sum(2).clamp(min=0)


def _decode_each(energy: ConvEnergy | TargetEnergy, z: Tensor, start: Tensor) -> Tensor:
    """Returns the picture of each component alone, with shape $(B, K, C, S, S)$."""
    each = rearrange(z, "b k d -> (b k) 1 d")
    if isinstance(energy, TargetEnergy):
        return energy.minimum(each).unflatten(0, z.shape[:2])
    repeated = each.expand(-1, z.shape[1], -1)  # K copies of each component move the picture as far as K components
    return descend(energy, repeated, start.repeat_interleave(z.shape[1], 0), energy.iterations).unflatten(0, z.shape[:2])
