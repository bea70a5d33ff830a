"""Checkpoints: whatever ends a run, the same call goes on and ends with the bits that it would have had."""

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
    Callback,
    ContrastiveDivergence,
    DenoisingScoreMatching,
    ImprovedContrastiveDivergence,
    Loss,
    Objective,
    Optimizer,
    Trainer,
)
from composable_energy_training import checkpoint as files
from tests.processes import ended, needs_forkserver, start

DATA = torch.rand(40, 3, generator=torch.Generator().manual_seed(0))
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
    """Keeps something between steps: a sum of all that was seen, one row for each row of a batch."""

    def begin(self, model, place):
        self.sums, self.place = torch.zeros(place.batch_size)[place.rows.start : place.rows.stop], place

    def loss(self, model, batch):
        x = batch.x + 0.1 * batch.noise.normal(batch.x) + 0.01 * self.sums[:, None]
        self.sums += batch.x.sum(1)
        return Loss((model(x) - batch.x).square().mean())

    def state(self):
        return {"sums": self.sums}

    def restore(self, state):
        self.sums.copy_(state["sums"][self.place.rows.start : self.place.rows.stop])


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


class StopAt(Callback):
    def __init__(self, step):
        self.at = step

    def on_step(self, trainer, scalars):
        if trainer.step == self.at:
            raise Stop


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
def test_a_run_goes_on_to_the_bit(whole, tmp_path, step):
    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(step)]).fit()
    again = trainer(tmp_path)
    again.fit()
    same_files(whole, tmp_path)
    ended = last(whole)
    for name, tensor in again.model.state_dict().items():
        assert torch.equal(tensor, ended[f"average.{name}"])
    assert "objective.sums" in ended and "optimizer.0.weight.exp_avg_sq" in ended


def test_a_finished_run_stays_as_it_is_and_may_be_prolonged(whole, tmp_path):
    trainer(tmp_path, steps=10).fit()
    before = names(tmp_path)
    assert trainer(tmp_path, steps=10).fit().steps == 10 and names(tmp_path) == before
    trainer(tmp_path).fit()
    same_files(whole, tmp_path)


def test_the_last_are_kept(whole):
    assert names(whole) == ["step-00000020.safetensors", "step-00000024.safetensors"]


def test_a_damaged_checkpoint_is_left_out(whole, tmp_path):
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


def test_another_model_says_which_tensors_differ(whole):
    with pytest.raises(FileFormatError, match=r"0\.weight was float32 \(8, 3\), is float32 \(9, 3\)"):
        trainer(whole, network(9)).fit()
    deeper = network().append(nn.Linear(3, 3))
    with pytest.raises(FileFormatError, match=r"4\.weight is new"):
        trainer(whole, deeper).fit()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"batch_size": 4}, "batch_size was 8, is 4"),
        ({"optimizer": Optimizer(rate=1.0)}, r"optimizer\.rate was 0\.0003, is 1\.0"),
        ({"ema": None}, "ema was 0.9"),
        ({"steps": 3}, "24 steps were made, 3"),
    ],
)
def test_another_call_says_what_differs(whole, options, told):
    with pytest.raises(OptionError, match=told):
        trainer(whole, **options).fit()


def test_another_version_says_so(whole, tmp_path):
    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(3)]).fit()
    path = tmp_path / "checkpoints" / "step-00000000.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    told = json.loads(header["__metadata__"]["composable_energy_training"])
    header["__metadata__"]["composable_energy_training"] = json.dumps({**told, "format": 99, "written_by": "composable-energy 9"})
    fresh = json.dumps(header).encode()
    fresh += b" " * (-len(fresh) % 8)
    path.write_bytes(len(fresh).to_bytes(8, "little") + fresh + data[8 + length :])
    with pytest.raises(FileFormatError, match="format 99, written by composable-energy 9"):
        trainer(tmp_path).fit()


@pytest.mark.skipif(os.name != "posix", reason="limits of processes")
def test_a_full_disk_ends_the_run_and_spares_the_last_checkpoint(tmp_path, monkeypatch):
    """The limit is on the size of a file, which the system enforces in the middle of writing as a full disk does."""
    import resource

    with pytest.raises(Stop):
        trainer(tmp_path, callbacks=[StopAt(7)]).fit()
    before = {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
    try:
        with pytest.raises(StorageError, match=r"step-00000010.*Make room.*step 5 is whole") as caught:
            trainer(tmp_path).fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value, OSError)
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        trainer(tmp_path).fit()
    assert {path.name: path.read_bytes() for path in (tmp_path / "checkpoints").iterdir()} == before


def in_child(call, *args, kill_after=None):
    """Calls something in another process, kills that after some seconds if it still runs, and returns how it ended."""
    child = start("The run", call, *args)
    if kill_after is not None:
        time.sleep(kill_after)
        child.kill()
    return ended([child])[0]


def alone():
    assert len(list(Path(f"/proc/{os.getppid()}/task").iterdir())) == 1


@needs_forkserver
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="counts threads in /proc")
def test_a_child_is_forked_off_a_process_with_one_thread():
    assert in_child(alone) == 0


def sixty_steps(kind, out):
    options = {"steps": 60, "batch_size": 8, "ema": 0.99, "checkpoint_every": 7, "keep": 2}
    Trainer(Net(), OBJECTIVES[kind](), DATA, out=out, **options).fit()


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
    _die_at(moment)
    trainer(out).fit()


@needs_forkserver
@pytest.mark.parametrize("moment", ["write", "fsync", "replace"])
def test_a_run_killed_while_it_writes_ends_with_the_same_bits(whole, tmp_path, moment):
    """It dies inside the writing of its third checkpoint: half of the file written, before it is on the disk, before its name."""
    assert in_child(die_writing, moment, tmp_path) == -signal.SIGKILL
    assert names(tmp_path)[-1] == "step-00000005.safetensors" and any(name.endswith(".new") for name in names(tmp_path))
    trainer(tmp_path).fit()
    same_files(whole, tmp_path)
    assert not any(name.endswith(".new") for name in names(tmp_path))


def _die_at(moment):
    real, count = files._replace, 0

    def replace(path, data):
        nonlocal count
        count += 1
        if count < 3:
            return real(path, data)
        fresh = path.with_name(f".{path.name}.new")
        if moment == "write":
            fresh.write_bytes(data[: len(data) // 2])
            os.kill(os.getpid(), signal.SIGKILL)

        def die(*_):
            os.kill(os.getpid(), signal.SIGKILL)

        if moment == "fsync":
            files.os.fsync = die
        else:
            type(path).replace = die
        return real(path, data)

    files._replace = replace
