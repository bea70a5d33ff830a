"""Energies that several benchmarks sample, and effective sample sizes of several chains."""

import math

import torch
from torch import Tensor, nn

import composable_energy as ce


class Mixture(nn.Module):
    """Eight Gaussians with a standard deviation of .3 on a circle."""

    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(8) * torch.pi / 4
        self.register_buffer("means", 3 * torch.stack([angle.cos(), angle.sin()], 1))

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(-(x[:, None] - self.means).square().sum(2) / 0.18, 1)


class Perceptron(nn.Module):
    r"""Two hidden layers, and $\lVert x \rVert^2 / 2$, which makes it proper; by default the size of the latent energies of the faces."""

    def __init__(self, size: int = 64, hidden: int = 256, scale: float = 1.0) -> None:
        super().__init__()
        layers = (nn.Linear(size, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
        self.net, self.scale = nn.Sequential(*layers), scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.net(x).squeeze(1) + x.square().sum(1) / 2


class CountingEnergy(ce.Energy):
    """An energy that counts the points at which a gradient was taken.

    The count is a tensor, because sampling evaluates a twin, which shares the energy's tensors but not its other attributes.
    """

    counter: Tensor

    def __init__(self, energy: nn.Module, size: int) -> None:
        super().__init__()
        self.energy, self.event_shape = energy, torch.Size([size])
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad:
            self.counter.add_(len(x))
        return self.energy(x)

    def take_count(self) -> int:
        """Returns the count since the last call and sets it to 0."""
        count = int(self.counter)
        self.counter.zero_()
        return count


def effective(draws: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the effective sample sizes and the variances of k numbers, each with shape $(k,)$."""
    n, chains, _ = draws.shape
    means = draws.mean(0)
    spectrum = torch.fft.rfft(draws - means, 1 << (2 * n - 1).bit_length(), dim=0)
    covariance = torch.fft.irfft(spectrum * spectrum.conj(), dim=0)[:n].mean(1) / n
    within, total = covariance[0] * n / (n - 1), covariance[0] + means.var(0)
    correlation = 1 - (within - covariance) / total
    correlation[0] = 1.0
    pairs = correlation[: n // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    pairs = torch.where((pairs < 0).cumsum(0) > 0, 0.0, pairs).cummin(0).values  # Geyer's: positive and falling
    steps = (2 * pairs.sum(0) - 1).clamp_min(1 / math.log10(chains * n))
    return chains * n / steps, total


def least_effective(values: Tensor) -> float:
    """Returns the least effective sample size over numbers, with shape (draws, chains, k), and their squared distances from the mean."""
    x = values.double()
    sizes = torch.cat([effective(some)[0] for some in (x, (x - x.mean((0, 1))).square())])
    return float(sizes.nan_to_num(0.0).min())


def cost_figures(points: Tensor, seconds: float, per_draw: float) -> dict[str, float]:
    """Returns the cost of draws with shape (draws, chains, k), of which each took some gradients."""
    samples = least_effective(points)
    costs = {"gradients_per_effective_sample": per_draw * len(points) * points.shape[1] / samples, "gradients_per_draw": per_draw}
    return {**costs, "effective_samples": samples, "effective_samples_per_second": samples / seconds}
