r"""Comet: an encoder and an energy that decompose pictures into energies and decode energies into pictures."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Noise, twin
from composable_energy_comet.component import POSE, TargetEnergy
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.encoders import AttentionEncoder, GlimpseEncoder, VectorEncoder
from composable_energy_comet.masks import component_scores, merge_components
from composable_energy_comet.parts import decode_latents, recombine_parts
from composable_energy_image.metrics import check_pictures

_TOLERANCE = 1e-3  # values beyond [0, 1] that resizing may cause
_BATCH = 64
_PART = 4  # errors are averaged over squares of a quarter of a window
_LEAST = 3e-4  # mean squared error that a further window has to remove
_NOWHERE = 4.0  # pictures are from -1 to 1, and windows reach less than 1.2


class Comet(nn.Module):
    r"""A model that decomposes pictures into components without labels, by an encoder to latents $(B, K, D)$ and an energy $E(x, z_k)$.

    Raises:
        OptionError: Encoder and energy have latents of different sizes.

    Example:
        >>> import torch, composable_energy as ce
        >>> comet = ce.get("encoder", "comet", size=16, components=3)
        >>> parts = comet.decompose(torch.rand(2, 3, 16, 16))
        >>> len(parts), (parts[0] & parts[2])(torch.rand(2, 3, 16, 16)).shape
        (3, torch.Size([2]))

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042
    """

    def __init__(self, encoder: AttentionEncoder | GlimpseEncoder | VectorEncoder, energy: ConvEnergy | TargetEnergy) -> None:
        super().__init__()
        if encoder.numbers != energy.numbers:
            raise OptionError(f"The encoder gives components of {encoder.numbers} numbers, the energy takes {energy.numbers}.")
        self.encoder, self.energy = encoder, energy

    @property
    def components(self) -> int:
        """$K$: the components that the encoder gives, and its further windows where the picture is explained worst."""
        return self.encoder.components + (self.encoder.again if isinstance(self.encoder, GlimpseEncoder) else 0)

    def encode(self, x: Tensor) -> Tensor:
        """Returns the latents of pictures in [0, 1], with shape $(B, K, D)$, without a graph.

        Raises:
            OptionError: Values lie outside [0, 1].
        """
        check_pictures("This model", self.encoder, x, tuple(self.energy.image.shape), _TOLERANCE)
        with torch.no_grad():
            encoder, energy = twin(self.encoder), twin(self.energy)
            parts = []
            for some in x.split(_BATCH):
                parts.append(encoder(some))
                if isinstance(encoder, GlimpseEncoder) and isinstance(energy, TargetEnergy):
                    for _ in range(encoder.again):
                        parts[-1] = _look_again(encoder, energy, some, parts[-1])
            return torch.cat(parts)

    def decompose(self, x: Tensor) -> list[ce.Energy]:
        """Returns the parts of pictures: $K$ energies, each with one latent per picture.

        Parts are ordinary energies: `&` joins parts of other pictures, other models, and closed forms. Sampling gives $B$ pictures.
        """
        return [self.energy.given(z=z) for z in self.encode(x).unbind(1)]

    def decode(self, z: Tensor, seed: int = 0) -> Tensor:
        """Returns the pictures of latents of any number of components: the end of the descent, or the minimum if it has a closed form.

        The seed, here and below, is that of the noise at the start of the descent.
        """
        if z.ndim != 3 or not z.shape[1] or z.shape[2] != self.energy.numbers:
            raise ShapeError(f"Latents must have shape (B, K, {self.energy.numbers}), got {tuple(z.shape)}.")
        if z.dtype != self.energy.image.dtype:
            raise DtypeError(f"Latents of this model are {self.energy.image.dtype}, got {z.dtype}.")
        if not z.isfinite().all():
            raise OptionError("Latents must be finite, got some that are NaN or infinite.")
        return decode_latents(self.energy, z, seed)

    def recombine(self, parts: Sequence[ce.Energy], seed: int = 0) -> Tensor:
        """Returns pictures of parts: energies of this model, of others, or closed forms; those of one model are evaluated together.

        Raises:
            ShapeError: The parts belong to pictures of different sizes, or to different numbers of pictures.
            OptionError: There are no parts.
        """
        return recombine_parts(parts, seed)

    def swap(self, x: Tensor, y: Tensor, k: int | Sequence[int], seed: int = 0) -> Tensor:
        """Returns pictures of x with one or several components `k`, from 0 on, of as many pictures y, with shape $(B, C, S, S)$.

        Raises:
            OptionError: There is no such component.
        """
        (mixed, others), indices = encode_pair(self, x, y), self._check_components(k)
        mixed[:, indices] = others[:, indices]
        return self.decode(mixed, seed)

    def interpolate(self, x: Tensor, y: Tensor, k: int | Sequence[int], n: int = 5, seed: int = 0) -> Tensor:
        """Returns pictures that interpolate from x to `swap(x, y, k)` at 2 or more points with both ends, with shape $(n, B, C, S, S)$.

        Raises:
            ShapeError, OptionError: See `swap`; or n is below 2.
        """
        (own, others), indices, n = encode_pair(self, x, y), self._check_components(k), check_integer("n", n, 2)
        mixed = own.clone()
        mixed[:, indices] = others[:, indices]
        return torch.stack([self.decode(own.lerp(mixed, weight), seed) for weight in torch.linspace(0, 1, n).tolist()])

    def scores(self, x: Tensor, read: str | None = None, seed: int = 0) -> Tensor:
        """Returns how much of each pixel belongs to each component, with shape $(B, K, S, S)$; see `component_scores`.

        Args:
            read: The score: `"share"`, `"single"` or `"weight"`; the best for the energy if None.

        Raises:
            ExpressionError: The energy has no masks.
        """
        z, noise, energy = self.encode(x), Noise(seed, range(len(x))).child("start"), twin(self.energy)
        with torch.no_grad():
            parts = torch.arange(len(x)).split(_BATCH)
            return torch.cat([component_scores(energy, x[rows], z[rows], noise.for_chains(rows.tolist()), read) for rows in parts])

    def masks(self, x: Tensor, merge: float | None = 0.6, read: str | None = None, seed: int = 0) -> Tensor:
        """Returns the component of each pixel by its `scores`, 0 to K - 1, with shape $(B, S, S)$.

        Args:
            merge: Components whose scores have a cosine above it are one, so an object with two of them stays whole. None merges none.
        """
        return merge_components(self.scores(x, read, seed), check_number("merge", merge, optional=True))

    def _check_components(self, k: int | Sequence[int]) -> list[int]:
        indices = list(k) if isinstance(k, Sequence) else [k]
        for index in indices:
            if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < self.components:
                raise OptionError(f"Components are 0 to {self.components - 1}, got {index!r}.")
        return indices


def encode_pair(model: Comet, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the latents of as many pictures x and y, each with shape $(B, K, D)$."""
    if len(x) != len(y):
        raise ShapeError(f"x and y must have as many pictures as each other, got {len(x)} and {len(y)}.")
    return model.encode(x), model.encode(y)


def _look_again(encoder: GlimpseEncoder, energy: TargetEnergy, x: Tensor, z: Tensor) -> Tensor:
    """Returns latents with one more window for each picture, with shape $(B, K + 1, D)$.

    The window begins where the reconstruction is worst. It stays if it lowers the mean squared error of the picture by .0003, about
    that of a small object that was overlooked. Otherwise it is put outside of the picture, where it paints
    nothing. As in matching pursuit (Mallat & Zhang, 1993, https://doi.org/10.1109/78.258082), a window is chosen by what the others leave.
    """
    before = (energy.minimum(z) - x).square().mean(1)
    one = encoder.look_at(x, _worst_places(before, encoder.window // _PART))
    gain = (before - (energy.minimum(torch.cat([z, one[:, None]], 1)) - x).square().mean(1)).flatten(1).mean(1)
    away = one.clone()
    away[:, -POSE:-1] = _NOWHERE
    return torch.cat([z, torch.where(gain[:, None] > _LEAST, one, away)[:, None]], 1)


def _worst_places(errors: Tensor, square: int) -> Tensor:
    """Returns the middles of the squares with the largest mean errors, down and right, from -1 to 1, with shape $(B, 2)$."""
    margin = square // 2 - 1
    means = F.avg_pool2d(errors[:, None], square, 2, margin)[:, 0]
    index = means.flatten(1).argmax(1)
    corner = torch.stack([index // means.shape[2], index % means.shape[2]], 1) * 2 - margin
    return (corner.to(errors) + (square - 1) / 2) * 2 / (errors.shape[-1] - 1) - 1
