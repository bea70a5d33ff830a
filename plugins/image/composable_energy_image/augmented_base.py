"""A base of codes that is told how pictures were changed, so that random changes of a small set do not widen the density."""

from __future__ import annotations

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy_image.code_energy import CodeNetwork
from composable_energy_image.noise_conditioning import EMBEDDING


class AugmentedCodeNetwork(ce.Energy):
    r"""The energy $B(z, \sigma \mid c)$ of codes $z$ of pictures with changes $c$, such as angles and shifts; $c = 0$ is no change.

    Trained on changed and unchanged pictures together, it learns from both, and at $c = 0$ it is the density of unchanged pictures alone.
    There it is a `CodeNetwork` without conditions, since the changes enter by a linear layer.

    Args:
        code: Numbers in a code.
        changes: Numbers in a change.
        width: Hidden units.
        blocks: Residual blocks.

    References:
        Distribution augmentation for generative modeling (Jun et al., 2020).
        Elucidating the design space of diffusion-based generative models (Karras et al., 2022), https://arxiv.org/abs/2206.00364
    """

    def __init__(self, code: int, changes: int, *, width: int, blocks: int) -> None:
        super().__init__()
        self.event_shape = (code,)
        self.net = CodeNetwork(code, width=width, blocks=blocks, conditions=changes)

    def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
        """Returns energies with shape $(B,)$ of codes with shape $(B, D)$ at levels with shape $(B,)$, for changes with shape $(B, C)$."""
        return self.net(x, sigma=sigma, condition=y)

    @torch.no_grad()
    def write_unchanged(self, network: CodeNetwork) -> None:
        """Copies the energy of unchanged pictures into a network of the same width without conditions."""
        weights = self.net.state_dict()
        first = "net.embed.0.weight"
        network.load_state_dict({**weights, first: weights[first][:, :EMBEDDING]})
