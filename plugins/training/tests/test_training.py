"""The trainer: the effect of a step on the weights, by closed forms and by equal runs."""

import math

import pytest
import torch
from torch import nn

from composable_energy.errors import DtypeError, OptionError, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy_training import Callback, Loss, Objective, Optimizer, Trainer
from composable_energy_training.batches import BatchLoader, as_source
from composable_energy_training.ema import EMA

DATA = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))


class Fit(Objective):
    """Mean squared distance of a network to noisy points: has randomness of its own, and a scalar."""

    def loss(self, model, batch):
        x = batch.x + 0.1 * batch.noise.normal(batch.x)
        value = (model(x) - batch.x).square().mean()
        return Loss(value, {"magnitude": model(batch.x).detach().abs().mean()})


class Recorded(Callback):
    def __init__(self):
        self.seen, self.rates, self.steps = [], [], []

    def on_step(self, trainer, scalars):
        self.seen.append(scalars)
        self.rates.append(trainer.rate)
        self.steps.append(trainer.step)


def network(dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def train(model=None, data=DATA, objective=None, **options):
    model = network() if model is None else model
    options = {"steps": 12, "batch_size": 8, **options}
    report = Trainer(model, objective or Fit(), data, **options).fit()
    return model, report


def same(one, other, **tolerance):
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name, **(tolerance or {"rtol": 0, "atol": 0}))


def test_a_run_is_a_function_of_its_seed():
    same(train(network(0.5))[0], train(network(0.5))[0])
    assert not torch.equal(train(seed=1)[0][0].weight, train()[0][0].weight)


def test_the_random_state_of_torch_stays_as_it_was():
    trainer = Trainer(network(0.5), Fit(), DATA, steps=2, batch_size=8)
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    trainer.fit()
    assert torch.equal(torch.rand(1), expected)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    whole, parts = Recorded(), Recorded()
    one = train(callbacks=[whole])[0]
    other = train(callbacks=[parts], accumulate=4)[0]
    same(one, other, rtol=0, atol=1e-5)
    for a, b in zip(whole.seen, parts.seen, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_the_model_ends_with_averaged_weights_in_eval_mode():
    """The average by its recursion, from weights seen at each step."""
    model, history = network(), []

    class Weights(Callback):
        def on_step(self, trainer, scalars):
            history.append(trainer.model[0].weight.detach().clone())

    expected = model[0].weight.detach().clone()
    train(model, ema=0.9, callbacks=[Weights()])
    for step, weight in enumerate(history, 1):
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight
    torch.testing.assert_close(model[0].weight.detach(), expected)
    assert not model.training


def test_an_average_copies_buffers():
    model = nn.BatchNorm1d(3)
    ema = EMA(model, 0.99)
    model(DATA)
    ema.update(model, 1)
    assert torch.equal(ema.model.running_mean, model.running_mean) and ema.model.running_mean.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1, 1, 1]),
        ({"warm_up": 4}, [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ({"decay": 0.5}, [1, 1, 1, 1, 0.75, 0.5, 0.25, 0.01]),
        ({"milestones": [(3, 0.5), (6, 0.1)]}, [1, 1, 0.5, 0.5, 0.5, 0.05, 0.05, 0.05]),
    ],
)
def test_the_rate_follows_its_schedule(settings, expected):
    seen = Recorded()
    train(steps=8, optimizer=Optimizer(rate=2.0, **settings), callbacks=[seen])
    assert seen.rates == pytest.approx([2 * value for value in expected])


def test_slow_parameters_take_shorter_steps():
    first = network().state_dict()
    plain, _ = train(model=network(), steps=1, optimizer=Optimizer(rate=1e-2))
    slow, _ = train(model=network(), steps=1, optimizer=Optimizer(rate=1e-2, slow=[("0.", 0.1)]))
    for name, value in first.items():
        share = 0.1 if name.startswith("0.") else 1.0
        torch.testing.assert_close(slow.state_dict()[name] - value, share * (plain.state_dict()[name] - value), rtol=1e-3, atol=1e-7)
    with pytest.raises(OptionError, match="slow names 'encoder', but no trained parameter"):
        train(model=network(), steps=1, optimizer=Optimizer(slow=[("encoder", 0.1)]))


def test_a_clip_by_norm_is_that_of_torch():
    model = network()
    (model(DATA * 10).square().sum()).backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    settings = Optimizer(clip=0.3)
    norm = settings.clip_(settings.build(list(model.parameters())))
    torch.testing.assert_close(norm, torch.stack([grad.norm() for grad in grads]).norm())
    ours = [parameter.grad.clone() for parameter in model.parameters()]
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        parameter.grad = grad
    nn.utils.clip_grad_norm_(model.parameters(), 0.3)
    for mine, parameter in zip(ours, model.parameters(), strict=True):
        torch.testing.assert_close(mine, parameter.grad)


def test_a_clip_by_adam_is_three_deviations_and_a_tenth():
    parameter = nn.Parameter(torch.zeros(3))
    settings = Optimizer(betas=(0.0, 0.9), clip="adam")
    optimizer = settings.build([parameter])
    parameter.grad = torch.tensor([5.0, -5.0, 0.05])
    settings.clip_(optimizer)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.1, -0.1, 0.05]))
    optimizer.step()
    parameter.grad = torch.tensor([5.0, -0.2, 5.0])
    settings.clip_(optimizer)
    # After one step the corrected estimate is the square of its gradient.
    torch.testing.assert_close(parameter.grad, torch.tensor([0.4, -0.2, 0.25]))


def test_weights_decay_as_in_adamw():
    model = network()

    class Still(Objective):
        def loss(self, model, batch):
            return Loss(sum(parameter.sum() for parameter in model.parameters()) * 0.0)

    before = model[0].weight.detach().clone()
    Trainer(model, Still(), DATA, steps=3, batch_size=8, optimizer=Optimizer(rate=0.1, weight_decay=0.5)).fit()
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.05) ** 3)


def test_frozen_parameters_stay():
    model = network()
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    train(model)
    assert torch.equal(model[0].weight, before) and not model[0].weight.requires_grad


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32():
    dtypes = set()

    class Watching(Fit):
        def loss(self, model, batch):
            dtypes.add(model(batch.x).dtype)
            return super().loss(model, batch)

    model, _ = train(objective=Watching(), precision="bfloat16", steps=30)
    assert dtypes == {torch.bfloat16} and model[0].weight.dtype == torch.float32
    same(model, train(steps=30)[0], rtol=0, atol=0.02)


def test_every_row_comes_once_an_epoch_in_another_order():
    batches = BatchLoader(as_source(torch.arange(40.0)[:, None]), 16, range(16), None, torch.device("cpu"), torch.float32)
    dealt = torch.cat([batches.load(3, step).x[:, 0] for step in range(1, 6)])
    first, second = dealt[:40], dealt[40:]
    assert sorted(first.tolist()) == list(range(40)) and sorted(second.tolist()) == list(range(40))
    assert not torch.equal(first, second)
    assert torch.equal(batches.load(3, 2).x, batches.load(3, 2).x) and torch.equal(batches.load(3, 2).x[:, 0], dealt[16:32])
    assert not torch.equal(batches.load(4, 2).x, batches.load(3, 2).x)


def test_an_iterable_is_read_again_and_advanced():
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(DATA), batch_size=7, shuffle=True)
    options = (None, torch.device("cpu"), torch.float32)
    through = [BatchLoader(as_source(loader), 8, range(8), *options).load(0, step).x for step in (9,)]
    walked = BatchLoader(as_source(loader), 8, range(8), *options)
    steps = [walked.load(0, step).x for step in range(1, 10)]
    assert torch.equal(steps[8], through[0]) and torch.equal(walked.load(0, 2).x, steps[1])
    assert sorted(map(tuple, torch.cat(steps[:5]).tolist())) == sorted(map(tuple, DATA.tolist()))
    same(train(data=loader)[0], train(data=loader)[0])


def test_an_iterable_that_cannot_start_again_is_reported():
    with pytest.raises(OptionError, match="did not start again"):
        train(data=iter([DATA]))


def test_preparation_is_keyed_by_rows():
    def prepare(images, noise):
        return images + noise.uniform(images)[:, None]

    x = BatchLoader(as_source(DATA), 8, range(4, 8), prepare, torch.device("cpu"), torch.float32).load(0, 2).x
    whole = BatchLoader(as_source(DATA), 8, range(8), prepare, torch.device("cpu"), torch.float32).load(0, 2).x
    assert torch.equal(whole[4:], x)
    raw = BatchLoader(as_source(DATA), 8, range(8), None, torch.device("cpu"), torch.float32).load(0, 2).x
    assert (whole - raw).min() > 0 and not torch.equal(whole[0] - raw[0], whole[1] - raw[1])
    assert Noise(0, range(8), 2).child("data").uniform(raw).allclose((whole - raw)[:, 0], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"steps": 0}, OptionError, "steps"),
        ({"batch_size": 9, "accumulate": 2}, OptionError, "multiple"),
        ({"precision": "float16"}, OptionError, "CUDA"),
        ({"precision": "half"}, OptionError, "bfloat16"),
        ({"ema": 1.0}, OptionError, "ema"),
        ({"data": torch.zeros(4, 3, dtype=torch.uint8)}, DtypeError, "Pictures"),
        ({"data": torch.zeros(0, 3)}, OptionError, "no data"),
        ({"data": (DATA, {"kind": torch.zeros(3)})}, ShapeError, "kind"),
        ({"data": 3}, OptionError, "int"),
        ({"data": [{"x": DATA}]}, OptionError, "dict"),
        ({"model": nn.Flatten()}, OptionError, "nothing to train"),
    ],
)
def test_bad_calls_say_what_to_do(options, error, message):
    with pytest.raises(error, match=message):
        train(**options)


@pytest.mark.parametrize(
    "options",
    [
        {"rate": 0},
        {"betas": (0.0, 1.0)},
        {"decay": 2},
        {"clip": "norm"},
        {"clip": -1.0},
        {"warm_up": -1},
        {"milestones": [(0, 1.0)]},
        {"slow": [("0.", 0.0)]},
    ],
)
def test_bad_settings_of_the_optimizer(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Optimizer(**options)


def test_the_report_has_steps_losses_and_speed():
    _, report = train(steps=5)
    assert report.steps == 5 and report.skipped == 0 and report.alerts == () and report.checkpoint is None
    assert math.isfinite(report.scalars["loss"]) and report.rows_per_second > 0
