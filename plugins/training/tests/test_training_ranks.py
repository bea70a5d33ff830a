"""Several processes train the weights of one."""

import os
import signal
import socket
import time
from functools import partial

import pytest
import torch
from torch import nn

import composable_energy as ce
import composable_energy_training as training
from composable_energy.errors import FileFormatError, OptionError, SamplingDiverged
from plugins.training.tests.run_helpers import DATA, last
from tests import processes
from tests.processes import ended, needs_forkserver

OBJECTIVES = {
    "cd": lambda: training.ContrastiveDivergence(steps=3, options={"step_size": 0.1, "temperature": 0.01}, buffer=32),
    "dsm": lambda: training.DenoisingScoreMatching(0.1, 1.0),
}


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


class Unstable(training.Objective):
    """Chains of row 5 diverge at step 7, and the gap is large at step 12 of the first attempt."""

    def begin(self, model, context):
        self.first = ce.sampling.Noise(context.seed, range(1)).child("objective").seed

    def loss(self, model, batch):
        energies = model(batch.x + batch.noise.normal(batch.x))
        if batch.step == 7 and 5 in batch.noise.chains:
            raise SamplingDiverged("Row 5 is gone.")
        opened = float(batch.step >= 12 and batch.noise.seed == self.first)
        return training.Loss(energies.square().mean(), {"gap": torch.tensor(opened)})


class At(training.Callback):
    """Calls a function after a step."""

    def __init__(self, step, call):
        self.step, self.call = step, call

    def on_step(self, trainer, scalars):
        if trainer.step == self.step:
            self.call()


def train(out, kind="cd", width=16, **options):
    callbacks = [training.Checkpoints(out, every=5), *options.pop("callbacks", ())]
    options = {"steps": 20, "batch_size": 8, "optimizer": training.Optimizer(ema=0.9), **options}
    return training.Trainer(Net(width), OBJECTIVES[kind](), DATA, callbacks=callbacks, **options).fit()


def start(folder, size, call, *args, **options):
    """Starts processes as torchrun does; each writes its errors to a file."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(size)}
    started = []
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
        train(folder / f"{name} {kind}", kind)


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
    objective = training.ContrastiveDivergence(steps=3, options={"step_size": 0.1, "temperature": 0.01}, buffer=32)
    options = {
        "steps": 8,
        "batch_size": 8,
        "optimizer": training.Optimizer(accumulate=accumulate),
        "callbacks": [training.Checkpoints(out)],
    }
    training.Trainer(ce.as_energy(net), objective, DATA, **options).fit()


@pytest.mark.full
@needs_forkserver
def test_gradients_of_parts_are_summed_before_they_are_averaged(tmp_path):
    run(tmp_path, 1, train_in_parts, 1, tmp_path / "whole")
    run(tmp_path, 2, train_in_parts, 2, tmp_path / "parts")
    equal(tmp_path / "whole", tmp_path / "parts")


def stray(out):
    report = training.Trainer(
        Net(16), Unstable(), DATA, steps=20, batch_size=8, callbacks=[training.Monitor(window=3), training.Checkpoints(out, every=5)]
    ).fit()
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
    assert ended(start(tmp_path, 2, train, tmp_path / "run", callbacks=[At(9, partial(os._exit, 9))]))[0] == 9
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())[-1] == "step-00000005.safetensors"
    run(tmp_path, size, train, tmp_path / "run")
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
    first, second = start(tmp_path, 2, train, tmp_path / "run", callbacks=[At(7, partial(wait_while, sign))])
    until = time.monotonic() + 120
    while not sign.exists() and time.monotonic() < until:
        time.sleep(0.01)
    second.kill()
    assert ended([second]) == [-signal.SIGKILL]
    sign.unlink()
    assert ended([first]) == [1]
    errors = (tmp_path / "errors0.txt").read_text()
    assert "ProcessLost: Another process of this run was lost" in errors and "start the same command again" in errors
    run(tmp_path, 2, train, tmp_path / "run")
    equal(trained / "one cd", tmp_path / "run")


@pytest.mark.parametrize(("batch_size", "size", "accumulate"), [(9, 2, 1), (8, 2, 3), (0, 1, 1)])
def test_a_batch_must_be_divided_evenly(batch_size, size, accumulate):
    with pytest.raises(OptionError, match=f"number of processes, {size}, times `accumulate`, {accumulate}; got {batch_size}"):
        training.Ranks(0, size).select_rows(batch_size, accumulate)


def test_each_process_has_its_rows_and_one_alone_joins_nobody(monkeypatch):
    assert [training.Ranks(rank, 3).select_rows(12, 2) for rank in range(3)] == [range(4), range(4, 8), range(8, 12)]
    monkeypatch.delenv("RANK", raising=False)
    assert training.join() == training.Ranks(0, 1) and not torch.distributed.is_initialized()


def refuse(trained):
    for out, message, width in (("two cd", "another model", 8), ("damaged", "No checkpoint is left", 16)):
        with pytest.raises(FileFormatError, match=message):
            train(trained / out, width=width)


@pytest.mark.full
@needs_forkserver
def test_an_error_in_the_first_process_is_raised_in_all(trained):
    (trained / "damaged" / "checkpoints").mkdir(parents=True)
    (trained / "damaged" / "checkpoints" / "step-00000003.safetensors").write_bytes(b"x" * 50)
    run(trained / "output", 2, refuse, trained)
