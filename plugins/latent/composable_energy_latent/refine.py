"""Latent points where heads may be wrong: where a flow leads that follows the heads to other labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy import Energy
from composable_energy.supports import coordinates_of
from composable_energy_latent.flow import integrate
from composable_energy_latent.labels import Column

_SPAN, _ROUNDS, _TOLERANCE = 5.0, 100, 0.1  # of the flow: its time, tried steps of a point, and the error of a step
_VALUES = 25.0  # the weight of a value: its width is then a fifth of its spread, as in edits
_CHUNK = 2000


def head_losses(outputs: Tensor, column: Column, *, reduction: str = "mean") -> Tensor:
    """Returns the loss of the outputs of heads for one attribute.

    Args:
        outputs: All outputs, with shape $(B, C)$.
        column: The attribute and its labels, with shape $(B,)$.
        reduction: That of the loss functions of torch.
    """
    own = outputs[:, column.columns]
    if not column.labels:
        return F.mse_loss(own[:, 0], (column.target - column.centre) / column.scale, reduction=reduction) / 2
    if column.labels == 2:
        return F.binary_cross_entropy_with_logits(own[:, 0], column.target.to(own), reduction=reduction)
    return F.cross_entropy(own, column.target, reduction=reduction)


def driven(base: Energy, outputs: Callable[[Tensor], Tensor], columns: Sequence[Column], z: Tensor, seed: int) -> Tensor:
    """Returns where latent points flow if the labels of other pictures, drawn at random, are asked of the heads.

    Heads that are right on draws of the prior may be wrong there, and samplers without noise and edits go there.

    Args:
        base: The prior; points stay in its support.
        outputs: Returns the outputs of the heads of latent points.
        columns: The attributes, with labels to draw from.
        z: The points at the start, with shape $(B, *)$.
        seed: The seed of the labels.
    """
    drawn = torch.randint(len(columns[0].target), (len(z),), generator=torch.Generator().manual_seed(seed)).to(z.device)
    asked = [column.rows(drawn) for column in columns]
    coordinates = coordinates_of(base.support, z.shape[1:], z.dtype, z.device)

    def flow(points: Tensor, first: int) -> Tensor:
        def velocity(u: Tensor, times: Tensor, rows: Tensor) -> Tensor:
            with torch.enable_grad():
                u = u.detach().requires_grad_()
                found = outputs(u if coordinates is None else coordinates.points(u)[0])
                losses = (
                    (1.0 if part.labels else _VALUES) * head_losses(found, part.rows(rows + first), reduction="sum") for part in asked
                )
                return -torch.autograd.grad(torch.stack([*losses]).sum(), u)[0]

        u = points if coordinates is None else coordinates.inverse(points)
        u, _, _ = integrate(velocity, u, 0.0, _SPAN, tolerance=_TOLERANCE, first=_SPAN / 4, rounds=_ROUNDS)
        end = (u if coordinates is None else coordinates.points(u)[0]).detach()
        finite = end.flatten(1).isfinite().all(1)
        return torch.where(finite.view(-1, *[1] * (end.ndim - 1)), end, points)

    return torch.cat([flow(part, number * _CHUNK) for number, part in enumerate(z.split(_CHUNK))])
