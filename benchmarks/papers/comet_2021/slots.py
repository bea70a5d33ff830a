r"""Slot attention with a spatial broadcast decoder (Locatello et al., 2020), the usual choice for objects, in a size for one core.

Pictures have 16 or 32 pixels. The encoder has four convolutions of 5 x 5 with 32 channels, the first with stride 2 at 32 pixels; slots have
48 numbers and three iterations; the decoder starts at 8 x 8. The loss is the mean squared error; the masks are those of the decoder.

References:
    Object-centric learning with slot attention (Locatello et al., 2020), https://arxiv.org/abs/2006.15055
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.papers.comet_2021.training import Budget, fit
from composable_energy.errors import OptionError

WIDTH, HIDDEN, SMALL = 48, 96, 8


class SlotAttention(nn.Module):
    """Pictures to slots, and slots to pictures with masks."""

    fine: Tensor
    coarse: Tensor

    def __init__(self, slots: int = 5, size: int = 32, iterations: int = 3) -> None:
        super().__init__()
        if size not in (16, 32):
            raise OptionError(f"Slot attention exists here for 16 or 32 pixels, got {size}.")
        self.slots, self.iterations, stride = slots, iterations, size // 16
        layers = [nn.Conv2d(3, 32, 5, stride, 2), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(32, 32, 5, 1, 2), nn.ReLU()]
        self.features = nn.Sequential(*layers)
        self.where = nn.Conv2d(4, 32, 1)
        self.tokens = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, WIDTH), nn.LayerNorm(WIDTH))
        self.mean, self.log_scale = nn.Parameter(torch.randn(WIDTH) * WIDTH**-0.5), nn.Parameter(torch.zeros(WIDTH))
        self.key, self.value, self.query = (nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(3))
        self.before, self.after = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.update = nn.GRUCell(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, WIDTH))
        self.spread = nn.Conv2d(4, WIDTH, 1)
        upsample = [nn.ConvTranspose2d(WIDTH, 32, 4, 2, 1), nn.ReLU()]
        if size == 32:
            upsample += [nn.ConvTranspose2d(32, 32, 4, 2, 1), nn.ReLU()]
        self.decoder = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 3, 1, 1), nn.ReLU(), *upsample, nn.Conv2d(32, 4, 3, 1, 1))
        self.register_buffer("fine", edges(16), persistent=False)
        self.register_buffer("coarse", edges(SMALL), persistent=False)

    def encode(self, x: Tensor, noise: Tensor | None = None) -> Tensor:
        """Returns slots, with shape $(B, K, 48)$."""
        tokens = self.tokens((self.features(x) + self.where(self.fine)).flatten(2).transpose(1, 2))
        keys, values = self.key(tokens), self.value(tokens)
        noise = torch.randn(len(x), self.slots, WIDTH, device=x.device, dtype=x.dtype) if noise is None else noise
        slots = self.mean + self.log_scale.exp() * noise
        for _ in range(self.iterations):
            shares = (keys @ self.query(self.before(slots)).transpose(1, 2) * WIDTH**-0.5).softmax(2) + 1e-8  # slots compete for tokens
            seen = (shares / shares.sum(1, keepdim=True)).transpose(1, 2) @ values
            slots = self.update(seen.flatten(0, 1), slots.flatten(0, 1)).view_as(slots)
            slots = slots + self.mlp(self.after(slots))
        return slots

    def decode(self, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the picture of each slot, with shape $(B, K, 3, S, S)$, and the masks, which sum to 1, with shape $(B, K, S, S)$."""
        h = self.decoder(slots.flatten(0, 1)[..., None, None] + self.spread(self.coarse)).unflatten(0, slots.shape[:2])
        return h[:, :, :3], h[:, :, 3].softmax(1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Returns reconstructions, with the shape of the pictures, and masks, with shape $(B, K, S, S)$."""
        colors, masks = self.decode(self.encode(x))
        return (colors * masks[:, :, None]).sum(1), masks

    def loss(self, x: Tensor) -> Tensor:
        """Returns the mean squared error of reconstructions."""
        return (self(x)[0] - x).square().mean()

    @torch.no_grad()
    def labels(self, x: Tensor) -> Tensor:
        """Returns which slot each pixel belongs to, with shape $(B, S, S)$."""
        return self(x)[1].argmax(1)


def train_slots(images: Tensor, slots: int, seed: int, steps: int) -> tuple[SlotAttention, dict[str, float]]:
    """Trains slot attention with the paper's rate, 4e-4, on batches of 16, and returns the model and the figures of `fit`."""
    torch.manual_seed(seed)
    model = SlotAttention(slots, images.shape[-1])
    budget = Budget(steps=steps, rate=4e-4, precision="auto")
    figures = fit(lambda rows, _: model.loss(images[rows]), model.parameters(), len(images), budget, seed)
    return model.eval(), figures


def edges(size: int) -> Tensor:
    """Returns the distances of each place from the four sides, with shape $(1, 4, S, S)$."""
    line = torch.linspace(0, 1, size)
    down, right = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([right, down, 1 - right, 1 - down])[None]
