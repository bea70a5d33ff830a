"""The mean correlation coefficient: whether each factor correlates with a dimension of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import import_extra
from composable_energy_comet.metrics.inputs import Array, check_codes_and_factors


def mean_correlation(codes: Array, factors: Array, kind: str = "pearson") -> float:
    r"""Returns the mean correlation coefficient (MCC) of dimensions and factors, matched one to one (Hyvarinen & Morioka, 2016).

    $$\mathrm{MCC} = \frac1F \max_\pi \sum_f |\rho(z_{\pi(f)}, v_f)|,$$

    over all injective assignments $\pi$ of dimensions to factors (the Hungarian method). With fewer dimensions than factors, unmatched
    factors count 0, as does a constant dimension. (Published code pads with noise, whose correlation is of order $1 / \sqrt N$; zeros need
    no seed.)

    Args:
        codes: Codes with shape $(N, D)$.
        factors: Numbers with shape $(N, F)$.
        kind: `"pearson"`, or `"spearman"` for rank correlation, which is invariant to increasing functions.

    Returns:
        A number in [0, 1].

    Raises:
        ShapeError: An argument is not a table, or the numbers of rows differ.
        DtypeError: An argument does not hold real numbers.
        OptionError: A number is not finite, a factor is constant, or the kind is unknown.
        ExtraNotInstalled: SciPy is not installed.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
        >>> round(mean_correlation(-factors.flip(1), factors), 6)
        1.0

    References:
        Unsupervised feature extraction by time-contrastive learning (Hyvarinen & Morioka, 2016), https://arxiv.org/abs/1605.06336
    """
    rows, values = check_codes_and_factors(codes, factors, levels=False)
    if kind not in ("pearson", "spearman"):
        raise OptionError(f"kind must be 'pearson' or 'spearman', got {kind!r}.")
    optimize = import_extra("scipy.optimize", "metrics")
    if kind == "spearman":
        rows, values = _ranks(rows), _ranks(values)
    strength = (_standard(rows).T @ _standard(values)).abs()
    matched = optimize.linear_sum_assignment(strength.numpy(), maximize=True)
    return min(1.0, strength[matched].sum().item() / values.shape[1])


def _standard(rows: Tensor) -> Tensor:
    """Returns centred columns of norm 1, and zeros for constant columns."""
    varies = rows.amax(0) > rows.amin(0)
    centred = torch.where(varies, rows - rows.mean(0), 0.0)
    return centred / torch.where(varies, centred.norm(dim=0), 1.0)


def _ranks(rows: Tensor) -> Tensor:
    """Returns ranks; ties share their mean rank."""
    return torch.from_numpy(import_extra("scipy.stats", "metrics").rankdata(rows.numpy(), axis=0))
