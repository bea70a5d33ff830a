"""The score of beta-VAE: whether what two codes share tells which factor the pictures share."""

from __future__ import annotations

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy_comet.metrics.checking import Array, codes_and_factors, extra, whole

__all__ = ["beta_vae_score"]

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
    r"""Score of beta-VAE: how well a linear classifier tells which factor pairs of pictures share (Higgins et al., 2017).

    A point belongs to a factor $f$, and is the mean over pairs $(a, b)$ of pictures that have the same level of it:

    $$\frac{1}{n} \sum_{(a, b)} \frac{|z_a - z_b|}{\sigma},$$

    where $\sigma$ is the standard deviation of each dimension over all codes; a constant dimension gives 0. Picture $a$ is drawn
    from all, $b$ from those with its level of $f$; over a full grid the other factors so are independent. A logistic regression
    (scikit-learn's, L2 with $C = 1$) learns $f$ from some points; its accuracy on new ones is the score. By chance it is $1 / F$.

    Args:
        codes: With shape $(N, D)$: of the pictures of a full grid of factors, or of any.
        factors: Whole numbers with shape $(N, F)$, at least two factors; they only name levels.
        pairs: How many pairs $n$ make a point. The score falls and may change its order with fewer: say how many.
        train: How many points of each factor the classifier learns from.
        test: How many points of each factor it is judged on.
        exactly_one: Pairs differ in all other factors. As published, these are free, and may agree by chance.
        seed: Of the draws.

    Returns:
        The accuracy, in [0, 1].

    Raises:
        ShapeError: One is no table, or they have not as many rows.
        DtypeError: Codes are no numbers, or factors no whole ones.
        OptionError: A number is not finite, a factor is constant, there is only one, an option is out of range, or no pair is as asked.
        ExtraNotInstalled: scikit-learn is not installed.

    Example:
        >>> factors = torch.cartesian_prod(*[torch.arange(4)] * 3)
        >>> beta_vae_score(factors.double(), factors)
        1.0

    References:
        beta-VAE (Higgins et al., 2017), https://openreview.net/forum?id=Sy2fzU9gl
    """
    rows, levels = codes_and_factors(codes, factors, levels=True)
    pairs, train, test = (whole(name, value) for name, value in (("pairs", pairs), ("train", train), ("test", test)))
    seed = whole("seed", seed, least=0)
    count = levels.shape[1]
    if count < 2:
        raise OptionError(f"There must be two factors or more to tell apart, got {count}.")
    regression = extra("sklearn.linear_model").LogisticRegression(max_iter=_ITERATIONS)
    varies = rows.amax(0) > rows.amin(0)
    rows = torch.where(varies, (rows - rows.mean(0)) / torch.where(varies, rows.std(0), 1.0), 0.0)
    generator = torch.Generator().manual_seed(seed)
    points = torch.stack([_points(rows, levels, factor, train + test, pairs, exactly_one, generator) for factor in range(count)])
    shared = torch.arange(count)[:, None].expand(count, train + test)
    regression.fit(points[:, :train].flatten(0, 1).numpy(), shared[:, :train].flatten().numpy())
    return float(regression.score(points[:, train:].flatten(0, 1).numpy(), shared[:, train:].flatten().numpy()))


def _points(rows: Tensor, levels: Tensor, factor: int, count: int, pairs: int, exactly_one: bool, generator: torch.Generator) -> Tensor:
    """Points of one factor, with shape $(count, D)$."""
    first = torch.randint(len(rows), (count * pairs,), generator=generator)
    second = _partners(levels[:, factor], first, generator)
    if exactly_one:
        _draw_again(levels, factor, first, second, generator)
    return (rows[first] - rows[second]).abs_().reshape(count, pairs, -1).mean(1)


def _draw_again(levels: Tensor, factor: int, first: Tensor, second: Tensor, generator: torch.Generator) -> None:
    """Draws partners again, in place, until they share no other factor."""
    for _ in range(_TRIES):
        wrong = ((levels[first] == levels[second]).sum(1) > 1).nonzero().squeeze(1)
        if not len(wrong):
            return
        second[wrong] = _partners(levels[:, factor], first[wrong], generator)
    raise OptionError(
        f"No row that shares only factor {factor} with some row of `factors` was drawn in {_TRIES} tries; leave `exactly_one` out, or give "
        "the codes of a full grid."
    )


def _partners(levels: Tensor, first: Tensor, generator: torch.Generator) -> Tensor:
    """Draws for each row another with its level, all alike."""
    order, sizes = levels.argsort(stable=True), levels.bincount()
    begins = sizes.cumsum(0) - sizes
    own = levels[first]
    step = (torch.rand(len(first), dtype=torch.float64, generator=generator) * sizes[own]).long()
    return order[begins[own] + step]
