"""The mean correlation coefficient: whether each factor has a dimension of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy_comet.metrics.checking import Array, codes_and_factors, extra

__all__ = ["mean_correlation"]


def mean_correlation(codes: Array, factors: Array, kind: str = "pearson") -> float:
    r"""Mean correlation coefficient (MCC): codes and factors are matched one to one (Hyvarinen & Morioka, 2016).

    $$\mathrm{MCC} = \frac1F \max_\pi \sum_f |\rho(z_{\pi(f)}, v_f)|,$$

    over all ways $\pi$ to give each factor a dimension of its own (the Hungarian method). With fewer dimensions than factors some get
    none, and count 0, as does a constant dimension. (Published code fills up to a square with noise, whose correlation is 0 but for
    $1 / \sqrt N$; zeros need no seed.)

    Args:
        codes: With shape $(N, D)$.
        factors: Numbers with shape $(N, F)$.
        kind: `"pearson"`, or `"spearman"`: of the ranks, for which any increasing function of a factor is as good.

    Returns:
        A number in [0, 1].

    Raises:
        ShapeError: One is no table, or they have not as many rows.
        DtypeError: One holds no numbers.
        OptionError: A number is not finite, a factor is constant, or the kind is unknown.
        ExtraNotInstalled: SciPy is not installed.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
        >>> round(mean_correlation(-factors.flip(1), factors), 6)
        1.0

    References:
        Unsupervised feature extraction by time-contrastive learning (Hyvarinen & Morioka, 2016), https://arxiv.org/abs/1605.06336
    """
    rows, values = codes_and_factors(codes, factors, levels=False)
    if kind not in ("pearson", "spearman"):
        raise OptionError(f"kind must be 'pearson' or 'spearman', got {kind!r}.")
    optimize = extra("scipy.optimize")
    if kind == "spearman":
        rows, values = _ranks(rows), _ranks(values)
    strength = (_standard(rows).T @ _standard(values)).abs()
    matched = optimize.linear_sum_assignment(strength.numpy(), maximize=True)
    return min(1.0, strength[matched].sum().item() / values.shape[1])


def _standard(rows: Tensor) -> Tensor:
    """Centred columns of length 1; of a constant one, zeros."""
    varies = rows.amax(0) > rows.amin(0)
    centred = torch.where(varies, rows - rows.mean(0), 0.0)
    return centred / torch.where(varies, centred.norm(dim=0), 1.0)


def _ranks(rows: Tensor) -> Tensor:
    """Equal numbers share the mean of their ranks."""
    return torch.from_numpy(extra("scipy.stats").rankdata(rows.numpy(), axis=0))
