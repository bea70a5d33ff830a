r"""Two styles of pictures, such as day and night, in one model: found without labels, and moved between pictures.

Notation: $l$ is the latent of an object, without its pose; $\mu_s$ and $\Sigma_s$ are its mean and covariance in pictures of style $s$.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy_comet.common import CommonCode, PictureCode, fit_common, object_shares
from composable_energy_comet.model import Comet

_LEAST = 0.85  # explained by two means; of a Gaussian they explain .64, of an even distribution .75, of the cosine of an angle .81
_ROUNDS = 50  # of two-means in one dimension
_RIDGE = 1e-3  # of the variance of latents, in units of its mean over directions


@dataclass(frozen=True)
class StyleCode(PictureCode):
    r"""Two styles of pictures; the code of a picture is its style, 0 or 1.

    An object moves from style $s$ to $t$ by the optimal transport between Gaussians, $l' = \mu_t + A_{st} (l - \mu_s)$, so that moved
    objects spread as those of the other style do: at night, white and black are closer to each other. `CommonCode` moves all objects by the
    same vector instead, but also moves the light.

    Attributes:
        comet: The model.
        common: What objects have in common; its first number tells the style.
        middle: The number between the styles.
        means: $\mu_s$, with shape $(2, D)$.
        maps: $A_{01}$ and $A_{10}$, with shape $(2, D, D)$.
    """

    comet: Comet
    common: CommonCode
    middle: float
    means: Tensor
    maps: Tensor

    def encode(self, z: Tensor) -> Tensor:
        """Returns the styles of pictures, 0 or 1, integers with shape $(B,)$; see `PictureCode`."""
        return (self.common.encode(z)[:, 0] > self.middle).long()

    def move(self, z: Tensor, code: Tensor) -> Tensor:
        """Returns latents of the same ground and objects, in styles with shape $(B,)$; pictures that have theirs do not change."""
        own, moved, numbers = self.encode(z), z.clone(), self.means.shape[1]
        apart = z[:, 1:, :numbers] - self.means[own][:, None]
        changed = self.means[code][:, None] + torch.einsum("bij,bkj->bki", self.maps[own], apart)
        moved[:, 1:, :numbers] = torch.where((own == code)[:, None, None], z[:, 1:, :numbers], changed)
        return moved


def fit_styles(comet: Comet, x: Tensor) -> StyleCode:
    r"""Returns the two styles of pictures, from what the objects of a picture have in common.

    All objects of a picture have its style, so it is the direction in which they agree most, and has two modes there. Two means of pictures
    in this direction divide them. As many kinds of objects are drawn in both styles, the map between their distributions that moves them
    least, the optimal transport, makes an object of one style the same object of the other.

    Args:
        comet: A model with windows, `comet-window`, trained on pictures of both styles.
        x: Pictures of both styles, with shape $(B, C, S, S)$; some hundred, with several objects each.

    Raises:
        OptionError: The model has no windows, objects agree in no direction, or there are no two styles.

    References:
        Optimal transport between Gaussians: Takatsu (2011), https://arxiv.org/abs/0801.2250; for the colors of pictures: Pitié & Kokaram
        (2007), https://doi.org/10.1049/cp:20070055.
    """
    common = fit_common(comet, x)
    z = comet.encode(x)
    code, numbers = common.encode(z)[:, 0], len(common.mean)
    middle, explained = _divide(code)
    if explained < _LEAST:
        raise OptionError(
            f"Pictures have no two styles: two means explain {explained:.2f} of what objects agree in most, less than {_LEAST}."
        )
    objects, shares = z[:, 1:, :numbers].double(), object_shares(comet, z).double()
    found = [_moments(objects[some].flatten(0, 1), shares[some].flatten()) for some in (code <= middle, code > middle)]
    (_, first), (_, second) = found
    maps = torch.stack([_transport(first, second), _transport(second, first)])
    return StyleCode(comet, common, middle, torch.stack([mean for mean, _ in found]).to(z), maps.to(z))


def _divide(code: Tensor) -> tuple[float, float]:
    """Returns the middle between two means of numbers, and the share of their variance that the means explain."""
    middle = code.mean()
    for _ in range(_ROUNDS):
        middle = (code[code > middle].mean() + code[code <= middle].mean()) / 2
    high = code > middle
    inside = torch.where(high, code - code[high].mean(), code - code[~high].mean())
    return float(middle), 1 - float(inside.square().mean() / code.var(unbiased=False))


def _moments(objects: Tensor, shares: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the weighted mean and covariance of objects with shape $(N, D)$."""
    weights = (shares / shares.sum())[:, None]
    mean = (weights * objects).sum(0)
    apart = objects - mean
    covariance = apart.T @ (weights * apart)
    return mean, covariance + _RIDGE * covariance.diagonal().mean() * torch.eye(len(mean)).to(covariance)


def _transport(first: Tensor, second: Tensor) -> Tensor:
    r"""Returns $\Sigma_1^{-1/2} (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2} \Sigma_1^{-1/2}$, with shape $(D, D)$."""
    root, inverse = _power(first, 0.5), _power(first, -0.5)
    return inverse @ _power(root @ second @ root, 0.5) @ inverse


def _power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=torch.finfo(values.dtype).tiny) ** exponent @ vectors.T
