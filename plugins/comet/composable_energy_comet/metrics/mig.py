"""The mutual information gap: whether one dimension of a code alone determines each factor."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.options import check_integer
from composable_energy_comet.metrics.inputs import Array, check_codes_and_factors


def mutual_information_gap(codes: Array, factors: Array, bins: int = 20, *, points: int | None = 10_000, seed: int = 0) -> float:
    r"""Returns the mutual information gap (MIG) between the two most informative dimensions for each factor (Chen et al., 2018).

    With $I(z_j; v_f)$ the mutual information of a dimension, binned with equal widths between its extremes, and a factor,

    $$\mathrm{MIG} = \frac1F \sum_f \frac{I(z_{(1)}; v_f) - I(z_{(2)}; v_f)}{H(v_f)},$$

    with $(1)$ and $(2)$ the two dimensions with the most information about $v_f$, and $H$ the entropy. It is 1 if each factor is a function
    of one dimension and no other dimension is informative, and 0 if two are equally informative. It changes under rotations of the code. A
    code of one dimension counts as having a second one without information.

    Args:
        codes: Codes with shape $(N, D)$.
        factors: Whole numbers with shape $(N, F)$, used as names of levels.
        bins: Number of bins per dimension.
        points: Number of rows to subsample without replacement, if there are more; None uses all.
        seed: Seed of the subsample.

    Returns:
        A number in [0, 1].

    Raises:
        ShapeError: An argument is not a table, or the numbers of rows differ.
        DtypeError: Codes are not numbers, or factors not whole numbers.
        OptionError: A number is not finite, a factor is constant, or an option is out of range.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        >>> mutual_information_gap(factors.double(), factors)
        1.0

    References:
        Isolating sources of disentanglement in variational autoencoders (Chen et al., 2018), https://arxiv.org/abs/1802.04942
        Challenging common assumptions in the unsupervised learning of disentangled representations (Locatello et al., 2019), whose
        code cuts 10,000 points into 20 bins, https://arxiv.org/abs/1811.12359
    """
    rows, levels = check_codes_and_factors(codes, factors, levels=True)
    bins, seed = check_integer("bins", bins, least=2), check_integer("seed", seed, least=0)
    if points is not None and check_integer("points", points, least=2) < len(rows):
        some = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:points]
        rows, levels = check_codes_and_factors(rows[some], levels[some], levels=True)  # a level may be missing now
    cells = _bin(rows, bins)
    gaps = [_gap(cells, column, bins) for column in levels.unbind(1)]
    return torch.stack(gaps).mean().item()


def _gap(cells: Tensor, levels: Tensor, bins: int) -> Tensor:
    """Returns the gap of one factor."""
    information, entropy = _information(cells, levels, bins)
    best = torch.cat([information, information.new_zeros(1)]).topk(2).values
    return (best[0] - best[1]) / entropy


def _information(cells: Tensor, levels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Returns the information of each dimension about a factor, with shape $(D,)$, and the factor's entropy, in nats."""
    dimensions, n_levels = cells.shape[1], int(levels.max()) + 1
    index = (torch.arange(dimensions) * bins + cells) * n_levels + levels[:, None]
    counts = index.flatten().bincount(minlength=dimensions * bins * n_levels).reshape(dimensions, bins, n_levels)
    entropy = _entropy(counts[0].sum(0))
    return (_entropy(counts.sum(2)) + entropy - _entropy(counts.flatten(1))).clamp(min=0), entropy


def _bin(codes: Tensor, bins: int) -> Tensor:
    """Returns the bin of each number; a constant dimension has one bin."""
    low, high = codes.amin(0), codes.amax(0)
    width = torch.where(high > low, high - low, 1.0)
    return ((codes - low) / width * bins).long().clamp(max=bins - 1)


def _entropy(counts: Tensor) -> Tensor:
    shares = counts.double() / counts.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1)
