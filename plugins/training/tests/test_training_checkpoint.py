"""Checkpoints: however a run ends, the same call resumes it, and the result has the same bits as an uninterrupted run."""

import errno
import json
import os
import random
import signal
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import FileFormatError, OptionError, StorageError
from composable_energy_training import (
    ContrastiveDivergence,
    DenoisingScoreMatching,
    ImprovedContrastiveDivergence,
    Loss,
    Objective,
    Optimizer,
    Trainer,
)
from plugins.training.tests.run_helpers import DATA, Stop, StopAt
from tests.processes import ended, needs_forkserver, start

STEPS = 24


class Net(ce.Energy):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        norm = nn.utils.parametrizations.spectral_norm
        self.net = nn.Sequential(norm(nn.Linear(4, 32)), nn.SiLU(), nn.Dropout(0.2), norm(nn.Linear(32, 1)))

    def forward(self, x, sigma=0.5):
        sigma = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        return self.net(torch.cat([x, sigma[:, None]], 1)).squeeze(1)


CHAINS = {"steps": 3, "options": {"step_size": 0.1, "temperature": 0.01}, "buffer": 64}
OBJECTIVES = {
    "contrastive": lambda: ContrastiveDivergence(**CHAINS),
    "improved": lambda: ImprovedContrastiveDivergence(**CHAINS),
    "denoising": lambda: DenoisingScoreMatching(0.1, 1.0),
}


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


def test_another_format_is_reported(whole, tmp_path):
    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(3)]).fit()
    path = tmp_path / "checkpoints" / "step-00000000.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    metadata = json.loads(header["__metadata__"]["composable_energy_training"])
    header["__metadata__"]["composable_energy_training"] = json.dumps({**metadata, "format": 99, "written_by": "composable-energy 9"})
    fresh = json.dumps(header).encode()
    fresh += b" " * (-len(fresh) % 8)
    path.write_bytes(len(fresh).to_bytes(8, "little") + fresh + data[8 + length :])
    with pytest.raises(FileFormatError, match="format 99, written by composable-energy 9"):
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


def in_child(call, *args, kill_after=None):
    """Calls a function in another process, kills it after some seconds if it still runs, and returns its exit code."""
    child = start("The run", call, *args)
    if kill_after is not None:
        time.sleep(kill_after)
        child.kill()
    return ended([child])[0]


def alone():
    assert len(list(Path(f"/proc/{os.getppid()}/task").iterdir())) == 1


@pytest.mark.full
@needs_forkserver
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_a_child_is_forked_off_a_process_with_one_thread():
    assert in_child(alone) == 0


def sixty_steps(kind, out):
    options = {"steps": 60, "batch_size": 8, "ema": 0.99, "checkpoint_every": 7, "keep": 2}
    Trainer(Net(), OBJECTIVES[kind](), DATA, out=out, **options).fit()


@pytest.mark.full
@needs_forkserver
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, kind):
    child = start("The whole run", sixty_steps, kind, tmp_path / "whole")
    began = time.monotonic()
    assert ended([child]) == [0]
    took, moments = time.monotonic() - began, random.Random(kind)
    for _ in range(3):  # all together shorter than the whole run, so that none ends first
        ends = in_child(sixty_steps, kind, tmp_path / "killed", kill_after=moments.uniform(0.1, 0.33) * took)
        assert ends in (-signal.SIGKILL, 0)
    assert in_child(sixty_steps, kind, tmp_path / "killed") == 0
    same_files(tmp_path / "whole", tmp_path / "killed")


def die_writing(moment, out):
    """Trains, and kills its process while it writes the third checkpoint; each is synced twice, the file and then the folder."""
    fsync, replace, synced = os.fsync, Path.replace, 0

    def die_in_fsync(descriptor):
        nonlocal synced
        synced += 1
        if synced == 5:
            if moment == "write":
                os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    def die_in_replace(path, target):
        if target.name == "step-00000010.safetensors":
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    if moment == "replace":
        Path.replace = die_in_replace
    else:
        os.fsync = die_in_fsync
    trainer(out).fit()


@pytest.mark.slow
@needs_forkserver
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_run_killed_while_it_writes_ends_with_the_same_bits(whole, tmp_path, moment):
    """Kills the run while it writes its third checkpoint: with half of the file written, before the sync, or before the rename."""
    assert in_child(die_writing, moment, tmp_path) == -signal.SIGKILL
    assert names(tmp_path)[-1] == "step-00000005.safetensors" and any(name.endswith(".new") for name in names(tmp_path))
    trainer(tmp_path).fit()
    same_files(whole, tmp_path)
    assert not any(name.endswith(".new") for name in names(tmp_path))
