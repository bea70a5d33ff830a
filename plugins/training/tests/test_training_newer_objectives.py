"""Energy discrepancy, noise contrast, recovery likelihood and energy matching against closed forms of Gaussians and mixtures."""

import math

import pytest
import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy_training import (
    DiffusionRecoveryLikelihood,
    EnergyDiscrepancy,
    EnergyMatching,
    FlowNoise,
    GaussianNoise,
    NoiseContrastive,
)
from plugins.training.tests.objective_helpers import Bell, Net, batch_of, context, data, gradients

MEAN, DEVIATION, ROWS = 1.2, 0.6, 2000


class Levelled(Bell):
    """A Gaussian with learnable mean, precision and level, for objectives that learn normalized densities."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.level


class NoisyBell(ce.Energy):
    """The energy of a Gaussian with noise of any level."""

    def __init__(self) -> None:
        super().__init__()
        self.mean = nn.Parameter(torch.zeros((), dtype=torch.float64))
        self.log_variance = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return (x - self.mean).square().sum(1) / (2 * (self.log_variance.exp() + sigma.square()))


class TwoModes(ce.Energy):
    """A mixture of two narrow Gaussians at -2 and 2 with a learnable share."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        exponents = torch.stack([-2 * (x[:, 0] - 2).square(), -2 * (x[:, 0] + 2).square()], 1)
        shares = torch.stack([nn.functional.logsigmoid(self.logit), nn.functional.logsigmoid(-self.logit)])
        return -(exponents + shares).logsumexp(1)


class Slope(ce.Energy):
    """A linear energy."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.slope


def gaussian_points() -> Tensor:
    return MEAN + DEVIATION * data(ROWS, 1)


def learn(model, objective, x, steps=400, rate=0.03, **labels) -> dict[str, Tensor]:
    """Minimizes the objective, and returns the parameters averaged over the second half of the steps."""
    objective.begin(model, context(len(x), x.shape[1:]))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    totals = {name: torch.zeros_like(value) for name, value in model.named_parameters()}
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        objective.loss(model, batch_of(x, step, **labels)).value.backward()
        optimizer.step()
        if step > steps // 2:
            for name, value in model.named_parameters():
                totals[name] += value.detach() / (steps - steps // 2)
    return totals


def check_gaussian(found, x, width):
    """Checks a mean and a variance within some standard errors of an efficient estimate."""
    error = DEVIATION / math.sqrt(ROWS)
    assert abs(found["mean"] - x.mean()) < width * error
    variance = found["log_variance"].exp() if "log_variance" in found else (-found["log_precision"]).exp()
    assert abs(variance - x.var()) < width * error * DEVIATION * math.sqrt(2)


@pytest.mark.full
def test_energy_discrepancy_learns_a_gaussian():
    x = gaussian_points()
    check_gaussian(learn(Bell(), EnergyDiscrepancy(1.0, particles=32), x, steps=300), x, 3)


@pytest.mark.full
def test_energy_discrepancy_sees_the_weights_of_modes_that_its_noise_connects():
    """Seven of ten points are at 2. Noise of variance 4 reaches from one mode to the other; noise of variance .01 leaves the gradient 0."""
    x = 0.5 * data(ROWS, 1) + torch.where(torch.arange(ROWS)[:, None] % 10 < 7, 2.0, -2.0)
    found = learn(TwoModes(), EnergyDiscrepancy(4.0, particles=32), x, steps=200, rate=0.05)["logit"].sigmoid()
    assert abs(found - 0.7) < 4 * math.sqrt(0.7 * 0.3 / ROWS)
    model = TwoModes()
    blind = gradients(model, EnergyDiscrepancy(0.01, particles=32).loss(model, batch_of(x)))[0]
    assert abs(blind) < 1e-3


@pytest.mark.full
def test_noise_contrast_learns_a_gaussian_with_its_level():
    """The level is that of -log p, so that the log normalizer is 0."""
    x = gaussian_points()
    found = learn(Levelled(), NoiseContrastive(GaussianNoise.fit(x, widen=1.5), ratio=4), x)
    check_gaussian(found, x, 3)
    level = math.log(2 * math.pi) / 2 + x.std().log()
    assert abs(found["level"] - level) < 3 / math.sqrt(ROWS)


def test_noise_contrast_is_least_and_stationary_at_the_truth():
    rows, noise = 100_000, GaussianNoise(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64) * 2)
    model, objective = Levelled(), NoiseContrastive(noise, ratio=2)
    with torch.no_grad():
        model.level.fill_(math.log(2 * math.pi) / 2)
    for gradient in gradients(model, objective.loss(model, batch_of(data(rows, 1)))):
        assert abs(gradient) < 5 / math.sqrt(rows)


@pytest.mark.full
def test_a_flow_fits_what_no_gaussian_fits_and_its_draws_follow_its_density():
    angle = 2 * math.pi * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * data(2000, 2).float()
    flow, gaussian = FlowNoise.fit(ring, layers=4, hidden=32, steps=300, rate=5e-3), GaussianNoise.fit(ring)
    assert flow.log_prob(ring).mean() > gaussian.log_prob(ring).mean() + 0.3
    batch = batch_of(torch.zeros(4000, 2))
    x, log_prob = flow.draw(batch.x, batch.noise)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-3, atol=1e-3)
    grid = torch.cartesian_prod(*(torch.linspace(-4, 4, 161),) * 2)
    mass = flow.log_prob(grid).exp().sum() * 0.05**2
    assert abs(mass - 1) < 0.01
    inside = (flow.log_prob(grid).exp() * (grid.norm(dim=1) < 1)).sum() * 0.05**2
    share = (x.norm(dim=1) < 1).float().mean()
    assert abs(share - inside) < 4 * 0.5 / math.sqrt(4000) + 0.01


@pytest.mark.full
def test_recovery_likelihood_learns_a_gaussian_at_all_levels():
    """The step is exact for the Gaussian of the noisier point, so that a few large steps suffice."""
    x = gaussian_points()
    objective = DiffusionRecoveryLikelihood(0.1, 0.4, ratio=2.0, steps=20, step_size=0.2)
    check_gaussian(learn(NoisyBell(), objective, x, steps=200, rate=0.05), x, 4)


@pytest.mark.full
def test_energy_matching_without_flow_is_contrastive_divergence_with_its_own_chains():
    x = gaussian_points()
    objective = EnergyMatching(temperature=1.0, warm_up=0, flow=0.0, steps=60, step_size=0.03, coupling=1)
    check_gaussian(learn(Bell(), objective, x, steps=200, rate=0.05), x, 5)


@pytest.mark.full
def test_energy_matching_learns_the_flow_to_a_moved_normal():
    """Optimal transport from N(0, I) to N(m, I) is the move by m: the potential is linear, with the slope -m over the temperature."""
    move, temperature = torch.tensor([1.5, -0.5], dtype=torch.float64), 0.5
    x = move + data(ROWS, 2)
    objective = EnergyMatching(temperature=temperature, warm_up=1000, coupling=40)
    found = learn(Slope(), objective, x, steps=200, rate=0.1)
    assert (found["slope"] * temperature + x.mean(0)).abs().max() < 4 / math.sqrt(100 * ROWS)


def test_matched_pairs_are_shorter_and_keep_all_starts():
    x, model = data(32, 2) + 3, Slope()
    losses = [EnergyMatching(temperature=1.0, warm_up=1, coupling=size).loss(model, batch_of(x)).value for size in (1, 16, 32)]
    assert losses[0] > losses[1] > losses[2]


@pytest.mark.parametrize(
    "objective",
    [
        EnergyDiscrepancy(0.5, particles=3, condition="kind"),
        NoiseContrastive(GaussianNoise(torch.zeros(2).double(), torch.eye(2).double()), ratio=2, condition="kind"),
        EnergyMatching(temperature=0.5, warm_up=0, steps=5, coupling=2, condition="kind"),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_a_loss_is_the_mean_over_the_rows_of_all_processes(objective):
    x, kind, model = data(12, 2), torch.arange(12) % 3, Net(3)
    whole = objective.loss(model, batch_of(x, kind=kind))
    parts = [(range(4), 4), (range(4, 12), 8)]
    losses = [
        (n * objective.loss(model, batch_of(x[rows.start : rows.stop], 1, rows, kind=kind[rows.start : rows.stop])).value) / 12
        for rows, n in parts
    ]
    torch.testing.assert_close(sum(losses), whole.value, rtol=1e-10, atol=1e-10)
    assert any(gradient.abs().sum() > 0 for gradient in gradients(model, whole))
