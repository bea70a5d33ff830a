"""A base and a network that count their calls."""

import torch
from torch import nn

import composable_energy as ce
from composable_energy.options import Recommendation


class Counting(nn.Module):
    """A network that counts its calls and may depend on a noise level."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(3, outputs).double()
        self.calls = 0

    def forward(self, x, sigma=None):
        self.calls += 1
        return self.linear(x) if sigma is None else self.linear(x) / (1 + sigma[:, None])


class Bowl(ce.Energy):
    def __init__(self) -> None:
        super().__init__()
        self.event_shape = torch.Size([3])
        self.recommended = Recommendation("langevin", {"steps": 10})

    def forward(self, x, sigma=None):
        return x.square().sum(1) / 2 if sigma is None else x.square().sum(1) / (1 + sigma)
