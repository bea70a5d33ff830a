"""Energies with their own gradient, with and without a value."""

import torch
from torch import Tensor
from torch.distributions import Normal

import composable_energy as ce

DRAWS = {"sampler": "langevin", "step_size": 0.05, "steps": 400, "seed": 0}


BROAD = ce.as_energy(Normal(torch.zeros(1), 3.0), name="broad")


class Score(ce.Energy):
    """The score of N(mean, 1), without values; `forward` is never meant."""

    has_value = False

    def __init__(self, mean: float = 3.0) -> None:
        super().__init__()
        self.mean = mean
        self.event_shape = (1,)

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(len(x))

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x.new_zeros(len(x)), x.detach() - self.mean


class OwnRelative(ce.energies.RelativeEnergy):
    """A relative energy whose gradient is that of the whole."""

    def __init__(self, base: ce.Energy) -> None:
        super().__init__()
        self.base, self.bases = base, (ce.energies.WeightedBase(base),)

    def forward_evidence(self, x: Tensor) -> Tensor:
        return x.detach().flatten(1).sum(1).sin()

    def with_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        energies, gradient = self.base.with_gradient(x)
        return energies + self.forward_evidence(x), gradient + x.flatten(1).sum(1).cos().view(-1, *[1] * (x.ndim - 1)).detach()


def points(count: int = 6) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
