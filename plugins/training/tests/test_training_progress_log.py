"""Lines of progress in the log, and the end of a run by SIGTERM."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading

import pytest
import torch

from composable_energy.errors import OptionError
from composable_energy_training.callbacks import Callback
from composable_energy_training.progress_log import ProgressLog
from plugins.training.tests.run_helpers import Scripted, trainer


class Terminate(Callback):
    """Sends SIGTERM to this process at a step."""

    def __init__(self, step: int) -> None:
        self.at = step

    def on_step(self, trainer, scalars):
        if trainer.step == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


def quadratic(**options):
    return trainer(Scripted({}), None, **options)


def test_a_line_has_stage_step_loss_and_time_left(tmp_path, caplog):
    with caplog.at_level(logging.INFO, "composable_energy_training"):
        report = quadratic(out=tmp_path / "heads", steps=3, callbacks=[ProgressLog(0)]).fit()
    lines = [record.getMessage() for record in caplog.records]
    assert "float32 on cpu" in lines[0]
    found = [re.fullmatch(r"heads: step (\d) of 3, loss ([\d.]+), \d+ s left", line) for line in lines[1:4]]
    assert [match and match[1] for match in found] == ["1", "2", "3"]
    assert found[2] is not None
    assert float(found[2][2]) == pytest.approx(report.scalars["loss"], rel=1e-3)
    assert lines[4] == "heads: 3 steps finished in 0 s"


def test_lines_come_once_in_an_interval(caplog):
    with caplog.at_level(logging.INFO, "composable_energy_training"):
        quadratic(callbacks=[ProgressLog(3600)]).fit()
    assert not [record for record in caplog.records if "step" in record.getMessage() and "loss" in record.getMessage()]
    with pytest.raises(OptionError, match="every"):
        ProgressLog(-1)


def test_sigterm_ends_a_step_writes_a_checkpoint_and_leaves_the_handler(tmp_path):
    whole = quadratic()
    whole.fit()
    with pytest.raises(SystemExit) as stop:
        quadratic(out=tmp_path, callbacks=[Terminate(7)]).fit()
    assert stop.value.code == 143
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert [path.stem for path in sorted((tmp_path / "checkpoints").glob("*.safetensors"))][-1] == "step-00000007"
    again = quadratic(out=tmp_path)
    assert again.fit().steps == 20
    for before, after in zip(whole.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(before, after)


def test_the_handler_of_a_program_stays(tmp_path):
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        assert quadratic(out=tmp_path, callbacks=[Terminate(7)]).fit().steps == 20
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]


def test_a_run_in_another_thread_needs_no_handler():
    reports = []
    thread = threading.Thread(target=lambda: reports.append(quadratic().fit()))
    thread.start()
    thread.join()
    assert reports[0].steps == 20
