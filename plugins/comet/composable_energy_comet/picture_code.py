"""Codes of what the objects of a picture share, and pictures with the codes of others."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import cast

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.sampling import twin
from composable_energy_comet.comet import Comet
from composable_energy_comet.window import WindowEnergy

_BATCH = 64


class PictureCode(ABC):
    """Abstract code of a whole picture, which its objects share, such as their light or their style.

    Attributes:
        comet: The model, a `comet-window`.
    """

    comet: Comet

    @abstractmethod
    def encode(self, z: Tensor) -> Tensor:
        """Returns the codes of pictures, with shape $(B, *)$.

        Args:
            z: Latents of all components, with shape $(B, K, D)$, as `Comet.encode` returns them.
        """

    @abstractmethod
    def move(self, z: Tensor, code: Tensor) -> Tensor:
        """Returns latents with shape $(B, K, D)$ of the same ground and objects, with other codes.

        Args:
            z: Latents of all components, with shape $(B, K, D)$.
            code: The codes, one for each picture.
        """

    def swap(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns pictures of the objects of x with the code and the ground of y, with shape $(B, C, S, S)$.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            y: As many other pictures.

        Raises:
            ShapeError: `y` has another length, or the pictures another size.
        """
        own, others = self._encode_pair(x, y)
        moved = self.move(own, self.encode(others))
        return self.comet.decode(torch.cat([others[:, :1], moved[:, 1:]], 1))

    def join(self, x: Tensor, y: Tensor) -> Tensor:
        """Returns pictures of x with the objects of y as well, which take the code of x, with shape $(B, C, S, S)$.

        Joined as they are, objects of y would keep the code of y.

        Args:
            x: Pictures, with shape $(B, C, S, S)$.
            y: As many other pictures.

        Raises:
            ShapeError: `y` has another length, or the pictures another size.
        """
        own, others = self._encode_pair(x, y)
        moved = self.move(others, self.encode(own))
        return self.comet.decode(torch.cat([own, moved[:, 1:]], 1))

    def _encode_pair(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        if len(x) != len(y):
            raise ShapeError(f"x and y must have as many pictures as each other, got {len(x)} and {len(y)}.")
        return self.comet.encode(x), self.comet.encode(y)


def object_shares(comet: Comet, z: Tensor) -> Tensor:
    """Returns the share of each object of the pixels of all objects of its picture, with shape $(B, K - 1)$.

    Args:
        comet: A model with windows.
        z: Latents of all components, with shape $(B, K, D)$.

    Raises:
        OptionError: The model has no windows.
    """
    if not isinstance(comet.energy, WindowEnergy):
        raise OptionError(f"The components of {comet.energy} are no objects on a ground: train a `comet-window`.")
    energy = cast(WindowEnergy, twin(comet.energy))
    with torch.no_grad():
        found = torch.cat([energy.decode_targets(some)[1].softmax(1)[:, 1:].mean((2, 3, 4)) for some in z.split(_BATCH)])
    return found / found.sum(1, keepdim=True)
