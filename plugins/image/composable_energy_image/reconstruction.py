r"""Training of the autoencoder: reconstruction from noisy codes, first the whole network, then the decoder alone.

The noise makes nearby codes decode to similar pictures. In the second stage codes are fixed and have less noise, so pictures get sharper.
"""

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.label_columns import label_loss
from composable_energy_training import Batch, Loss, Objective


class AutoencoderWithLabels(nn.Module):
    """The first stage: the autoencoder and a linear classifier of attributes with `columns` logits, which keeps them linear in the code."""

    def __init__(self, autoencoder: Autoencoder, columns: int) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.labels = nn.Linear(autoencoder.code, columns) if columns else None

    def forward(self, images: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns reconstructions $(B, C, S, S)$ of codes plus noise, of their shape, the codes $(B, D)$, and logits $(B, columns)$."""
        coder = self.autoencoder
        codes = coder.standardize(coder.encode_raw(channels_last(images)).float())
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
            codes = self.autoencoder.encode(channels_last(images)).float()
        return self.autoencoder.decode(codes + noise), codes, codes[:, :0]

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.autoencoder.standardize.eval()  # its mean and variance are those of all pictures, not of a batch
        return self


class Reconstruction(Objective):
    r"""The objective of an `AutoencoderWithLabels` or a `DecoderOnly`: reconstruction from codes with noise.

    The loss is `picture_loss`, plus the mean square of $Z^T Z / B - I$ for codes $Z$ with shape $(B, D)$, which decorrelates the numbers
    of a code, plus the mean cross entropy of the known attributes, with the weights `decorrelation` and `naming`. Codes have unit variance;
    `noise` is the standard deviation of their noise.
    """

    def __init__(self, code: int, variables: Mapping[str, int], *, noise: float, decorrelation: float = 0.0, naming: float = 0.0) -> None:
        self.code, self.variables, self.noise = code, dict(variables), noise
        self.decorrelation, self.naming = decorrelation, naming

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        decoded, codes, logits = model(batch.x, batch.noise.normal(batch.x.new_empty(len(batch.x), self.code)) * self.noise)
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


def channels_last(images: Tensor) -> Tensor:
    """Converts the memory format: convolutions are faster with channels last."""
    return images.contiguous(memory_format=torch.channels_last)


_CONTRAST = 0.08
_REACH = 2


def outline_weights(images: Tensor) -> Tensor:
    """Returns weights with shape $(B, 1, H, W)$ that are higher within two pixels of an edge of pictures in [0, 1]. All edges of a picture
    have a fixed total, so a thin line counts as much as a broad background, without labels."""
    across = (images[..., :-1, 1:] - images[..., :-1, :-1]).abs()
    edge = (across + (images[..., 1:, :-1] - images[..., :-1, :-1]).abs()).amax(1, keepdim=True) > _CONTRAST
    edge = F.pad(edge, (_REACH, _REACH + 1, _REACH, _REACH + 1))
    height, width = images.shape[-2:]
    shifts = range(2 * _REACH + 1)
    edge = reduce(torch.logical_or, (edge[..., i : i + height, :] for i in shifts))
    near = reduce(torch.logical_or, (edge[..., i : i + width] for i in shifts)).to(images.dtype)
    return 0.3 + 0.7 * near / (near.mean((1, 2, 3), keepdim=True) + 0.02)


def picture_loss(decoded: Tensor, images: Tensor) -> Tensor:
    r"""Returns $\langle w (|e| + 2 e^2) \rangle + \tfrac12 \langle w |\partial_x e| \rangle + \tfrac12 \langle w |\partial_y e| \rangle$.

    Here $e$ is the error of pictures that may leave [0, 1], $\partial$ the difference of neighboring pixels, and $w$ are the
    `outline_weights` of the images, with shape $(B, C, H, W)$.
    """
    return _PictureLoss.apply(decoded, images)  # pyright: ignore[reportReturnType]


class _PictureLoss(torch.autograd.Function):
    """The loss with an explicit gradient. Autograd would store a dozen maps of the size of the pictures, and be slower."""

    @staticmethod
    def forward(ctx: Any, decoded: Tensor, images: Tensor) -> Tensor:
        weight, error = outline_weights(images), decoded - images
        size = error.abs()
        gradient = torch.add(error.sign(), error, alpha=4).mul_(weight).div_(error.numel())
        loss = torch.addcmul(size, size, size, value=2).mul_(weight).mean()
        for axis, last in ((3, error.shape[3] - 1), (2, error.shape[2] - 1)):
            change, weights = error.diff(dim=axis), weight.narrow(axis, 1, last)
            sign = change.sign()
            loss = loss + 0.5 * change.mul_(sign).mul_(weights).mean()
            sign.mul_(weights).mul_(0.5 / change.numel())
            gradient.narrow(axis, 1, last).add_(sign)
            gradient.narrow(axis, 0, last).sub_(sign)
        ctx.save_for_backward(gradient)
        return loss

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return ctx.saved_tensors[0] * grad_outputs[0], None
