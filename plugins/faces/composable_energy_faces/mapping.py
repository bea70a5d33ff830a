"""The generator of drawn faces: a mapping of normal numbers to codes, and the decoder of the face energies."""

from functools import cached_property
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from composable_energy_faces import weights
from composable_energy_faces.networks import CODE, SIZE
from composable_energy_image import Autoencoder
from composable_energy_latent import Generator, latent


class FaceMapping(nn.Module):
    """The mapping $w = m(z)$ of standard normal numbers to codes of faces: a residual network."""

    def __init__(self, code: int = CODE, width: int = 320, blocks: int = 3) -> None:
        super().__init__()
        self.read = nn.Linear(code, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.outer = nn.ModuleList(nn.Linear(width, width) for _ in range(blocks))
        self.write = nn.Linear(width, code)

    def forward(self, z: Tensor) -> Tensor:
        """Returns codes with shape $(B, 64)$ of standard normal numbers of that shape."""
        h = self.read(z)
        for inner, outer in zip(self.inner, self.outer, strict=True):
            h = h + outer(F.silu(inner(F.silu(h))))
        return self.write(F.silu(h))


class GeneratedFaces(ce.EnergyFamily):
    """The prior of a generator of drawn faces, $g(z)$: 64 standard normal numbers to 64 x 64 pixels.

    It has no attributes of its own: `composable_energy_latent.fit_attributes` finds them. The generator was made from the energy `faces`:
    its mapping imitates the probability flow from noise to codes, and its second part is the decoder.

    Args:
        folder: The folder of the weights; None for those of the package.

    Example:
        >>> import composable_energy as ce
        >>> ce.get("energy", "generated-faces").sample(2, seed=0).shape
        torch.Size([2, 3, 64, 64])
    """

    comes_trained = True

    def __init__(self, folder: str | None = None) -> None:
        self.folder = weights.FOLDER if folder is None else Path(folder)

    def members(self) -> tuple[str, ...]:
        return ()

    def load(self, member: str | None) -> ce.Energy:
        if member is not None:
            raise PluginNotFound(f"generated-faces has no {member!r}: fit attributes with composable_energy_latent.fit_attributes.")
        return self.base

    @cached_property
    def base(self) -> ce.Energy:
        """The prior with its generator."""
        synthesis = weights.read(Autoencoder(SIZE, 3, CODE), "autoencoder", self.folder)
        mapping = weights.read(FaceMapping(), "mapping", self.folder)
        return latent(Generator(synthesis, (CODE,), mapping=mapping), CODE, name="generated-faces")
