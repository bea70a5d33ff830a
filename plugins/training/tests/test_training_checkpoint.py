"""Checkpoints: however a run ends, the same call resumes it with the same bits, and damaged files and full disks are typed errors."""

import os
import signal
import threading

import pytest
import torch
from torch import nn

from composable_energy.errors import ComposableEnergyError, FileFormatError, OptionError, StorageError
from composable_energy.files import read_record, write_record
from composable_energy_training import Checkpoints, CSVLog, Loss, Monitor, Objective, Optimizer, Trainer
from plugins.training.tests.run_helpers import DATA, At, Scripted, StopAt, fit_until_stopped, last, read_log, same
from plugins.training.tests.run_helpers import trainer as scripted
from tests.processes import ended, needs_forkserver, start
from tests.refusals import refusals, refused

STEPS = 24


class Fit(Objective):
    """An objective with state: a sum of all points, with one row for each row of a batch."""

    def begin(self, model, context):
        self.sums, self.context = torch.zeros(context.batch_size)[context.rows.start : context.rows.stop], context

    def loss(self, model, batch):
        x = batch.x + 0.1 * batch.noise.normal(batch.x) + 0.01 * self.sums[:, None]
        self.sums += batch.x.sum(1)
        return Loss((model(x) - batch.x).square().mean())

    def state(self):
        return {"sums": self.sums}

    def restore(self, state):
        self.sums.copy_(state["sums"][self.context.rows.start : self.context.rows.stop])


def network(width=8):
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Dropout(0.3), nn.Linear(width, 3))


def trainer(out, model=None, callbacks=(), **options):
    options = {"steps": STEPS, "batch_size": 8, "optimizer": Optimizer(ema=0.9), **options}
    callbacks = [Checkpoints(out, every=5, keep=2), *callbacks]
    return Trainer(network() if model is None else model, Fit(), DATA, callbacks=callbacks, **options)


def stopped(out, step):
    """Runs up to a step."""
    fit_until_stopped(trainer(out, callbacks=[StopAt(step)]))


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same_files(one, other):
    a, b = last(one), last(other)
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder).fit()
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("step", [1, 5, 6, 24])
def test_a_resumed_run_has_the_same_bits(whole, tmp_path, step):
    stopped(tmp_path, step)
    again = trainer(tmp_path)
    again.fit()
    same_files(whole, tmp_path)
    ended = last(whole)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, ended[f"average.{name}"])
    assert "objective.sums" in ended and "optimizer.0.weight.exp_avg_sq" in ended


def test_a_finished_run_keeps_the_last_files_and_may_be_extended(whole, tmp_path):
    trainer(tmp_path, steps=10).fit()
    before = names(tmp_path)
    assert trainer(tmp_path, steps=10).fit().steps == 10 and names(tmp_path) == before
    trainer(tmp_path).fit()
    same_files(whole, tmp_path)
    assert names(whole) == ["step-00000020.safetensors", "step-00000024.safetensors"]


@pytest.mark.parametrize("cut", [lambda data: data[:-10], lambda data: b"", lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:]])
def test_a_damaged_checkpoint_is_skipped(whole, tmp_path, cut):
    stopped(tmp_path, 12)
    newest = tmp_path / "checkpoints" / "step-00000010.safetensors"
    newest.write_bytes(cut(newest.read_bytes()))
    with pytest.warns(UserWarning, match="00000010.*damaged"):
        trainer(tmp_path).fit()
    same_files(whole, tmp_path)


def test_no_checkpoint_left_and_another_version_are_errors(tmp_path):
    stopped(tmp_path, 3)
    path = tmp_path / "checkpoints" / "step-00000000.safetensors"
    write_record(path, "training", 99, *read_record(path, "training", 2))
    refused(FileFormatError, "has version 99, written by", trainer(tmp_path).fit)
    path.write_bytes(b"x" * 100)
    refused(FileFormatError, "No checkpoint is left", trainer(tmp_path).fit)


test_other_models_and_settings_are_reported = refusals(
    (network(9), {}, r"0\.weight was 'float32 \(8, 3\)', is 'float32 \(9, 3\)'"),
    (network().append(nn.Linear(3, 3)), {}, r"4\.weight is new"),
    (network().requires_grad_(False), {}, r"frozen\.0\.weight is new"),
    (None, {"seed": 1}, "seed was 0, is 1"),
    (None, {"batch_size": 4}, "batch_size was 8, is 4"),
    (None, {"optimizer": Optimizer(rate=1.0, ema=0.9)}, r"optimizer\.rate was 0\.001, is 1\.0"),
    (None, {"optimizer": Optimizer()}, "ema was 0.9"),
    (None, {"steps": 3}, "24 steps were taken, 3"),
    call=lambda whole, model, options: trainer(whole, model, **options).fit(),
    fixture="whole",
    error=ValueError,
)


@pytest.mark.skipif(os.name != "posix", reason="limits of processes")
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_intact(tmp_path):
    """Limits the size of a file, so that writing fails halfway, as on a full disk."""
    import resource

    stopped(tmp_path, 7)
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(StorageError, match=r"step-00000010.*Free some space.*step 5 is intact") as caught:
            trainer(tmp_path).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value, OSError) and {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


def test_an_old_checkpoint_that_cannot_be_removed_stays(tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(path)

    monkeypatch.setattr("pathlib.Path.unlink", refuse)
    trainer(tmp_path).fit()
    assert len(names(tmp_path)) == 6, "those of the steps 0, 5, 10, 15, 20 and 24"


def sending(number, times=1):
    """Sends a signal to this process at a step, some times."""
    return At(7, lambda: [os.kill(os.getpid(), number) for _ in range(times)])


@pytest.fixture
def heard():
    """Ctrl-C arrives as in a terminal, also in a suite that a shell runs in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("monitor", "stored"), [(None, True), (Monitor(), False), (None, False)])
def test_a_training_that_is_interrupted_goes_on_where_it_was(tmp_path, heard, monitor, stored, number):
    whole = scripted(Scripted({}), monitor)
    whole.fit()
    run = scripted(Scripted({}), monitor, out=tmp_path if stored else None, callbacks=[sending(number)])
    with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
        run.fit()
    assert caught.value.code == 143 if number == signal.SIGTERM else "after step 7 of 20" in str(caught.value)
    assert run.step == 7 and (not stored or names(tmp_path)[-1] == "step-00000007.safetensors")
    run.callbacks = ()
    assert run.fit().steps == 20
    same(whole.model, run.model)


def test_a_second_interrupt_does_not_wait(heard):
    with pytest.raises(KeyboardInterrupt) as caught:
        scripted(Scripted({}), callbacks=[sending(signal.SIGINT, times=2)]).fit()
    assert not str(caught.value)


def test_the_handler_of_a_program_stays_and_another_thread_needs_none():
    signals, reports = [], []
    before = signal.signal(signal.SIGTERM, lambda number, frame: signals.append(number))
    try:
        assert scripted(Scripted({}), callbacks=[sending(signal.SIGTERM)]).fit().steps == 20
    finally:
        signal.signal(signal.SIGTERM, before)
    assert signals == [signal.SIGTERM]
    thread = threading.Thread(target=lambda: reports.append(scripted(Scripted({})).fit()))
    thread.start()
    thread.join()
    assert reports[0].steps == 20


def run(out, callbacks=None, steps=10):
    callbacks = [CSVLog(1)] if callbacks is None else callbacks
    return scripted(Scripted({}), out=out, callbacks=callbacks, steps=steps, precision="auto", ema=0.9)


def held(out):
    refused(StorageError, "in use by another call or process: wait", run(out).fit)


@pytest.mark.full
@needs_forkserver
def test_a_second_run_in_a_folder_is_refused(tmp_path):
    for function in (lambda: held(tmp_path), lambda: ended([start("other", held, tmp_path)])):
        fit_until_stopped(run(tmp_path, callbacks=[CSVLog(1), At(1, function), StopAt(1)]))
    run(tmp_path).fit()
    assert [int(row["step"]) for row in read_log(tmp_path)] == list(range(1, 11))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "log.csv"}


def test_a_folder_that_cannot_be_made_and_a_pipe_are_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("mine")
    refused(StorageError, None, run(tmp_path / "file" / "out").fit)
    (tmp_path / "checkpoints").mkdir()
    os.mkfifo(tmp_path / "checkpoints" / "step-00000005.safetensors")
    refused(FileFormatError, "no regular file", run(tmp_path).fit)
    counting = type("Counting", (Scripted,), {"state": lambda self: {"count": 3}})({})
    refused(OptionError, r"objective\.count is none", scripted(counting, out=tmp_path / "new").fit)


def test_an_edited_number_of_steps_is_not_believed(tmp_path):
    fit_until_stopped(run(tmp_path, callbacks=[StopAt(7)]))
    path = max((tmp_path / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes().replace(b'\\"step\\": 5', b'\\"step\\": 9'))
    with pytest.warns(UserWarning, match="has changed since it was written.*Resuming from the checkpoint before"):
        assert run(tmp_path, callbacks=()).fit().steps == 10


EDITS = {
    "no settings": lambda h, t: h["metadata"].pop("settings"),
    "settings of another type": lambda h, t: h["metadata"].update(settings=3),
    "no state of the monitor": lambda h, t: h["metadata"].pop("watch"),
    "a state of another monitor": lambda h, t: h["metadata"]["watch"].pop("events"),
    "events of another type": lambda h, t: h["metadata"]["watch"].update(events=[[1]]),
    "no state of the scaler": lambda h, t: h["metadata"].pop("scaler"),
    "no fingerprint": lambda h, t: h["metadata"].pop("data"),
    "a fingerprint of another type": lambda h, t: h["metadata"].update(data={"x": 1}),
    "another optimizer": lambda h, t: t.update({"optimizer.other.exp_avg": t["optimizer.weight.exp_avg"].clone()}),
    "no state of the objective": lambda h, t: t.pop("objective.count"),
    "a precision that no run has": lambda h, t: h["metadata"]["settings"].update(precision="auto"),
    "a factor of the rate of 0": lambda h, t: h["metadata"]["watch"].update(factor=0),
    "a count that is a text": lambda h, t: h["metadata"]["watch"].update(skipped="1"),
    "a mean that is a text": lambda h, t: h["metadata"]["watch"].update(means={"loss": "low"}),
    "rows of a fingerprint that differ in length": lambda h, t: h["metadata"]["data"]["sums"][0].pop(),
    "a moment of another shape": lambda h, t: t.update({"optimizer.weight.exp_avg": torch.zeros(1)}),
    "an average of another shape": lambda h, t: t.update({"average.bias": torch.zeros(1)}),
    "another number of steps": lambda h, t: h.update(step=4),
    "no moment": lambda h, t: t.pop("optimizer.weight.exp_avg"),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_checkpoint_is_a_typed_error(tmp_path, edit):
    """The digest of the edited file is right."""
    fit_until_stopped(run(tmp_path, callbacks=[StopAt(7)]))
    path = max((tmp_path / "checkpoints").iterdir())
    header, tensors = read_record(path, "training", 2)
    edit(header, tensors)
    write_record(path, "training", 2, header, tensors)
    refused(ComposableEnergyError, None, run(tmp_path).fit)
