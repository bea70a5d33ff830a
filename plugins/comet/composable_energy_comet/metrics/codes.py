"""Scores of codes: whether dimensions of a code tell the factors of pictures."""

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_integer, import_extra
from composable_energy_comet.metrics.inputs import Array, check_codes_and_factors

_ITERATIONS = 10_000  # of L-BFGS, far above what it needs


def beta_vae_score(codes: Array, factors: Array, *, pairs: int = 64, train: int = 200, test: int = 200, seed: int = 0) -> float:
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

    Raises:
        OptionError: A number is not finite, a factor is constant or the only one, or an option is out of range.

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
    points = torch.stack([_points(rows, levels, factor, train + test, pairs, generator) for factor in range(count)])
    shared = torch.arange(count)[:, None].expand(count, train + test)
    regression.fit(points[:, :train].flatten(0, 1).numpy(), shared[:, :train].flatten().numpy())
    return float(regression.score(points[:, train:].flatten(0, 1).numpy(), shared[:, train:].flatten().numpy()))


def _points(rows: Tensor, levels: Tensor, factor: int, count: int, pairs: int, generator: torch.Generator) -> Tensor:
    """Returns points of one factor, with shape $(count, D)$."""
    first = torch.randint(len(rows), (count * pairs,), generator=generator)
    order, sizes = levels[:, factor].argsort(stable=True), levels[:, factor].bincount()
    own = levels[first, factor]  # for each row another one with the same level, uniformly
    step = (torch.rand(len(first), dtype=torch.float64, generator=generator) * sizes[own]).long()
    second = order[(sizes.cumsum(0) - sizes)[own] + step]
    return (rows[first] - rows[second]).abs_().reshape(count, pairs, -1).mean(1)


def mutual_information_gap(codes: Array, factors: Array, bins: int = 20, *, points: int | None = 10_000, seed: int = 0) -> float:
    r"""Returns the mutual information gap (MIG) between the two most informative dimensions for each factor (Chen et al., 2018).

    With $I(z_j; v_f)$ the mutual information of a dimension, binned with equal widths between its extremes, and a factor,

    $$\mathrm{MIG} = \frac1F \sum_f \frac{I(z_{(1)}; v_f) - I(z_{(2)}; v_f)}{H(v_f)},$$

    with $(1)$ and $(2)$ the two dimensions with the most information about $v_f$, and $H$ the entropy. It is 1 if each factor is a function
    of one dimension and no other dimension is informative, and 0 if two are equally informative. It changes under rotations of the code. A
    code of one dimension counts as having a second one without information.

    Args:
        factors: Whole numbers with shape $(N, F)$, used as names of levels.
        points: Number of rows to subsample without replacement, if there are more; None uses all.

    Raises:
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
    low, high = rows.amin(0), rows.amax(0)
    cells = ((rows - low) / torch.where(high > low, high - low, 1.0) * bins).long().clamp(max=bins - 1)  # a constant has one bin
    gaps = []
    for column in levels.unbind(1):
        information, entropy = _information(cells, column, bins)
        best = torch.cat([information, information.new_zeros(1)]).topk(2).values
        gaps.append((best[0] - best[1]) / entropy)
    return torch.stack(gaps).mean().item()


def _information(cells: Tensor, levels: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Returns the information of each dimension about a factor, with shape $(D,)$, and the factor's entropy, in nats."""
    dimensions, n_levels = cells.shape[1], int(levels.max()) + 1
    index = (torch.arange(dimensions) * bins + cells) * n_levels + levels[:, None]
    counts = index.flatten().bincount(minlength=dimensions * bins * n_levels).reshape(dimensions, bins, n_levels)
    entropy = _entropy(counts[0].sum(0))
    return (_entropy(counts.sum(2)) + entropy - _entropy(counts.flatten(1))).clamp(min=0), entropy


def _entropy(counts: Tensor) -> Tensor:
    return torch.special.entr(counts.double() / counts.sum(-1, keepdim=True)).sum(-1)


def mean_correlation(codes: Array, factors: Array) -> float:
    r"""Returns the mean correlation coefficient (MCC) of dimensions and factors, matched one to one (Hyvarinen & Morioka, 2016).

    $$\mathrm{MCC} = \frac1F \max_\pi \sum_f |\rho(z_{\pi(f)}, v_f)|,$$

    over all injective assignments $\pi$ of dimensions to factors (the Hungarian method). With fewer dimensions, unmatched factors count 0,
    as does a constant dimension. (Published code pads with noise, whose correlation is of order $1 / \sqrt N$; zeros need no seed.)

    Raises:
        OptionError: A number is not finite, or a factor is constant.

    Example:
        >>> factors = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0))
        >>> round(mean_correlation(-factors.flip(1), factors), 6)
        1.0

    References:
        Unsupervised feature extraction by time-contrastive learning (Hyvarinen & Morioka, 2016), https://arxiv.org/abs/1605.06336
    """
    rows, values = check_codes_and_factors(codes, factors, levels=False)
    optimize = import_extra("scipy.optimize", "metrics")
    strength = (_standard(rows).T @ _standard(values)).abs()
    return min(1.0, strength[optimize.linear_sum_assignment(strength.numpy(), maximize=True)].sum().item() / values.shape[1])


def _standard(rows: Tensor) -> Tensor:
    """Returns centred columns of norm 1, and zeros for constant columns."""
    varies = rows.amax(0) > rows.amin(0)
    centred = torch.where(varies, rows - rows.mean(0), 0.0)
    return centred / torch.where(varies, centred.norm(dim=0), 1.0)


def linear_r2(train_codes: Array, train_factors: Array, test_codes: Array, test_factors: Array) -> Tensor:
    r"""Returns the share of each factor's variance, with shape $(F,)$, that a least-squares fit on codes explains on test pictures.

    $$R^2_f = 1 - \frac{\sum_i (v_{if} - \hat v_{if})^2}{\sum_i (v_{if} - \bar v_f)^2},$$

    with $\hat v = W z + b$ fitted to the training pictures, and sums and mean $\bar v$ over the test pictures. It is 1 for a perfect fit,
    about $-D / N$ for codes without information, and far below for test pictures from another distribution. Unlike MIG and MCC it is
    invariant to rotations and scales of the code. Constant and linearly dependent columns do no harm.

    Raises:
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
            raise ShapeError(f"`train_{name}` and `test_{name}` need the same columns, got {tuple(one.shape)} and {tuple(other.shape)}.")
    mean, scale, base = codes.mean(0), torch.where(codes.amax(0) > codes.amin(0), codes.std(0), torch.inf), factors.mean(0)
    weights = torch.linalg.lstsq((codes - mean) / scale, factors - base, driver="gelsd").solution  # works for any rank
    residual = new_factors - base - (new_codes - mean) / scale @ weights
    return 1 - residual.square().sum(0) / (new_factors - new_factors.mean(0)).square().sum(0)
