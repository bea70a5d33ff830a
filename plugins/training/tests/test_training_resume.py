"""Resuming with other settings of the objective, the model or the preparation: refused by name."""

import numpy as np
import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.data import Preparation
from composable_energy_mcmc import Langevin
from composable_energy_training import AttributeHeads, Augmentation, ContrastiveDivergence, DenoisingScoreMatching, Monitor
from plugins.training.tests.resume_helpers import Fit, network, same, trainer
from plugins.training.tests.run_helpers import Stop, StopAt

CHAINS = {"steps": 2, "options": {"step_size": 0.1, "temperature": 0.01}, "buffer": 64}


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


OBJECTIVES = [
    (
        lambda: ContrastiveDivergence(**CHAINS),
        lambda: ContrastiveDivergence(**{**CHAINS, "options": {"step_size": 0.2, "temperature": 0.01}}),
        r"objective\.options\.step_size was 0\.1, is 0\.2",
    ),
    (
        lambda: ContrastiveDivergence(steps=2, sampler=Langevin(0.1), buffer=64),
        lambda: ContrastiveDivergence(steps=2, sampler=Langevin(0.3), buffer=64),
        r"objective\.sampler\.step_size was 0\.1, is 0\.3",
    ),
    (
        lambda: ContrastiveDivergence(**CHAINS, start=shifted(1.0)),
        lambda: ContrastiveDivergence(**CHAINS, start=shifted(2.0)),
        r"objective\.start\.by was 1\.0, is 2\.0",
    ),
    (
        lambda: ContrastiveDivergence(**CHAINS, start=lambda like, noise: noise.normal(like)),
        lambda: ContrastiveDivergence(**CHAINS, start=lambda like, noise: -noise.normal(like)),
        r"objective\.start\.code was",
    ),
    (
        lambda: ContrastiveDivergence(**CHAINS, start=Scaled(1.0)),
        lambda: ContrastiveDivergence(**CHAINS, start=Scaled(0.5)),
        r"objective\.start\.scale was 1\.0, is 0\.5",
    ),
]


@pytest.mark.full
@pytest.mark.parametrize(("before", "after", "message"), OBJECTIVES)
def test_other_settings_of_the_objective_are_refused(tmp_path, before, after, message):
    with pytest.raises(Stop):
        trainer(tmp_path, before(), Net(), callbacks=[StopAt(6)]).fit()
    with pytest.raises(OptionError, match=message):
        trainer(tmp_path, after(), Net()).fit()
    assert trainer(tmp_path, before(), Net()).fit().steps == 12


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (Fit(part=DenoisingScoreMatching(0.1, 1.0)), Fit(part=DenoisingScoreMatching(0.2, 1.0)), r"objective\.part\.sigma_min was 0\.1"),
        (Fit(part=Augmentation(blur=1.0)), Fit(part=Augmentation(blur=2.0)), r"objective\.part\.blur was 1\.0, is 2\.0"),
        (Fit(part=torch.zeros(2)), Fit(part=torch.ones(2)), r"objective\.part was .*\[0\.0, 0\.0\].*\[1\.0, 1\.0\]"),
        (Fit(part=torch.zeros(99)), Fit(part=torch.ones(99)), r"objective\.part was 'float32 \(99,\) with digest"),
        (Fit(part=np.zeros(3)), Fit(part=np.ones(3)), r"objective\.part was"),
        (Fit(part=AttributeHeads({"a": 2}, 0.1, 1)), Fit(part=AttributeHeads({"a": 3}, 0.1, 1)), r"part\.variables\.a was 2, is 3"),
        (Fit(part={1, 2}), Fit(part={1, 3}), r"objective\.part was \[1, 2\], is \[1, 3\]"),
        (Fit(part=nn.Dropout(0.1)), Fit(part=nn.Dropout(0.2)), r"objective\.part\.modules\.root\.p was 0\.1, is 0\.2"),
    ],
)
def test_settings_inside_settings_count(tmp_path, before, after, message):
    trainer(tmp_path, before, steps=4).fit()
    with pytest.raises(OptionError, match=message):
        trainer(tmp_path, after).fit()
    assert trainer(tmp_path, before).fit().steps == 12


def test_a_changed_attribute_of_the_objective_is_refused(tmp_path):
    run = trainer(tmp_path, Fit(penalty=1.0), steps=4)
    run.fit()
    run.objective.penalty = 0.0
    with pytest.raises(OptionError, match=r"objective\.penalty was 1\.0, is 0\.0"):
        run.fit()


def test_another_objective_of_the_same_settings_is_refused(tmp_path):
    class Other(Fit):
        pass

    trainer(tmp_path).fit()
    with pytest.raises(OptionError, match=r"objective\.class was 'Fit', is '.*Other'"):
        trainer(tmp_path, Other()).fit()


def test_networks_of_an_objective_count_by_value_but_the_model_itself_does_not(tmp_path):
    """The trained weights are in the checkpoint, so the model may have any weights when the run resumes."""
    critic, model = network(), network()
    trainer(tmp_path, Fit(part=[critic, model]), model, steps=4).fit()
    other = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 3))
    assert trainer(tmp_path, Fit(part=[network(), other]), other, steps=8).fit().steps == 8
    with torch.no_grad():
        critic[0].weight[0, 0] += 1
    with pytest.raises(OptionError, match=r"objective\.part was"):
        trainer(tmp_path, Fit(part=[critic, model]), model).fit()


def test_other_settings_of_the_model_are_refused(tmp_path):
    trainer(tmp_path, DenoisingScoreMatching(0.1, 1.0), Net(0.1), steps=4).fit()
    with pytest.raises(OptionError, match=r"model\.net\.1\.negative_slope was 0\.1, is 0\.3"):
        trainer(tmp_path, DenoisingScoreMatching(0.1, 1.0), Net(0.3)).fit()


def test_another_preparation_is_refused(tmp_path):
    images, options = torch.rand(16, 1, 4, 4), {"model": nn.Conv2d(1, 1, 3, padding=1), "steps": 4}
    trainer(tmp_path, data=images, preparation=Preparation(flip=True), **options).fit()
    with pytest.raises(OptionError, match=r"preparation\.flip was True, is False"):
        trainer(tmp_path, data=images, preparation=Preparation(flip=False), **options).fit()


def test_the_state_of_an_objective_is_not_a_setting(tmp_path):
    """The same objective may be used in a second trainer of the run, as in a notebook."""
    objective = ContrastiveDivergence(**CHAINS)
    trainer(tmp_path, objective, Net(), steps=4).fit()
    assert trainer(tmp_path, objective, Net(), steps=8).fit().steps == 8


@pytest.mark.parametrize("monitor", [None, Monitor(), Monitor(action="stop")], ids=["none", "rollback", "stop"])
def test_without_a_folder_the_same_trainer_resumes(monitor):
    """With and without a monitor: a second call resumes from the last checkpoint, here that of step 8."""
    whole = trainer(None, monitor=monitor, ema=0.9)
    whole.fit()
    run = trainer(None, monitor=monitor, ema=0.9, callbacks=[StopAt(10)])
    with pytest.raises(Stop):
        run.fit()
    run.callbacks = ()
    assert run.fit().steps == 12
    same(whole.model, run.model)
    run.fit()
    same(whole.model, run.model)


@pytest.mark.parametrize("monitor", [None, Monitor()], ids=["none", "rollback"])
def test_without_a_folder_a_run_may_be_extended(monitor):
    whole, run = trainer(None, monitor=monitor), trainer(None, monitor=monitor, steps=8)
    whole.fit()
    run.fit()
    run.steps = 12
    assert run.fit().steps == 12
    same(whole.model, run.model)


@pytest.mark.parametrize("monitor", [None, Monitor()], ids=["none", "rollback"])
def test_chains_go_on_where_a_run_without_a_folder_is_extended(monitor):
    whole = trainer(None, ContrastiveDivergence(**CHAINS), Net(), monitor=monitor)
    run = trainer(None, ContrastiveDivergence(**CHAINS), Net(), monitor=monitor, steps=8)
    whole.fit()
    run.fit()
    run.steps = 12
    run.fit()
    same(whole.model, run.model)
    torch.testing.assert_close(run.objective.state()["slots"], whole.objective.state()["slots"], rtol=0, atol=0)


@pytest.mark.parametrize("monitor", [None, Monitor()], ids=["none", "rollback"])
def test_chains_are_copied_only_for_a_monitor(monitor):
    """A buffer is most of the memory of a training; without a copy of it an interrupted run is refused, since its chains are ahead."""
    run = trainer(None, ContrastiveDivergence(**CHAINS), Net(), monitor=monitor, callbacks=[StopAt(10)])
    with pytest.raises(Stop):
        run.fit()
    kept, slots = run.checkpoints.load().part("objective")["slots"], run.objective.state()["slots"]
    assert (kept.data_ptr() == slots.data_ptr()) == (monitor is None)
    run.callbacks = ()
    if monitor is None:
        with pytest.raises(
            OptionError, match=r"interrupted, and the state of ContrastiveDivergence, .* of step 8\. Give the trainer `out`"
        ):
            run.fit()
    else:
        assert run.fit().steps == 12
