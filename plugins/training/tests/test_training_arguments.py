"""Arguments of the trainer of another type are refused with what to give, and Ctrl-C keeps what was trained."""

import functools
import os
import signal

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from composable_energy.errors import OptionError
from composable_energy_training import Callback, ContrastiveDivergence, Monitor, Optimizer, Trainer
from plugins.training.tests.run_helpers import DATA, Scripted, network, trainer


def make(**changes):
    given = {"model": network(), "objective": Scripted({}), "data": DATA, "steps": 2, "batch_size": 8, **changes}
    return Trainer(given.pop("model"), given.pop("objective"), given.pop("data"), **given)


@pytest.mark.parametrize(
    "optimizer",
    [torch.optim.Adam, torch.optim.Adam(network().parameters()), functools.partial(torch.optim.Adam, lr=1e-3), "adam", 1e-3, Optimizer],
    ids=["class", "instance", "partial", "name", "rate", "own class"],
)
def test_an_optimizer_of_another_kind_is_refused_with_the_way_to_write_it(optimizer):
    with pytest.raises(OptionError, match=r"optimizer must be the settings of Adam, as `Optimizer\(rate=1e-3\)`"):
        make(optimizer=optimizer)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("objective", ContrastiveDivergence),
        ("objective", nn.MSELoss()),
        ("model", nn.Linear),
        ("model", lambda x: x.sum(1)),
        ("monitor", Monitor),
        ("monitor", False),
        ("callbacks", Callback()),
        ("callbacks", [Callback]),
        ("preparation", 3),
        ("seed", "a"),
        ("out", 3),
        ("batch_size", 8.0),
        ("device", "gpu"),
        ("dtype", "float32"),
    ],
)
def test_another_argument_of_another_kind_is_refused(name, value):
    with pytest.raises(OptionError, match=name):
        make(**{name: value})


@pytest.mark.parametrize(
    ("data", "way"),
    [
        (DATA.numpy(), "torch.as_tensor"),
        ([DATA.numpy()], "torch.as_tensor"),
        (DATA.tolist(), "torch.tensor"),
        (TensorDataset(DATA), "DataLoader"),
        ((DATA, torch.zeros(40)), r"\(x, \{'y': y\}\)"),
        ("pictures", "open_pictures"),
    ],
)
def test_data_of_another_form_are_refused_with_the_way_to_convert_them(data, way):
    with pytest.raises(OptionError, match=way):
        make(data=data).fit()


@pytest.mark.parametrize(
    ("name", "value"), [("rate", "fast"), ("betas", 0.9), ("milestones", 3), ("slow", [1]), ("clip", [1]), ("warm_up", None)]
)
def test_settings_of_the_optimizer_of_another_type_are_refused(name, value):
    with pytest.raises(OptionError, match=name):
        Optimizer(**{name: value})


class Interrupt(Callback):
    """Presses Ctrl-C at a step, some times."""

    def __init__(self, step, times=1):
        self.at, self.times = step, times

    def on_step(self, trainer, scalars):
        if trainer.step == self.at:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def weights(run):
    return torch.cat([tensor.flatten() for tensor in run.model.state_dict().values()])


@pytest.fixture
def heard():
    """Ctrl-C arrives as in a terminal, also in a suite that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("monitor", [Monitor(), None])
@pytest.mark.parametrize("stored", [True, False])
def test_a_training_that_is_interrupted_goes_on_where_it_was(tmp_path, heard, monitor, stored):
    whole = trainer(Scripted({}), monitor)
    whole.fit()
    run = trainer(Scripted({}), monitor, out=tmp_path if stored else None, callbacks=[Interrupt(7)])
    with pytest.raises(KeyboardInterrupt, match="after step 7 of 20"):
        run.fit()
    assert run.step == 7
    run.callbacks = ()
    assert run.fit().steps == 20
    assert torch.equal(weights(run), weights(whole))


def test_a_second_interrupt_does_not_wait(heard):
    run = trainer(Scripted({}), None, callbacks=[Interrupt(7, times=2)])
    with pytest.raises(KeyboardInterrupt) as caught:
        run.fit()
    assert not str(caught.value)
