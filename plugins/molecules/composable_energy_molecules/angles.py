r"""Angles on the circle: differences, dihedrals, and atoms that are placed by a dihedral."""

import math
from typing import Any

import torch
from torch import Tensor

from composable_energy.errors import ShapeError


def wrap(angles: Tensor, period: Tensor | float = 2 * math.pi) -> Tensor:
    r"""Returns angles in $[-P / 2, P / 2)$ that are equal modulo the period $P$, a number or a tensor that broadcasts.

    Example:
        >>> wrap(torch.tensor([0.0, 4.0]))
        tensor([ 0.0000, -2.2832])
    """
    return torch.remainder(angles + period / 2, period) - period / 2


def recovered(predicted: Tensor, truth: Tensor, periods: Tensor, within: float = math.radians(20)) -> Tensor:
    r"""Returns which predicted angles, with shape $(N, 4)$, are within 20 degrees of the truth, up to a period.

    Args:
        periods: The period of each angle, with shape $(N, 4)$: $\pi$ where a half turn changes only the names of atoms.
        within: The largest difference, in radians.
    """
    if not predicted.shape == truth.shape == periods.shape:
        raise ShapeError(
            f"Predicted and true angles and their periods need one shape, got {tuple(predicted.shape)}, {tuple(truth.shape)} and "
            f"{tuple(periods.shape)}."
        )
    return wrap(predicted - truth, periods).abs() <= within


def dihedral(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    r"""Returns the angle between the planes $abc$ and $bcd$ of points with shape $(*, 3)$, with shape $(*)$, in $[-\pi, \pi]$.

    It is positive where the turn is clockwise seen along $b \to c$, as IUPAC has it.
    """
    axis = c - b
    before, after = torch.linalg.cross(b - a, axis), torch.linalg.cross(axis, d - c)
    length = axis.norm(dim=-1)
    return torch.atan2(length * ((b - a) * after).sum(-1), (before * after).sum(-1))


def place_atom(a: Tensor, b: Tensor, c: Tensor, length: Any, angle: Any, turn: Tensor) -> Tensor:
    r"""Returns the point $d$ at a distance from $c$, with shape $(*, 3)$, with an angle $bcd$ and a dihedral $abcd$ (Parsons et al., 2005).

    References:
        Practical conversion from torsion space to Cartesian space for in silico protein synthesis (Parsons et al., 2005).
    """
    along = _unit(c - b)
    normal = _unit(torch.linalg.cross(b - a, along))
    across = torch.linalg.cross(normal, along)
    length, angle = (torch.as_tensor(value, dtype=c.dtype, device=c.device) for value in (length, angle))
    ahead, aside = -length * angle.cos(), length * angle.sin()
    steps = torch.stack([ahead.expand(turn.shape), aside * turn.cos(), aside * turn.sin()], -1)
    return c + steps[..., :1] * along + steps[..., 1:2] * across + steps[..., 2:] * normal


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True)
