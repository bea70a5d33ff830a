"""Resuming with other settings of the objective, the model or the preparation, or with other data: refused by name and by value."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.data import Pictures, Preparation
from composable_energy_mcmc import Langevin
from composable_energy_training import (
    AttributeHeads,
    Augmentation,
    Checkpoints,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    Loss,
    Monitor,
    Objective,
    Optimizer,
    Prepared,
    Trainer,
)
from plugins.training.tests.run_helpers import DATA, StopAt, fit_until_stopped, same

CHAINS = {"steps": 2, "options": {"step_size": 0.1, "temperature": 0.01}, "buffer": 64}


class Fit(Objective):
    """Mean squared error, with settings of several kinds: a number, a function, an object, another objective."""

    def __init__(self, penalty=1.0, start=None, part=None):
        self.penalty, self.start, self.part = penalty, start, part

    def loss(self, model, batch):
        return Loss((model(batch.x) - batch.x).square().mean() * self.penalty)


def network():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))


def trainer(out, objective=None, model=None, data=DATA, steps=12, callbacks=(), ema=None):
    callbacks, optimizer = [Checkpoints(out, every=4), *callbacks], Optimizer(ema=ema)
    model = network() if model is None else model
    return Trainer(model, objective or Fit(), data, steps=steps, batch_size=8, optimizer=optimizer, callbacks=callbacks)


class Net(ce.Energy):
    def __init__(self, slope=0.1):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.LeakyReLU(slope), nn.Linear(8, 1))

    def forward(self, x, sigma=0.5):
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        return self.net(torch.cat([x, sigma[:, None]], 1)).squeeze(1)


class Scaled:
    """A start with a number in an attribute."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, like, noise):
        return self.scale * noise.normal(like)


def shifted(by):
    return lambda like, noise: noise.normal(like) + by


def divergence(step_size):
    return ContrastiveDivergence(steps=2, sampler=Langevin(step_size), options={"temperature": 0.01}, buffer=64)


FORTH = lambda x, noise: noise.normal(x)
BACK = lambda x, noise: -noise.normal(x)


def of(part):
    return Fit(part=part)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (divergence(0.1), divergence(0.3), r"objective\.part\.sampler\.step_size was 0\.1, is 0\.3"),
        (DenoisingScoreMatching(0.1, 1.0), DenoisingScoreMatching(0.2, 1.0), r"objective\.part\.sigma_min was 0\.1"),
        (Augmentation(blur=1.0), Augmentation(blur=2.0), r"objective\.part\.blur was 1\.0, is 2\.0"),
        (shifted(1.0), shifted(2.0), r"objective\.part\.by was 1\.0, is 2\.0"),
        (FORTH, BACK, r"objective\.part\.source was"),
        (Scaled(1.0), Scaled(0.5), r"objective\.part\.scale was 1\.0, is 0\.5"),
        (torch.zeros(2), torch.ones(2), r"objective\.part was .*\[0\.0, 0\.0\].*\[1\.0, 1\.0\]"),
        (torch.zeros(99), torch.ones(99), r"objective\.part was 'float32 \(99,\) with digest"),
        (np.zeros(3), np.ones(3), r"objective\.part was"),
        (AttributeHeads({"a": 2}, 0.1, 1), AttributeHeads({"a": 3}, 0.1, 1), r"part\.variables\.a was 2, is 3"),
        ({1, 2}, {1, 3}, r"objective\.part was \[1, 2\], is \[1, 3\]"),
        (nn.Dropout(0.1), nn.Dropout(0.2), r"objective\.part\.modules\.root\.p was 0\.1, is 0\.2"),
    ],
)
def test_other_settings_of_the_objective_are_refused(tmp_path, before, after, message):
    trainer(tmp_path, of(before), steps=4).fit()
    with pytest.raises(OptionError, match=message):
        trainer(tmp_path, of(after)).fit()
    assert trainer(tmp_path, of(before)).fit().steps == 12


def test_another_class_and_a_changed_attribute_of_the_objective_are_refused(tmp_path):
    class Other(Fit):
        pass

    run = trainer(tmp_path, Fit(penalty=1.0), steps=4)
    run.fit()
    with pytest.raises(OptionError, match=r"objective\.class was 'Fit', is '.*Other'"):
        trainer(tmp_path, Other()).fit()
    run.objective.penalty = 0.0
    with pytest.raises(OptionError, match=r"objective\.penalty was 1\.0, is 0\.0"):
        run.fit()


def test_networks_of_an_objective_count_by_value_but_the_model_itself_does_not(tmp_path):
    """The trained weights are in the checkpoint, so the model may have any weights when the run resumes."""
    critic, model = network(), network()
    trainer(tmp_path, of([critic, model]), model, steps=4).fit()
    other = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    assert trainer(tmp_path, of([network(), other]), other, steps=8).fit().steps == 8
    with torch.no_grad():
        critic[0].weight[0, 0] += 1
    with pytest.raises(OptionError, match=r"objective\.part was"):
        trainer(tmp_path, of([critic, model]), model).fit()


def test_other_settings_of_the_model_and_of_the_preparation_are_refused(tmp_path):
    trainer(tmp_path / "model", DenoisingScoreMatching(0.1, 1.0), Net(0.1), steps=4).fit()
    with pytest.raises(OptionError, match=r"model\.net\.1\.negative_slope was 0\.1, is 0\.3"):
        trainer(tmp_path / "model", DenoisingScoreMatching(0.1, 1.0), Net(0.3)).fit()
    images, model = torch.rand(16, 1, 4, 4), nn.Conv2d(1, 1, 3, padding=1)
    trainer(tmp_path / "data", None, model, Prepared(images, Preparation(flip=True)), steps=4).fit()
    with pytest.raises(OptionError, match=r"preparation\.flip was True, is False"):
        trainer(tmp_path / "data", None, model, Prepared(images, Preparation(flip=False)), steps=4).fit()


def test_the_state_of_an_objective_is_not_a_setting(tmp_path):
    """The same objective may be used in a second trainer of the run, as in a notebook."""
    objective = ContrastiveDivergence(**CHAINS)
    trainer(tmp_path, objective, Net(), steps=4).fit()
    assert trainer(tmp_path, objective, Net(), steps=8).fit().steps == 8


MONITORS = pytest.mark.parametrize("monitor", [Monitor(None), Monitor(), Monitor("stop")], ids=["none", "rollback", "stop"])


@MONITORS
def test_without_a_folder_the_same_trainer_resumes(monitor):
    """With and without a monitor: a second call resumes from the last checkpoint, here that of step 8."""
    whole = trainer(None, callbacks=[monitor], ema=0.9)
    whole.fit()
    run = trainer(None, callbacks=[monitor, StopAt(10)], ema=0.9)
    fit_until_stopped(run)
    run.callbacks = ()
    assert run.fit().steps == 12
    same(whole.model, run.model)
    run.fit()
    same(whole.model, run.model)


@MONITORS
def test_without_a_folder_a_run_and_its_chains_may_be_extended(monitor):
    whole = trainer(None, ContrastiveDivergence(**CHAINS), Net(), callbacks=[monitor])
    run = trainer(None, ContrastiveDivergence(**CHAINS), Net(), callbacks=[monitor], steps=8)
    whole.fit()
    run.fit()
    run.steps = 12
    assert run.fit().steps == 12
    same(whole.model, run.model)
    torch.testing.assert_close(run.objective.state()["slots"], whole.objective.state()["slots"], rtol=0, atol=0)


def test_without_a_monitor_chains_are_not_copied_and_an_interrupted_run_with_chains_is_refused():
    """A buffer is most of the memory of a training; without a copy of it the chains are ahead of the last checkpoint."""
    run = trainer(None, ContrastiveDivergence(**CHAINS), Net(), callbacks=[Monitor(None), StopAt(10)])
    fit_until_stopped(run)
    run.callbacks = ()
    with pytest.raises(OptionError, match=r"interrupted, and the state of ContrastiveDivergence, .* of step 8\. Add `Checkpoints"):
        run.fit()
    run = trainer(None, ContrastiveDivergence(**CHAINS), Net(), callbacks=[StopAt(10)])
    fit_until_stopped(run)
    run.callbacks = ()
    assert run.fit().steps == 12


def changed(data):
    data = data.clone()
    data[17, 1] += 0.25
    return data


def pictures(data):
    return Pictures.from_tensors((data[:, :, None, None] % 1).expand(-1, -1, 4, 4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: data, "a value has changed"),
        (lambda data: (DATA, {"kind": data[:, 1]}), "a value has changed"),
        (pictures, "a value has changed"),
        (lambda data: DataLoader(TensorDataset(data), batch_size=7), "differ now"),
        (lambda data: [data[:20], data[20:]], "differ now"),
    ],
    ids=["tensor", "labels", "pictures", "loader", "list"],
)
def test_data_with_one_other_number_are_refused(tmp_path, make, message):
    model = nn.Conv2d(3, 3, 1) if make is pictures else network()
    fit_until_stopped(trainer(tmp_path, model=model, data=make(DATA), callbacks=[StopAt(9)]))
    with pytest.raises(OptionError, match=f"trained on other data.*{message}"):
        trainer(tmp_path, model=model, data=make(changed(DATA))).fit()
    assert trainer(tmp_path, model=model, data=make(DATA)).fit().steps == 12


def test_points_that_are_computed_again_may_differ_by_rounding(tmp_path):
    """The codes of a network do so on another device, or with another number of threads."""
    trainer(tmp_path, steps=4).fit()
    assert trainer(tmp_path, data=DATA * (1 + 1e-6)).fit().steps == 12


class Augmented(Dataset):
    """Points with noise from a source of random numbers."""

    def __init__(self, draw):
        self.draw = draw

    def __len__(self):
        return len(DATA)

    def __getitem__(self, index):
        return DATA[index] + 0.1 * self.draw()


def shuffled(draw):
    return DataLoader(Augmented(draw), batch_size=7, shuffle=True)


def test_a_loader_that_draws_from_torch_has_the_same_bits(tmp_path):
    """Its items are keyed by epoch and number, so they do not depend on other draws of training."""
    whole = trainer(tmp_path / "whole", data=shuffled(lambda: torch.rand(())))
    whole.fit()
    fit_until_stopped(trainer(tmp_path / "cut", data=shuffled(lambda: torch.rand(())), callbacks=[StopAt(10)]))
    again = trainer(tmp_path / "cut", data=shuffled(lambda: torch.rand(())))
    again.fit()
    same(whole.model, again.model)


@pytest.mark.parametrize("draw", [lambda: float(np.random.rand()), random.random], ids=["numpy", "random"])
def test_a_loader_that_draws_from_elsewhere_is_refused(tmp_path, draw):
    fit_until_stopped(trainer(tmp_path, data=shuffled(draw), callbacks=[StopAt(10)]))
    with pytest.raises(OptionError, match=r"drawn at random .* Draw from torch's global generator, or key the draws by epoch and index"):
        trainer(tmp_path, data=shuffled(draw)).fit()
