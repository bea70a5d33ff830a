"""What surrounds a call changes no draw; memory that runs out, a device without values, a deleted folder are typed errors."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, DeviceError, FileFormatError, MemoryShortage, StorageError
from composable_energy.files import ENERGY_FILE, write_record
from composable_energy_training import Checkpoints, ProgressBar, Trainer
from plugins.training.tests.run_helpers import DATA, Scripted, network

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes."
NORMAL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
CALL = {"sampler": "mala", "step_size": 0.3, "steps": 20, "seed": 0}
posix = pytest.mark.skipif(os.name != "posix", reason="other systems keep the folder, and close streams otherwise")


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(ALLOCATOR), RuntimeError("std::bad_alloc")], ids=["python", "torch", "c++"])
def test_memory_that_runs_out_is_one_typed_error_and_is_not_tried_point_by_point(error):
    left = [5]

    def energy(x):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return x.square().sum(1) / 2

    told = r"Memory ran out while langevin was at step.*chains of shape \(8, 2\).*`batch_size=`"
    with pytest.raises(MemoryShortage, match=told) as caught:
        ce.as_energy(energy).sample((8, 2), sampler="langevin", step_size=0.1, steps=20, seed=0)
    assert isinstance(caught.value, MemoryError) and caught.value.__cause__ is error
    assert left[0] == -1


def test_more_points_than_memory_holds_are_refused_before_anything_is_allocated():
    with pytest.raises(ce.errors.OptionError, match=r"points of shape .* need at least 8 TB of memory"):
        ce.as_energy(torch.distributions.Normal(torch.zeros(1000), 1.0)).sample(10**9)


def test_a_default_device_without_values_is_refused():
    with torch.device("meta"):
        with pytest.raises(DeviceError, match="default device is meta"):
            NORMAL.sample(4, seed=0)
        with pytest.raises(DeviceError, match="default device is meta"):
            Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8)
        with pytest.raises(ComposableEnergyError, match="meta"):
            ce.log_z(NORMAL)
    assert NORMAL.sample(4, seed=0, steps=2).device.type == "cpu"


@pytest.mark.parametrize("output", [lambda e: e.to_sparse(), lambda e: e.to("meta")], ids=["sparse", "meta"])
def test_energies_that_are_no_dense_tensor_on_the_device_of_the_points_are_typed_errors(output):
    with pytest.raises(ce.errors.DtypeError, match="dense tensor"):
        ce.as_energy(lambda x: output(x.square().sum(1)), event_shape=(2,)).sample((4, 2), **CALL)


@pytest.fixture
def deleted(tmp_path, monkeypatch):
    """The working directory was deleted."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()


@posix
@pytest.mark.parametrize(
    "use",
    [
        lambda: ce.load("plane/ring").save("folder"),
        lambda: NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Checkpoint("chains")]),
        lambda: Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8, callbacks=[Checkpoints("run")]).fit(),
    ],
    ids=["save", "checkpoint", "training"],
)
def test_a_relative_path_without_a_working_directory_is_a_typed_error(deleted, use):
    with pytest.raises(StorageError, match="the working directory was deleted"):
        use()


@posix
def test_what_needs_no_working_directory_works_without_one(deleted, tmp_path):
    ce.load("plane/ring").save(tmp_path / "folder")
    x = NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Checkpoint(tmp_path / "chains")])
    assert torch.equal(x, NORMAL.sample(3, steps=2, seed=0))
    with pytest.raises(FileFormatError):
        ce.load("./folder")


@pytest.mark.full
@posix
@pytest.mark.parametrize(
    ("command", "closed", "code"),
    [("plugins --json", ">&-", 0), ("smple", "2>&-", 2), ("sample plane/ring -n 3 --steps 2 -o x.npy", ">&- 2>&- <&-", 0)],
)
def test_the_command_line_runs_with_closed_streams(tmp_path, command, closed, code):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    words = ["sh", "-c", f"{sys.executable} -m composable_energy {command} {closed}"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == code and "Traceback" not in done.stderr
    assert not command.startswith("sample") or np.load(tmp_path / "x.npy").shape == (3, 2)


def test_bars_are_left_out_where_stderr_is_closed(monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    assert NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Progress()]).shape == (3, 2)
    assert Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8, callbacks=[ProgressBar()]).fit().steps == 2


def test_neither_autocast_nor_a_callback_that_writes_into_what_it_is_given_changes_a_draw():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 32), nn.Tanh(), nn.Linear(32, 1)).eval()
    energy = ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2, event_shape=(2,))
    wanted = energy.sample((16, 2), **CALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(energy.sample((16, 2), **CALL), wanted)
        assert torch.is_autocast_enabled("cpu")

    def vandal(step, state, info):
        state.x.zero_(), state.energy.fill_(7), state.grad.normal_()
        info.acceptance.fill_(2)
        info.scalars.clear()

    x, trace = energy.sample((16, 2), observers=[ce.sampling.Stop(vandal)], trace=True, **CALL)
    assert torch.equal(x, wanted) and trace.acceptance.max() <= 1


@pytest.fixture
def double():
    """Returns a function that calls another where float64 is the default."""

    def call(function):
        torch.set_default_dtype(torch.float64)
        try:
            return function()
        finally:
            torch.set_default_dtype(torch.float32)

    return call


class Family(ce.EnergyFamily):
    def members(self):
        return ("a",)

    def load(self, member):
        return ce.as_energy(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), event_shape=(2,))


def test_a_family_first_loaded_in_double_precision_is_single_afterwards(double):
    with ce.register("energy", "bowls", Family):
        for call, dtype in ((double, torch.float64), (lambda load: load(), torch.float32)):
            assert next(call(lambda: ce.get("energy", "bowls/a")).parameters()).dtype == dtype


@pytest.mark.full
@pytest.mark.parametrize("options", [{"sampler": "chees", "steps": 3}, {"sampler": "smc"}])
def test_the_default_dtype_changes_no_draw(options, double):
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))
    call = {"seed": 3, "dtype": torch.float32, **options}
    assert torch.equal(double(lambda: energy.sample((8, 2), **call)), energy.sample((8, 2), **call))


def test_names_of_a_saved_energy_are_shown_with_escapes(tmp_path):
    write_record(tmp_path / ENERGY_FILE, "energy\x1b[2J", 3, {}, {})
    with pytest.raises(FileFormatError) as caught:
        ce.load(tmp_path)
    assert "\x1b" not in str(caught.value) and r"\x1b[2J" in str(caught.value)
