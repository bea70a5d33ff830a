"""Callbacks: the CSV log, TensorBoard, sheets of samples, progress; and the exit of each however a run ends."""

import logging
import re
import sys

import pytest
import torch
from PIL import Image
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, OptionError
from composable_energy_training import (
    Callback,
    Checkpoints,
    ContrastiveDivergence,
    CSVLog,
    Monitor,
    Optimizer,
    ProgressBar,
    SampleSheet,
    TensorBoard,
    Trainer,
)
from composable_energy_training.callbacks import ProgressLog
from plugins.training.tests.run_helpers import DATA, Scripted, network, read_log, trainer
from tests.refusals import refusals

GROWING = {"gap": lambda step, seed: step / 100}


def test_a_log_has_a_row_every_few_steps_and_overwrites_no_other_table(tmp_path):
    trainer(Scripted(GROWING), Monitor(), out=tmp_path, callbacks=[CSVLog(4)], steps=10).fit()
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    assert [float(row["gap"]) for row in rows] == pytest.approx([0.04, 0.08, 0.1])
    assert list(rows[0]) == ["attempt", "step", "seconds", "rate", "loss", "gradient", "gap", "event"]
    (tmp_path / "log.csv").write_text("time,value\n1,2\n")
    with pytest.raises(ValueError, match="is not the log of a run"):
        trainer(Scripted(GROWING), out=tmp_path, callbacks=[CSVLog()]).fit()
    assert (tmp_path / "log.csv").read_text() == "time,value\n1,2\n"


@pytest.mark.parametrize("make", [CSVLog, SampleSheet, TensorBoard])
def test_files_need_a_folder_and_numbers_are_positive(make):
    with pytest.raises(OptionError, match=r"Checkpoints\(folder\)"):
        trainer(Scripted({}), callbacks=[make()]).fit()
    with pytest.raises(OptionError, match="every must be a whole number of at least 1"):
        make(0)


def test_tensorboard_gets_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(Scripted(GROWING), Monitor(), out=tmp_path, callbacks=[TensorBoard(5)]).fit()
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("gap")] == [5, 10, 15, 20]
    assert [point.value for point in curves.Scalars("gap")] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_missing_tensorboard_is_reported_with_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExtraNotInstalled, match=re.escape("composable-energy[tensorboard]")):
        trainer(Scripted({}), out=tmp_path, callbacks=[TensorBoard()]).fit()


class Darkness(ce.Energy):
    """Prefers pictures of one gray, which is learnt."""

    def __init__(self):
        super().__init__()
        self.gray = nn.Parameter(torch.tensor(0.2))

    def forward(self, x):
        return 20 * (x - self.gray).square().flatten(1).sum(1)


PICTURES = torch.full((16, 1, 4, 4), 0.8)


def test_a_sheet_shows_the_chains(tmp_path):
    objective = ContrastiveDivergence(steps=2, options={"step_size": 0.01}, buffer=32, l2=0.0)
    callbacks = [Checkpoints(tmp_path), SampleSheet(5, 16), Monitor(None)]
    Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, callbacks=callbacks).fit()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000005.png", "step-00000010.png"]
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.size == (4 * 6 - 2, 4 * 6 - 2)
        corner = found.getpixel((0, 0))[0] / 255
    chain = objective.state()["slots"][0, 0, 0, 0].clamp(0, 1).item()
    assert corner == pytest.approx(chain, abs=1 / 255)


def test_a_sheet_shows_draws_from_the_averaged_energy(tmp_path):
    """With a rate of nothing the energy stays at .2, and its cold draws are that gray."""
    sheet = SampleSheet(10, 4, chains=False, sampler="langevin", steps=50, step_size=0.02, temperature=0.0)
    training = {"optimizer": Optimizer(rate=1e-9, ema=0.9), "callbacks": [Checkpoints(tmp_path), sheet, Monitor(None)]}
    objective = ContrastiveDivergence(steps=1, options={"step_size": 0.01}, buffer=8, l2=0.0)
    Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, **training).fit()
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.getpixel((1, 1))[0] / 255 == pytest.approx(0.2, abs=1 / 255)


test_a_sheet_without_anything_to_show_is_reported_at_the_start = refusals(
    (SampleSheet(chains=True), PICTURES, "keeps no chains"),
    (SampleSheet(), PICTURES, "samples an energy"),
    (SampleSheet(of=lambda model: ce.as_energy(lambda x: x.square().sum(1))), DATA, "are not pictures"),
    call=lambda tmp_path, sheet, data: Trainer(
        network(), Scripted({}), data, steps=3, batch_size=8, callbacks=[Checkpoints(tmp_path), sheet]
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
    assert float(found[2][2]) == pytest.approx(report.scalars["loss"], rel=1e-3)
    assert lines[4] == "heads: 3 steps finished in 0 s"
    with pytest.raises(OptionError, match="every"):
        ProgressLog(-1)


class Open(Callback):
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


def test_every_callback_ends_with_the_error_of_the_run():
    one, other = Open(), Open(3)
    with pytest.raises(ArithmeticError) as caught:
        trainer(Scripted({}), callbacks=[one, other]).fit()
    assert one.open == other.open == 0 and one.error is other.error is caught.value
    trainer(Scripted({}), callbacks=[one]).fit()
    assert one.open == 0 and one.error is None


def test_the_bar_shows_loss_gap_and_rate_and_is_closed_after_an_error(capsys):
    trainer(Scripted({"gap": lambda step, seed: 0.25}), callbacks=[ProgressBar()]).fit()
    shown = capsys.readouterr().err
    assert "20/20" in shown and "gap=0.25" in shown and "rate=0.01" in shown and "loss=" in shown
    with pytest.raises(ArithmeticError):
        trainer(Scripted({}), callbacks=[Open(3), ProgressBar()]).fit()
    assert capsys.readouterr().err.endswith("\n")  # an open bar does not end its line
    with pytest.raises(ArithmeticError):
        trainer(Scripted({}), callbacks=[Open(0), ProgressBar()]).fit()  # before the bar exists
