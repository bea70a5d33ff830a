"""Score matching, energy discrepancy, recovery likelihood, energy matching and sums, by closed forms; gradients of gradients."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm
from torch.utils.checkpoint import checkpoint

import composable_energy as ce
import composable_energy_training as training
from composable_energy.errors import ExpressionError, OptionError
from composable_energy_training import CombinedObjective, ContrastiveDivergence, EnergyDiscrepancy, GaussianNoise, LabelContrast
from composable_energy_training.second_derivatives import differentiable_gradient
from plugins.training.tests.run_helpers import LANGEVIN, Bell, Net, NoisyBell, batch_of, context, data, gradients
from tests.refusals import refusals, refused

MEAN, DEVIATION, ROWS = 1.2, 0.6, 2000
GAUSSIAN = MEAN + DEVIATION * data(ROWS, 1)
CHAINS: dict[str, Any] = {"buffer": ROWS, "fresh": 0.0, "l2": 0.0}
KINDS = ("plain", "strided", "grouped", "dilated", "same", "no bias", "spectral", "pooled", "line", "volume", "in place")


class Levelled(Bell):
    """A Gaussian with learnable mean, precision and level, for objectives that learn normalized densities."""

    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.level


class TwoModes(ce.Energy):
    """A mixture of two narrow Gaussians at -2 and 2 with a learnable share."""

    def __init__(self) -> None:
        super().__init__()
        self.logit = nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        exponents = torch.stack([-2 * (x[:, 0] - 2).square(), -2 * (x[:, 0] + 2).square()], 1)
        return -(exponents + torch.stack([nn.functional.logsigmoid(self.logit), nn.functional.logsigmoid(-self.logit)])).logsumexp(1)


def linear() -> ce.Energy:
    """Returns an energy that rises along a slope, at first nowhere."""
    slope = nn.Linear(2, 1, bias=False, dtype=torch.float64)
    nn.init.zeros_(slope.weight)
    return ce.as_energy(nn.Sequential(slope, nn.Flatten(0)))


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


# It is contrastive divergence with its own chains.
WITHOUT_FLOW = training.EnergyMatching(temperature=1.0, warm_up=0, flow=0.0, steps=60, step_size=0.03, coupling=1)


@pytest.mark.full
@pytest.mark.parametrize(
    ("model", "objective", "settings", "width"),
    [
        (Bell, EnergyDiscrepancy(1.0, particles=32), {"steps": 300}, 3),
        *(
            (Bell, ContrastiveDivergence(steps=steps, sampler=sampler, options=options, **CHAINS, **kept), {"steps": 240, "rate": 0.05}, 2)
            for sampler, steps, options, kept in (
                ("langevin", 4, {"step_size": 0.05}, {"start": "normal"}),
                ("mala", 3, {"step_size": 0.5}, {"start": "normal"}),
                ("hmc", 2, {"step_size": 0.4, "leapfrogs": 3}, {"start": "normal"}),
                ("mala", 3, {"step_size": 0.5}, {"start": "data", "persistent": False}),
            )
        ),
        # The step is exact for the Gaussian of the noisier point, so that a few large steps suffice.
        (NoisyBell, training.DiffusionRecoveryLikelihood(0.1, 0.4, ratio=2.0, steps=20, step_size=0.2), {"steps": 200, "rate": 0.05}, 4),
        (Bell, WITHOUT_FLOW, {"steps": 200, "rate": 0.05}, 5),
    ],
)
def test_a_gaussian_is_learnt(model, objective, settings, width):
    check_gaussian(learn(model(), objective, GAUSSIAN, **settings), GAUSSIAN, width)


@pytest.mark.full
def test_energy_discrepancy_sees_the_weights_of_modes_that_its_noise_connects():
    """Seven of ten points are at 2. Noise of variance 4 reaches from one mode to the other; noise of variance .01 leaves the gradient 0."""
    x = 0.5 * data(ROWS, 1) + torch.where(torch.arange(ROWS)[:, None] % 10 < 7, 2.0, -2.0)
    found = learn(TwoModes(), EnergyDiscrepancy(4.0, particles=32), x, steps=200, rate=0.05)["logit"].sigmoid()
    assert abs(found - 0.7) < 4 * math.sqrt(0.7 * 0.3 / ROWS)
    model = TwoModes()
    assert abs(gradients(model, EnergyDiscrepancy(0.01, particles=32).loss(model, batch_of(x)))[0]) < 1e-3


@pytest.mark.full
def test_noise_contrast_learns_a_gaussian_with_its_level():
    """The level is that of -log p, so that the log normalizer is 0."""
    found = learn(Levelled(), training.NoiseContrastive(GaussianNoise.fit(GAUSSIAN, widen=1.5), ratio=4), GAUSSIAN)
    check_gaussian(found, GAUSSIAN, 3)
    assert abs(found["level"] - (math.log(2 * math.pi) / 2 + GAUSSIAN.std().log())) < 3 / math.sqrt(ROWS)


def test_noise_contrast_is_least_and_stationary_at_the_truth():
    rows, noise = 100_000, GaussianNoise(torch.zeros(1, dtype=torch.float64), torch.eye(1, dtype=torch.float64) * 2)
    model, objective = Levelled(), training.NoiseContrastive(noise, ratio=2)
    with torch.no_grad():
        model.level.fill_(math.log(2 * math.pi) / 2)
    for gradient in gradients(model, objective.loss(model, batch_of(data(rows, 1)))):
        assert abs(gradient) < 5 / math.sqrt(rows)


@pytest.mark.full
def test_a_flow_fits_what_no_gaussian_fits_and_its_draws_follow_its_density():
    angle = 2 * math.pi * torch.rand(2000, generator=torch.Generator().manual_seed(0))
    ring = torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * data(2000, 2).float()
    flow, gaussian = training.FlowNoise.fit(ring, layers=4, hidden=32, steps=300, rate=5e-3), GaussianNoise.fit(ring)
    assert flow.log_prob(ring).mean() > gaussian.log_prob(ring).mean() + 0.3
    batch = batch_of(torch.zeros(4000, 2))
    x, log_prob = flow.draw(batch.x, batch.noise)
    torch.testing.assert_close(flow.log_prob(x), log_prob, rtol=1e-3, atol=1e-3)
    grid = torch.cartesian_prod(*(torch.linspace(-4, 4, 161),) * 2)
    assert abs((flow.log_prob(grid).exp().sum() * 0.05**2) - 1) < 0.01
    inside = (flow.log_prob(grid).exp() * (grid.norm(dim=1) < 1)).sum() * 0.05**2
    assert abs((x.norm(dim=1) < 1).float().mean() - inside) < 4 * 0.5 / math.sqrt(4000) + 0.01


@pytest.mark.full
def test_energy_matching_learns_the_flow_to_a_moved_normal():
    """Optimal transport from N(0, I) to N(m, I) is the move by m: the potential is linear, with the slope -m over the temperature."""
    move, temperature = torch.tensor([1.5, -0.5], dtype=torch.float64), 0.5
    x, objective = move + data(ROWS, 2), training.EnergyMatching(temperature=temperature, warm_up=1000, coupling=40)
    (slope,) = learn(linear(), objective, x, steps=200, rate=0.1).values()
    assert (slope[0] * temperature + x.mean(0)).abs().max() < 4 / math.sqrt(100 * ROWS)


def test_matched_pairs_are_shorter_and_the_magnitude_is_that_of_the_potential():
    x, model = data(32, 2) + 3, linear()
    losses = [training.EnergyMatching(temperature=1.0, warm_up=1, coupling=size).loss(model, batch_of(x)).value for size in (1, 16, 32)]
    assert losses[0] > losses[1] > losses[2]
    cold = training.EnergyMatching(temperature=0.01, warm_up=0, steps=1, coupling=1).loss(Bell(), batch_of(x[:, :1])).scalars
    assert abs(cold["magnitude"] - 0.01 * (cold["energy"] + cold["energy_negative"]) / 2) < 1e-9


@pytest.mark.parametrize(
    "objective",
    [
        EnergyDiscrepancy(0.5, particles=3, condition="kind"),
        training.NoiseContrastive(GaussianNoise(torch.zeros(2).double(), torch.eye(2).double()), ratio=2, condition="kind"),
        training.EnergyMatching(temperature=0.5, warm_up=0, steps=5, coupling=2, condition="kind"),
    ],
)
def test_a_loss_is_the_mean_over_the_rows_of_all_processes(objective):
    x, kind, model = data(12, 2), torch.arange(12) % 3, Net(3)
    whole = objective.loss(model, batch_of(x, kind=kind))
    first, rest = (objective.loss(model, batch_of(x[r], 1, range(12)[r], kind=kind[r])).value for r in (slice(4), slice(4, 12)))
    torch.testing.assert_close((first + 2 * rest) / 3, whole.value, rtol=1e-10, atol=1e-10)
    assert any(gradient.abs().sum() > 0 for gradient in gradients(model, whole))


def test_denoising_is_least_at_the_density_of_the_data():
    """At the truth the error is $v / (v + s^2)$ at each level, averaged over log s; and the gradient has mean zero."""
    rows, low, high, mean, variance = 200_000, 0.3, 3.0, 0.7, 0.5
    model, batch = NoisyBell(mean, variance), batch_of(mean + math.sqrt(variance) * data(rows, 1))
    loss = training.DenoisingScoreMatching(low, high).loss(model, batch)
    expected = 1 - math.log((variance + high**2) / (variance + low**2)) / (2 * math.log(high / low))
    assert abs(loss.value.item() - expected) < 4 * math.sqrt(2 / rows)
    by_mean, by_log_variance = gradients(model, loss)
    assert abs(by_mean) < 4 * 2 / math.sqrt(rows) and abs(by_log_variance / variance) < 4 * 2 / math.sqrt(rows)
    for wrong in (NoisyBell(mean + 0.3, variance), NoisyBell(mean, 2 * variance), NoisyBell(mean, variance / 2)):
        assert training.DenoisingScoreMatching(low, high).loss(wrong, batch).value > loss.value
    with pytest.warns(training.TrainingWarning, match="excess: the loss exceeds that of an energy that learnt nothing"):
        training.Trainer(NoisyBell(0.0, 1.0), training.DenoisingScoreMatching(low, high), 1e3 * data(200, 1), steps=50).fit()


def test_with_a_scale_all_levels_count_alike():
    r"""For normal points of variance $s^2$ the weight makes the error at the truth 1 at each level; `scale` must be positive."""
    rows, variance = 200_000, 0.5
    points = batch_of(0.7 + math.sqrt(variance) * data(rows, 1))
    loss = training.DenoisingScoreMatching(0.3, 3.0, scale=math.sqrt(variance)).loss(NoisyBell(0.7, variance), points)
    assert abs(loss.value.item() - 1) < 4 * math.sqrt(2 / rows)
    refused(OptionError, "scale must be", training.DenoisingScoreMatching, 0.3, 3.0, scale=0.0)


def test_noise_levels_are_log_uniform_and_belong_to_rows():
    seen = []
    watch = ce.as_energy(lambda x, sigma, y: seen.append((sigma, y)) or x.square().sum(1) * sigma)
    rows, objective = 4000, training.DenoisingScoreMatching(0.01, 10.0, condition="kind")
    x, kind = data(rows, 2), torch.arange(rows)
    whole = objective.loss(watch, batch_of(x, kind=kind)).value
    parts = slice(999), slice(999, rows)
    first, rest = (objective.loss(watch, batch_of(x[part], 1, range(rows)[part], kind=kind[part])).value for part in parts)
    torch.testing.assert_close((999 * first + (rows - 999) * rest) / rows, whole, rtol=1e-12, atol=0)
    sigma, y = seen[0]
    assert torch.equal(torch.cat([seen[1][0], seen[2][0]]), sigma) and torch.equal(y, kind)
    share, expected = sigma.log().sub(math.log(0.01)).div(math.log(1000)).sort().values, (torch.arange(rows) + 0.5) / rows
    assert (share - expected).abs().max() < 1.95 / math.sqrt(rows)  # Kolmogorov and Smirnov's distance, a thousandth beyond


class Table(ce.Energy):
    """Linear energies, one row of weights for each of five classes."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Parameter(data(5, 2, seed=1))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x * self.rows[y]).sum(1)


def test_with_all_classes_it_is_cross_entropy():
    x, kind, model = data(12, 2), torch.arange(12) % 5, Table()
    loss, logits = LabelContrast("kind", classes=range(5)).loss(model, batch_of(x, kind=kind)), -x @ model.rows.T
    torch.testing.assert_close(loss.value, F.cross_entropy(logits, kind))
    assert loss.scalars["accuracy"] == (logits.argmax(1) == kind).double().mean()
    squares = LabelContrast("kind", classes=range(5), l2=0.5).loss(model, batch_of(x, kind=kind)).value - loss.value
    torch.testing.assert_close(squares, 0.5 * logits.gather(1, kind[:, None]).square().mean())


def test_energies_of_other_classes_are_left_alone():
    x, kind, model = data(12, 2), 1 + 2 * (torch.arange(12) % 2), Table()
    for objective in (LabelContrast("kind"), LabelContrast("kind", classes=(3, 1))):
        changed = gradients(model, objective.loss(model, batch_of(x, kind=kind)))[0].abs().sum(1) > 0
        assert changed.tolist() == [False, True, False, True, False]


def test_the_loss_is_the_weighted_sum_with_noise_of_its_own_for_each():
    x, kind, model = data(8, 2), torch.arange(8) % 3, Net(3)
    batch, parts = batch_of(x, kind=kind), (LabelContrast("kind"), EnergyDiscrepancy(0.5))
    combined = CombinedObjective(*parts, weights=(0.5, 2.0)).loss(model, batch)
    twice = CombinedObjective(EnergyDiscrepancy(0.5), EnergyDiscrepancy(0.5)).loss(model, batch).value
    assert twice != 2 * CombinedObjective(EnergyDiscrepancy(0.5)).loss(model, batch).value
    without = CombinedObjective(*parts, weights=(0.0, 2.0)).loss(model, batch).value
    torch.testing.assert_close(combined.value - without, 0.5 * parts[0].loss(model, batch).value)
    assert combined.scalars["margin"] == parts[0].loss(model, batch).scalars["margin"]


def test_states_of_all_parts_are_saved_and_restored():
    def fresh():
        part = ContrastiveDivergence(**LANGEVIN, buffer=8, start="normal")
        combined = CombinedObjective(LabelContrast("kind"), part, part)
        combined.begin(Net(3), context(8, (2,)))
        return combined

    first, second = fresh(), fresh()
    first.loss(Net(3), batch_of(data(8, 2), kind=torch.arange(8) % 3))
    assert sorted(first.state()) == ["1.slots", "2.slots"] and not torch.equal(first.state()["1.slots"], second.state()["1.slots"])
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())


test_bad_sums_are_reported = refusals(
    (lambda: CombinedObjective(), "got 0 and 0 weights"),
    (lambda: CombinedObjective(EnergyDiscrepancy(1.0), weights=[1, 2]), "got 1 and 2 weights"),
    (lambda: CombinedObjective(EnergyDiscrepancy(1.0), weights=[-1]), "weights must be a number of at least 0, got -1"),
    (lambda: CombinedObjective("contrast"), "A sum needs objectives"),
    error=OptionError,
)


class Convolutions(nn.Module):
    """A scalar of two convolutions of a kind."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = {"line": nn.Conv1d, "volume": nn.Conv3d}.get(kind, nn.Conv2d)
        options: dict[str, Any] = {
            "strided": {"stride": 2, "padding": (1, 0)},
            "grouped": {"groups": 2, "padding": 1},
            "dilated": {"dilation": 2, "padding": 2},
            "same": {"padding": "same"},
            "no bias": {"bias": False},
        }.get(kind, {"padding": 1})
        self.first, self.second = layer(2, 4, 3, **options), layer(4, 4, 3, padding=1)
        self.first = spectral_norm(self.first) if kind == "spectral" else self.first
        self.activation, self.pool = nn.SiLU(inplace=kind == "in place"), nn.AvgPool2d(2) if kind == "pooled" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.second(self.pool(self.activation(self.first(x))))).square().flatten(1).sum(1)


def points(kind: str) -> Tensor:
    return torch.randn(3, 2, *[8] * {"line": 1, "volume": 3}.get(kind, 2), generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def plain_gradient(function: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    point = x if x.requires_grad else x.detach().requires_grad_()
    values = function(point)
    return values, torch.autograd.grad(values.sum(), point, create_graph=True)[0]


def derivatives(gradient_of: Any, function: Any, x: Tensor, parameters: Any) -> list[Tensor]:
    """Energies, gradients, and the derivatives of a loss of both."""
    values, gradient = gradient_of(function, x)
    loss = (gradient * torch.cos(3 * gradient)).sum() + values.square().sum()
    return [values, gradient, *torch.autograd.grad(loss, parameters, retain_graph=True)]


def assert_same(function: Any, x: Tensor, parameters: Any, tolerance: float = 1e-10) -> None:
    ours, theirs = (derivatives(kind, function, x, parameters) for kind in (differentiable_gradient, plain_gradient))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("kind", "again"), [*((kind, False) for kind in KINDS), ("pooled", True), ("spectral", True)])
def test_derivatives_of_weights_are_those_of_torch_also_where_layers_are_computed_again(kind, again):
    net = Convolutions(kind).double().eval()
    assert_same((lambda x: checkpoint(net, x, use_reentrant=False)) if again else net, points(kind), list(net.parameters()))


def test_channels_last_and_points_with_a_graph_make_no_difference():
    net, x = Convolutions("plain").double(), points("plain")
    for weight in list(net.parameters())[::2]:
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    assert_same(net, x, list(net.parameters()))
    x.requires_grad_()
    assert_same(net, x, [x, *net.parameters()])
    assert_same(net, x * 2, [x, *net.parameters()])


def test_weights_that_depend_on_the_points_count():
    """In a hypernetwork the gradient with respect to points passes through weights."""
    torch.manual_seed(0)
    net = nn.Linear(2 * 64, 2 * 4 * 9).double()

    def energy(x: Tensor) -> Tensor:
        return F.silu(F.conv2d(x, net(x.flatten(1)).sum(0).view(4, 2, 3, 3), padding=1)).flatten(1).sum(1)

    assert_same(energy, points("plain"), list(net.parameters()))


def test_autocast_rounds_as_torch_does():
    net, x = Convolutions("pooled"), points("pooled").float()
    found = []
    for gradient_of in (differentiable_gradient, plain_gradient):
        with torch.autocast("cpu", torch.bfloat16):
            loss = (gradient_of(net, x)[1] ** 2).sum()
        found.append(torch.autograd.grad(loss, list(net.parameters())))
    exact = torch.autograd.grad((plain_gradient(net, x)[1] ** 2).sum(), list(net.parameters()))
    for one, other, right in zip(*found, exact, strict=True):
        assert one.dtype == right.dtype and (one - right).norm() < max(2 * (other - right).norm(), 0.02 * right.norm())


def test_energies_that_ignore_points_have_no_gradient():
    weight = torch.ones(3, requires_grad=True)
    for energy in (lambda _: weight * 2, lambda x: x.detach().flatten(1).sum(1), lambda x: x.detach().flatten(1).sum(1) * weight):
        refused(ExpressionError, "no gradient at its points", differentiable_gradient, energy, points("plain"))
