r"""How the autoencoder is trained: pictures back from noisy codes, first all of it, then the decoder alone.

The noise makes nearby codes nearby pictures. In the second stage codes stay as they are and have less noise, so pictures become sharper.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.label_columns import label_loss
from composable_energy_image.picture_loss import picture_loss
from composable_energy_training import Batch, Loss, Objective

__all__ = ["AutoencoderWithLabels", "DecoderOnly", "Reconstruction"]


class AutoencoderWithLabels(nn.Module):
    """The whole autoencoder, as it is trained, with a linear reading of the attributes from the code, which keeps them easy to read.

    Args:
        autoencoder: What is trained.
        columns: How many logits the attributes have together; 0 for no such reading.
    """

    def __init__(self, autoencoder: Autoencoder, columns: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.labels = nn.Linear(autoencoder.code, columns) if columns else None

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns painted pictures, with shape $(B, C, S, S)$; codes, with shape $(B, D)$; and logits, with shape $(B, columns)$.

        Args:
            images: Pictures, with shape $(B, C, S, S)$.
            noise: What is added to the codes, with shape $(B, D)$.
        """
        coder = self.autoencoder
        codes = coder.standardize(coder.encode_raw(_channels_last(images)).float())
        noisy = codes + noise
        return coder.decode(noisy), codes, codes[:, :0] if self.labels is None else self.labels(noisy)


class DecoderOnly(nn.Module):
    """The decoder alone, as it is trained: the encoder stays as it is, and with it the codes.

    Args:
        autoencoder: What is trained; its encoder is frozen.
    """

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        autoencoder.encoder.requires_grad_(False)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns painted pictures, codes and no logits; see `AutoencoderWithLabels`."""
        with torch.no_grad():
            codes = self.autoencoder.encode(_channels_last(images)).float()
        return self.autoencoder.decode(codes + noise), codes, codes[:, :0]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.autoencoder.standardize.eval()  # its mean and variance are those of all pictures, not of a batch
        return self


class Reconstruction(Objective):
    r"""Pictures back from codes with noise, by a `AutoencoderWithLabels` or a `DecoderOnly`.

    The loss is `picture_loss`, plus the mean square of $Z^T Z / B - I$ for codes $Z$ with shape $(B, D)$, which keeps their numbers
    uncorrelated, plus the cross entropy of the attributes, a mean over those that are known.

    Args:
        code: $D$, numbers in a code.
        variables: How many values each attribute has, by name.
        noise: Standard deviation of the noise on codes, which have unit variance.
        decorrelation: Weight of the second term.
        naming: Weight of the third.
    """

    def __init__(self, code: int, variables: Mapping[str, int], *, noise: float, decorrelation: float = 0.0, naming: float = 0.0) -> None:
        self.code, self.variables, self.noise = code, dict(variables), noise
        self.decorrelation, self.naming = decorrelation, naming

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        noise = batch.noise.normal(batch.x.new_empty(len(batch.x), self.code)) * self.noise
        painted, codes, logits = model(batch.x, noise)
        with torch.autocast(batch.x.device.type, enabled=False):
            told = {"picture": picture_loss(painted.float().contiguous(), batch.x)}
            total = told["picture"]
            if self.decorrelation:
                correlation = codes.T @ codes / len(codes) - torch.eye(codes.shape[1], device=codes.device)
                told["correlation"] = correlation.square().mean()
                total = total + self.decorrelation * told["correlation"]
            if self.naming and self.variables:
                told["naming"] = label_loss(logits.float(), batch.labels, self.variables)
                total = total + self.naming * told["naming"]
        return Loss(total, {name: value.detach() for name, value in told.items()})


def _channels_last(images: Tensor) -> Tensor:
    """Convolutions are faster so."""
    return images.contiguous(memory_format=torch.channels_last)
