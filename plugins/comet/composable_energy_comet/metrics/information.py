"""The mutual information gap: whether each factor is told by one dimension of a code only."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy_comet.metrics.checking import Array, codes_and_factors, whole

__all__ = ["mutual_information_gap"]


def mutual_information_gap(codes: Array, factors: Array, bins: int = 20, *, points: int | None = 10_000, seed: int = 0) -> float:
    r"""Mutual information gap (MIG): how much more the best dimension of a code tells of a factor than the second best (Chen et al., 2018).

    With $I(z_j; v_f)$ the mutual information of a dimension, cut into bins of equal width between its extremes, and a factor,

    $$\mathrm{MIG} = \frac1F \sum_f \frac{I(z_{(1)}; v_f) - I(z_{(2)}; v_f)}{H(v_f)},$$

    with $(1)$ and $(2)$ the dimensions that tell most of $v_f$, and $H$ the entropy. 1 if each factor is a function of one dimension and
    no other dimension tells anything of it; 0 if two tell it equally well. The same information under a rotation has another gap. A code of
    one dimension has a second one that tells nothing.

    Args:
        codes: With shape $(N, D)$.
        factors: Whole numbers with shape $(N, F)$, which only name levels.
        bins: Into how many bins each dimension is cut.
        points: Draws this many rows if there are more, without replacement; None takes all.
        seed: Of that draw.

    Returns:
        A number in [0, 1].

    Raises:
        ShapeError: One is no table, or they have not as many rows.
        DtypeError: Codes are no numbers, or factors no whole ones.
        OptionError: A number is not finite, a factor is constant, or an option out of range.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        >>> mutual_information_gap(factors.double(), factors)
        1.0

    References:
        Isolating sources of disentanglement in variational autoencoders (Chen et al., 2018), https://arxiv.org/abs/1802.04942
        Challenging common assumptions in the unsupervised learning of disentangled representations (Locatello et al., 2019), whose
        code cuts 10,000 points into 20 bins, https://arxiv.org/abs/1811.12359
    """
    rows, levels = codes_and_factors(codes, factors, levels=True)
    bins, seed = whole("bins", bins, least=2), whole("seed", seed, least=0)
    if points is not None and whole("points", points, least=2) < len(rows):
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:points]
        rows, levels = codes_and_factors(rows[some], levels[some], levels=True)  # a level may have gone
    cells = _cells(rows, bins)
    gaps = [_gap(cells, column, bins) for column in levels.unbind(1)]
    return torch.stack(gaps).mean().item()


def _gap(cells: Tensor, levels: Tensor, bins: int) -> Tensor:
    """The gap of one factor."""
    information, entropy = _information(cells, levels, bins)
    best = torch.cat([information, information.new_zeros(1)]).topk(2).values
    return (best[0] - best[1]) / entropy


def _information(cells: Tensor, levels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Returns the information of each dimension about a factor, with shape $(D,)$, and the factor's entropy, in nats."""
    dimensions, several = cells.shape[1], int(levels.max()) + 1
    place = (torch.arange(dimensions) * bins + cells) * several + levels[:, None]
    counts = place.flatten().bincount(minlength=dimensions * bins * several).reshape(dimensions, bins, several)
    of_levels = _entropy(counts[0].sum(0))
    return (_entropy(counts.sum(2)) + of_levels - _entropy(counts.flatten(1))).clamp(min=0), of_levels


def _cells(codes: Tensor, bins: int) -> Tensor:
    """The bin of each number; a constant dimension is in one."""
    low, high = codes.amin(0), codes.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    return ((codes - low) / width * bins).long().clamp(max=bins - 1)


def _entropy(counts: Tensor) -> Tensor:
    shares = counts.double() / counts.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1)
