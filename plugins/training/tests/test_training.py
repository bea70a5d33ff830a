"""The trainer: the effect of a step on the weights, what it refuses, and several processes that train the weights of one."""

import functools
import os
import signal
import socket
import time
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import composable_energy as ce
import composable_energy_training as training
from composable_energy.errors import DtypeError, FileFormatError, OptionError, SamplingDiverged, ShapeError
from composable_energy.sampling.noise import Noise
from composable_energy_training import Callback, Checkpoints, ContrastiveDivergence, Loss, Monitor, Objective, Optimizer, Prepared, Trainer
from composable_energy_training.batches import BatchLoader
from plugins.training.tests.run_helpers import DATA, At, Noted, last, same
from tests import processes
from tests.processes import ended, needs_forkserver
from tests.refusals import refusals, refused

BATCH = torch.device("cpu"), torch.float32
OBJECTIVES = {
    "cd": lambda: ContrastiveDivergence(steps=3, options={"step_size": 0.1, "temperature": 0.01}, buffer=32),
    "dsm": lambda: training.DenoisingScoreMatching(0.1, 1.0),
}


class Fit(Objective):
    """Mean squared distance of a network to noisy points: has randomness of its own, and a scalar."""

    def loss(self, model, batch):
        value = (model(batch.x + 0.1 * batch.noise.normal(batch.x)) - batch.x).square().mean()
        return Loss(value, {"magnitude": model(batch.x).detach().abs().mean()})


def network(dropout=0.0):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(dropout), nn.Linear(8, 3))


def train(model=None, data=DATA, objective=None, **options):
    model = network() if model is None else model
    return model, Trainer(model, objective or Fit(), data, **{"steps": 12, "batch_size": 8, **options}).fit()


@torch.no_grad()
def test_a_run_is_a_function_of_its_seed_and_leaves_the_random_state_of_torch():
    torch.manual_seed(5)
    expected = torch.rand(1)
    models = network(0.5), network(0.5), network(0.5)
    torch.manual_seed(5)
    for model, seed in zip(models, (0, 0, 1), strict=True):
        train(model, seed=seed)
    assert torch.equal(torch.rand(1), expected)
    same(*models[:2])
    assert not torch.equal(models[0][0].weight, models[2][0].weight)


def test_parts_of_a_batch_give_the_gradient_of_the_whole():
    whole, parts = Noted(), Noted()
    same(train(callbacks=[whole])[0], train(callbacks=[parts], optimizer=Optimizer(accumulate=4))[0], rtol=0, atol=1e-5)
    for a, b in zip(whole.seen, parts.seen, strict=True):
        assert a == pytest.approx(b, abs=1e-5)


def test_the_model_ends_with_averaged_weights_in_eval_mode():
    """The average by its recursion, from weights seen at each step."""
    model, seen, expected = network(), Noted(), network()[0].weight.detach()
    train(model, optimizer=Optimizer(ema=0.9), callbacks=[seen])
    for step, weight in enumerate(seen.weights, 1):
        keep = min(0.9, (1 + step) / (10 + step))
        expected = keep * expected + (1 - keep) * weight
    torch.testing.assert_close(model[0].weight.detach(), expected)
    assert not model.training


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
    seen = Noted()
    train(steps=8, optimizer=Optimizer(rate=2.0, **settings), callbacks=[seen])
    assert seen.rates == pytest.approx([2 * value for value in expected])


def test_slow_parameters_take_shorter_steps_and_frozen_ones_none():
    first, modes = network().state_dict(), []
    plain, _ = train(steps=1, optimizer=Optimizer(rate=1e-2))
    slow, _ = train(steps=1, optimizer=Optimizer(rate=1e-2, slow=[("0.", 0.1)]))
    frozen = network()
    frozen[0].requires_grad_(False).eval()
    train(frozen, steps=1, optimizer=Optimizer(rate=1e-2), callbacks=[At(1, lambda: modes.extend(part.training for part in frozen))])
    assert modes == [False, True, True, True]
    for name, value in first.items():
        moved, share = plain.state_dict()[name] - value, 0.1 if name.startswith("0.") else 1.0
        torch.testing.assert_close(slow.state_dict()[name] - value, share * moved, rtol=1e-3, atol=1e-7)
        assert torch.equal(frozen.state_dict()[name], value) == name.startswith("0.")


def test_a_clip_by_norm_is_that_of_torch():
    model, settings = network(), Optimizer(clip=0.3)
    (model(DATA * 10).square().sum()).backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    norm = settings.clip_(settings.build(list(model.parameters())))
    torch.testing.assert_close(norm, torch.stack([grad.norm() for grad in grads]).norm())
    for grad, parameter in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, grad * 0.3 / norm)


def test_a_clip_by_adam_is_three_deviations_and_a_tenth():
    parameter, settings = nn.Parameter(torch.zeros(3)), Optimizer(betas=(0.0, 0.9), clip="adam")
    optimizer, parameter.grad = settings.build([parameter]), torch.tensor([5.0, -5.0, 0.05])
    settings.clip_(optimizer)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.1, -0.1, 0.05]))
    optimizer.step()
    parameter.grad = torch.tensor([5.0, -0.2, 5.0])
    settings.clip_(optimizer)
    # After one step the corrected estimate is the square of its gradient.
    torch.testing.assert_close(parameter.grad, torch.tensor([0.4, -0.2, 0.25]))


def test_weights_decay_as_in_adamw():
    still = type("Still", (Objective,), {"loss": lambda _, model, batch: Loss(0.0 * sum(one.sum() for one in model.parameters()))})
    before = network()[0].weight.detach()
    model, _ = train(objective=still(), steps=3, optimizer=Optimizer(rate=0.1, weight_decay=0.5))
    torch.testing.assert_close(model[0].weight.detach(), before * (1 - 0.05) ** 3)


def test_bfloat16_computes_in_it_and_keeps_weights_in_float32():
    dtypes = set()

    class Watching(Fit):
        def loss(self, model, batch):
            dtypes.add(model(batch.x).dtype)
            return super().loss(model, batch)

    model, _ = train(objective=Watching(), optimizer=Optimizer(precision="bfloat16"), steps=30)
    assert dtypes == {torch.bfloat16} and model[0].weight.dtype == torch.float32
    same(model, train(steps=30)[0], rtol=0, atol=0.02)


def test_every_row_comes_once_an_epoch_in_another_order():
    batches = BatchLoader(torch.arange(40.0)[:, None], 16, range(16), *BATCH)
    dealt = torch.cat([batches.load(3, step).x[:, 0] for step in range(1, 6)])
    first, second = dealt[:40], dealt[40:]
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(40)) and not torch.equal(first, second)
    assert torch.equal(batches.load(3, 2).x, batches.load(3, 2).x) and torch.equal(batches.load(3, 2).x[:, 0], dealt[16:32])
    assert not torch.equal(batches.load(4, 2).x, batches.load(3, 2).x)


def test_an_iterable_is_read_again_and_advanced():
    loader = DataLoader(TensorDataset(DATA), batch_size=7, shuffle=True)
    through = BatchLoader(loader, 8, range(8), *BATCH).load(0, 9).x
    walked = BatchLoader(loader, 8, range(8), *BATCH)
    steps = [walked.load(0, step).x for step in range(1, 10)]
    assert torch.equal(steps[8], through) and torch.equal(walked.load(0, 2).x, steps[1])
    assert sorted(map(tuple, torch.cat(steps[:5]).tolist())) == sorted(map(tuple, DATA.tolist()))
    refused(OptionError, "did not start again", train, data=iter([DATA]))


test_data_that_make_no_batches_are_refused = refusals(
    ((DATA, {"y": [0] * len(DATA)}), OptionError, "labels 'y' of the data must be a tensor, got list"),
    ((DATA, {"y": torch.tensor(1)}), ShapeError, r"labels 'y' of shape \(\)"),
    (torch.tensor(1.0), ShapeError, r"got a tensor of shape \(\)"),
    ([(DATA[:3], {"y": DATA[:3]}), DATA[:3]], ShapeError, "in the names of labels"),
    ([DATA[:0]], ShapeError, "has no rows"),
    ([DATA, None], OptionError, "got NoneType"),
    call=lambda data: train(data=data),
)


@pytest.mark.parametrize("loss", [torch.ones(()), Loss(torch.ones(8)), Loss(torch.ones(())), Loss(1.0)])
def test_an_objective_that_returns_no_loss_is_named(loss):
    refused(OptionError, "Given must return a `Loss`", train, objective=type("Given", (Objective,), {"loss": lambda *_: loss})())


def test_data_stay_as_they_are_without_gradients():
    train(data=(points := DATA.clone().requires_grad_()))
    batches = BatchLoader(Prepared([DATA], lambda x, noise: x.add_(1)), 8, range(8), *BATCH)
    assert points.grad is None and torch.equal(batches.load(0, 1).x, batches.load(0, 1).x)


def test_preparation_is_keyed_by_rows():
    prepare = lambda images, noise: images + noise.uniform(images)[:, None]
    x = BatchLoader(Prepared(DATA, prepare), 8, range(4, 8), *BATCH).load(0, 2).x
    whole, raw = (BatchLoader(data, 8, range(8), *BATCH).load(0, 2).x for data in (Prepared(DATA, prepare), DATA))
    assert torch.equal(whole[4:], x) and (whole - raw).min() > 0 and not torch.equal(whole[0] - raw[0], whole[1] - raw[1])
    assert Noise(0, range(8), 2).child("data").uniform(raw).allclose((whole - raw)[:, 0], atol=1e-6)


POSITIVE = training.MLPEnergy(3).on(torch.distributions.constraints.positive)
test_bad_calls_say_what_to_do = refusals(
    ({"steps": 0}, OptionError, "steps"),
    ({"batch_size": 9, "optimizer": Optimizer(accumulate=2)}, OptionError, "multiple"),
    ({"optimizer": Optimizer(precision="float16")}, OptionError, "CUDA"),
    ({"optimizer": torch.optim.Adam}, OptionError, r"optimizer must be the settings of Adam, as `Optimizer\(rate=1e-3\)`"),
    ({"optimizer": Optimizer(slow=[("encoder", 0.1)])}, OptionError, "slow names 'encoder', but no trained parameter"),
    ({"objective": ContrastiveDivergence}, OptionError, "objective"),
    ({"model": lambda x: x.sum(1)}, OptionError, "model"),
    ({"model": nn.Flatten()}, OptionError, "nothing to train"),
    ({"model": nn.LazyLinear(3)}, OptionError, "evaluate it once"),
    ({"model": network().half()}, OptionError, "weights of float16, whose steps underflow"),
    ({"model": POSITIVE, "objective": training.EnergyMatching(temperature=1.0, warm_up=9)}, OptionError, "normal points .* of the support"),
    ({"model": POSITIVE, "objective": training.EnergyDiscrepancy(0.1), "data": -DATA}, OptionError, "8 of 8 points .* outside of the"),
    ({"callbacks": Callback()}, OptionError, "callbacks must be a list"),
    ({"callbacks": [Monitor]}, OptionError, "callbacks must be callbacks, instances .* the class Monitor"),
    ({"callbacks": [Monitor(), Monitor()]}, OptionError, "one Monitor at most, got 2"),
    ({"data": torch.zeros(4, 3, dtype=torch.uint8)}, DtypeError, "Pictures"),
    ({"data": torch.zeros(0, 3)}, OptionError, "no data"),
    ({"data": Prepared(DATA, lambda x, noise: x[1:])}, ShapeError, "a tensor with 8 rows"),
    ({"data": (torch.tensor([[0.0], [torch.nan]]), {})}, OptionError, "1 of 2 points of the data are not finite, first number 1"),
    ({"data": (DATA, {"kind": torch.zeros(3)})}, ShapeError, "kind"),
    ({"data": [{"x": DATA}]}, OptionError, "dict"),
    ({"data": DATA.numpy()}, OptionError, "torch.as_tensor"),
    ({"data": TensorDataset(DATA)}, OptionError, "DataLoader"),
    ({"data": (DATA, torch.zeros(40))}, OptionError, r"\(x, \{'y': y\}\)"),
    ({"data": "pictures"}, OptionError, "open_pictures"),
    call=lambda options: train(**options),
)

test_settings_out_of_range_or_of_another_type_are_refused = refusals(
    *((Optimizer, {name: value}, name) for name, value in [("rate", 0), ("rate", "fast"), ("betas", (0.0, 1.0)), ("betas", 0.9)]),
    *((Optimizer, {name: value}, name) for name, value in [("decay", 2), ("clip", "norm"), ("clip", -1.0), ("warm_up", -1)]),
    *((Optimizer, {name: value}, name) for name, value in [("milestones", [(0, 1.0)]), ("milestones", 3), ("slow", [("0.", 0.0)])]),
    *((Optimizer, {name: value}, name) for name, value in [("ema", 1.0), ("accumulate", 0), ("precision", "half")]),
    *((Checkpoints, {name: value}, name) for name, value in [("folder", 3), ("every", 0), ("keep", 0)]),
    (functools.partial(Prepared, DATA), {"preparation": 3}, "preparation"),
    call=lambda make, options: make(**options),
    error=OptionError,
)


class Net(ce.Energy):
    """A network with buffers, the vectors of spectral normalization, and an unused parameter."""

    def __init__(self, width):
        super().__init__()
        torch.manual_seed(0)
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(norm(nn.Linear(4, width)), nn.SiLU(), norm(nn.Linear(width, width)), nn.SiLU(), nn.Linear(width, 1))
        self.unused = nn.Parameter(torch.ones(2))

    def forward(self, x, sigma=0.5):
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        return self.net(torch.cat([x, sigma[:, None]], 1)).squeeze(1)


class Unstable(Objective):
    """Chains of row 5 diverge at step 7, and the gap is large at step 12 of the first attempt."""

    def begin(self, model, context):
        self.first = ce.sampling.Noise(context.seed, range(1)).child("objective").seed

    def loss(self, model, batch):
        energies = model(batch.x + batch.noise.normal(batch.x))
        if batch.step == 7 and 5 in batch.noise.chains:
            raise SamplingDiverged("Row 5 is gone.")
        opened = float(batch.step >= 12 and batch.noise.seed == self.first)
        return Loss(energies.square().mean(), {"gap": torch.tensor(opened)})


def train_in_ranks(out, kind="cd", width=16, callbacks=()):
    callbacks = [Checkpoints(out, every=5), *callbacks]
    train(Net(width), objective=OBJECTIVES[kind](), steps=20, optimizer=Optimizer(ema=0.9), callbacks=callbacks)


def start(folder, size, call, *args, **options):
    """Starts processes as torchrun does; each writes its errors to a file."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    group, started = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}, []
    for rank in range(size):
        settings = {**group, "RANK": str(rank), "LOCAL_RANK": str(rank)} if size > 1 else {}
        errors = folder / f"errors{rank}.txt"
        started.append(processes.start(f"Process {rank} of {size}", in_group, errors, settings, partial(call, *args, **options)))
    return started


def in_group(errors, settings, call):
    os.dup2(os.open(errors, os.O_CREAT | os.O_TRUNC | os.O_WRONLY), 2)
    os.environ.update(settings)
    training.join(timeout=60)
    call()
    training.leave()


def run(folder, size, call, *args, **options):
    codes = ended(start(folder, size, call, *args, **options))
    output = [(folder / f"errors{rank}.txt").read_text() for rank in range(size)]
    assert codes == [0] * size and "find_unused_parameters" not in "".join(output), output


def equal(one, other):
    a, b = last(one), last(other)
    assert a.keys() == b.keys() and any(name.startswith("optimizer.") for name in a)
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")


def train_all(folder, name):
    for kind in OBJECTIVES:
        train_in_ranks(folder / f"{name} {kind}", kind)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    run(folder / "output", 1, train_all, folder, "one")
    run(folder / "output", 2, train_all, folder, "two")
    return folder


@pytest.mark.full
@needs_forkserver
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_two_processes_train_the_weights_and_chains_of_one_and_the_first_writes(trained, kind):
    equal(trained / f"one {kind}", trained / f"two {kind}")
    assert kind != "cd" or len(last(trained / "two cd")["objective.slots"]) == 32
    names = [path.name for path in (trained / f"two {kind}" / "checkpoints").iterdir()]
    assert sorted(names) == [f"step-{step:08d}.safetensors" for step in (10, 15, 20)]


def train_in_parts(accumulate, out):
    """Trains a network without spectral normalization, whose vectors change with each pass."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0))
    options = {"optimizer": Optimizer(accumulate=accumulate), "callbacks": [Checkpoints(out)]}
    train(ce.as_energy(net), objective=OBJECTIVES["cd"](), steps=8, **options)


@pytest.mark.full
@needs_forkserver
def test_gradients_of_parts_are_summed_before_they_are_averaged(tmp_path):
    run(tmp_path, 1, train_in_parts, 1, tmp_path / "whole")
    run(tmp_path, 2, train_in_parts, 2, tmp_path / "parts")
    equal(tmp_path / "whole", tmp_path / "parts")


def stray(out):
    _, report = train(Net(16), objective=Unstable(), steps=20, callbacks=[Monitor(window=3), Checkpoints(out, every=5)])
    assert report.skipped == 1 and [(alert.step, alert.cause) for alert in report.alerts] == [(13, "gap")]


@pytest.mark.full
@needs_forkserver
def test_processes_skip_and_roll_back_together(tmp_path):
    run(tmp_path, 1, stray, tmp_path / "one")
    run(tmp_path, 2, stray, tmp_path / "two")
    equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.full
@needs_forkserver
@pytest.mark.parametrize("size", [1, 4])
def test_a_run_of_two_processes_resumes_with_another_number(trained, tmp_path, size):
    assert ended(start(tmp_path, 2, train_in_ranks, tmp_path / "run", callbacks=[At(9, partial(os._exit, 9))]))[0] == 9
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000005.safetensors"
    run(tmp_path, size, train_in_ranks, tmp_path / "run")
    equal(trained / "one cd", tmp_path / "run")


def wait_while(sign):
    sign.touch()
    while sign.exists():
        time.sleep(0.01)


@pytest.mark.full
@needs_forkserver
def test_a_lost_process_is_reported_and_the_run_resumes(trained, tmp_path):
    """Kills the second process while the first waits at step 7; then the same call resumes."""
    sign = tmp_path / "seven"
    first, second = start(tmp_path, 2, train_in_ranks, tmp_path / "run", callbacks=[At(7, partial(wait_while, sign))])
    until = time.monotonic() + 120
    while not sign.exists() and time.monotonic() < until:
        time.sleep(0.01)
    second.kill()
    assert ended([second]) == [-signal.SIGKILL]
    sign.unlink()
    assert ended([first]) == [1]
    errors = (tmp_path / "errors0.txt").read_text()
    assert "ProcessLost: Another process of this run was lost" in errors and "start the same command again" in errors
    run(tmp_path, 2, train_in_ranks, tmp_path / "run")
    equal(trained / "one cd", tmp_path / "run")


def test_each_process_has_its_rows_of_a_batch_that_is_divided_evenly_and_one_alone_joins_nobody(monkeypatch):
    assert [training.Ranks(rank, 3).select_rows(12, 2) for rank in range(3)] == [range(4), range(4, 8), range(8, 12)]
    for batch_size, size, accumulate in ((9, 2, 1), (8, 2, 3), (0, 1, 1)):
        with pytest.raises(OptionError, match=f"of {size} processes times accumulate={accumulate}, got {batch_size}"):
            training.Ranks(0, size).select_rows(batch_size, accumulate)
    monkeypatch.delenv("RANK", raising=False)
    assert training.join() == training.Ranks(0, 1) and not torch.distributed.is_initialized()


def refuse(trained):
    for out, message, width in (("two cd", "another model", 8), ("damaged", "No checkpoint is left", 16)):
        refused(FileFormatError, message, train_in_ranks, trained / out, width=width)


@pytest.mark.full
@needs_forkserver
def test_an_error_in_the_first_process_is_raised_in_all(trained):
    (trained / "damaged" / "checkpoints").mkdir(parents=True)
    (trained / "damaged" / "checkpoints" / "step-00000003.safetensors").write_bytes(b"x" * 50)
    run(trained / "output", 2, refuse, trained)
