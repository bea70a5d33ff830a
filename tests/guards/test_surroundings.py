"""What happens in a call: proposals that raise are rejected, surroundings change no draw, and what runs out is a typed error."""

import functools
import math
import os
import subprocess
import sys
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Chi2, Dirichlet, Gamma
from torch.overrides import TorchFunctionMode

import composable_energy as ce
from composable_energy import SamplingWarning, errors
from composable_energy.files import ENERGY_FILE, write_record
from composable_energy_mcmc import MALA, ChEES, Langevin
from composable_energy_training import Checkpoints, ProgressBar, Trainer
from plugins.training.tests.run_helpers import DATA, Scripted, network
from tests.refusals import refusals, refused

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes."
NORMAL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
CALL = {"sampler": "mala", "step_size": 0.3, "steps": 20, "seed": 0}
MAKERS = {torch.arange, torch.empty, torch.eye, torch.full, torch.randint, torch.randn, torch.randperm, torch.tensor, torch.zeros}
LIBRARY = ("composable_energy.", "composable_energy_mcmc.")
posix = pytest.mark.skipif(os.name != "posix", reason="other systems keep the folder, and close streams otherwise")
F64 = torch.float64


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(ALLOCATOR), RuntimeError("std::bad_alloc")], ids=["python", "torch", "c++"])
def test_memory_that_runs_out_is_one_typed_error_and_is_not_tried_point_by_point(error):
    left = [5]

    def energy(x):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return x.square().sum(1) / 2

    told = r"Memory ran out while langevin was at step.*chains of shape \(8, 2\).*`batch_size=`"
    with pytest.raises(errors.MemoryShortage, match=told) as caught:
        ce.as_energy(energy).sample((8, 2), sampler="langevin", step_size=0.1, steps=20, seed=0)
    assert isinstance(caught.value, MemoryError) and caught.value.__cause__ is error and left[0] == -1


def test_a_default_device_without_values_is_refused():
    with torch.device("meta"):
        refused(errors.DeviceError, "default device is meta", NORMAL.sample, 4, seed=0)
        refused(errors.DeviceError, "default device is meta", Trainer, network(), Scripted({}), DATA, steps=2, batch_size=8)
        refused(errors.ComposableEnergyError, "meta", ce.log_z, NORMAL)
    assert NORMAL.sample(4, seed=0, steps=2).device.type == "cpu"
    moved = ce.as_energy(lambda x: x.square().sum(1), event_shape=(2,)).to("meta")  # as to a GPU, without any tensor
    refused(errors.DeviceError, "Points on the device meta", (moved & ce.as_energy(lambda x: x.sum(1))).sample, 4, seed=0)


def test_no_tensor_of_the_library_is_on_the_default_device_by_accident():
    places = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function, types, args=(), kwargs=None):
            caller = sys._getframe(1)
            if function in MAKERS and "device" not in (kwargs or {}) and caller.f_globals["__name__"].startswith(LIBRARY):
                places.add(f"{caller.f_code.co_filename}:{caller.f_lineno}")
            return function(*args, **kwargs or {})

    bowl = ce.as_energy(lambda x: x.square().sum(1), event_shape=(2,))
    with Watch():
        for E, sampler in ((bowl, "tempering"), (NORMAL & ~bowl, "langevin"), (ce.calibrate(NORMAL | bowl), "chees")):
            str(E.sample(64, seed=0, sampler=sampler, steps=8, trace=1)[1].summary())
    assert not places


test_energies_that_are_no_dense_tensor_on_the_device_of_the_points_are_typed_errors = refusals(
    *((output, "dense tensor") for output in (torch.Tensor.to_sparse, lambda energies: energies.to("meta"))),
    call=lambda output: ce.as_energy(lambda x: output(x.square().sum(1)), event_shape=(2,)).sample((4, 2), **CALL),
    error=errors.DtypeError,
)


@pytest.fixture
def deleted(tmp_path, monkeypatch):
    """The working directory was deleted."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()


@posix
def test_a_relative_path_without_a_working_directory_is_a_typed_error_and_other_paths_work(deleted, tmp_path):
    for use in (
        lambda: ce.load("plane/ring").save("folder"),
        lambda: NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Checkpoint("chains")]),
        lambda: Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8, callbacks=[Checkpoints("run")]).fit(),
    ):
        refused(errors.StorageError, "the working directory was deleted", use)
    ce.load("plane/ring").save(tmp_path / "folder")
    x = NORMAL.sample(3, steps=2, seed=0, observers=[ce.sampling.Checkpoint(tmp_path / "chains")])
    assert torch.equal(x, NORMAL.sample(3, steps=2, seed=0))
    refused(errors.FileFormatError, None, ce.load, "./folder")


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
        assert torch.equal(energy.sample((16, 2), **CALL), wanted) and torch.is_autocast_enabled("cpu")

    def vandal(step, state, info):
        state.x.zero_(), state.energy.fill_(7), state.grad.normal_()
        info.acceptance.fill_(2), info.scalars.clear()

    x, trace = energy.sample((16, 2), observers=[ce.sampling.Stop(vandal)], trace=True, **CALL)
    assert torch.equal(x, wanted) and trace.acceptance.max() <= 1


def double(function):
    """Calls a function where float64 is the default."""
    torch.set_default_dtype(torch.float64)
    try:
        return function()
    finally:
        torch.set_default_dtype(torch.float32)


class Family(ce.EnergyFamily):
    def members(self):
        return ("a",)

    def load(self, member):
        return ce.as_energy(nn.Sequential(nn.Linear(2, 1), nn.Flatten(0)), event_shape=(2,))


def test_a_family_first_loaded_in_double_precision_is_single_afterwards():
    with ce.register("energy", "bowls", Family):
        for call, dtype in ((double, torch.float64), (lambda load: load(), torch.float32)):
            assert next(call(lambda: ce.get("energy", "bowls/a")).parameters()).dtype == dtype


@pytest.mark.full
@pytest.mark.parametrize("options", [{"sampler": "chees", "steps": 3}, {"sampler": "smc"}])
def test_the_default_dtype_changes_no_draw(options):
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))
    call = {"seed": 3, "dtype": torch.float32, **options}
    assert torch.equal(double(lambda: energy.sample((8, 2), **call)), energy.sample((8, 2), **call))


def test_names_of_a_saved_energy_are_shown_with_escapes(tmp_path):
    write_record(tmp_path / ENERGY_FILE, "energy\x1b[2J", 3, {}, {})
    with pytest.raises(errors.FileFormatError) as caught:
        ce.load(tmp_path)
    assert "\x1b" not in str(caught.value) and r"\x1b[2J" in str(caught.value)


def undefined(x):
    """Beta(2, 3) by logarithms that are NaN outside of the unit interval."""
    return (-x.log() - 2 * (1 - x).log())[:, 0]


MIDDLE = torch.full((1000, 1), 0.4)
OPTIONS = {
    "mala": {"step_size": 0.05, "steps": 150},
    "hmc": {"step_size": 0.15, "leapfrogs": 3, "steps": 60},
    "chees": {"step_size": 0.15, "trajectory": 0.4, "steps": 60},
    "tempering": {"levels": 3, "mean": 0.4, "scale": 0.3, "leapfrogs": 4, "steps": 40},
    "smc": {"mean": 0.4, "scale": 0.3, "leapfrogs": 4},
    "annealed": {"corrector": "mala", "corrector_steps": 30, "sigma_max": 0.5, "levels": 3},
}


def check_beta(x):
    """Beta(2, 3) has mean 2/5 and variance 1/25; annealing and resampling leave some dependence."""
    assert ((x > 0) & (x < 1)).all()
    error = math.sqrt(0.04 / len(x))
    assert abs(x.mean().item() - 0.4) < 5 * error and abs(x.var().item() - 0.04) < 5 * 0.052 / math.sqrt(len(x))


@pytest.mark.slow
@pytest.mark.parametrize("sampler", OPTIONS)
def test_energies_of_nan_are_rejected_and_counted(sampler):
    with pytest.warns(SamplingWarning, match=r"errors: .* or was NaN at \d+ points"):
        x, trace = ce.as_energy(undefined).sample((1000, 1), sampler=sampler, init=MIDDLE, seed=3, trace=True, **OPTIONS[sampler])
    check_beta(x)
    assert trace.errors > 0 and trace.first_error == "an energy of NaN" and trace.acceptance.isfinite().all()


@pytest.mark.full
def test_compiled_steps_reject_them_too():
    call = {"init": MIDDLE, "seed": 3, "trace": True, **OPTIONS["mala"]}
    with pytest.warns(SamplingWarning, match=r"or was NaN at"):  # batches compile one step, and not eight
        (x, trace), (y, other) = (
            ce.as_energy(undefined).sample((1000, 1), sampler="mala", compile=fast, batch_size=500, **call) for fast in (True, False)
        )
    check_beta(x)
    assert abs(trace.errors - other.errors) <= 0.01 * other.errors and (x - y).abs().median() < 1e-3


def test_samplers_that_cannot_reject_and_energies_of_minus_infinity_still_stop():
    with pytest.raises(errors.SamplingDiverged, match=r"return `torch.where\(inside, energy, torch.inf\)`"):
        ce.as_energy(undefined).sample((100, 1), sampler="langevin", step_size=0.1, init=MIDDLE[:100], seed=0)
    endless = ce.as_energy(lambda x: torch.where(x[:, 0] > 1, -torch.inf, x[:, 0].square() / 2))
    refused(errors.SamplingDiverged, None, endless.sample, (100, 1), sampler="mala", seed=0)


def clipped(x):
    """A root whose branch that is not taken has no gradient."""
    return torch.where(x[:, 0] > 0, x[:, 0].sqrt(), 0.0) + x[:, 0].square() / 2


def test_gradients_of_nan_from_torch_where_and_norms_at_0_are_named():
    where = r"the energy is finite and its gradient is not. The gradient of `torch.where\(c, f\(x\)"
    for sampler in (Langevin(0.1), ChEES(0.5, 1.0)):
        refused(errors.SamplingDiverged, where, ce.as_energy(clipped).sample, (20, 1), sampler=sampler, seed=0)
    norm = ce.as_energy(lambda x: x.square().sum(1).sqrt())
    refused(errors.SamplingDiverged, "Roots and norms have no gradient at 0", norm.sample, (4, 2), init=torch.zeros(4, 2), **CALL)


@pytest.mark.full
def test_parameters_in_float32_under_points_in_float64_are_named():
    with pytest.raises(errors.SamplingDiverged, match=r"close to the border of the support .* sample in float64, with parameters in it"):
        ce.as_energy(Chi2(0.1)).sample(1000, steps=40, seed=0, dtype=F64)


def notes(error: BaseException) -> str:
    return "\n".join(getattr(error, "__notes__", [str(error.__cause__)]))


def half(x: torch.Tensor) -> torch.Tensor:
    """A half-normal density by a decomposition that fails left of 0."""
    return torch.linalg.cholesky(x[:, :, None] * torch.eye(1, dtype=x.dtype))[:, 0, 0] ** 4 / 2


HALF = ce.as_energy(half, name="half")
ONES = torch.ones(200, 1, dtype=F64)


class TestProposalsThatRaise:
    @pytest.mark.slow
    @pytest.mark.parametrize("sampler", [pytest.param(MALA(tuning_steps=8), marks=pytest.mark.full), ChEES(0.5, 1.0)])
    def test_they_are_rejected_and_the_rest_follows_the_density(self, sampler):
        with pytest.warns(SamplingWarning, match="errors: The energy raised an exception or was NaN at .*LinAlgError"):
            x, trace = HALF.sample((80, 1), sampler=sampler, steps=30, init=2 * ONES[:80], seed=0, trace=True)
        assert trace.errors > 0 and "LinAlgError" in trace.first_error and (x > 0).all()
        assert "errors" in {warning.kind for warning in trace.warnings()} and "which were rejected" in str(trace.summary())
        expected = (2 / torch.pi) ** 0.5
        assert abs(x.mean() - expected) < 4 * (1 - expected**2) ** 0.5 / 80**0.5

    def test_chains_with_conditions_of_their_own_keep_their_rows(self):
        def shifted(x, y):
            if (x < y[:, None]).any():
                raise ValueError("below")
            return (x[:, 0] - y) * 50

        low = torch.arange(6, dtype=F64)
        energy, start = ce.as_energy(shifted).given(y=low), low[:, None] + 0.01
        x, trace = energy.sample((6, 1), sampler=MALA(4e-4), steps=60, init=start, seed=0, trace=True)
        assert trace.errors > 0 and ((x[:, 0] >= low) & (x[:, 0] < low + 0.5)).all()

    def test_what_fails_everywhere_is_raised_as_it_is(self):
        def broken(x):
            raise KeyError("nothing works")

        late = lambda x: (y := x.exp()).sum(1) + y.zero_().sum(1)  # the backward pass needs what is overwritten
        for function, error, text in ((broken, KeyError, "nothing works"), (late, RuntimeError, "inplace operation")):
            with pytest.raises(error, match=text) as caught:
                ce.as_energy(function, name="broken").sample((5, 2), seed=0)
            assert "in the energy broken at points of shape (64, 2)" in notes(caught.value)
            assert "tuned, by 64 pilot chains of shape (64, 2)" in notes(caught.value)

    def test_what_fails_everywhere_after_a_while_is_raised_too(self):
        calls = []

        def tired(x):
            calls.append(1)
            if len(calls) > 10:
                raise OSError("connection lost")
            return x.square().sum(1) / 2

        energy = ce.as_energy(tired)
        with pytest.raises(OSError, match="connection lost") as caught:
            (energy & energy).sample((5, 2), sampler=MALA(0.5), steps=50, seed=0)
        assert "in the energy tired, a term of tired & tired, at points of shape (5, 2)" in notes(caught.value)
        assert "mala was at step" in notes(caught.value)


class TestOutputs:
    def test_functions_without_a_gradient(self):
        bowl = ce.as_energy(lambda x: x.square().sum(1) / 2)
        cut = ce.as_energy(torch.no_grad()(lambda x: (x - 2).square().sum(1)), name="cut")
        with pytest.raises(errors.ExpressionError, match="calls NumPy, which has no gradient"):
            ce.as_energy(lambda x: torch.from_numpy(x.numpy()).sum(1)).with_gradient(torch.zeros(4, 2))
        for sampler in (MALA(0.5), Langevin(0.1)):
            with pytest.raises(errors.ExpressionError, match="cut changes with its points, but its result has no gradient"):
                (bowl & cut).sample((20, 2), sampler=sampler, steps=3, seed=0)
        wall = ce.as_energy(lambda x: torch.where(x[:, 0] > 0, 0.0, torch.inf))
        step = ce.as_energy(lambda x: (x[:, 0] > 1).float())
        assert (bowl & wall & step).sample((20, 2), sampler=MALA(0.5), steps=3, init=torch.ones(20, 2), seed=0).isfinite().all()
        assert (bowl & wall).sample((20, 2), sampler=Langevin(1e-6), steps=3, init=torch.ones(20, 2), seed=0).isfinite().all()
        with pytest.raises(errors.ExpressionError, match=r"energy changes with its points, .* or take a sampler that accepts and rejects"):
            (bowl & step).sample((20, 2), sampler=Langevin(0.1), steps=3, seed=0)

    def test_networks_without_a_gradient_beside_terms_with_one(self):
        class Cut(nn.Linear):
            forward = torch.no_grad()(nn.Linear.forward)

        base, cut = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0)), Cut(2, 3).eval()
        shown = ce.as_energy(lambda x: x.square().sum(1), event_shape=(3,)).pull_back(cut)
        for energy in (ce.ClassifierEnergy(cut, 0, base), base & shown):
            assert energy.sample(20, sampler=MALA(0.5), steps=3, seed=0).isfinite().all()  # by the values
            with pytest.raises(errors.ExpressionError, match=r"Cut changes with its points, but its result has no gradient.* `mala`"):
                energy.sample(20, sampler=Langevin(0.1), steps=3, seed=0)


test_the_error_says_what_to_write = refusals(
    (lambda x: SimpleNamespace(logits=x), errors.DtypeError, "It has `.logits`"),
    (lambda x: {"energy": x.sum(1)}, errors.DtypeError, r"model\(x\)\['energy'\]"),
    (lambda x: (x.sum(1), None), errors.DtypeError, r"model\(x\)\[0\]"),
    (lambda x: None, errors.DtypeError, "lack a `return`"),
    (lambda x: x.numpy().sum(1), errors.DtypeError, "NumPy"),
    (lambda x: x.sum(1) > 0, errors.DtypeError, "truth values have no gradient"),
    (lambda x: torch.distributions.Normal(x, 1.0), errors.DtypeError, "log_prob"),
    (lambda x: x, errors.ShapeError, "ClassifierEnergy"),
    call=lambda function: ce.as_energy(function)(torch.zeros(4, 2)),
)


class Net(nn.Module):
    def forward(self, x):
        return x.square().sum(1)

    def energy(self, x, factor=1.0):
        return factor * self(x)


class TestLifting:
    @pytest.mark.parametrize("method", ["score_samples", "logpdf", "log_prob"])
    def test_distributions_of_other_libraries(self, method):
        other = type("Other", (), {method: lambda self, x: x, "__call__": lambda self: 0.0})()
        refused(errors.LiftError, rf"obj.{method}\(x", ce.as_energy, other)

    @pytest.mark.parametrize(
        ("make", "name"),
        [
            (lambda: functools.partial(Net().energy, factor=2.0), "energy"),
            (lambda: Net().energy, "energy"),
            (lambda: torch.jit.trace(Net(), torch.zeros(3, 2)), "Net"),
            (lambda: torch.jit.trace(lambda x: x.square().sum(1), torch.zeros(3, 2)), "ScriptFunction"),
            (lambda: torch.compile(Net(), backend="eager"), "Net"),
        ],
    )
    def test_callables_of_other_kinds(self, make, name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            energy = ce.as_energy(make())
            assert str(energy) == name and energy.sample((5, 2), sampler=MALA(0.1), steps=3, seed=0).isfinite().all()


@pytest.mark.full
def test_trajectories_that_leave_the_numbers_of_a_support_are_rejected():
    """Gamma(2, 1) has mean 2 and variance 2; long trajectories reach points whose gradient would overflow."""
    x = ce.as_energy(Gamma(2.0, 1.0)).sample(1000, sampler="hmc", step_size=1.2, leapfrogs=4, steps=60, seed=5)
    assert abs(x.mean() - 2) < 4 * math.sqrt(2 / 1000)


@pytest.mark.full
@pytest.mark.parametrize("density", [Chi2(0.1), Dirichlet(torch.full((3,), 0.01))], ids=lambda one: type(one).__name__)
def test_mass_beyond_the_numbers_of_float32_warns_and_names_float64(density):
    with pytest.warns(errors.SupportWarning, match=r"sample in dtype=torch.float64, with parameters in it"):
        ce.as_energy(density).sample(1000, steps=40, seed=4)
