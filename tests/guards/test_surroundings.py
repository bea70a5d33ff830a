"""What surrounds a call changes no draw; memory that runs out, a device without values, a deleted folder are typed errors."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, DeviceError, FileFormatError, MemoryShortage, OptionError, StorageError
from composable_energy.files import ENERGY_FILE, write_record
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
    told = r"Memory ran out while langevin was at step.*chains of shape \(8, 2\).*`batch_size=`"
    with pytest.raises(MemoryShortage, match=told) as caught:
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


pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")


def wavy():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)).eval()
    return ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2, event_shape=(2,))


CALL = {"sampler": "mala", "step_size": 0.3, "steps": 20, "seed": 0}


def test_autocast_changes_no_draw():
    energy = wavy()
    wanted = energy.sample((16, 2), **CALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(energy.sample((16, 2), **CALL), wanted)
        assert torch.is_autocast_enabled("cpu")


def test_a_callback_that_writes_into_what_it_is_given_changes_no_draw():
    energy = wavy()
    wanted = energy.sample((16, 2), **CALL)

    def vandal(step, state, info):
        state.x.zero_(), state.energy.fill_(7), state.grad.normal_()
        if info.acceptance is not None:
            info.acceptance.fill_(2)
        info.scalars.clear()

    assert torch.equal(energy.sample((16, 2), observers=[ce.sampling.Stop(vandal)], **CALL), wanted)
    _, trace = energy.sample((16, 2), observers=[ce.sampling.Stop(vandal)], trace=True, **CALL)
    assert trace.acceptance.max() <= 1


class Family(ce.EnergyFamily):
    def members(self):
        return ("a",)

    def load(self, member):
        return Bowl()


class Bowl(ce.Energy):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(2))

    def forward(self, x):
        return (self.scale * x).square().sum(1)


def test_a_family_first_loaded_in_double_precision_is_single_afterwards():
    with ce.register("energy", "bowls", Family):
        torch.set_default_dtype(torch.float64)
        try:
            assert ce.get("energy", "bowls/a").scale.dtype == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
        assert ce.get("energy", "bowls/a").scale.dtype == torch.float32


def test_more_points_than_memory_holds_are_refused_before_anything_is_allocated():
    with pytest.raises(OptionError, match=r"points of shape .* need at least 8 TB of memory"):
        ce.as_energy(torch.distributions.Normal(torch.zeros(1000), 1.0)).sample(10**9)


def test_names_of_a_saved_energy_are_shown_with_escapes(tmp_path):
    write_record(tmp_path / ENERGY_FILE, "energy\x1b[2J", 3, {}, {})
    with pytest.raises(FileFormatError) as caught:
        ce.load(tmp_path)
    assert "\x1b" not in str(caught.value) and r"\x1b[2J" in str(caught.value)


@pytest.mark.full
@pytest.mark.parametrize("sampler", ["chees", "smc"])
def test_the_default_dtype_changes_no_draw(sampler):
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))
    call = {"sampler": sampler, "seed": 3, "dtype": torch.float32} | ({} if sampler == "smc" else {"steps": 3})
    wanted = energy.sample((8, 2), **call)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(energy.sample((8, 2), **call), wanted)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("output", [lambda e: e.to_sparse(), lambda e: e.to("meta")], ids=["sparse", "meta"])
def test_energies_that_are_no_dense_tensor_on_the_device_of_the_points_are_typed_errors(output):
    energy = ce.as_energy(lambda x: output(x.square().sum(1)), event_shape=(2,))
    with pytest.raises(ce.errors.DtypeError, match="dense tensor"):
        energy.sample((4, 2), **CALL)
