r"""What principal components of codes measure: axes of the changes that factors make to pictures.

A code whose distances are those of pictures has the Gram matrix $G = \langle J^\top J \rangle$ of changes, where column $j$ of $J$ is
the derivative of a picture by factor $j$. The principal axes of such a code are the eigenvectors of $G$. They are the factors only if the
changes are orthogonal and of different lengths: a property of the world, and not of a model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.papers.comet_2021.baselines import fit_principal_components

PICTURES, STEP, SEED = 250, 0.08, 5


def measure_pictures() -> dict[str, Any]:
    """Renders rooms that differ in one factor; returns $G$ and `MCC, PCA 64` of codes with distances of pictures, in half a minute."""
    factors = torch.rand(PICTURES, 7, generator=torch.Generator().manual_seed(SEED)) * (1 - STEP) + STEP / 2
    moved = torch.stack([factors + sign * STEP / 2 * torch.eye(7)[k] for k in range(7) for sign in (1, -1)])
    images = ce.get("world", "room", size=32).render({"factors": moved.flatten(0, 1).numpy()}).images
    metric = change_metric(torch.from_numpy(images).float().div(255).view(7, 2, PICTURES, -1))
    lengths = metric.diag().sqrt()
    return {
        "MCC": 100 * isometric_mcc(metric),
        "lengths": lengths.tolist(),
        "cosines": (metric / lengths / lengths[:, None]).tolist(),
    }


def change_metric(images: Tensor) -> Tensor:
    """Returns the mean inner products of changes of pictures, with shape $(F, F)$.

    Args:
        images: Pictures with factor f a little above and below, with shape $(F, 2, N, P)$.
    """
    changes = (images[:, 0] - images[:, 1]) / STEP
    return torch.einsum("anp,bnp->ab", changes, changes) / images.shape[2]


def isometric_mcc(metric: Tensor, points: int = 100_000) -> float:
    """Returns the MCC of the principal components of codes that are linear in independent factors and have a Gram matrix.

    Args:
        metric: The Gram matrix, with shape $(F, F)$.
        points: Number of random codes.
    """
    from composable_energy_comet.metrics import mean_correlation

    factors = torch.rand(points, len(metric), generator=torch.Generator().manual_seed(SEED), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(metric.double())
    codes = factors @ (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return float(mean_correlation(fit_principal_components(codes)(codes), factors))
