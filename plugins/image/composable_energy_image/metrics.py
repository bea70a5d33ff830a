r"""Metrics of pictures: PSNR and SSIM beside a truth, and distances of sets of pictures in the features of any network.

They compute in float64. Figures of sets depend on the features and the number of pictures: compare them with those of two sets of truths.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.errors import DtypeError, ExpressionError, ShapeError
from composable_energy.options import check_integer
from composable_energy.sampling import twin
from composable_energy_viz.files import check_range

__all__ = ["Fidelity", "features_of", "fidelity", "frechet_distance", "psnr", "ssim"]

Network = Callable[[Tensor], Tensor]


def psnr(pictures: Tensor, truth: Tensor) -> Tensor:
    r"""Returns the peak signal-to-noise ratio $-10 \log_{10} \text{MSE}$ of pictures in [0, 1] in decibels, with shape $(B,)$.

    Raises:
        ShapeError: The shapes differ, or are not those of pictures.
        OptionError: They are further than .5 from [0, 1].
    """
    pictures, truth = _check_pair(pictures, truth)
    return -10 * (pictures - truth).square().flatten(1).mean(1).log10()


def ssim(pictures: Tensor, truth: Tensor) -> Tensor:
    r"""Returns the structural similarity of pictures in [0, 1], with shape $(B,)$; 1 for equal ones, of at least 11 pixels a side.

    With moments $\mu$, $\sigma$ in Gaussian windows of 11 pixels with standard deviation 1.5, it is the mean over channels and over the
    windows inside of the picture of

    $$\frac{(2 \mu_a \mu_b + c_1)(2 \sigma_{ab} + c_2)}{(\mu_a^2 + \mu_b^2 + c_1)(\sigma_a^2 + \sigma_b^2 + c_2)},$$

    where $c_1 = .01^2$ and $c_2 = .03^2$.

    Raises:
        ShapeError: The shapes differ, or are not those of pictures of this size.

    References:
        Image quality assessment: from error visibility to structural similarity (Wang et al., 2004), https://doi.org/10.1109/TIP.2003.819861
    """
    a, b = _check_pair(pictures, truth)
    if min(a.shape[2:]) < 11:
        raise ShapeError(f"SSIM has windows of 11 pixels, got pictures of shape {tuple(a.shape)}.")
    line = torch.exp(-torch.arange(-5, 6, dtype=a.dtype, device=a.device).square() / 4.5)
    window = torch.outer(line, line) / line.sum() ** 2

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, window.expand(x.shape[1], 1, 11, 11), groups=x.shape[1])

    ma, mb = mean(a), mean(b)
    va, vb, both = mean(a * a) - ma * ma, mean(b * b) - mb * mb, mean(a * b) - ma * mb
    return ((2 * ma * mb + 1e-4) * (2 * both + 9e-4) / ((ma * ma + mb * mb + 1e-4) * (va + vb + 9e-4))).flatten(1).mean(1)


@torch.no_grad()
def features_of(network: Network, pictures: Tensor, *, batch_size: int = 250) -> Tensor:
    """Returns the features of pictures by a network in eval mode, in batches, with shape $(N, D)$; those of several axes are flattened."""
    network = twin(network) if isinstance(network, nn.Module) else network
    return torch.cat([network(part).flatten(1) for part in pictures.split(check_integer("batch_size", batch_size))])


def frechet_distance(first: Tensor, second: Tensor, network: Network | None = None) -> float:
    r"""Returns the Frechet distance of two sets, $|\mu_1 - \mu_2|^2 + \mathrm{tr}(C_1 + C_2 - 2 (C_1 C_2)^{1/2})$ of their features.

    It falls with the number of points of a set, so compare sets of equal size.

    Args:
        first: Features with shape $(N, D)$, or pictures for a network.
        network: The network of features; None if the sets are features. That of Inception gives the FID (Heusel et al., 2017).

    Raises:
        ShapeError: The sets do not fit, or have fewer than two points.
        ExpressionError: A feature is not finite.

    References:
        GANs trained by a two time-scale update rule converge to a local Nash equilibrium (Heusel et al., 2017),
        https://arxiv.org/abs/1706.08500
    """
    first, second = _check_sets(first, second, network, 2)
    # With C = R^T R the last trace is that of the singular values of R_1 R_2^T; small eigenvalues of C_1 C_2 lose half of the digits.
    a, b = (torch.linalg.qr((points - points.mean(0)) / (len(points) - 1) ** 0.5, mode="r").R for points in (first, second))
    spread = a.square().sum() + b.square().sum() - 2 * torch.linalg.svdvals(a @ b.T).sum()
    return float((first.mean(0) - second.mean(0)).square().sum() + spread)


class Fidelity(NamedTuple):
    """How well a set of draws fits a set of truths, by balls that reach the k-th nearest neighbour in the own set.

    Attributes:
        precision: The share of draws inside of a ball of a truth: whether draws are good.
        recall: The share of truths inside of a ball of a draw: whether all kinds occur.
        density: The mean number of balls of truths around a draw, over k; unlike precision it is robust against outliers.
        coverage: The share of truths whose ball holds a draw; unlike recall it is robust against outliers.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def fidelity(draws: Tensor, truth: Tensor, network: Network | None = None, *, neighbours: int = 5) -> Fidelity:
    """Returns precision, recall, density and coverage of a set of draws, as features or with a network; see `frechet_distance`.

    Raises:
        ShapeError: The sets do not fit, or have no more than k points.
        ExpressionError: A feature is not finite.

    References:
        Improved precision and recall metric for assessing generative models (Kynkäänniemi et al., 2019), https://arxiv.org/abs/1904.06991
        Reliable fidelity and diversity metrics for generative models (Naeem et al., 2020), https://arxiv.org/abs/2002.09797
    """
    draws, truth = _check_sets(draws, truth, network, check_integer("neighbours", neighbours) + 1)

    def radii(points: Tensor) -> Tensor:
        return torch.cdist(points, points).kthvalue(neighbours + 1, dim=1).values  # the nearest is the point itself

    apart = torch.cdist(draws, truth)
    in_truth, in_draws = apart <= radii(truth), apart <= radii(draws)[:, None]
    shares = in_truth.any(1), in_draws.any(0), in_truth.double().sum(1) / neighbours, in_truth.any(0)
    return Fidelity(*(share.double().mean().item() for share in shares))


def check_pictures(what: str, network: nn.Module, images: Any, shape: tuple[int, ...], beyond: float = 0.5) -> Tensor:
    """Returns pictures for a network that was trained on some of a shape in [0, 1]; raises if they are others. Draws may be `beyond`."""
    if not isinstance(images, Tensor) or images.ndim != 4 or images.shape[1:] != shape:
        got = tuple(images.shape) if isinstance(images, Tensor) else type(images).__name__
        raise ShapeError(f"{what} takes pictures of shape (B, {', '.join(map(str, shape))}), got {got}.")
    if images.dtype != (own := next(network.parameters()).dtype):
        hint = f"x.to({own})" if images.is_floating_point() else "x.float() / 255"
        raise DtypeError(f"{what} takes pictures of {own} in [0, 1], got {images.dtype}: write `{hint}`.")
    return check_range(images, beyond)


def _check_pair(pictures: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    if wrong := [one for one in (pictures, truth) if not isinstance(one, Tensor) or not one.is_floating_point()]:
        got = getattr(wrong[0], "dtype", type(wrong[0]).__name__)
        raise DtypeError(f"The metric takes tensors of floating numbers in [0, 1], got {got}: write `torch.as_tensor(x) / 255` of bytes.")
    if pictures.ndim != 4 or pictures.shape != truth.shape:
        raise ShapeError(f"The metric takes two batches of pictures (B, C, H, W), got {tuple(pictures.shape)} and {tuple(truth.shape)}.")
    return check_range(pictures, 0.5).double(), check_range(truth, 0.5).double()


def _check_sets(first: Tensor, second: Tensor, network: Network | None, least: int) -> tuple[Tensor, Tensor]:
    first, second = (torch.as_tensor(points) if network is None else features_of(network, points) for points in (first, second))
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ShapeError(f"Features have shape (N, D), got {tuple(first.shape)} and {tuple(second.shape)}; pictures need a network.")
    if min(len(first), len(second)) < least:
        raise ShapeError(f"Each set needs at least {least} points, got {len(first)} and {len(second)}.")
    if not bool(first.isfinite().all() and second.isfinite().all()):
        raise ExpressionError("Some features are not finite.")
    return first.detach().double(), second.detach().double()
