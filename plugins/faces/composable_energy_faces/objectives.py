r"""What each network is trained to do.

- Judge: cross entropy on slightly shifted and noisy pictures.
- Autoencoder: the picture back from its noisy code, each picture's outlines counting as much as its areas; codes uncorrelated.
- Decoder: then the decoder alone, from codes that stay as they are and with less noise, so that pictures become sharper.
- Base: denoising score matching, $|\sigma \nabla_z B(z + \sigma \xi, \sigma) - \xi|^2$ (Vincent, 2011), $\log \sigma$ uniform.
- Heads: cross entropy at all noise levels, so that a head at level $\sigma$ is the posterior of an attribute given the noisy code.

Each objective is a function of the step and draws all its randomness from it.
"""

from __future__ import annotations

__all__ = [
    "attribute_loss",
    "autoencoder_loss",
    "base_loss",
    "decoder_loss",
    "heads_loss",
    "judge_loss",
    "outline_weights",
    "picture_loss",
]

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .data import FaceFiles
from .fitting import keyed
from .networks import CODE, SIGMA_MAX, SIGMA_MIN, Autoencoder, Base, Heads, Judge

Objective = Callable[[int], Tensor]


def attribute_loss(logits: Tensor, attributes: Tensor, hair: Tensor) -> Tensor:
    """Cross entropy, in nats per picture and summed over the variables, of logits with shape $(B, 9)$."""
    binary = F.binary_cross_entropy_with_logits(logits[:, :5], attributes, reduction="none").sum(1)
    return (binary + F.cross_entropy(logits[:, 5:], hair, reduction="none")).mean()


def outline_weights(images: Tensor) -> Tensor:
    """Weights with shape $(B, 1, H, W)$: pixels within two of an edge weigh more, and all edges of a picture together the same.

    So a thin line counts as much as a broad background, and no label is needed to say where to look.
    """
    across = (images[..., :-1, 1:] - images[..., :-1, :-1]).abs()
    down = (images[..., 1:, :-1] - images[..., :-1, :-1]).abs()
    contrast = F.pad((across + down).amax(1, keepdim=True), (0, 1, 0, 1))
    near = (F.max_pool2d(contrast, 5, 1, 2) > 0.08).float()
    return 0.3 + 0.7 * near / (near.mean((1, 2, 3), keepdim=True) + 0.02)


def picture_loss(painted: Tensor, images: Tensor) -> Tensor:
    """Error of colors and of the differences of neighbors, weighted towards outlines; pictures with shape $(B, 3, H, W)$."""
    error, weight = painted - images, outline_weights(images)
    color = (weight * (error.abs() + 2 * error.square())).mean()
    across = (weight[..., 1:] * error.diff(dim=3).abs()).mean()
    down = (weight[..., 1:, :] * error.diff(dim=2).abs()).mean()
    return color + 0.5 * (across + down)


def judge_loss(judge: Judge, faces: FaceFiles, *, batch: int = 96) -> Objective:
    """The judge's objective: name the attributes of pictures that are shifted by up to two pixels and a little noisy."""

    def loss(step: int) -> Tensor:
        generator = keyed(1, step)
        index = torch.randint(len(faces), (batch,), generator=generator)
        images = F.pad(faces.images(index), (2, 2, 2, 2), mode="replicate")
        left, top = (int(v) for v in torch.randint(5, (2,), generator=generator))
        images = images[..., top : top + 64, left : left + 64]
        level = 0.06 * torch.rand(batch, 1, 1, 1, generator=generator)
        images = images + level * torch.randn(images.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(images.contiguous(memory_format=torch.channels_last))
        return attribute_loss(logits.float(), faces.attributes[index], faces.hair[index])

    return loss


def autoencoder_loss(model: Autoencoder, labels: nn.Linear, faces: FaceFiles, *, batch: int = 96, noise: float = 0.1) -> Objective:
    """The autoencoder's objective.

    Args:
        model: The autoencoder.
        labels: A linear reading of the attributes from the code, which keeps them easy to read; dropped afterwards.
        faces: What to learn from.
        batch: Pictures in a step.
        noise: Standard deviation of the noise on the codes that are decoded: nearby codes give nearby pictures.
    """
    identity = torch.eye(CODE)

    def loss(step: int) -> Tensor:
        generator = keyed(2, step)
        index = torch.randint(len(faces), (batch,), generator=generator)
        images = faces.images(index).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            codes = model.encoder(images * 2 - 1)
        codes = model.standardize(codes.float())
        noisy = codes + noise * torch.randn(codes.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            painted = model.paint(noisy)
        correlation = (codes.T @ codes / batch - identity).square().mean()
        named = attribute_loss(labels(noisy), faces.attributes[index], faces.hair[index])
        return picture_loss(painted.float(), images) + 0.05 * correlation + 0.003 * named

    return loss


def decoder_loss(model: Autoencoder, faces: FaceFiles, codes: Tensor, *, batch: int = 96, noise: float = 0.05) -> Objective:
    """The objective of the decoder alone: pictures back from codes that stay as they are, with less noise than they were made with."""

    def loss(step: int) -> Tensor:
        generator = keyed(5, step)
        index = torch.randint(len(faces), (batch,), generator=generator)
        noisy = codes[index] + noise * torch.randn(batch, CODE, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            painted = model.paint(noisy)
        return picture_loss(painted.float(), faces.images(index))

    return loss


def _noisy(codes: Tensor, batch: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    index = torch.randint(len(codes), (batch,), generator=generator)
    reach = math.log(SIGMA_MAX / SIGMA_MIN)
    sigma = torch.exp(torch.rand(batch, generator=generator) * reach + math.log(SIGMA_MIN))
    noise = torch.randn(batch, codes.shape[1], generator=generator)
    return index, sigma, noise, torch.addcmul(codes[index], sigma[:, None], noise)


def base_loss(base: Base, codes: Tensor, conditions: Tensor | None = None, *, batch: int = 256) -> Objective:
    """The base's objective.

    Args:
        base: The energy.
        codes: Codes of faces, with shape $(N, 64)$.
        conditions: For a conditional energy, what each face may be told to be; see `one_condition`.
        batch: Codes in a step.
    """

    def loss(step: int) -> Tensor:
        generator = keyed(3, step)
        index, sigma, noise, z = _noisy(codes, batch, generator)
        told = None if conditions is None else one_condition(conditions[index], generator)
        z.requires_grad_()
        gradient = torch.autograd.grad(base(z, sigma, told).sum(), z, create_graph=True)[0]
        return (sigma[:, None] * gradient - noise).square().mean()

    return loss


def one_condition(truth: Tensor, generator: torch.Generator) -> Tensor:
    """Keeps one attribute of each face, or none for a quarter of them, and zeroes the others.

    Args:
        truth: Five columns of -1 or 1 and four of a one-hot hair color, with shape $(B, 9)$.
        generator: Which one.
    """
    pick = torch.randint(6, (len(truth), 1), generator=generator)
    column = torch.tensor([[0, 1, 2, 3, 4, 5, 5, 5, 5]])
    told = torch.rand(len(truth), 1, generator=generator) < 0.75
    return truth * ((pick == column) & told)


def heads_loss(heads: Heads, codes: Tensor, attributes: Tensor, hair: Tensor, *, batch: int = 256) -> Objective:
    """The heads' objective: name the attributes of noisy codes, at all noise levels."""

    def loss(step: int) -> Tensor:
        index, sigma, _, z = _noisy(codes, batch, keyed(4, step))
        return attribute_loss(heads(z, sigma), attributes[index], hair[index])

    return loss
