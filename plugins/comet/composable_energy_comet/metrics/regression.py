"""Linear probing: how much of each factor a linear map of the code explains."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy_comet.metrics.inputs import Array, check_codes_and_factors


def linear_r2(train_codes: Array, train_factors: Array, test_codes: Array, test_factors: Array) -> Tensor:
    r"""Returns the share of each factor's variance that a least-squares fit on codes explains on test pictures.

    $$R^2_f = 1 - \frac{\sum_i (v_{if} - \hat v_{if})^2}{\sum_i (v_{if} - \bar v_f)^2},$$

    with $\hat v = W z + b$ fitted to the training pictures, and sums and mean $\bar v$ over the test pictures. It is 1 for a perfect fit,
    about $-D / N$ for codes without information, and far below for test pictures from another distribution. Unlike MIG and MCC it is
    invariant to rotations and scales of the code. Constant and linearly dependent columns do no harm.

    Args:
        train_codes: Codes with shape $(N, D)$.
        train_factors: Numbers with shape $(N, F)$.
        test_codes: Codes with shape $(M, D)$.
        test_factors: Numbers with shape $(M, F)$.

    Returns:
        $R^2$ of each factor, with shape $(F,)$.

    Raises:
        ShapeError: An argument is not a table, or shapes differ.
        DtypeError: An argument does not hold real numbers.
        OptionError: A number is not finite, or a factor is constant.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
        >>> codes = factors @ torch.tensor([[1.0, 1.0], [1.0, -1.0]]) + 3
        >>> linear_r2(codes[::2], factors[::2], codes[1::2], factors[1::2])
        tensor([1., 1.], dtype=torch.float64)
    """
    codes, factors = check_codes_and_factors(train_codes, train_factors, levels=False)
    new_codes, new_factors = check_codes_and_factors(test_codes, test_factors, levels=False)
    for name, one, other in (("codes", codes, new_codes), ("factors", factors, new_factors)):
        if one.shape[1] != other.shape[1]:
            raise ShapeError(
                f"`train_{name}` and `test_{name}` must have the same columns, got {tuple(one.shape)} and {tuple(other.shape)}."
            )
    varies = codes.amax(0) > codes.amin(0)
    mean, scale, base = codes.mean(0), torch.where(varies, codes.std(0), torch.inf), factors.mean(0)
    weights = torch.linalg.lstsq((codes - mean) / scale, factors - base, driver="gelsd").solution  # works for any rank
    residual = new_factors - base - (new_codes - mean) / scale @ weights
    return 1 - residual.square().sum(0) / (new_factors - new_factors.mean(0)).square().sum(0)
