"""The monitor: runs that become unstable on purpose, and its actions."""

import math

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy_training import CSVLog, Monitor, Trainer
from composable_energy_training.monitor import MonitorState, TrainingDiverged
from plugins.training.tests.run_helpers import DATA, Noted, Scripted, Stop, StopAfter, network, read_log, trainer

SOON = {"window": 3, "limit": 3}


@pytest.mark.parametrize(
    ("scalars", "cause"),
    [
        ({"gap": 0.6}, "gap"),
        ({"gap": -0.6}, "gap"),
        ({"gap": -0.4}, None),
        ({"gap": 0.4}, None),
        ({"magnitude": 10.5, "gap": 0.0}, "magnitude"),
        ({"magnitude": 1000.0}, None),
        ({"loss": -2e8}, "loss"),
        ({"acceptance": 0.001}, "acceptance"),
        ({"acceptance": 0.5, "gap": 0.1, "magnitude": 1.0, "loss": 3.0, "diverged": 0.0}, None),
        ({"diverged": 0.3}, "diverged"),
    ],
)
def test_thresholds_are_those_of_the_papers(scalars, cause):
    state = MonitorState(Monitor(window=4))
    alerts = [state.update(step, scalars, True) for step in range(1, 5)]
    assert alerts[:3] == [None] * 3  # a mean counts once its window is full
    assert (alerts[3] is None) if cause is None else (alerts[3].cause == cause and alerts[3].action == "rollback")


def test_the_rate_is_lowered_until_the_limit(tmp_path):
    noted = Noted()
    with pytest.raises(TrainingDiverged, match=r"step 12 after 3 actions: the mean gap over the last 3 steps is 2") as caught:
        trainer(Scripted({"gap": lambda step, seed: 2}), Monitor("lower", **SOON), out=tmp_path, callbacks=[noted]).fit()
    assert noted.steps == [(0, step) for step in range(1, 13)]
    assert noted.rates == pytest.approx([0.01 * 0.5 ** ((step - 1) // 3) for step in range(1, 13)])
    assert [alert.step for alert in noted.alerts] == [3, 6, 9, 12] and [alert.action for alert in noted.alerts][-1] == "stop"
    assert caught.value.step == 12 and caught.value.checkpoint.name == "step-00000010.safetensors" and caught.value.checkpoint.exists()
    assert str(caught.value.checkpoint) in str(caught.value)


def test_a_rollback_takes_other_random_numbers(tmp_path):
    """The gap is large from step 8 on with the seed of the first attempt, and small with any other."""
    first, noted = [], Noted()

    def gap(step, seed):
        first.append(seed)
        return 2 * (step >= 8 and seed == first[0])

    going = trainer(Scripted({"gap": gap}), Monitor(**SOON), out=tmp_path, callbacks=[noted])
    report = going.fit()
    assert [alert.cause for alert in report.alerts] == ["gap"] and report.steps == 20
    back = noted.steps.index((1, 6))
    assert noted.steps == [(0, step) for step in range(1, back + 1)] + [(1, step) for step in range(6, 21)]
    assert noted.rates[back - 1 : back + 1] == pytest.approx([0.01, 0.005])
    assert going.objective.count == 20  # the state was rolled back as well


def test_a_run_without_a_folder_rolls_back_too():
    noted, first = Noted(), []

    def gap(step, seed):
        first.append(seed)
        return 2 * (step >= 8 and seed == first[0])

    assert trainer(Scripted({"gap": gap}), Monitor(**SOON), callbacks=[noted]).fit().steps == 20
    assert (1, 6) in noted.steps


def test_a_checkpoint_that_fails_twice_is_dropped(tmp_path):
    """Two attempts from step 10 fail, so the third starts at step 5."""
    noted, seeds = Noted(), []

    def gap(step, seed):
        seeds.extend([seed] if seed not in seeds else [])
        return 2 * (step >= 11 and seeds.index(seed) < 2)

    trainer(Scripted({"gap": gap}), Monitor(**SOON), out=tmp_path, callbacks=[noted]).fit()
    attempts = {attempt: [step for a, step in noted.steps if a == attempt] for attempt in (0, 1, 2)}
    assert attempts[1][0] == 11 and attempts[2][0] == 6 and attempts[2][-1] == 20


@pytest.mark.parametrize("what", [math.nan, math.inf, SamplingDiverged("chains")])
def test_steps_that_are_not_finite_do_not_change_the_weights(what):
    noted = Noted()
    model = network()
    before = model.weight.detach().clone()
    bad = Scripted({}, lambda step, seed: what if step <= 4 else None)
    report = Trainer(model, bad, DATA, steps=4, batch_size=8, monitor=Monitor(nonfinite=5), callbacks=[noted]).fit()
    assert report.skipped == 4 and torch.equal(model.weight, before) and report.alerts == ()
    report = Trainer(model, bad, DATA, steps=6, batch_size=8, monitor=None).fit()
    assert report.skipped == 4 and model.weight.isfinite().all() and not torch.equal(model.weight, before)


def test_too_many_skipped_steps_in_a_row_raise_an_alert():
    with pytest.raises(TrainingDiverged, match="not finite 3 times in a row"):
        trainer(Scripted({}, lambda step, seed: math.nan if step > 5 else None), Monitor("stop", nonfinite=3)).fit()


@pytest.mark.slow
def test_a_run_that_is_killed_around_its_rollback_ends_with_the_same_bits(tmp_path):
    def objective():
        first = []

        class Unstable(Scripted):
            def begin(self, model, context):
                super().begin(model, context)
                first.append(ce.sampling.Noise(context.seed, range(8)).child("objective").seed)

        return Unstable({"gap": lambda step, seed: 2 * (step >= 8 and seed == first[0])})

    def run(folder, callbacks=()):
        trainer(objective(), Monitor(**SOON), out=folder, callbacks=[CSVLog(2), *callbacks], ema=0.9).fit()
        return (folder / "checkpoints" / "step-00000020.safetensors").read_bytes(), [{**row, "seconds": ""} for row in read_log(folder)]

    whole = run(tmp_path / "whole")
    for count in (7, 9, 11, 14, 19):
        with pytest.raises(Stop):
            run(tmp_path / str(count), [StopAfter(count)])
        assert run(tmp_path / str(count)) == whole
    assert [row["step"] for row in whole[1] if row["event"]] == ["8"]


@pytest.mark.parametrize(
    "options",
    [{"action": "wait"}, {"gap": -1}, {"acceptance": 2.0}, {"window": 0}, {"factor": 1.0}, {"limit": -1}, {"nonfinite": 0}],
)
def test_bad_monitors(options):
    with pytest.raises(OptionError, match=next(iter(options))):
        Monitor(**options)


def test_a_monitor_without_alerts_changes_nothing(tmp_path):
    weights = []
    for monitor in (Monitor(**SOON), None):
        going = trainer(Scripted({"gap": lambda step, seed: 0.1}), monitor)
        assert going.fit().alerts == ()
        weights.append(torch.cat([tensor.flatten() for tensor in going.model.state_dict().values()]))
    assert torch.equal(*weights)
