"""Latent points where heads may be wrong: where a flow leads that follows the heads to other labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy import Energy
from composable_energy.arithmetic import unsqueeze_to
from composable_energy_latent.flow import descend
from composable_energy_latent.labels import Column

_ROUNDS, _TOLERANCE = 100, 0.1  # of the flow: tried steps of a point, and the error of a step
_VALUES = 25.0  # the weight of a value: its width is then a fifth of its spread, as in edits
_CHUNK = 2000


def head_losses(outputs: Tensor, column: Column, *, reduction: str = "mean") -> Tensor:
    """Returns the loss of the outputs of all heads, with shape $(B, C)$, for one attribute."""
    own = outputs[:, column.columns]
    if not column.labels:
        return F.mse_loss(own[:, 0], (column.target - column.centre) / column.scale, reduction=reduction) / 2
    if column.labels == 2:
        return F.binary_cross_entropy_with_logits(own[:, 0], column.target.to(own), reduction=reduction)
    return F.cross_entropy(own, column.target, reduction=reduction)


def driven(base: Energy, outputs: Callable[[Tensor], Tensor], columns: Sequence[Column], z: Tensor, seed: int) -> Tensor:
    """Returns where latent points flow if the labels of other pictures, drawn at random, are asked of the heads.

    Heads that are right on draws of the prior may be wrong there, and samplers without noise and edits go there.
    """
    drawn = torch.randint(len(columns[0].target), (len(z),), generator=torch.Generator().manual_seed(seed)).to(z.device)
    asked = [column.rows(drawn) for column in columns]

    def flow(points: Tensor, first: int) -> Tensor:
        def potential(z: Tensor, rows: Tensor) -> Tensor:
            found = outputs(z)
            losses = ((1.0 if part.labels else _VALUES) * head_losses(found, part.rows(rows + first), reduction="sum") for part in asked)
            return torch.stack([*losses])

        end, _, _ = descend(potential, base.support, points, tolerance=_TOLERANCE, rounds=_ROUNDS)
        return torch.where(unsqueeze_to(end.flatten(1).isfinite().all(1), end), end, points)

    return torch.cat([flow(part, number * _CHUNK) for number, part in enumerate(z.split(_CHUNK))])
