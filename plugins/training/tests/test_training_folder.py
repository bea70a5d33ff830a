"""Two runs in one folder, edited checkpoints, and disks that cannot be written."""

import errno
import os

import pytest

from composable_energy.errors import ComposableEnergyError, FileFormatError, StorageError
from composable_energy.files import digest_of, read_record, write_record
from composable_energy_training import Callback, CSVLog
from plugins.training.tests.run_helpers import Scripted, Stop, StopAt, read_log, trainer
from tests.campaign.faults import KILLED, POSSIBLE, Faults, in_child
from tests.processes import ended, needs_forkserver, start

needs_fork = pytest.mark.skipif(not POSSIBLE, reason="forks, and reads the names of open files")


def run(out, **options):
    options = {"callbacks": [CSVLog(1)], "steps": 10, **options}
    return trainer(Scripted({}), None, out=out, **options)


class During(Callback):
    """Calls a function in the first step."""

    def __init__(self, function):
        self.function = function

    def on_step(self, trainer, scalars):
        self.function()
        raise Stop


def refused(out):
    with pytest.raises(StorageError, match="in use by another call or process: wait"):
        run(out).fit()


@pytest.mark.full
@needs_forkserver
def test_a_second_run_in_a_folder_is_refused(tmp_path):
    def here():
        with pytest.raises(StorageError, match="in use by another call or process"):
            run(tmp_path).fit()

    def elsewhere():
        assert ended([start("other", refused, tmp_path)]) == [0]

    for function in (here, elsewhere):
        with pytest.raises(Stop):
            run(tmp_path, callbacks=[CSVLog(1), During(function)]).fit()
    run(tmp_path).fit()
    assert [int(row["step"]) for row in read_log(tmp_path)] == list(range(1, 11))
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoints", "log.csv"}


@pytest.mark.full
@needs_fork
def test_a_kill_at_any_system_call_leaves_a_run_that_ends_with_the_same_bits(tmp_path):
    wanted = weights(run(tmp_path / "whole"))
    at = 0
    while True:
        out = tmp_path / str(at)
        code, text = in_child(lambda out=out: run(out).fit(), Faults(at, out))
        assert code in (0, KILLED), text
        assert weights(run(out)) == wanted
        assert [int(row["step"]) for row in read_log(out)] == list(range(1, 11))
        assert {path.name for path in out.iterdir()} == {"checkpoints", "log.csv"}
        assert {path.name for path in (out / "checkpoints").iterdir()} == {f"step-{step:08d}.safetensors" for step in (0, 5, 10)}
        if code == 0:
            break
        at += 1
    assert at > 15


@pytest.mark.full
@needs_fork
def test_an_error_at_any_system_call_is_typed(tmp_path):
    at = 0
    while True:
        out = tmp_path / str(at)
        code, text = in_child(lambda out=out: run(out, steps=5, callbacks=[CSVLog(5)]).fit(), Faults(at, out, errno.ENOSPC))
        assert code == 0 or text.startswith("composable_energy.errors.StorageError"), text
        run(out, steps=5).fit()
        if code == 0 and int(text) <= at:
            break
        at += 1
    assert at > 8


def weights(trainer):
    trainer.fit()
    return digest_of(trainer.model.state_dict())


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(StorageError):
        run(tmp_path / "file" / "out").fit()


def edit_last(out, edit):
    """Edits the header of the last checkpoint, with a right digest."""
    path = max((out / "checkpoints").iterdir())
    header, tensors = read_record(path, "training", 2)
    edit(header, tensors)
    write_record(path, "training", 2, header, tensors)


def test_an_edited_number_of_steps_is_not_believed(tmp_path):
    with pytest.raises(Stop):
        run(tmp_path, callbacks=[StopAt(7)]).fit()
    path = max((tmp_path / "checkpoints").iterdir())
    path.write_bytes(path.read_bytes().replace(b'\\"step\\": 5', b'\\"step\\": 9'))
    with pytest.warns(UserWarning, match="has changed since it was written.*Resuming from the checkpoint before"):
        assert run(tmp_path, callbacks=()).fit().steps == 10


def edits():
    yield "no settings", lambda h, t: h["metadata"].pop("settings")
    yield "settings of another type", lambda h, t: h["metadata"].update(settings=3)
    yield "no state of the monitor", lambda h, t: h["metadata"].pop("watch")
    yield "a state of another monitor", lambda h, t: h["metadata"]["watch"].pop("events")
    yield "events of another type", lambda h, t: h["metadata"]["watch"].update(events=[[1]])
    yield "no state of the scaler", lambda h, t: h["metadata"].pop("scaler")
    yield "no fingerprint", lambda h, t: h["metadata"].pop("data")
    yield "a fingerprint of another type", lambda h, t: h["metadata"].update(data={"x": 1})
    yield (
        "a state of the optimizer that is missing",
        lambda h, t: t.update({"optimizer.other.exp_avg": t["optimizer.weight.exp_avg"].clone()}),
    )
    yield "a state of the objective that is missing", lambda h, t: t.pop("objective.count")


@pytest.mark.parametrize("edit", dict(edits()).values(), ids=dict(edits()))
def test_an_edited_checkpoint_is_a_typed_error(tmp_path, edit):
    with pytest.raises(Stop):
        run(tmp_path, callbacks=[StopAt(7)]).fit()
    edit_last(tmp_path, edit)
    with pytest.raises(ComposableEnergyError):
        run(tmp_path).fit()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="makes a pipe")
def test_a_pipe_in_place_of_a_checkpoint_is_refused_at_once(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    os.mkfifo(tmp_path / "checkpoints" / "step-00000005.safetensors")
    with pytest.raises(FileFormatError, match="no regular file"):
        run(tmp_path).fit()
