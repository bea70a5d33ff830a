r"""Adversarial training of a decoder: its pictures, reconstructed ones and drawn ones, become as sharp as real ones.

Trained on reconstructions alone, a decoder averages over what a code leaves open, loses what is small, such as a mouth, and it never sees
the codes that the energy draws.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils.parametrizations import spectral_norm

from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.label_columns import label_loss
from composable_energy_image.reconstruction import DecoderOnly, channels_last, picture_loss
from composable_energy_training import Batch, Loss, Objective

_WIDTHS = (32, 64, 96, 128)
_MATCHING = 0.3  # weight of the features of the discriminator


class Discriminator(nn.Module):
    """Scores pictures by convolutions with spectral normalization, summed over all places; real ones should have high scores."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        sizes = list(zip((channels, *_WIDTHS), _WIDTHS, strict=False))
        strided = [nn.Conv2d(before, after, 4, 2, 1) for before, after in sizes[:-1]]
        self.layers = nn.ModuleList(spectral_norm(layer) for layer in (*strided, nn.Conv2d(*sizes[-1], 3, 1, 1)))
        self.score = spectral_norm(nn.Linear(_WIDTHS[-1], 1))

    def forward(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Returns scores with shape $(B,)$ of pictures in [0, 1] with shape $(B, C, S, S)$, and the maps of all layers."""
        h, maps = channels_last(images * 2 - 1), []
        for layer in self.layers:
            h = F.leaky_relu(layer(h), 0.2)
            maps.append(h)
        return self.score(h.sum((2, 3)))[:, 0], maps


class PictureReader(nn.Module):
    """Reads attributes of pictures in [0, 1], with or without noise; their logits have shape $(B, columns)$."""

    def __init__(self, autoencoder: Autoencoder, columns: int) -> None:
        super().__init__()
        before, side, layers = autoencoder.channels, autoencoder.size, list[nn.Module]()
        while side > 4:
            width, side = _WIDTHS[min(len(layers) // 3, 2)], side // 2
            layers += [nn.Conv2d(before, width, 4, 2, 1), nn.GroupNorm(8, width), nn.SiLU()]
            before = width
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * side**2, 96), nn.SiLU(), nn.Linear(96, columns))

    def forward(self, images: Tensor, sigma: Tensor | None = None) -> Tensor:
        return self.layers(channels_last(images * 2 - 1))


class AdversarialDecoder(DecoderOnly):
    """The decoder of an autoencoder, whose encoder is frozen, its discriminator, and drawn codes with shape $(N, D)$.

    A trained reader and the values of attributes of the draws, with shape $(N,)$ each, tell it what must be seen in pictures.
    """

    draws: Tensor

    def __init__(self, autoencoder: Autoencoder, draws: Tensor, reader: PictureReader | None, values: Mapping[str, Tensor]) -> None:
        super().__init__(autoencoder)
        self.discriminator = Discriminator(autoencoder.channels)
        self.reader, self.values = reader and reader.requires_grad_(False), values
        self.register_buffer("draws", draws, persistent=False)

    def forward(self, images: Tensor, noise: Tensor, rows: Tensor) -> Tensor:
        """Returns decoded pictures: of the codes of images plus noise, followed by those of rows of the draws."""
        with torch.no_grad():
            codes = self.autoencoder.encode(channels_last(images))
        return self.autoencoder.decode(torch.cat([codes + noise, self.draws[rows]]))


class AdversarialReconstruction(Objective):
    r"""The objective of an `AdversarialDecoder`: sharp reconstructions, and draws that the discriminator takes for pictures.

    The first half of a batch is reconstructed, as many draws are decoded, and the whole batch is what is real. The decoder descends
    `picture_loss` of reconstructions, plus 0.3 times the $L_1$ distance of the discriminator's maps from those of the pictures, minus
    `weight` times the mean score, plus `reading` times the cross entropy of what the reader reads of decoded pictures. The discriminator
    descends the hinge loss. Neither gradient reaches the other network.

    Args:
        variables: The number of values of each attribute.
        noise: Standard deviation of the noise on the codes of pictures.
        weight: Weight of the scores.
        reading: Weight of the attributes that are read.

    References:
        Geometric GAN (Lim & Ye, 2017), https://arxiv.org/abs/1705.02894
        Spectral normalization for generative adversarial networks (Miyato et al., 2018), https://arxiv.org/abs/1802.05957
        Conditional image synthesis with auxiliary classifier GANs (Odena et al., 2017), https://arxiv.org/abs/1610.09585
        Autoencoding beyond pixels using a learned similarity metric (Larsen et al., 2016), https://arxiv.org/abs/1512.09300
    """

    def __init__(self, variables: Mapping[str, int], *, noise: float, weight: float, reading: float) -> None:
        self.variables, self.noise, self.weight, self.reading = variables, noise, weight, reading

    def loss(self, model: nn.Module, batch: Batch) -> Loss:
        if not isinstance(model, AdversarialDecoder):
            raise TypeError(f"AdversarialReconstruction trains an AdversarialDecoder, got {type(model).__name__}.")
        decoder, images = model, batch.x[: (len(batch.x) + 1) // 2]
        noise = batch.noise.normal(batch.x.new_empty(len(batch.x), decoder.draws.shape[1]))[: len(images)] * self.noise
        rows = (batch.noise.child("draws").uniform(batch.x)[: len(images)] * len(decoder.draws)).long().clamp_(max=len(decoder.draws) - 1)
        decoded, discriminator = decoder(images, noise, rows), decoder.discriminator
        frozen = {name: weight.detach() for name, weight in discriminator.named_parameters()}
        scores, maps = functional_call(discriminator, frozen, (decoded,))
        fake, real = discriminator(decoded.detach())[0], discriminator(batch.x)
        targets = [each[: len(images)].detach() for each in real[1]]
        picture = picture_loss(decoded[: len(images)].to(batch.x.dtype).contiguous(), images)
        matching = torch.stack([(ours[: len(images)] - target).abs().mean() for ours, target in zip(maps, targets, strict=True)]).sum()
        hinge = F.relu(1 + fake).mean() + F.relu(1 - real[0]).mean()
        score = scores.mean()
        total = picture + _MATCHING * matching - self.weight * score + hinge
        terms = {"picture": picture, "matching": matching, "score": score, "discriminator": hinge}
        if decoder.reader is not None:
            labels = {name: torch.cat([batch.labels[name][: len(images)], values[rows]]) for name, values in decoder.values.items()}
            terms["reading"] = label_loss(decoder.reader(decoded.clamp(0, 1)).to(batch.x.dtype), labels, self.variables)
            total = total + self.reading * terms["reading"]
        return Loss(total, {name: value.detach() for name, value in terms.items()})
