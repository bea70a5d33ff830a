"""The beta-VAE score: whether the difference of two codes identifies the factor that their pictures share."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_integer, import_extra
from composable_energy_comet.metrics.inputs import Array, check_codes_and_factors

_TRIES = 1000
_ITERATIONS = 10_000  # of L-BFGS, far above what it needs


def beta_vae_score(
    codes: Array,
    factors: Array,
    *,
    pairs: int = 64,
    train: int = 200,
    test: int = 200,
    exactly_one: bool = False,
    seed: int = 0,
) -> float:
    r"""Returns the accuracy of a linear classifier that identifies the factor that pairs of pictures share (Higgins et al., 2017).

    A point belongs to a factor $f$. It is a mean over pairs $(a, b)$ of pictures with the same level of $f$:

    $$\frac{1}{n} \sum_{(a, b)} \frac{|z_a - z_b|}{\sigma},$$

    where $\sigma$ is the standard deviation of each dimension over all codes; a constant dimension gives 0. Picture $a$ is drawn from all
    pictures, $b$ from those with its level of $f$; on a full grid the other factors are then independent. A logistic regression
    (scikit-learn, L2 with $C = 1$) is trained to predict $f$; the score is its accuracy on new points. Chance is $1 / F$.

    Args:
        codes: Codes with shape $(N, D)$, of a full grid of factors or any other pictures.
        factors: Whole numbers with shape $(N, F)$, used as names of levels; at least two factors.
        pairs: Number $n$ of pairs per point. With fewer pairs the score falls, and models may change their order: report it.
        train: Training points per factor.
        test: Test points per factor.
        exactly_one: Whether pairs differ in all other factors. In the paper these are free, and may agree by chance.
        seed: Seed of the draws.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        ShapeError: An argument is not a table, or the numbers of rows differ.
        DtypeError: Codes are not numbers, or factors not whole numbers.
        OptionError: A number is not finite, a factor is constant, there is only one factor, an option is out of range, or no pair satisfies
            `exactly_one`.
        ExtraNotInstalled: scikit-learn is not installed.

    Example:
        >>> factors = torch.cartesian_prod(*[torch.arange(4)] * 3)
        >>> beta_vae_score(factors.double(), factors)
        1.0

    References:
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
    """
    rows, levels = check_codes_and_factors(codes, factors, levels=True)
    pairs, train, test = (check_integer(name, value) for name, value in (("pairs", pairs), ("train", train), ("test", test)))
    seed, count = check_integer("seed", seed, least=0), levels.shape[1]
    if count < 2:
        raise OptionError(f"The score needs two factors or more, got {count}.")
    regression = import_extra("sklearn.linear_model", "metrics").LogisticRegression(max_iter=_ITERATIONS)
    varies = rows.amax(0) > rows.amin(0)
    rows = torch.where(varies, (rows - rows.mean(0)) / torch.where(varies, rows.std(0), 1.0), 0.0)
    generator = torch.Generator().manual_seed(seed)
    points = torch.stack([_points(rows, levels, factor, train + test, pairs, exactly_one, generator) for factor in range(count)])
    shared = torch.arange(count)[:, None].expand(count, train + test)
    regression.fit(points[:, :train].flatten(0, 1).numpy(), shared[:, :train].flatten().numpy())
    return float(regression.score(points[:, train:].flatten(0, 1).numpy(), shared[:, train:].flatten().numpy()))


def _points(rows: Tensor, levels: Tensor, factor: int, count: int, pairs: int, exactly_one: bool, generator: torch.Generator) -> Tensor:
    """Returns points of one factor, with shape $(count, D)$."""
    first = torch.randint(len(rows), (count * pairs,), generator=generator)
    second = _draw_partners(levels[:, factor], first, generator)
    if exactly_one:
        _redraw(levels, factor, first, second, generator)
    return (rows[first] - rows[second]).abs_().reshape(count, pairs, -1).mean(1)


def _redraw(levels: Tensor, factor: int, first: Tensor, second: Tensor, generator: torch.Generator) -> None:
    """Redraws partners, in place, until they share no other factor."""
    for _ in range(_TRIES):
        wrong = ((levels[first] == levels[second]).sum(1) > 1).nonzero().squeeze(1)
        if not len(wrong):
            return
        second[wrong] = _draw_partners(levels[:, factor], first[wrong], generator)
    raise OptionError(
        f"No row that shares only factor {factor} with some row of `factors` was drawn in {_TRIES} tries; leave `exactly_one` out, or give "
        "the codes of a full grid."
    )


def _draw_partners(levels: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    """Draws, for each row, a row with the same level, uniformly."""
    order, sizes = levels.argsort(stable=True), levels.bincount()
    begins = sizes.cumsum(0) - sizes
    own = levels[first]
    step = (torch.rand(len(first), dtype=torch.float64, generator=generator) * sizes[own]).long()
    return order[begins[own] + step]
