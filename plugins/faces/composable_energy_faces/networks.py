"""The constants of the face networks, and the judge; the other networks are those of the recipe `base-and-attributes`."""

from torch import Tensor, nn

from composable_energy_image.layers import halving_convolutions

SIZE = 64
"""Height and width of the pictures."""

CODE = 64
"""Numbers in a code."""

SIGMA_MIN, SIGMA_MAX = 0.05, 4.0
"""The lowest and the highest noise level of the energies."""


class Judge(nn.Module):
    """An image classifier that scores samples. It is trained on other faces, and its gradient is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(*halving_convolutions(3, 24, 48, 64, 96))
        self.classify = nn.Sequential(nn.Flatten(), nn.Linear(96 * 4 * 4, 9))

    def features(self, images: Tensor) -> Tensor:
        """Returns pooled features with shape $(B, 96)$, for Frechet distances."""
        return self.body(images * 2 - 1).mean((2, 3))

    def forward(self, images: Tensor) -> Tensor:
        """Returns logits with shape $(B, 9)$: five binary attributes, four hair colors."""
        return self.classify(self.body(images * 2 - 1))
