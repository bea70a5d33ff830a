"""Initial weights with which a signal keeps its size through many layers."""

from __future__ import annotations

import math

import torch
from torch import nn


def initialize(*modules: nn.Module, gain: float = math.sqrt(2)) -> None:
    r"""Draws the weights of all linear and convolutional layers from a normal distribution with deviation $g / \sqrt{n}$; biases are 0.

    $n$ is the number of inputs of an output. torch's own initial weights are $\sqrt 6$ times smaller than with the default gain. Each layer
    then shrinks what distinguishes one latent from another, and a decoder of five layers begins with nearly the same picture for all.

    Args:
        modules: The modules; their layers are changed in place.
        gain: $g$; $\sqrt 2$ keeps the size through rectified units, 1 through layers without them.

    References:
        Delving deep into rectifiers (He et al., 2015), https://arxiv.org/abs/1502.01852
    """
    for layer in (layer for module in modules for layer in module.modules()):
        if isinstance(layer, nn.ConvTranspose2d):  # each output sees only some places of the kernel
            inputs = layer.weight[:, 0].numel() / math.prod(layer.stride)
        elif isinstance(layer, nn.Conv2d | nn.Linear):
            inputs = layer.weight[0].numel()
        else:
            continue
        nn.init.normal_(layer.weight, 0, gain / math.sqrt(inputs))
        if isinstance(layer.bias, torch.Tensor):
            nn.init.zeros_(layer.bias)
