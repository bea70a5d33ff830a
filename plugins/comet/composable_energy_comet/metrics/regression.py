"""Linear readability: how much of each factor a linear map of the code tells."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.errors import ShapeError
from composable_energy_comet.metrics.checking import Array, codes_and_factors

__all__ = ["linear_r2"]


def linear_r2(train_codes: Array, train_factors: Array, test_codes: Array, test_factors: Array) -> Tensor:
    r"""Share of the variance of each factor that least squares from the code explain on pictures that it has not seen.

    $$R^2_f = 1 - \frac{\sum_i (v_{if} - \hat v_{if})^2}{\sum_i (v_{if} - \bar v_f)^2},$$

    with $\hat v = W z + b$ fitted to the first pictures, and sums and mean $\bar v$ over the others. 1 if all is there; about
    $-D / N$ from $N$ pictures if nothing is; far below if test pictures are of another kind. Unlike the gap and the correlation it does
    not change when codes are rotated or scaled. Columns that are constant, or sums of others, do no harm.

    Args:
        train_codes: With shape $(N, D)$.
        train_factors: Numbers with shape $(N, F)$.
        test_codes: With shape $(M, D)$.
        test_factors: With shape $(M, F)$.

    Returns:
        One number for each factor, with shape $(F,)$.

    Raises:
        ShapeError: One is no table, or they do not fit each other.
        DtypeError: One holds no numbers.
        OptionError: A number is not finite, or a factor is constant.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
        >>> codes = factors @ torch.tensor([[1.0, 1.0], [1.0, -1.0]]) + 3
        >>> linear_r2(codes[::2], factors[::2], codes[1::2], factors[1::2])
        tensor([1., 1.], dtype=torch.float64)
    """
    codes, factors = codes_and_factors(train_codes, train_factors, levels=False)
    new_codes, new_factors = codes_and_factors(test_codes, test_factors, levels=False)
    for name, one, other in (("codes", codes, new_codes), ("factors", factors, new_factors)):
        if one.shape[1] != other.shape[1]:
            raise ShapeError(
                f"`train_{name}` and `test_{name}` must have the same columns, got {tuple(one.shape)} and {tuple(other.shape)}."
            )
    varies = codes.amax(0) > codes.amin(0)
    mean, scale, base = codes.mean(0), torch.where(varies, codes.std(0), torch.inf), factors.mean(0)
    weights = torch.linalg.lstsq((codes - mean) / scale, factors - base, driver="gelsd").solution  # it bears any rank
    left = new_factors - base - (new_codes - mean) / scale @ weights
    return 1 - left.square().sum(0) / (new_factors - new_factors.mean(0)).square().sum(0)
