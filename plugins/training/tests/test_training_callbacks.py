"""Callbacks: the CSV log, TensorBoard, sheets of samples and the progress bar."""

import re

import pytest
import torch
from PIL import Image
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled, OptionError
from composable_energy_training import ContrastiveDivergence, CSVLog, Monitor, Optimizer, SampleSheet, TensorBoard, Trainer
from plugins.training.tests.run_helpers import DATA, Scripted, network, read_log, trainer


def test_a_log_has_a_row_every_few_steps(tmp_path):
    trainer(Scripted({"gap": lambda step, seed: step / 100}), Monitor(), out=tmp_path, callbacks=[CSVLog(4)], steps=10).fit()
    rows = read_log(tmp_path)
    assert [row["step"] for row in rows] == ["4", "8", "10"]
    assert [float(row["gap"]) for row in rows] == pytest.approx([0.04, 0.08, 0.1])
    assert list(rows[0]) == ["attempt", "step", "seconds", "rate", "loss", "gradient", "gap", "event"]


def test_another_table_is_not_overwritten(tmp_path):
    (tmp_path / "log.csv").write_text("time,value\n1,2\n")
    with pytest.raises(ValueError, match="is not the log of a run"):
        trainer(Scripted({}), None, out=tmp_path, callbacks=[CSVLog()]).fit()
    assert (tmp_path / "log.csv").read_text() == "time,value\n1,2\n"


@pytest.mark.parametrize("callback", [CSVLog(), SampleSheet()])
def test_files_need_a_folder(callback):
    with pytest.raises(OptionError, match="`out`"):
        trainer(Scripted({}), None, callbacks=[callback]).fit()


def test_numbers_of_callbacks_are_positive():
    for make in (CSVLog, TensorBoard, SampleSheet):
        with pytest.raises(OptionError, match="every must be a whole number of at least 1"):
            make(0)


def test_tensorboard_gets_curves(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer(Scripted({"gap": lambda step, seed: step / 100}), Monitor(), out=tmp_path, callbacks=[TensorBoard(5)]).fit()
    curves = EventAccumulator(str(tmp_path / "tensorboard"))
    curves.Reload()
    assert [point.step for point in curves.Scalars("gap")] == [5, 10, 15, 20]
    assert [point.value for point in curves.Scalars("gap")] == pytest.approx([0.05, 0.1, 0.15, 0.2])


def test_missing_tensorboard_is_reported_with_the_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ExtraNotInstalled, match=re.escape("composable-energy[tensorboard]")):
        trainer(Scripted({}), None, out=tmp_path, callbacks=[TensorBoard()]).fit()


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
    sheet = SampleSheet(5, 16)
    training = Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, out=tmp_path, callbacks=[sheet], monitor=None)
    training.fit()
    assert sorted(path.name for path in (tmp_path / "samples").iterdir()) == ["step-00000005.png", "step-00000010.png"]
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.size == (4 * 6 - 2, 4 * 6 - 2)
        corner = found.getpixel((0, 0))[0] / 255
    chain = objective.state()["slots"][0, 0, 0, 0].clamp(0, 1).item()
    assert corner == pytest.approx(chain, abs=1 / 255)


def test_a_sheet_shows_draws_from_the_averaged_energy(tmp_path):
    """With a rate of nothing the energy stays at .2, and its cold draws are that gray."""
    options = {"sampler": "langevin", "steps": 50, "step_size": 0.02, "temperature": 0.0}
    sheet = SampleSheet(10, 4, chains=False, **options)
    training = {"optimizer": Optimizer(rate=1e-9), "monitor": None, "ema": 0.9}
    objective = ContrastiveDivergence(steps=1, options={"step_size": 0.01}, buffer=8, l2=0.0)
    Trainer(Darkness(), objective, PICTURES, steps=10, batch_size=8, out=tmp_path, callbacks=[sheet], **training).fit()
    with Image.open(tmp_path / "samples" / "step-00000010.png") as found:
        assert found.getpixel((1, 1))[0] / 255 == pytest.approx(0.2, abs=1 / 255)


@pytest.mark.parametrize(
    ("sheet", "data", "message"),
    [
        (SampleSheet(chains=True), PICTURES, "keeps no chains"),
        (SampleSheet(), PICTURES, "samples an energy"),
        (SampleSheet(of=lambda model: ce.as_energy(lambda x: x.square().sum(1))), DATA, "are not pictures"),
    ],
)
def test_a_sheet_without_anything_to_show_is_reported_at_the_start(sheet, data, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        Trainer(network(), Scripted({}), data, steps=3, batch_size=8, out=tmp_path, callbacks=[sheet]).fit()


def test_the_bar_shows_loss_gap_and_rate(capsys):
    trainer(Scripted({"gap": lambda step, seed: 0.25}), None, progress=True).fit()
    shown = capsys.readouterr().err
    assert "20/20" in shown and "gap=0.25" in shown and "rate=0.01" in shown and "loss=" in shown
