r"""Comet: an encoder and an energy, which take pictures apart into energies and put energies together into pictures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling import Noise, twin
from composable_energy_comet.attention import AttentionEncoder
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.options import whole
from composable_energy_comet.parts import pictures_of, recombined
from composable_energy_comet.quadratic import QuadraticEnergy
from composable_energy_comet.reading import component_scores, merged
from composable_energy_comet.vectors import VectorEncoder

__all__ = ["Comet"]

_ROOM = 1e-3  # beyond [0, 1], which resizing may leave
_AT_ONCE = 64


class Comet(nn.Module):
    r"""A model that decomposes pictures into components without labels: latents $z_k$ of a picture, and an energy $E(x, z)$ of all.

    Args:
        encoder: Gives latents with shape $(B, K, D)$ of pictures.
        energy: The energy of one component.

    Raises:
        OptionError: They do not fit.

    Example:
        >>> import torch, composable_energy as ce
        >>> comet = ce.get_encoder("comet", size=16, components=3)
        >>> parts = comet.decompose(torch.rand(2, 3, 16, 16))
        >>> len(parts), (parts[0] & parts[2])(torch.rand(2, 3, 16, 16)).shape
        (3, torch.Size([2]))

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042
    """

    def __init__(self, encoder: AttentionEncoder | VectorEncoder, energy: ConvEnergy | QuadraticEnergy) -> None:
        super().__init__()
        if encoder.numbers != energy.numbers:
            raise OptionError(f"The encoder gives components of {encoder.numbers} numbers, the energy takes {energy.numbers}.")
        self.encoder, self.energy = encoder, energy

    @property
    def components(self) -> int:
        """$K$."""
        return self.encoder.components

    def encode(self, x: Tensor) -> Tensor:
        """Returns the latents of pictures, with shape $(B, K, D)$, without a graph.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.

        Raises:
            ShapeError: They are of another size.
            DtypeError: They are of another dtype than the weights.
            OptionError: They are not in [0, 1].
        """
        self._check(x)
        with torch.no_grad():
            encoder = twin(self.encoder)
            return torch.cat([encoder(some) for some in x.split(_AT_ONCE)])

    def decompose(self, x: Tensor) -> list[ce.Energy]:
        """Returns the parts of pictures: $K$ energies, each with one latent for each picture.

        They are energies as any others: `&` joins parts of several pictures, of other models, and closed forms. Sampled, $B$ pictures come
        out, one for each.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.

        Raises:
            ShapeError, DtypeError, OptionError: As `encode`.
        """
        return [self.energy.given(z=z) for z in self.encode(x).unbind(1)]

    def decode(self, z: Tensor, seed: int = 0) -> Tensor:
        """Returns the pictures of latents, with shape $(B, C, S, S)$: the end of the descent, or the minimum where that is known.

        Args:
            z: Latents of any number of components, with shape $(B, K, D)$.
            seed: Of the noise at the start.

        Raises:
            ShapeError: The latents are of other numbers.
        """
        if z.ndim != 3 or z.shape[2] != self.energy.numbers:
            raise ShapeError(f"Latents have shape (B, K, {self.energy.numbers}), got {tuple(z.shape)}.")
        return pictures_of(self.energy, z, seed)

    def recombine(self, parts: Sequence[ce.Energy], seed: int = 0) -> Tensor:
        """Returns pictures of parts, with shape $(B, C, S, S)$; parts of one model are evaluated together.

        Args:
            parts: Energies of pictures: of this model, of others, or closed forms.
            seed: Of the noise at the start.

        Raises:
            ShapeError: They are of pictures of several sizes, or of several numbers of pictures.
            OptionError: There are none.
        """
        return recombined(parts, seed)

    def swap(self, x: Tensor, y: Tensor, k: int | Sequence[int], seed: int = 0) -> Tensor:
        """Returns pictures of x with some components of y in place of their own, with shape $(B, C, S, S)$.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            y: As many others.
            k: Which component, or which ones, from 0 on.
            seed: Of the noise at the start.

        Raises:
            ShapeError, DtypeError, OptionError: As `encode`; there are not as many pictures, or no such component.
        """
        (mixed, others), chosen = self._pair(x, y), self._chosen(k)
        mixed[:, chosen] = others[:, chosen]
        return self.decode(mixed, seed)

    def interpolate(self, x: Tensor, y: Tensor, k: int | Sequence[int], n: int = 5, seed: int = 0) -> Tensor:
        """Returns pictures on the way from x to x with some components of y, with shape $(n, B, C, S, S)$.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            y: As many others.
            k: Which component, or which ones.
            n: How many steps there are, both ends among them, at least 2.
            seed: Of the noise at the start, one for all.

        Raises:
            ShapeError, DtypeError, OptionError: As `swap`; or n is below 2.
        """
        (own, others), chosen, whole_n = self._pair(x, y), self._chosen(k), whole("n", n, 2)
        found = []
        for share in torch.linspace(0, 1, whole_n).tolist():
            mixed = own.clone()
            mixed[:, chosen] = torch.lerp(own[:, chosen], others[:, chosen], share)
            found.append(self.decode(mixed, seed))
        return torch.stack(found)

    def scores(self, x: Tensor, read: str | None = None, seed: int = 0) -> Tensor:
        """Returns how much of each pixel is each component's, with shape $(B, K, S, S)$; see `component_scores`.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            read: `"share"`, `"single"` or `"weight"`; what is best for the energy if None.
            seed: Of the noise at the start.

        Raises:
            ShapeError, DtypeError, OptionError: As `encode`.
            ExpressionError: The energy has no masks.
        """
        z, noise, energy = self.encode(x), Noise(seed, range(len(x))).child("start"), twin(self.energy)
        found = []
        with torch.no_grad():
            for first in range(0, len(x), _AT_ONCE):
                rows = slice(first, first + _AT_ONCE)
                found.append(component_scores(energy, x[rows], z[rows], noise.for_chains(range(len(x))[rows]), read))
        return torch.cat(found)

    def masks(self, x: Tensor, merge: float | None = 0.6, read: str | None = None, seed: int = 0) -> Tensor:
        """Returns which component each pixel belongs to, 0 to K - 1, with shape $(B, S, S)$.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            merge: Components whose scores have a cosine above it are one, so that an object with two components is not cut; None for none.
            read: As for `scores`.
            seed: Of the noise at the start.

        Raises:
            ShapeError, DtypeError, OptionError, ExpressionError: As `scores`.
        """
        return merged(self.scores(x, read, seed), merge)

    def _pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) != len(y):
            raise ShapeError(f"Pictures are taken in pairs, got {len(x)} and {len(y)}.")
        return self.encode(x).clone(), self.encode(y)

    def _chosen(self, k: int | Sequence[int]) -> list[int]:
        chosen = list(k) if isinstance(k, Sequence) else [k]
        for one in chosen:
            if isinstance(one, bool) or not isinstance(one, int) or not 0 <= one < self.components:
                raise OptionError(f"Components are 0 to {self.components - 1}, got {one!r}.")
        return chosen

    def _check(self, x: Any) -> None:
        image, own = self.energy.image, next(self.encoder.parameters())
        wanted = ", ".join(map(str, ("B", *image.shape)))
        if not isinstance(x, Tensor) or x.ndim != 4 or x.shape[1:] != image.shape:
            got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"This model encodes pictures of shape ({wanted}), got {got}. Resize them, or train a model of their size.")
        if x.dtype != own.dtype:
            hint = "write `x.float() / 255`" if not x.is_floating_point() else f"write `x.to({own.dtype})`"
            raise DtypeError(f"This model encodes pictures of {own.dtype} in [0, 1], got {x.dtype}: {hint}.")
        if len(x) and not -_ROOM <= float(x.min()) <= float(x.max()) <= 1 + _ROOM:
            raise OptionError(f"Pictures are in [0, 1], got {float(x.min()):.4g} to {float(x.max()):.4g}.")
