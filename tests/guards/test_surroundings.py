"""Memory that runs out, a device without values, a deleted working directory: typed errors. Closed streams: none."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, DeviceError, FileFormatError, MemoryShortage, StorageError
from composable_energy_training import Trainer
from plugins.training.tests.run_helpers import DATA, Scripted, network

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes."
NORMAL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))


def full_after(calls, error):
    left = [calls]

    def energy(x):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return x.square().sum(1) / 2

    return ce.as_energy(energy), left


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(ALLOCATOR), RuntimeError("std::bad_alloc")], ids=["python", "torch", "c++"])
def test_memory_that_runs_out_is_one_typed_error_and_is_not_tried_point_by_point(error):
    energy, left = full_after(5, error)
    with pytest.raises(
        MemoryShortage, match=r"Memory ran out while langevin was at step.*chains of shape \(8, 2\).*`batch_size=`"
    ) as caught:
        energy.sample((8, 2), sampler="langevin", step_size=0.1, steps=20, seed=0)
    assert isinstance(caught.value, MemoryError) and caught.value.__cause__ is error
    assert left[0] == -1


def test_a_default_device_without_values_is_refused():
    with torch.device("meta"):
        with pytest.raises(DeviceError, match="default device is meta"):
            NORMAL.sample(4, seed=0)
        with pytest.raises(DeviceError, match="default device is meta"):
            Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8)
        with pytest.raises(ComposableEnergyError, match="meta"):
            ce.log_z(NORMAL)
    assert NORMAL.sample(4, seed=0, steps=2).device.type == "cpu"


@pytest.fixture
def deleted(tmp_path, monkeypatch):
    """The working directory was deleted."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()


@pytest.mark.skipif(os.name != "posix", reason="other systems keep the folder")
@pytest.mark.parametrize(
    "use",
    [
        lambda: ce.load("plane/ring").save("folder"),
        lambda: NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Checkpoint("chains")]),
        lambda: Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8, out="run").fit(),
    ],
    ids=["save", "checkpoint", "training"],
)
def test_a_relative_path_without_a_working_directory_is_a_typed_error(deleted, use):
    with pytest.raises(StorageError, match="the working directory was deleted"):
        use()


@pytest.mark.skipif(os.name != "posix", reason="other systems keep the folder")
def test_what_needs_no_working_directory_works_without_one(deleted, tmp_path):
    ce.load("plane/ring").save(tmp_path / "folder")
    x = NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Checkpoint(tmp_path / "chains")])
    assert torch.equal(x, NORMAL.sample(3, steps=2, seed=0))
    with pytest.raises(FileFormatError):
        ce.load("./folder")


def test_bars_are_left_out_where_stderr_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Progress()]).shape == (3, 2)
    assert Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8, progress=True).fit().steps == 2


@pytest.mark.full
@pytest.mark.skipif(os.name != "posix", reason="closes streams by a shell")
@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [
        ("plugins --json", ">&-", 0),
        ("smple", "2>&-", 2),
        ("sample plane/ring -n 3 --steps 2 -o x.npy", ">&- 2>&- <&-", 0),
    ],
)
def test_the_command_line_runs_with_closed_streams(tmp_path, command, closed, code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m composable_energy {command} {closed}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == code and "Traceback" not in done.stderr
    assert not command.startswith("sample") or np.load(tmp_path / "x.npy").shape == (3, 2)
