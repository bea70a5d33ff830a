"""The monitor: healthy runs pass, runs that become unstable are rolled back or stopped, and the error says how to go on."""

import math

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import OptionError, SamplingDiverged
from composable_energy_training import ContrastiveDivergence, CSVLog, Monitor, Optimizer, Trainer, TrainingDiverged
from composable_energy_training.monitor import MonitorState
from plugins.training.tests.run_helpers import DATA, Noted, Scripted, Stop, StopAfter, network, read_log, same, trainer
from tests.refusals import refusals

SOON = {"window": 3, "limit": 3}


@pytest.mark.parametrize(
    ("scalars", "cause"),
    [
        ({"gap": 0.6}, "gap"),
        ({"gap": -0.6}, "gap"),
        ({"gap": -0.4}, None),
        ({"gap": 2.0, "spread": 0.1}, "gap"),
        ({"gap": 2.0, "spread": 1.0}, None),  # a gap counts beyond three spreads of the energies
        ({"magnitude": 10.5, "gap": 0.0}, "magnitude"),
        ({"magnitude": 1000.0}, None),
        ({"loss": -2e8}, "loss"),
        ({"acceptance": 0.001}, "acceptance"),
        ({"acceptance": 0.5, "gap": 0.1, "magnitude": 1.0, "loss": 3.0, "diverged": 0.0}, None),
        ({"diverged": 0.3}, "diverged"),
        ({"margin": 5.0}, None),  # of an objective without chains: what it learns
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


@pytest.mark.parametrize("stored", [True, False])
def test_a_rollback_takes_other_random_numbers(tmp_path, stored):
    """The gap is large from step 8 on with the seed of the first attempt, and small with any other."""
    first, noted = [], Noted()

    def gap(step, seed):
        first.append(seed)
        return 2 * (step >= 8 and seed == first[0])

    going = trainer(Scripted({"gap": gap}), Monitor(**SOON), out=tmp_path if stored else None, callbacks=[noted])
    report = going.fit()
    assert [alert.cause for alert in report.alerts] == ["gap"] and report.steps == 20
    back = noted.steps.index((1, 6))
    assert noted.steps == [(0, step) for step in range(1, back + 1)] + [(1, step) for step in range(6, 21)]
    assert noted.rates[back - 1 : back + 1] == pytest.approx([0.01, 0.005])
    assert going.objective.count == 20  # the state was rolled back as well


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
    model, bad = network(), Scripted({}, lambda step, seed: what if step <= 4 else None)
    before = model.weight.detach().clone()
    report = Trainer(model, bad, DATA, steps=4, batch_size=8, callbacks=[Monitor(nonfinite=5)]).fit()
    assert report.skipped == 4 and torch.equal(model.weight, before) and report.alerts == ()
    report = Trainer(model, bad, DATA, steps=6, batch_size=8, callbacks=[Monitor(None)]).fit()
    assert report.skipped == 4 and model.weight.isfinite().all() and not torch.equal(model.weight, before)
    with pytest.raises(TrainingDiverged, match="not finite 3 times in a row"):
        Trainer(model, bad, DATA, steps=6, batch_size=8, callbacks=[Monitor("stop", nonfinite=3)]).fit()


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
    for count in (7, 9, 14):
        with pytest.raises(Stop):
            run(tmp_path / str(count), [StopAfter(count)])
        assert run(tmp_path / str(count)) == whole
    assert [row["step"] for row in whole[1] if row["event"]] == ["8"]


def test_a_monitor_without_alerts_changes_nothing():
    watched, free = (trainer(Scripted({"gap": lambda step, seed: 0.1}), monitor) for monitor in (Monitor(**SOON), None))
    assert watched.fit().alerts == free.fit().alerts == ()
    same(watched.model, free.model)


class Bumps(ce.Energy):
    """A small network plus a quadratic."""

    def __init__(self) -> None:
        super().__init__()
        self.event_shape = (2,)
        self.net = nn.Sequential(nn.Linear(2, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 1))

    def forward(self, x):
        return self.net(x)[:, 0] + x.square().sum(1) / 2


@pytest.mark.full
def test_a_diverging_run_stops_with_an_error_that_names_the_monitor():
    """Chains of two tiny steps do not follow the energy, which grows without bound."""
    torch.manual_seed(1)
    angle = 2 * torch.pi * torch.rand(2000)
    ring = 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(2000, 2)
    chains = ContrastiveDivergence(steps=2, options={"step_size": 0.0002}, start="normal", l2=0.0, buffer=1000)
    run = Trainer(Bumps(), chains, ring, steps=200, seed=1, optimizer=Optimizer(rate=3e-3), callbacks=[Monitor("stop")])
    with pytest.raises(TrainingDiverged, match=r"The `Monitor` stopped .*Monitor\((gap|magnitude)=None\)") as caught:
        run.fit()
    assert caught.value.step < 150


test_bad_monitors = refusals(
    *(({name: value}, name) for name, value in [("action", "wait"), ("gap", -1), ("gap", "large"), ("acceptance", 2.0), ("nonfinite", 0)]),
    *(({name: value}, name) for name, value in [("window", 2.5), ("factor", 1.0), ("factor", None), ("limit", -1)]),
    call=lambda options: Monitor(**options),
    error=OptionError,
)
