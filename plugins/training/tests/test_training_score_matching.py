"""Denoising score matching against the closed form of a Gaussian."""

import math

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_training import DenoisingScoreMatching
from plugins.training.tests.objective_helpers import batch_of, data, gradients


class NoisyBell(ce.Energy):
    """The energy of N(mean, variance) with noise of any level; what is to be learnt are mean and variance."""

    def __init__(self, mean: float, variance: float) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.tensor(mean, dtype=torch.float64))
        self.variance = nn.Parameter(torch.tensor(variance, dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / (2 * (self.variance + sigma.square()))


def test_denoising_is_least_at_the_density_of_the_data():
    """At the truth the error is $v / (v + s^2)$ at each level, averaged over log s; and the gradient has mean zero."""
    rows, low, high, mean, variance = 200_000, 0.3, 3.0, 0.7, 0.5
    model = NoisyBell(mean, variance)
    loss = DenoisingScoreMatching(low, high).loss(model, batch_of(mean + math.sqrt(variance) * data(rows, 1)))
    expected = 1 - math.log((variance + high**2) / (variance + low**2)) / (2 * math.log(high / low))
    assert abs(loss.value.item() - expected) < 4 * math.sqrt(2 / rows)
    by_mean, by_variance = gradients(model, loss)
    assert abs(by_mean) < 4 * 2 / math.sqrt(rows) and abs(by_variance) < 4 * 2 / math.sqrt(rows)
    for wrong in (NoisyBell(mean + 0.3, variance), NoisyBell(mean, 2 * variance), NoisyBell(mean, variance / 2)):
        assert DenoisingScoreMatching(low, high).loss(wrong, batch_of(mean + math.sqrt(variance) * data(rows, 1))).value > loss.value


@pytest.mark.slow
def test_denoising_learns_the_score_of_gaussian_data():
    rows, model = 2000, NoisyBell(0.0, 2.0)
    x = 1.2 + 0.6 * data(rows, 1)
    objective, optimizer = DenoisingScoreMatching(0.1, 2.0), torch.optim.Adam(model.parameters(), 0.03)
    found = []
    for step in range(1, 401):
        optimizer.zero_grad()
        objective.loss(model, batch_of(x, step)).value.backward()
        optimizer.step()
        if step > 200:
            found.append(torch.stack([model.mean.detach(), model.variance.detach()]))
    mean, variance = torch.stack(found).mean(0)
    assert abs(mean - x.mean()) < 0.6 / math.sqrt(rows) * 2
    assert abs(variance - x.var()) < 0.36 * math.sqrt(2 / rows) * 2


def test_noise_levels_are_log_uniform_and_belong_to_rows():
    seen = []

    class Watch(ce.Energy):
        def forward(self, x: Tensor, sigma: Tensor, y: Tensor) -> Tensor:
            seen.append((sigma, y))
            return x.square().sum(1) * sigma

    rows, objective = 4000, DenoisingScoreMatching(0.01, 10.0, condition="kind")
    x, kind = data(rows, 2), torch.arange(rows)
    whole = objective.loss(Watch(), batch_of(x, kind=kind)).value
    first, rest = (
        objective.loss(Watch(), batch_of(x[part.start : part.stop], 1, part, kind=kind[part.start : part.stop])).value
        for part in (range(999), range(999, rows))
    )
    torch.testing.assert_close((999 * first + (rows - 999) * rest) / rows, whole, rtol=1e-12, atol=0)
    sigma, y = seen[0]
    assert torch.equal(torch.cat([seen[1][0], seen[2][0]]), sigma) and torch.equal(y, kind)
    share = sigma.log().sub(math.log(0.01)).div(math.log(1000)).sort().values
    expected = (torch.arange(rows) + 0.5) / rows
    assert (share - expected).abs().max() < 1.95 / math.sqrt(rows)  # Kolmogorov and Smirnov's distance, a thousandth beyond
