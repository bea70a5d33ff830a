r"""Training of the autoencoder: reconstruction from noisy codes, first the whole network, then the decoder alone.

The noise makes nearby codes decode to similar pictures. In the second stage codes are fixed and have less noise, so pictures get sharper.
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


class AutoencoderWithLabels(nn.Module):
    """The first stage: the autoencoder and a linear classifier of attributes with `columns` logits, which keeps them linear in the code."""

    def __init__(self, autoencoder: Autoencoder, columns: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.labels = nn.Linear(autoencoder.code, columns) if columns else None

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns reconstructions with shape $(B, C, S, S)$, codes with shape $(B, D)$, and logits with shape $(B, columns)$.

        The noise is added to the codes and has their shape.
        """
        coder = self.autoencoder
        codes = coder.standardize(coder.encode_raw(_channels_last(images)).float())
        noisy = codes + noise
        return coder.decode(noisy), codes, codes[:, :0] if self.labels is None else self.labels(noisy)


class DecoderOnly(nn.Module):
    """The second stage's model: the decoder alone, with a frozen encoder."""

    def __init__(self, autoencoder: Autoencoder) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        autoencoder.encoder.requires_grad_(False)

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns reconstructions, codes, and logits without columns; see `AutoencoderWithLabels`."""
        with torch.no_grad():
            codes = self.autoencoder.encode(_channels_last(images)).float()
        return self.autoencoder.decode(codes + noise), codes, codes[:, :0]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.autoencoder.standardize.eval()  # its mean and variance are those of all pictures, not of a batch
        return self


class Reconstruction(Objective):
    r"""The objective of an `AutoencoderWithLabels` or a `DecoderOnly`: reconstruction from codes with noise.

    The loss is `picture_loss`, plus the mean square of $Z^T Z / B - I$ for codes $Z$ with shape $(B, D)$, which decorrelates the numbers
    of a code, plus the mean cross entropy of the known attributes.

    Args:
        code: Numbers $D$ in a code.
        variables: Number of values of each attribute, by name.
        noise: Standard deviation of the noise on codes, which have unit variance.
        decorrelation: Weight of the second term.
        naming: Weight of the cross entropy.
    """

    def __init__(self, code: int, variables: Mapping[str, int], *, noise: float, decorrelation: float = 0.0, naming: float = 0.0) -> None:
        self.code, self.variables, self.noise = code, dict(variables), noise
        self.decorrelation, self.naming = decorrelation, naming

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        noise = batch.noise.normal(batch.x.new_empty(len(batch.x), self.code)) * self.noise
        decoded, codes, logits = model(batch.x, noise)
        with torch.autocast(batch.x.device.type, enabled=False):
            terms = {"picture": picture_loss(decoded.float().contiguous(), batch.x)}
            total = terms["picture"]
            if self.decorrelation:
                correlation = codes.T @ codes / len(codes) - torch.eye(codes.shape[1], device=codes.device)
                terms["correlation"] = correlation.square().mean()
                total = total + self.decorrelation * terms["correlation"]
            if self.naming and self.variables:
                terms["naming"] = label_loss(logits.float(), batch.labels, self.variables)
                total = total + self.naming * terms["naming"]
        return Loss(total, {name: value.detach() for name, value in terms.items()})


def _channels_last(images: Tensor) -> Tensor:
    """Converts the memory format: convolutions are faster with channels last."""
    return images.contiguous(memory_format=torch.channels_last)
