"""Callbacks: the CSV log, TensorBoard, sheets, progress, their exits; and the monitor, which rolls unstable runs back or stops them."""

import logging
import math
import re
import sys

import pytest
import torch
from PIL import Image
from torch import nn

import composable_energy as ce
import composable_energy_training as training
from composable_energy.errors import ExtraNotInstalled, OptionError, SamplingDiverged
from composable_energy_training.callbacks import ProgressLog
from composable_energy_training.monitor import MonitorState
from plugins.training.tests.run_helpers import DATA, Noted, Scripted, Stop, StopAfter, network, read_log, same, trainer
from tests.refusals import refusals, refused

GROWING = {"gap": lambda step, seed: step / 100}
SOON = {"window": 3, "limit": 3}


def test_a_log_has_a_row_every_few_steps_and_overwrites_no_other_table(tmp_path):
    trainer(Scripted(GROWING), training.Monitor(), out=tmp_path, callbacks=[training.CSVLog(4)], steps=10).fit()
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == ["4", "8", "10"] and [float(row["gap"]) for row in rows] == pytest.approx([0.04, 0.08, 0.1])
    assert list(rows[0]) == ["attempt", "step", "seconds", "rate", "loss", "gradient", "gap", "event"]
    (tmp_path / "log.csv").write_text("time,value\n1,2\n")
    refused(ValueError, "is not the log of a run", trainer(Scripted(GROWING), out=tmp_path, callbacks=[training.CSVLog()]).fit)
    assert (tmp_path / "log.csv").read_text() == "time,value\n1,2\n"


@pytest.mark.parametrize("make", [training.CSVLog, training.SampleSheet, training.TensorBoard])
def test_files_need_a_folder_and_numbers_are_positive(make):
    refused(OptionError, r"Checkpoints\(folder\)", trainer(Scripted({}), callbacks=[make()]).fit)
    refused(OptionError, "every must be a whole number of at least 1", make, 0)


def test_tensorboard_gets_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(Scripted(GROWING), training.Monitor(), out=tmp_path, callbacks=[training.TensorBoard(5)]).fit()
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("gap")] == [5, 10, 15, 20]
    assert [point.value for point in curves.Scalars("gap")] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_missing_tensorboard_is_reported_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = trainer(Scripted({}), out=tmp_path, callbacks=[training.TensorBoard()])
    refused(ExtraNotInstalled, re.escape("composable-energy[tensorboard]"), run.fit)


class Darkness(ce.Energy):
    """Prefers pictures of one gray, which is learnt."""

    def __init__(self):
        super().__init__()
        self.gray = nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        return 20 * (x - self.gray).square().flatten(1).sum(1)


PICTURES = torch.full((16, 1, 4, 4), 0.8)


def test_a_sheet_shows_the_chains(tmp_path):
    objective = training.ContrastiveDivergence(steps=2, options={"step_size": 0.01}, buffer=32, l2=0.0)
    callbacks = [training.Checkpoints(tmp_path), training.SampleSheet(5, 16), training.Monitor(None)]
    training.Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, callbacks=callbacks).fit()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000005.png", "step-00000010.png"]
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.size == (4 * 6 - 2, 4 * 6 - 2)
        corner = found.getpixel((0, 0))[0] / 255
    assert corner == pytest.approx(objective.state()["slots"][0, 0, 0, 0].clamp(0, 1).item(), abs=1 / 255)


def test_a_sheet_shows_draws_from_the_averaged_energy(tmp_path):
    """With a rate of nothing the energy stays at .2, and its cold draws are that gray."""
    sheet = training.SampleSheet(10, 4, chains=False, sampler="langevin", steps=50, step_size=0.02, temperature=0.0)
    optimizer, callbacks = training.Optimizer(rate=1e-9, ema=0.9), [training.Checkpoints(tmp_path), sheet, training.Monitor(None)]
    objective = training.ContrastiveDivergence(steps=1, options={"step_size": 0.01}, buffer=8, l2=0.0)
    training.Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, optimizer=optimizer, callbacks=callbacks).fit()
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.getpixel((1, 1))[0] / 255 == pytest.approx(0.2, abs=1 / 255)


test_a_sheet_without_anything_to_show_is_reported_at_the_start = refusals(
    (training.SampleSheet(chains=True), PICTURES, "keeps no chains"),
    (training.SampleSheet(), PICTURES, "samples an energy"),
    (training.SampleSheet(of=lambda model: ce.as_energy(lambda x: x.square().sum(1))), DATA, "are not pictures"),
    call=lambda tmp_path, sheet, data: training.Trainer(
        network(), Scripted({}), data, steps=3, batch_size=8, callbacks=[training.Checkpoints(tmp_path), sheet]
    ).fit(),
    fixture="tmp_path",
    error=OptionError,
)


def test_a_line_of_the_log_has_stage_step_loss_and_time_left(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "composable_energy_training"):
        report = trainer(Scripted({}), out=tmp_path / "heads", steps=3, callbacks=[ProgressLog(0)]).fit()
        trainer(Scripted({}), callbacks=[ProgressLog(3600)]).fit()
    lines = [record.getMessage() for record in caplog.records]
    assert "float32 on cpu" in lines[0] and "float32 on cpu" in lines[5] and len(lines) == 6
    found = [re.fullmatch(r"heads: step (\d) of 3, loss ([\d.]+), \d+ s left", line) for line in lines[1:4]]
    assert [match and match[1] for match in found] == ["1", "2", "3"]
    assert float(found[2][2]) == pytest.approx(report.scalars["loss"], rel=1e-3) and lines[4] == "heads: 3 steps finished in 0 s"
    refused(OptionError, "every", ProgressLog, -1)


class Open(training.Callback):
    """Counts what is open, and ends a run at a step."""

    def __init__(self, fail=None):
        self.open, self.fail, self.error = 0, fail, None

    def on_start(self, trainer):
        self.open += 1
        if self.fail == 0:
            raise ArithmeticError("Does not start.")

    def on_step(self, trainer, scalars):
        if trainer.step == self.fail:
            raise ArithmeticError("Ends.")

    def on_end(self, trainer, error):
        self.open, self.error = 0, error
        return True  # as a hook may that returns what it has written


def test_every_callback_ends_with_the_error_of_the_run():
    one, other = Open(), Open(3)
    with pytest.raises(ArithmeticError) as caught:
        trainer(Scripted({}), callbacks=[one, other]).fit()
    assert one.open == other.open == 0 and one.error is other.error is caught.value
    trainer(Scripted({}), callbacks=[one]).fit()
    assert one.open == 0 and one.error is None


def test_the_bar_shows_loss_gap_and_rate_and_is_closed_after_an_error(capsys):
    trainer(Scripted({"gap": lambda step, seed: 0.25}), callbacks=[training.ProgressBar()]).fit()
    shown = capsys.readouterr().err
    assert "20/20" in shown and "gap=0.25" in shown and "rate=0.01" in shown and "loss=" in shown
    refused(ArithmeticError, None, trainer(Scripted({}), callbacks=[Open(3), training.ProgressBar()]).fit)
    assert capsys.readouterr().err.endswith("\n")  # an open bar does not end its line
    refused(ArithmeticError, None, trainer(Scripted({}), callbacks=[Open(0), training.ProgressBar()]).fit)


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
    state = MonitorState(training.Monitor(window=4))
    alerts = [state.update(step, scalars, True) for step in range(1, 5)]
    assert alerts[:3] == [None] * 3  # a mean counts once its window is full
    assert (alerts[3] is None) if cause is None else (alerts[3].cause == cause and alerts[3].action == "rollback")


def test_the_rate_is_lowered_until_the_limit(tmp_path):
    noted = Noted()
    with pytest.raises(training.TrainingDiverged, match=r"step 12 after 3 actions: the mean gap over the last 3 steps is 2") as caught:
        trainer(Scripted({"gap": lambda step, seed: 2}), training.Monitor("lower", **SOON), out=tmp_path, callbacks=[noted]).fit()
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

    going = trainer(Scripted({"gap": gap}), training.Monitor(**SOON), out=tmp_path if stored else None, callbacks=[noted])
    report = going.fit()
    assert [alert.cause for alert in report.alerts] == ["gap"] and report.steps == 20
    back = noted.steps.index((1, 6))
    assert noted.steps == [(0, step) for step in range(1, back + 1)] + [(1, step) for step in range(6, 21)]
    assert noted.rates[back - 1 : back + 1] == pytest.approx([0.01, 0.005])
    assert going.objective.count == 20  # the state was rolled back as well


def test_a_checkpoint_that_fails_twice_is_dropped_with_a_warning(tmp_path):
    """Two attempts from step 10 fail, so the third starts at step 5."""
    noted, seeds = Noted(), []

    def gap(step, seed):
        seeds.extend([seed] if seed not in seeds else [])
        return 2 * (step >= 11 and seeds.index(seed) < 2)

    with pytest.warns(training.TrainingWarning, match=r"the monitor acted 2 times, as the mean gap .* the rate is 0\.25 of that given"):
        trainer(Scripted({"gap": gap}), training.Monitor(**SOON), out=tmp_path, callbacks=[noted]).fit()
    attempts = {attempt: [step for a, step in noted.steps if a == attempt] for attempt in (0, 1, 2)}
    assert attempts[1][0] == 11 and attempts[2][0] == 6 and attempts[2][-1] == 20


@pytest.mark.parametrize("what", [math.nan, math.inf, SamplingDiverged("chains")])
def test_steps_that_are_not_finite_do_not_change_the_weights(what):
    hidden = dict.fromkeys(("loss", "gradient"), lambda step, seed: 1.0)  # scalars of the objective under names of the trainer
    model, bad = network(), Scripted(hidden, lambda step, seed: what if step <= 4 else None)
    before = model.weight.detach().clone()
    report = training.Trainer(model, bad, DATA, steps=4, batch_size=8, callbacks=[training.Monitor(nonfinite=5)]).fit()
    assert report.skipped == 4 and torch.equal(model.weight, before) and report.alerts == ()
    report = training.Trainer(model, bad, DATA, steps=6, batch_size=8, callbacks=[training.Monitor(None)]).fit()
    assert report.skipped == 4 and model.weight.isfinite().all() and not torch.equal(model.weight, before)
    with pytest.raises(training.TrainingDiverged, match="not finite 3 times in a row"):
        training.Trainer(model, bad, DATA, steps=6, batch_size=8, callbacks=[training.Monitor("stop", nonfinite=3)]).fit()


def test_a_batch_with_nan_does_not_change_the_statistics_of_batch_norm():
    model = ce.as_energy(nn.Sequential(norm := nn.BatchNorm1d(2), nn.Linear(2, 1), nn.Flatten(0)))
    norm.register_forward_pre_hook(lambda norm, points: setattr(norm, "running_mean", norm.running_mean + 0))  # a new tensor
    batches = [torch.ones(8, 2), torch.full((8, 2), math.nan)]
    assert training.Trainer(model, training.EnergyDiscrepancy(0.1), batches, steps=2, batch_size=8).fit().skipped == 1
    assert all(buffer.isfinite().all() for buffer in model.buffers())


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
        trainer(objective(), training.Monitor(**SOON), out=folder, callbacks=[training.CSVLog(2), *callbacks], ema=0.9).fit()
        return (folder / "checkpoints" / "step-00000020.safetensors").read_bytes(), [{**row, "seconds": ""} for row in read_log(folder)]

    whole = run(tmp_path / "whole")
    for count in (7, 9, 14):
        refused(Stop, None, run, tmp_path / str(count), [StopAfter(count)])
        assert run(tmp_path / str(count)) == whole
    assert [row["step"] for row in whole[1] if row["event"]] == ["8"]


def test_a_monitor_without_alerts_changes_nothing():
    watched, free = (trainer(Scripted({"gap": lambda step, seed: 0.1}), monitor) for monitor in (training.Monitor(**SOON), None))
    assert watched.fit().alerts == free.fit().alerts == ()
    same(watched.model, free.model)


@pytest.mark.full
def test_a_diverging_run_stops_with_an_error_that_names_the_monitor():
    """Chains of two tiny steps do not follow the energy, which grows without bound."""
    torch.manual_seed(1)
    angle = 2 * torch.pi * torch.rand(2000)
    ring = 1.5 * torch.stack([angle.cos(), angle.sin()], 1) + 0.1 * torch.randn(2000, 2)
    chains = training.ContrastiveDivergence(steps=2, options={"step_size": 0.0002}, start="normal", l2=0.0, buffer=1000)
    options = {"optimizer": training.Optimizer(rate=3e-3), "callbacks": [training.Monitor("stop")]}
    run = training.Trainer(training.MLPEnergy(2, layers=2, scale=1.0), chains, ring, steps=200, seed=1, **options)
    with pytest.raises(training.TrainingDiverged, match=r"The `Monitor` stopped .*Monitor\((gap|magnitude)=None\)") as caught:
        run.fit()
    assert caught.value.step < 150


test_bad_monitors = refusals(
    *(({name: value}, name) for name, value in [("action", "wait"), ("gap", -1), ("gap", "large"), ("acceptance", 2.0), ("nonfinite", 0)]),
    *(({name: value}, name) for name, value in [("window", 2.5), ("factor", 1.0), ("factor", None), ("limit", -1)]),
    call=lambda options: training.Monitor(**options),
    error=OptionError,
)
