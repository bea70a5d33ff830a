"""The family `faces`: a base energy of faces, and one energy for each attribute, over the codes of a small autoencoder.

`faces` is the base, an absolute energy. A member such as `faces/male` or `faces/hair=red` is an event over that base: its evidence is
$-\\log p(\\text{attribute} \\mid z)$ at the current noise level. All members share one base and one network of heads, so an expression
evaluates each once, for any number of attributes.
"""

from functools import cached_property
from pathlib import Path

import composable_energy as ce
from composable_energy.errors import PluginNotFound
from composable_energy_faces import weights
from composable_energy_faces.draw import ATTRIBUTES, HAIR_COLORS
from composable_energy_faces.networks import CODE, SIGMA_MAX, SIGMA_MIN, SIZE
from composable_energy_image import CodeEnergy, CodeHeads


class Faces(ce.EnergyFamily):
    """Drawn faces and their attributes; weights are loaded once, on first use.

    Args:
        folder: The folder of the weights; None for those of the package.

    Example:
        >>> import composable_energy as ce
        >>> images = (ce.get("energy", "faces/male") & ~ce.get("energy", "faces/smiling")).sample(16, seed=0)
    """

    comes_trained = True

    def __init__(self, folder: str | None = None) -> None:
        self.folder = weights.FOLDER if folder is None else Path(folder)

    def members(self) -> tuple[str, ...]:
        return (*ATTRIBUTES, *(f"hair={color}" for color in HAIR_COLORS))

    def load(self, member: str | None) -> ce.Energy:
        if member is None:
            return self.base
        if member not in self.members():
            raise PluginNotFound(f"There is no face attribute {member!r}; known are {', '.join(self.members())}.")
        index = self.members().index(member)
        binary = index < len(ATTRIBUTES)
        columns = slice(index, index + 1) if binary else slice(len(ATTRIBUTES), len(ATTRIBUTES) + len(HAIR_COLORS))
        return ce.ClassifierEnergy(self._heads, 1 if binary else index - len(ATTRIBUTES), self.base, columns=columns, name=member)

    @cached_property
    def base(self) -> CodeEnergy:
        """The energy of any face."""
        base = CodeEnergy(SIZE, code=CODE, sigma_min=SIGMA_MIN, sigma_max=SIGMA_MAX, name="faces")
        weights.read(base.autoencoder, "autoencoder", self.folder)
        weights.read(base.net, "base", self.folder)
        return base.eval()

    @cached_property
    def _heads(self) -> CodeHeads:
        return weights.read(CodeHeads(len(ATTRIBUTES) + len(HAIR_COLORS), code=CODE, sigma_min=SIGMA_MIN), "heads", self.folder)
