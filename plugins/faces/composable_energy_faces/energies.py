"""The family `faces`: the energy of any face, and one energy for each attribute, over the code of a small autoencoder.

`faces` is the base, an absolute energy. A member such as `faces/male` or `faces/hair=red` is an event over that base: its evidence is
$-\\log p(\\text{attribute} \\mid z)$ at the noise level at hand. All members of a family share one base and one network of heads, so an
expression evaluates each once, whatever the number of attributes in it.
"""

from __future__ import annotations

__all__ = ["RECOMMENDED", "FaceEnergy", "Faces"]

from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

import composable_energy as ce

from . import weights
from .draw import ATTRIBUTES, HAIR_COLORS
from .networks import CODE, SIGMA_MAX, SIGMA_MIN, Autoencoder, Base, Heads

RECOMMENDED = ce.Recommendation(
    sampler="annealed",
    options={"levels": 25, "sigma_max": SIGMA_MAX, "sigma_min": SIGMA_MIN, "corrector_steps": 3, "delta": 0.25},
    threads=1,
)
"""The sampler that the energies were judged with: 100 gradients. Of the settings that were tried, with 50 to 160 gradients, it came closest
to the drawn faces. One thread, because these networks are so small that two spend their time waiting for each other; see `threads`."""


class FaceEnergy(ce.Energy):
    r"""The energy of any face at a noise level, $B(z, \sigma)$, over codes $z$ with shape $(B, 64)$.

    Args:
        net: The trained network.
        autoencoder: What turns codes into pictures, and pictures into codes.
    """

    def __init__(self, net: Base, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.net = net
        self.decoder = autoencoder
        self.name = "faces"
        self.event_shape = torch.Size([CODE])
        self.recommended = RECOMMENDED

    def forward(self, x: Tensor, sigma: Tensor | float = SIGMA_MIN) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, 64)$; the lowest level is the density of the codes themselves."""
        return self.net(x, sigma)


class Faces(ce.EnergyFamily):
    """The trained face energies by name; weights are read once, when the first of them is asked for.

    Args:
        folder: Where the weights lie; None for those that come with the package.

    Example:
        >>> import composable_energy as ce
        >>> images = (ce.get_energy("faces/male") & ~ce.get_energy("faces/smiling")).sample(16, seed=0)
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = weights.FOLDER if folder is None else Path(folder)

    def members(self) -> tuple[str, ...]:
        """Returns the names of the attributes; reads no weights."""
        return (*ATTRIBUTES, *(f"hair={color}" for color in HAIR_COLORS))

    def load(self, member: str | None) -> ce.Energy:
        """Returns the energy of an attribute, or the base for None.

        Raises:
            PluginNotFound: There is no such attribute.
        """
        if member is None:
            return self._base
        if member not in self.members():
            raise ce.errors.PluginNotFound(f"There is no face attribute {member!r}; there are {', '.join(self.members())}.")
        index = self.members().index(member)
        binary = index < len(ATTRIBUTES)
        columns = slice(index, index + 1) if binary else slice(len(ATTRIBUTES), len(ATTRIBUTES) + len(HAIR_COLORS))
        label = 1 if binary else index - len(ATTRIBUTES)
        return ce.ClassifierEnergy(self._heads, label, self._base, columns=columns, name=member)

    @cached_property
    def _base(self) -> FaceEnergy:
        autoencoder = weights.read(Autoencoder(), "autoencoder", self.folder)
        return FaceEnergy(weights.read(Base(), "base", self.folder), autoencoder)

    @cached_property
    def _heads(self) -> Heads:
        return weights.read(Heads(), "heads", self.folder)
