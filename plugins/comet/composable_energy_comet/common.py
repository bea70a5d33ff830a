r"""What the objects of a picture have in common, such as the light on them: a code found without labels.

Notation: $l_{bk}$ is the latent of object $k$ of picture $b$, without its pose, and $v_{bk}$ its share of the pixels of objects, which sum
to 1 over $k$.
"""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_number
from composable_energy.sampling import twin
from composable_energy_comet.conv import WindowEnergy
from composable_energy_comet.model import Comet, encode_pair

_BATCH = 64
_RIDGE = 1e-5  # of the variance of latents, in units of its mean over directions


@dataclass(frozen=True)
class CommonCode:
    r"""The directions of latents in which the objects of a picture agree.

    The code of a picture is $c_b = \sum_k v_{bk} R^\top (l_{bk} - \mu)$. To give a picture another code, each of its objects moves by
    $W (c - c_b)$. $R^\top W$ is the identity, and a move changes nothing that is uncorrelated with the code. Together with the ground, the
    code is a component of the whole picture, and what remains of the objects is their own.

    Attributes:
        comet: The model.
        mean: $\mu$, with shape $(D,)$.
        read: $R$, with shape $(D, n)$; the code has unit variance over objects.
        write: $W$, with shape $(D, n)$.
        agreement: The correlation of two objects of a picture in each direction, with shape $(n,)$, the largest first.
    """

    comet: Comet
    mean: Tensor
    read: Tensor
    write: Tensor
    agreement: Tensor

    def encode(self, z: Tensor) -> Tensor:
        """Returns the codes, with shape $(B, n)$, of pictures with latents of all components, with shape $(B, K, D)$."""
        return (object_shares(self.comet, z)[:, :, None] * ((z[:, 1:, : len(self.mean)] - self.mean) @ self.read)).sum(1)

    def move(self, z: Tensor, code: Tensor) -> Tensor:
        """Returns latents of the same ground and objects, with other codes with shape $(B, n)$, or $(n,)$ for all."""
        moved = z.clone()
        moved[:, 1:, : len(self.mean)] += ((code - self.encode(z)) @ self.write.T)[:, None]
        return moved

    def swap(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns pictures of the objects of x with the code and the ground of as many pictures y, with shape $(B, C, S, S)$."""
        own, others = encode_pair(self.comet, x, y)
        return self.comet.decode(torch.cat([others[:, :1], self.move(own, self.encode(others))[:, 1:]], 1))

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns pictures of x with the objects of as many pictures y as well, with shape $(B, C, S, S)$. They take the code of x."""
        own, others = encode_pair(self.comet, x, y)
        return self.comet.decode(torch.cat([own, self.move(others, self.encode(own))[:, 1:]], 1))


def fit_common(comet: Comet, x: Tensor, least: float = 0.5) -> CommonCode:
    r"""Returns what the objects of pictures have in common, from the covariance of different objects of a picture.

    Objects are drawn independently of each other, but the same light shines on all of them. So in any direction of their latents the
    covariance of two objects of one picture is that of what they have in common. The directions are the generalized eigenvectors of
    this covariance and that of single objects, an analysis of canonical correlations between objects.

    Args:
        comet: A model with windows, `comet-window`.
        x: Pictures, with shape $(B, C, S, S)$; some hundred, with several objects each.
        least: The least correlation of two objects of a picture in a direction, between 0 and 1.

    Raises:
        OptionError: The model has no windows, or objects agree in no direction.

    References:
        Relations between two sets of variates (Hotelling, 1936), https://doi.org/10.1093/biomet/28.3-4.321; what is common to a group of
        observations: Multi-level variational autoencoder (Bouchacourt et al., 2018), https://arxiv.org/abs/1705.08841.
    """
    check_number("least", least, least=0)
    z = comet.encode(x)
    shares = object_shares(comet, z).double()
    objects = z[:, 1:, : comet.energy.latent].double()
    mean = (shares[..., None] * objects).sum(1).mean(0)
    apart = objects - mean
    total = torch.einsum("bk,bki,bkj->ij", shares, apart, apart) / len(apart)
    sums = torch.einsum("bk,bki->bi", shares, apart)
    same = torch.einsum("bk,bki,bkj->ij", shares.square(), apart, apart)
    between = (sums.T @ sums - same) / (1 - shares.square().sum(1)).sum()  # the covariance of two different objects of a picture
    root = torch.linalg.cholesky(total + _RIDGE * total.diagonal().mean() * torch.eye(len(total)).to(total))
    half = torch.linalg.solve_triangular(root, between, upper=False)
    values, vectors = torch.linalg.eigh(torch.linalg.solve_triangular(root, half.T, upper=False))
    if not len(kept := (values > least).nonzero()[:, 0].flip(0)):
        raise OptionError(f"The objects of a picture agree in no direction by more than {least:g}, at most by {float(values[-1]):.2f}.")
    vectors = vectors[:, kept]
    read = torch.linalg.solve_triangular(root.T, vectors, upper=True)
    return CommonCode(comet, *(part.to(z) for part in (mean, read, root @ vectors, values[kept])))


def object_shares(comet: Comet, z: Tensor) -> Tensor:
    """Returns the share of each object of the pixels of all objects of its picture, with shape $(B, K - 1)$."""
    if not isinstance(comet.energy, WindowEnergy):
        raise OptionError(f"The components of {comet.energy} are no objects on a ground: train a `comet-window`.")
    energy = cast(WindowEnergy, twin(comet.energy))
    with torch.no_grad():
        found = torch.cat([energy.decode_targets(some)[1].softmax(1)[:, 1:].mean((2, 3, 4)) for some in z.split(_BATCH)])
    return found / found.sum(1, keepdim=True)
