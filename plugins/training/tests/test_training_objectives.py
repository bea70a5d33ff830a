"""Objectives of training, each against a closed form, finite differences, or itself on other processes."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.noise import Noise
from composable_energy_training import (
    AttributeHeads,
    Batch,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    ImprovedContrastiveDivergence,
    JointEnergyClassifier,
    Place,
)
from composable_energy_training.negatives import Negatives

CPU = torch.device("cpu")


def cast(anything: Any) -> Any:
    """What a caller without a type checker may pass."""
    return anything


class Bell(ce.Energy):
    """A Gaussian with a mean and a precision that are learnt."""

    def __init__(self, mean: float = 0.0, precision: float = 1.0, dtype=torch.float64) -> None:
        super().__init__()
        self.event_shape = (1,)
        self.mean = nn.Parameter(torch.tensor(mean, dtype=dtype))
        self.log_precision = nn.Parameter(torch.tensor(math.log(precision), dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return (self.log_precision.exp() * (x - self.mean).square() / 2).sum(1)


class Net(ce.Energy):
    """A small network, with dropout that sampling must not see, for points of two numbers and perhaps a label."""

    def __init__(self, labels: int = 0, dropout: float = 0.0) -> None:
        super().__init__()
        self.event_shape = (2,)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 1)).double()
            self.table = nn.Embedding(max(1, labels), 2).double()

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        x = x if y is None else x + self.table(y)
        return self.layers(x)[:, 0] + x.square().sum(1) / 2


def place(batch_size, shape=(1,), rows=None, dtype=torch.float64):
    return Place(batch_size, rows or range(batch_size), torch.Size(shape), CPU, dtype, seed=0)


def batch_of(x, step=1, rows=None, **labels):
    return Batch(x, labels, Noise(3, rows or range(len(x)), step))


def data(rows, *event, seed=0):
    return torch.randn(rows, *event, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(model, loss) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss.value, list(model.parameters()), allow_unused=True, materialize_grads=True)


# Contrastive divergence ---------------------------------------------------------------------------------------------------------------


def test_with_draws_of_the_model_the_gradient_is_that_of_the_likelihood():
    """At the model N(mean, 1/p): dE/dmean = -p (x - mean) and dE/dlog p = p (x - mean)^2 / 2."""
    rows, model = 20_000, Bell(0.5, 4.0)
    exact = lambda like, noise: 0.5 + noise.normal(like) / 2
    objective = ContrastiveDivergence(steps=2, sampler="mala", options={"step_size": 0.1}, start=exact, persistent=False, l2=0.0)
    objective.begin(model, place(rows))
    x = data(rows, 1) + 1
    by_mean, by_precision = gradients(model, objective.loss(model, batch_of(x)))
    of_data = -4 * (x - 0.5).mean(), 2 * (x - 0.5).square().mean()
    assert abs(by_mean - (of_data[0] - 0)) < 4 * 2 / math.sqrt(rows)  # the standard deviation of p (x' - mean) is 2
    assert abs(by_precision - (of_data[1] - 0.5)) < 4 * math.sqrt(0.5 / rows)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "options", "settings"),
    [
        ("langevin", {"step_size": 0.05}, {"steps": 4}),
        ("mala", {"step_size": 0.5}, {"steps": 3}),
        ("hmc", {"step_size": 0.4, "leapfrogs": 3}, {"steps": 2}),
        ("mala", {"step_size": 0.5}, {"steps": 3, "persistent": False, "start": "data"}),
    ],
)
def test_training_finds_the_mean_and_the_variance_of_the_data(sampler, options, settings):
    rows, model = 256, Bell()
    x = 1.5 + 0.7 * data(rows, 1)
    objective = ContrastiveDivergence(
        sampler=sampler, options=options, buffer=rows, fresh=0.0, start=settings.pop("start", "normal"), l2=0.0, **settings
    )
    objective.begin(model, place(rows))
    optimizer, found = torch.optim.Adam(model.parameters(), 0.05), []
    for step in range(1, 241):
        optimizer.zero_grad()
        objective.loss(model, batch_of(x, step)).value.backward()
        optimizer.step()
        if step > 120:
            found.append(torch.stack([model.mean.detach(), (-model.log_precision.detach()).exp()]))
    mean, variance = torch.stack(found).mean(0)
    assert abs(mean - x.mean()) < 2 * 0.7 / math.sqrt(rows)
    assert abs(variance - x.var()) < 2 * 0.49 * math.sqrt(2 / rows)


LANGEVIN: dict[str, Any] = {"steps": 3, "options": {"step_size": 0.1}}


@pytest.mark.parametrize("settings", [{}, {"condition": "kind"}, {"persistent": False}, {"sampler": "mala"}], ids=str)
def test_two_processes_give_the_gradients_of_one(settings):
    rows, labels = 10, torch.arange(10) % 3
    x = data(rows, 2)
    settings = {**LANGEVIN, "buffer": 43, "fresh": 0.3, **settings}

    def run(share):
        model, objective = Net(labels=3), ContrastiveDivergence(**settings)
        objective.begin(model, place(rows, (2,), share))
        told = []
        for step in (1, 2, 3):
            loss = objective.loss(model, batch_of(x[share.start : share.stop], step, share, kind=labels[share.start : share.stop]))
            told.append([grad * len(share) / rows for grad in gradients(model, loss)])
        return told

    whole, *shares = (run(share) for share in (range(rows), range(4), range(4, rows)))
    for of_all, of_one, of_other in zip(whole, *shares, strict=True):
        for grad, one, other in zip(of_all, of_one, of_other, strict=True):
            torch.testing.assert_close(one + other, grad, rtol=0, atol=1e-12)


def test_a_restored_objective_goes_on_with_the_same_bits():
    x, model = data(6, 2), Net()

    def begun():
        objective = ContrastiveDivergence(**LANGEVIN, buffer=20)
        objective.begin(model, place(6, (2,)))
        return objective

    first, second = begun(), begun()
    for step in (1, 2, 3):
        first.loss(model, batch_of(x, step))
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert torch.equal(first.loss(model, batch_of(x, 4)).value, second.loss(model, batch_of(x, 4)).value)
    assert all(torch.equal(value, second.state()[name]) for name, value in first.state().items())


def test_chains_are_those_of_sample_without_dropout_and_the_model_is_as_before():
    model, x = Net(dropout=0.5), data(4, 2)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0)
    objective.begin(model, place(4, (2,)))
    began, batch = objective.state()["slots"].clone(), batch_of(x)
    loss = objective.loss(model, batch)
    assert model.training and all(part.training for part in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    seed = batch.noise.child("chains 1").seed
    ended = model.sample((4, 2), sampler="langevin", steps=3, step_size=0.1, init=began, seed=seed)
    assert torch.equal(objective.state()["slots"], ended)
    assert not loss.scalars["energy"].requires_grad and loss.value.requires_grad
    assert not torch.equal(objective.loss(model, batch_of(x, 1)).value, objective.loss(model, batch_of(x, 2)).value)


def test_the_loss_and_its_scalars_are_what_they_say():
    model, x = Net(), data(4, 2)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0, l2=0.7)
    objective.begin(model, place(4, (2,)))
    loss = objective.loss(model, batch_of(x))
    here, there = model(x), model(objective.state()["slots"])
    expected = (here - there).mean() + 0.7 * (here.square() + there.square()).mean()
    torch.testing.assert_close(loss.value, expected)
    told = {"energy": here.mean(), "energy_negative": there.mean(), "gap": (there - here).mean()}
    told |= {"magnitude": torch.cat([here, there]).abs().mean(), "diverged": torch.zeros((), dtype=torch.float64)}
    assert loss.scalars.keys() == told.keys()
    for name, value in told.items():
        torch.testing.assert_close(loss.scalars[name], value.detach())


def test_acceptance_is_told_where_there_is_one():
    objective = ContrastiveDivergence(steps=2, sampler="mala", options={"step_size": 0.5}, buffer=4)
    objective.begin(Net(), place(4, (2,)))
    assert 0.5 < objective.loss(Net(), batch_of(data(4, 2))).scalars["acceptance"] <= 1
    assert objective.loss(Cliff(-math.inf), batch_of(data(4, 2))).scalars["acceptance"] == 0  # processes tell the same whatever happens


class Cliff(ce.Energy):
    """Not a number beyond an edge."""

    def __init__(self, edge: float) -> None:
        super().__init__()
        self.slope, self.edge = nn.Parameter(torch.ones((), dtype=torch.float64)), edge

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x[:, 0] < self.edge, self.slope * x.square().sum(1), torch.nan)


@pytest.mark.parametrize("edge", [0.5, -math.inf])
def test_a_chain_that_diverges_starts_again_and_the_rest_goes_on(edge):
    rows, model = 40, Cliff(edge)
    start = lambda like, noise: noise.uniform(like)[:, None] if noise.step == 0 else torch.full_like(like, -0.25)
    objective = ContrastiveDivergence(steps=1, options={"step_size": 1e-12}, buffer=rows, fresh=0.0, start=start)
    objective.begin(model, place(rows))
    lost = objective.state()["slots"][:, 0] >= edge
    loss = objective.loss(model, batch_of(torch.full((rows, 1), -0.1, dtype=torch.float64)))
    assert loss.scalars["diverged"] == lost.double().mean() > 0
    assert torch.equal(objective.state()["slots"][:, 0] == -0.25, lost)
    assert loss.value.isfinite() == (edge > 0)  # with no finite energy anywhere it is for the monitor to act


def test_a_condition_binds_data_and_chains():
    labels, x = torch.tensor([0, 1, 2, 1]), data(4, 2)
    model = Net(labels=3)
    objective = ContrastiveDivergence(**LANGEVIN, buffer=4, fresh=0.0, condition="kind", l2=0.0)
    objective.begin(model, place(4, (2,)))
    loss = objective.loss(model, batch_of(x, kind=labels))
    torch.testing.assert_close(loss.value, (model(x, y=labels) - model(objective.state()["slots"], y=labels)).mean())


class Line(ce.Energy):
    """Points of one number around a plane over their condition, two numbers; its slopes are learnt."""

    def __init__(self, *slopes: float) -> None:
        super().__init__()
        self.event_shape = (1,)
        self.slopes = nn.Parameter(torch.tensor(slopes, dtype=torch.float64))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return (x[:, 0] - y @ self.slopes).square() / 2


@pytest.mark.parametrize("kind", [ContrastiveDivergence, ImprovedContrastiveDivergence])
def test_a_condition_of_numbers_binds_each_chain_to_its_row(kind):
    """Without noise a chain goes towards its row's own place by the factor 1 - step / 2 a step."""
    spot, x, model = data(4, 2, seed=1), data(4, 1), Line(0.5, -1.0)
    options = {"step_size": 0.4, "temperature": 0.0}
    objective = kind(steps=3, options=options, buffer=8, fresh=0.0, start=lambda like, noise: like + 5, condition="spot", l2=0.0)
    objective.begin(model, place(4))
    loss = objective.loss(model, batch_of(x, spot=spot))
    middle = spot @ model.slopes.detach()
    expected = middle + 0.8**3 * (5 - middle)
    slots = objective.state()["slots"][:, 0]
    torch.testing.assert_close(slots[slots != 5], expected)  # one of each row's two slots
    gap = ((expected - middle).square() - (x[:, 0] - middle).square()).mean() / 2
    torch.testing.assert_close(loss.scalars["gap"], gap)
    with pytest.raises(OptionError, match=r"spot is unknown \(NaN\)"):
        objective.loss(model, batch_of(x, spot=spot.where(spot > 0, torch.nan)))


@pytest.mark.slow
def test_training_finds_how_points_follow_numbers():
    rows, model = 256, Line(0.0, 0.0)
    spot, noise = data(rows, 2, seed=1), data(rows, 1)
    x = spot @ torch.tensor([[2.0], [-1.0]], dtype=torch.float64) + noise
    objective = ContrastiveDivergence(steps=4, options={"step_size": 0.5}, buffer=rows, start="normal", condition="spot", l2=0.0)
    objective.begin(model, place(rows))
    optimizer, found = torch.optim.Adam(model.parameters(), 0.1), []
    for step in range(1, 121):
        optimizer.zero_grad()
        objective.loss(model, batch_of(x, step, spot=spot)).value.backward()
        optimizer.step()
        if step > 60:
            found.append(model.slopes.detach().clone())
    best = torch.linalg.lstsq(spot, x).solution[:, 0]
    assert (torch.stack(found).mean(0) - best).abs().max() < 3 / math.sqrt(rows)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ContrastiveDivergence(steps=0), "steps must be at least 1, got 0"),
        (lambda: ContrastiveDivergence(steps=cast(2.5)), "steps must be a whole number, got 2.5"),
        (lambda: ContrastiveDivergence(steps=1, l2=-1), "l2 must be at least 0, got -1"),
        (lambda: ContrastiveDivergence(steps=1, start=cast("gaussian")), "got 'gaussian'"),
        (lambda: ContrastiveDivergence(steps=1, start="data"), "persistent=False"),
        (lambda: began(ContrastiveDivergence(steps=1)), "langevin needs step_size"),
        (lambda: began(ContrastiveDivergence(steps=1, options={"step": 1})), "langevin has no option step"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN, buffer=3)), "capacity is 3, the batch size 4"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN), nn.Linear(2, 1)), "trains an energy, got Linear"),
        (lambda: ContrastiveDivergence(**LANGEVIN).loss(Net(), batch_of(data(4, 2))), "has not begun"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN, condition="hair")).loss(Net(3), labelled(0)), "no attribute hair; they have kind"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN, condition="kind")).loss(Net(3), labelled(-1)), "kind is unknown"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN)).loss(Net(), scattered()), "follow each other"),
    ],
)
def test_bad_input_is_told(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def began(objective, model=None):
    objective.begin(Net(3) if model is None else model, place(4, (2,)))
    return objective


def labelled(label):
    return batch_of(data(4, 2), kind=torch.tensor([0, 1, 2, label]))


def scattered():
    return Batch(data(2, 2), {}, Noise(0, (1, 3), 1))


def test_an_unknown_sampler_is_told():
    with pytest.raises(ce.errors.PluginNotFound, match="langvin"):
        began(ContrastiveDivergence(steps=1, sampler="langvin"))


# Improved contrastive divergence ------------------------------------------------------------------------------------------------------

IMPROVED: dict[str, Any] = {
    "steps": 3,
    "options": {"step_size": 0.3, "temperature": 0.5, "clamp": (-0.8, 0.8)},
    "fresh": 0.0,
    "start": "normal",
}


def improved_once(model, x, step=50, **settings):
    """Returns the loss of a step, the points before the last step of chains, its noise, their nearest others, and those kept."""
    objective = ImprovedContrastiveDivergence(**{**IMPROVED, "buffer": 30, "entropy_after": 0, **settings})
    objective.begin(model, place(6, (2,)))
    batch, buffer = batch_of(x, step), objective.negatives.buffer
    assert buffer is not None
    before = buffer.state()["slots"].clone()
    slots, chains = buffer.draw(batch.noise)
    noise = batch.noise.child(f"chains {step}")
    moved = model.sample((6, 2), sampler="langevin", steps=2, init=chains, seed=noise.seed, **IMPROVED["options"])
    nearest = buffer.nearest(
        model.sample((6, 2), sampler="langevin", steps=3, init=chains, seed=noise.seed, **IMPROVED["options"]), slots, batch.noise
    )
    assert torch.equal(buffer.state()["slots"], before)
    loss = objective.loss(model, batch)
    return loss, moved, noise.at(3).normal(x), nearest, objective.state()["slots"][slots]


def last_step_by_hand(model, moved, kick):
    y = moved.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(y).sum(), y, create_graph=True)
    return (y - 0.15 * gradient + math.sqrt(0.3 * 0.5) * kick).clamp(-0.8, 0.8)


def test_the_chains_of_the_improved_objective_are_those_of_langevin():
    model, x = Net(), data(6, 2)
    _, moved, kick, _, kept = improved_once(model, x)
    assert torch.equal(kept, last_step_by_hand(model, moved, kick).detach())
    settings: dict[str, Any] = {**IMPROVED, "buffer": 30, "condition": "kind"}
    model, kind = Net(labels=3, dropout=0.5), torch.arange(6) % 3
    whole = ImprovedContrastiveDivergence(**settings), ContrastiveDivergence(**settings)
    for objective in whole:
        objective.begin(model, place(6, (2,)))
        for step in (1, 2):
            objective.loss(model, batch_of(x, step, kind=kind))
    torch.testing.assert_close(*(objective.state()["slots"] for objective in whole), rtol=0, atol=1e-13)


def test_the_terms_of_the_last_step_reach_the_parameters_through_the_points_alone():
    x = data(6, 2)
    model, held = Net(), Net()
    held.requires_grad_(False)
    loss, moved, kick, nearest, _ = improved_once(model, x, kl=0.7, entropy=0.4)
    last = last_step_by_hand(model, moved, kick)
    far = (last - nearest).norm(dim=1).log().mean()
    here, there = model(x), model(last.detach())
    plain = (here - there).mean() + (here.square() + there.square()).mean()
    expected = plain + 0.7 * held(last).mean() - 0.4 * far
    torch.testing.assert_close(loss.value, expected)
    torch.testing.assert_close(loss.scalars["kl"], held(last).mean().detach())
    torch.testing.assert_close(loss.scalars["log_distance"], far.detach())
    for grad, wanted in zip(
        gradients(model, loss), torch.autograd.grad(expected, list(model.parameters()), allow_unused=True), strict=True
    ):
        torch.testing.assert_close(grad, torch.zeros_like(grad) if wanted is None else wanted, rtol=0, atol=1e-12)


def test_the_improved_gradient_is_that_of_finite_differences():
    x, model, held = data(6, 2), Net(), Net()
    loss, moved, kick, nearest, negative = improved_once(model, x)

    def value():
        last = last_step_by_hand(model, moved, kick).detach()
        here, there = model(x), model(negative)
        plain = (here - there).mean() + (here.square() + there.square()).mean()
        return (plain + held(last).mean() - 0.3 * (last - nearest).norm(dim=1).log().mean()).item()

    for parameter, grad in zip(model.parameters(), gradients(model, loss), strict=True):
        for i in range(0, parameter.numel(), 3):
            flat, size = parameter.data.view(-1), 1e-6
            flat[i] += size
            above = value()
            flat[i] -= 2 * size
            below = value()
            flat[i] += size
            assert abs((above - below) / (2 * size) - grad.view(-1)[i]) < 1e-7


def test_without_its_terms_the_improved_objective_is_the_plain_one():
    x = data(6, 2)
    told = []
    settings: dict[str, Any] = {**IMPROVED, "buffer": 30}
    for objective in (ImprovedContrastiveDivergence(**settings, kl=0.0, entropy=0.0), ContrastiveDivergence(**settings)):
        model = Net()
        objective.begin(model, place(6, (2,)))
        told.append(gradients(model, objective.loss(model, batch_of(x))))
    for improved, plain in zip(*told, strict=True):
        torch.testing.assert_close(improved, plain, rtol=0, atol=1e-13)


def test_the_entropy_joins_once_the_buffer_holds_chains():
    x = data(6, 2)
    for step, joins in ((10, False), (11, True)):
        loss, *_ = improved_once(Net(), x, step, entropy_after=60)
        none, *_ = improved_once(Net(), x, step, entropy=0.0)
        torch.testing.assert_close(loss.value, none.value - joins * 0.3 * loss.scalars["log_distance"])


@pytest.mark.parametrize("condition", [None, "kind"])
def test_two_processes_give_the_improved_gradients_of_one(condition):
    rows, x, labels = 6, data(6, 2), torch.arange(6) % 3

    def run(share):
        model, told = Net(labels=3, dropout=0.0), []
        objective = ImprovedContrastiveDivergence(**{**IMPROVED, "fresh": 0.3}, buffer=31, entropy_after=0, condition=condition)
        objective.begin(model, place(rows, (2,), share))
        for step in (1, 2, 3):
            loss = objective.loss(model, batch_of(x[share.start : share.stop], step, share, kind=labels[share.start : share.stop]))
            told += [grad * len(share) / rows for grad in gradients(model, loss)]
        assert model.training and all(parameter.requires_grad for parameter in model.parameters())
        return told

    for grad, one, other in zip(*(run(share) for share in (range(rows), range(2), range(2, rows))), strict=True):
        torch.testing.assert_close(one + other, grad, rtol=0, atol=1e-12)


def test_one_step_of_the_improved_objective_is_the_last_one():
    model, objective = Net(), ImprovedContrastiveDivergence(**{**IMPROVED, "steps": 1}, buffer=12)
    objective.begin(model, place(6, (2,)))
    before = objective.state()["slots"].clone()
    loss = objective.loss(model, batch_of(data(6, 2)))
    assert loss.value.isfinite() and (objective.state()["slots"] != before).any(1).sum() == 6


# Denoising score matching -------------------------------------------------------------------------------------------------------------


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


# Heads --------------------------------------------------------------------------------------------------------------------------------


class Heads(nn.Module):
    def __init__(self, columns: int) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.linear = nn.Linear(3, columns).double()

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.linear(torch.cat([x, sigma[:, None]], 1))


def test_heads_take_the_cross_entropy_of_known_labels():
    rows, model, objective = 8, Heads(5), AttributeHeads({"male": 2, "hair": 3, "smiling": 2}, 0.1, 1.0)
    labels: dict[str, Any] = {
        "smiling": torch.tensor([0, 1, -1, 1, 0, 0, 1, -1]),
        "male": torch.tensor([1, 0, 1, -1, 0, 1, 0, 1]),
        "hair": torch.tensor([2, 1, 0, 2, -1, -1, 1, 0]),
    }
    batch = batch_of(data(rows, 2), **labels)
    loss = objective.loss(model, batch)
    levels = torch.exp(batch.noise.child("level").uniform(batch.x) * math.log(10) + math.log(0.1))
    logits = model(batch.x + levels[:, None] * batch.noise.child("noise").normal(batch.x), levels)
    total, right, known = 0.0, 0, 0
    for row in range(rows):
        male, hair, smiling = logits[row, 0], logits[row, 1:4], logits[row, 4]
        for name, logit in (("male", male), ("smiling", smiling)):
            label = int(labels[name][row])
            if label >= 0:
                total = total - F.logsigmoid(logit if label else -logit)
                right, known = right + int((logit > 0) == bool(label)), known + 1
        if labels["hair"][row] >= 0:
            total = total - hair.log_softmax(0)[labels["hair"][row]]
            right, known = right + int(hair.argmax() == labels["hair"][row]), known + 1
    torch.testing.assert_close(loss.value, torch.as_tensor(total / rows))
    assert loss.scalars["accuracy"].item() == pytest.approx(right / known)


def test_an_unknown_label_has_no_gradient():
    seen = []

    class Watch(Heads):
        def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
            seen.append(super().forward(x, sigma))
            seen[-1].retain_grad()
            return seen[-1]

    loss = AttributeHeads({"male": 2, "hair": 3}, 0.1, 1.0).loss(
        Watch(4), batch_of(data(3, 2), male=torch.tensor([1, -1, 0]), hair=torch.tensor([-1, 2, -1]))
    )
    loss.value.backward()
    assert seen[0].grad.ne(0).tolist() == [[True, *[False] * 3], [False, *[True] * 3], [True, *[False] * 3]]
    nothing = AttributeHeads({"male": 2}, 0.1, 1.0).loss(Heads(1), batch_of(data(3, 2), male=torch.full((3,), -1)))
    assert nothing.value == 0 and nothing.scalars["accuracy"] == 0


# Joint energy and classifier ----------------------------------------------------------------------------------------------------------


class Joint(ce.Energy):
    def __init__(self) -> None:
        super().__init__()
        self.net = Heads(3)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x, x.square().sum(1) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return -self.logits(x).logsumexp(1)


def test_a_joint_loss_is_the_divergence_and_the_cross_entropy():
    model, x, labels = Joint(), data(4, 2), torch.tensor([0, 2, -1, 1])
    settings: dict[str, Any] = {**LANGEVIN, "buffer": 8, "l2": 0.0}
    joint, plain = JointEnergyClassifier(**settings, label="kind", weight=0.5), ContrastiveDivergence(**settings)
    for objective in (joint, plain):
        objective.begin(model, place(4, (2,)))
    loss, divergence = joint.loss(model, batch_of(x, kind=labels)), plain.loss(model, batch_of(x))
    known = [0, 1, 3]
    named = -model.logits(x).log_softmax(1)[known, labels[known]].sum() / 4
    torch.testing.assert_close(loss.value, divergence.value + 0.5 * named)
    assert loss.scalars["accuracy"] == (model.logits(x).argmax(1) == labels)[known].double().mean()
    assert torch.equal(joint.state()["slots"], plain.state()["slots"])
    joint.restore(plain.state())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DenoisingScoreMatching(0.0, 1.0), "0 < sigma_min <= sigma_max, got 0.0 and 1.0"),
        (lambda: AttributeHeads({"male": 2}, 2.0, 1.0), "got 2.0 and 1.0"),
        (lambda: AttributeHeads({}, 0.1, 1.0), "at least one variable"),
        (lambda: AttributeHeads({"male": 1}, 0.1, 1.0), "The number of values of male must be at least 2, got 1"),
        (lambda: AttributeHeads({"hair": 2}, 0.1, 1.0).loss(Heads(1), labelled(0)), "no attribute hair; they have kind"),
        (lambda: AttributeHeads({"kind": 2}, 0.1, 1.0).loss(Heads(1), labelled(0)), "kind has 2 values, from 0 to 1, .* from 0 to 2"),
        (lambda: AttributeHeads({"kind": 3}, 0.1, 1.0).loss(Heads(3), labelled(-2)), "got labels from -2 to 2"),
        (lambda: DenoisingScoreMatching(0.1, 1.0).loss(nn.Linear(2, 1), labelled(0)), "trains an energy, got Linear"),
        (lambda: DenoisingScoreMatching(0.1, 1.0).loss(Net(), labelled(0)), "Net does not depend on the noise level"),
        (lambda: began(ContrastiveDivergence(**LANGEVIN, condition="kind")).loss(Bell(), labelled(0)), "Bell does not depend on y"),
        (lambda: ImprovedContrastiveDivergence(steps=1, kl=-1), "kl must be at least 0, got -1"),
        (lambda: ImprovedContrastiveDivergence(steps=1, among=0), "among must be at least 1, got 0"),
        (lambda: began(ImprovedContrastiveDivergence(steps=1, options={"step_size": 1, "metric": torch.ones(2)})), "no metric"),
        (lambda: began(ImprovedContrastiveDivergence(**IMPROVED, buffer=7)).loss(Net(), labelled(0)), "two slots for each row, has 7"),
        (lambda: began(JointEnergyClassifier(**LANGEVIN)), "has a method `logits"),
        (lambda: began(JointEnergyClassifier(**LANGEVIN), Joint()).loss(Joint(), labelled(0)), "no attribute class; they have kind"),
        (lambda: began(JointEnergyClassifier(**LANGEVIN, label="kind"), Joint()).loss(Joint(), labelled(3)), "kind has 3 values"),
        (lambda: JointEnergyClassifier(steps=1, weight=-1), "weight must be at least 0"),
    ],
)
def test_bad_input_of_the_other_objectives_is_told(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_logits_of_another_shape_are_told():
    with pytest.raises(ce.errors.ShapeError, match=r"male \(2\), hair \(3\) need logits of shape \(4, 4\), one .* got \(4, 5\)"):
        AttributeHeads({"male": 2, "hair": 3}, 0.1, 1.0).loss(Heads(5), labelled(0))


# Precision ----------------------------------------------------------------------------------------------------------------------------


class Single(Net):
    """A network of float32, with a noise level and logits."""

    def __init__(self) -> None:
        super().__init__(labels=3)
        self.float()

    def forward(self, x: Tensor, y: Tensor | None = None, sigma: Tensor | None = None) -> Tensor:
        return super().forward(x, y) * (1 if sigma is None else sigma)

    def logits(self, x: Tensor) -> Tensor:
        return self.layers(x) * torch.arange(3.0)


@pytest.mark.parametrize(
    "objective",
    [
        ContrastiveDivergence(**LANGEVIN, condition="kind"),
        ImprovedContrastiveDivergence(**LANGEVIN, entropy_after=0),
        DenoisingScoreMatching(0.1, 1.0),
        JointEnergyClassifier(**LANGEVIN, label="kind"),
    ],
    ids=lambda objective: type(objective).__name__,
)
def test_networks_may_compute_in_half_precision(objective):
    model, batch = Single(), batch_of(data(4, 2).float(), kind=torch.tensor([0, 1, 2, 1]))
    told = []
    for half in (False, True):
        objective.begin(model, place(4, (2,), dtype=torch.float32))
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = objective.loss(model, batch)
        assert loss.value.dtype == torch.float32
        assert all(value.shape == () and not value.requires_grad and value.isfinite() for value in loss.scalars.values())
        told.append(torch.cat([grad.flatten() for grad in gradients(model, loss)]))
    assert (told[0] - told[1]).norm() < 0.05 * told[0].norm()


def test_the_last_step_takes_no_gradient_and_changes_nothing():
    """Chains of K steps cost K gradients, and are to the bit those that `sample` draws; also where some of them diverge."""

    class Counted(ce.Energy):
        calls = 0

        def with_gradient(self, x, **conditions):
            Counted.calls += 1
            return super().with_gradient(x, **conditions)

        def forward(self, x):
            return torch.where(x > 3, torch.nan, x.square()).sum(1) / 2

    model, options = Counted(), {"step_size": 0.5}
    for start in (0.0, 10.0):
        place = Place(6, range(2, 5), torch.Size([2]), torch.device("cpu"), torch.float32, 0)
        x = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
        x[1] += start
        negatives = Negatives(steps=4, sampler="langevin", options=options, buffer=6, fresh=0, start="data", augment=None, persistent=False)
        negatives.begin(model, place)
        batch = Batch(x, {}, Noise(0, range(2, 5), 7))
        Counted.calls = 0
        drawn = negatives.draw(model, batch, {})
        assert Counted.calls == 4
        expected = model.sample(
            (3, 2), sampler="langevin", steps=4, init=x, seed=drawn.noise.seed, first_chain=2, on_divergence="keep", **options
        )
        alive = torch.tensor([True, start == 0.0, True])
        assert torch.equal(drawn.x[alive], expected[alive])
