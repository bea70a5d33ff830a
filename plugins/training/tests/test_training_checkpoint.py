"""Checkpoints: however a run ends, the same call resumes it, and the result has the same bits as an uninterrupted run."""

import errno
import os

import pytest
import safetensors.torch
import torch
from torch import nn

from composable_energy.errors import FileFormatError, OptionError, StorageError
from composable_energy.files import read_record, write_record
from composable_energy_training import Loss, Objective, Optimizer, Trainer
from plugins.training.tests.run_helpers import DATA, Stop, StopAt

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


def trainer(out, model=None, **options):
    options = {"steps": STEPS, "batch_size": 8, "ema": 0.9, "checkpoint_every": 5, "keep": 2, **options}
    return Trainer(network() if model is None else model, Fit(), DATA, out=out, **options)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def last(folder):
    return safetensors.torch.load_file(sorted((folder / "checkpoints").iterdir())[-1])


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
@pytest.mark.parametrize("step", [1, 4, 5, 6, 23, 24])
def test_a_resumed_run_has_the_same_bits(whole, tmp_path, step):
    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(step)]).fit()
    again = trainer(tmp_path)
    again.fit()
    same_files(whole, tmp_path)
    ended = last(whole)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, ended[f"average.{name}"])
    assert "objective.sums" in ended and "optimizer.0.weight.exp_avg_sq" in ended


def test_a_finished_run_is_unchanged_and_may_be_extended(whole, tmp_path):
    trainer(tmp_path, steps=10).fit()
    before = names(tmp_path)
    assert trainer(tmp_path, steps=10).fit().steps == 10 and names(tmp_path) == before
    trainer(tmp_path).fit()
    same_files(whole, tmp_path)


def test_the_last_checkpoints_are_kept(whole):
    assert names(whole) == ["step-00000020.safetensors", "step-00000024.safetensors"]


def test_a_damaged_checkpoint_is_skipped(whole, tmp_path):
    for cut in (
        lambda data: data[:-10],
        lambda data: data[:100],
        lambda data: b"",
        lambda data: data[:-2] + bytes([data[-2] ^ 1]) + data[-1:],
    ):
        with pytest.raises(Stop):
            trainer(tmp_path, callbacks=[StopAt(12)]).fit()
        newest = tmp_path / "checkpoints" / "step-00000010.safetensors"
        newest.write_bytes(cut(newest.read_bytes()))
        with pytest.warns(UserWarning, match="00000010.*damaged"), pytest.raises(Stop):
            trainer(tmp_path, callbacks=[StopAt(14)]).fit()
    trainer(tmp_path).fit()
    same_files(whole, tmp_path)


def test_no_checkpoint_left_is_an_error(tmp_path):
    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(3)]).fit()
    (tmp_path / "checkpoints" / "step-00000000.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(FileFormatError, match="No checkpoint is left"):
        trainer(tmp_path).fit()


def test_tensors_of_another_model_are_reported(whole):
    with pytest.raises(FileFormatError, match=r"0\.weight was float32 \(8, 3\), is float32 \(9, 3\)"):
        trainer(whole, network(9)).fit()
    deeper = network().append(nn.Linear(3, 3))
    with pytest.raises(FileFormatError, match=r"4\.weight is new"):
        trainer(whole, deeper).fit()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 4}, "batch_size was 8, is 4"),
        ({"optimizer": Optimizer(rate=1.0)}, r"optimizer\.rate was 0\.0003, is 1\.0"),
        ({"ema": None}, "ema was 0.9"),
        ({"steps": 3}, "24 steps were taken, 3"),
    ],
)
def test_other_settings_are_reported(whole, options, message):
    with pytest.raises(OptionError, match=message):
        trainer(whole, **options).fit()


def test_another_version_is_reported(whole, tmp_path):
    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(3)]).fit()
    path = tmp_path / "checkpoints" / "step-00000000.safetensors"
    write_record(path, "training", 99, *read_record(path, "training", 2))
    with pytest.raises(FileFormatError, match="has version 99, written by"):
        trainer(tmp_path).fit()


@pytest.mark.skipif(os.name != "posix", reason="limits of processes")
def test_a_full_disk_ends_the_run_and_leaves_the_last_checkpoint_intact(tmp_path, monkeypatch):
    """Limits the size of a file, so that writing fails halfway, as on a full disk."""
    import resource

    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(7)]).fit()
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(StorageError, match=r"step-00000010.*Free some space.*step 5 is intact") as caught:
            trainer(tmp_path).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value, OSError)
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        trainer(tmp_path).fit()
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before
