"""Supports and short sampler settings for tests."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor
from torch.distributions import constraints

from composable_energy.supports import circle, sphere
from tests.distribution_values import t

BOX = constraints.interval(t(-1.0, -math.inf, 2.0, -math.inf), t(1.0, 0.0, math.inf, math.inf))
MIXED = constraints.cat([constraints.simplex, constraints.positive, circle, constraints.real], dim=0, lengths=[3, 1, 2, 1])
SHORT = {"sampler": "hmc", "step_size": 0.4, "leapfrogs": 5, "steps": 30}


def lower(x: Tensor, diagonal: int = 0) -> Tensor:
    rows, columns = torch.tril_indices(x.shape[-1], x.shape[-1], diagonal)
    return x[..., rows, columns]


BIJECTIONS = {  # a support, the shape of a point, and the free numbers of a point
    "interval": (constraints.interval(2.0, 5.0), (2,), lambda x: x),
    "box": (BOX, (4,), lambda x: x),
    "simplex": (constraints.simplex, (4,), lambda x: x[..., :-1]),
    "lower_triangular": (constraints.lower_triangular, (3, 3), lower),
    "lower_cholesky": (constraints.lower_cholesky, (3, 3), lower),
    "positive_definite": (constraints.positive_definite, (3, 3), lower),
    "corr_cholesky": (constraints.corr_cholesky, (3, 3), partial(lower, diagonal=-1)),
    "stack": (constraints.stack([constraints.positive, constraints.unit_interval], dim=-1), (3, 2), lambda x: x.mT),
}
EVERY = {name: (support, event) for name, (support, event, _) in BIJECTIONS.items()}
EVERY |= {"circle": (circle, (2,)), "sphere": (sphere, (2, 3)), "mixed": (MIXED, (7,)), "positive": (constraints.positive, ())}
