"""A checkpoint: whatever ends a program, the same call goes on and ends with the bits that it would have had."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, replace

import pytest
import safetensors.torch
import torch
from torch import nn

import composable_energy as ce
from composable_energy.errors import ExpressionError, FileFormatError, OptionError, SamplingDiverged
from composable_energy.sampling import Info, Sampler, State, energy_and_gradient

BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0))
FIELDS = ("energies", "acceptance", "points", "kept", "diverged_at", "restarts")


class Stop(Exception):  # noqa: N818
    """Ends a run from outside."""


def stop_at(step):
    def callback(now, state, info):
        if now == step:
            raise Stop

    return callback


def network() -> ce.Energy:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 1))
    return ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2)


def same(one, other):
    points, trace = one
    again, retold = other
    assert torch.equal(points, again)
    for name in FIELDS:
        a, b = getattr(trace, name), getattr(retold, name)
        if a is None:
            assert b is None
            continue
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)
    assert trace.scalars == retold.scalars and trace.point_steps == retold.point_steps and trace.steps == retold.steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("langevin", {"step_size": 0.1}),
        ("underdamped", {"step_size": 0.1}),
        ("mala", {}),
        ("chees", {"tuning_steps": 20}),
        ("annealed", {"levels": 12}),
    ],
)
@pytest.mark.parametrize("size", [None, 4])
def test_a_run_that_was_broken_off_ends_as_if_it_had_not_been(tmp_path, sampler, options, size):
    energy = network()
    call = dict(sampler=sampler, steps=12, seed=3, trace=3, burn_in=1, batch_size=size, **options)
    whole = energy.sample((10, 2), **call)
    file = tmp_path / "deep" / "run.safetensors"
    for step in (2, 3, 9):
        with pytest.raises(Stop):
            energy.sample((10, 2), checkpoint=file, callback=stop_at(step), **call)
    same(whole, energy.sample((10, 2), checkpoint=file, **call))
    assert [path.name for path in file.parent.iterdir()] == ["run.safetensors"]
    same(whole, energy.sample((10, 2), checkpoint=file, **call))  # it is done: nothing is left to do


@pytest.mark.parametrize("policy", ["drop", "keep", "restart"])
def test_losses_survive_a_break(tmp_path, policy):
    hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
    call = {
        "sampler": "langevin",
        "step_size": 0.2,
        "steps": 20,
        "seed": 1,
        "trace": True,
        "on_divergence": policy,
        "init": torch.zeros(40, 2),
    }
    whole = hole.sample((40, 2), **call)
    assert whole[1].diverged.any()
    for step in (4, 11):
        with pytest.raises(Stop):
            hole.sample((40, 2), checkpoint=tmp_path / "c", callback=stop_at(step), **call)
    same(whole, hole.sample((40, 2), checkpoint=tmp_path / "c", **call))


def test_more_steps_go_on_from_a_finished_run(tmp_path):
    call = {"sampler": "langevin", "step_size": 0.1, "trace": True, "seed": 0}
    BOWL.sample((5, 3), steps=10, checkpoint=tmp_path / "c", **call)
    same(BOWL.sample((5, 3), steps=25, **call), BOWL.sample((5, 3), steps=25, checkpoint=tmp_path / "c", **call))
    with pytest.raises(OptionError, match="25 steps are done already, 10 were asked for"):
        BOWL.sample((5, 3), steps=10, checkpoint=tmp_path / "c", **call)


def test_a_trace_that_is_resumed_has_checkpoints_too(tmp_path):
    call = {"trace": True}
    _, trace = BOWL.sample((5, 3), sampler="langevin", step_size=0.1, seed=0, steps=10, **call)
    whole = BOWL.sample((5, 3), resume=trace, steps=10, **call)
    with pytest.raises(Stop):
        BOWL.sample((5, 3), resume=trace, steps=10, checkpoint=tmp_path / "c", callback=stop_at(14), **call)
    same(whole, BOWL.sample((5, 3), resume=trace, steps=10, checkpoint=tmp_path / "c", **call))


def test_a_seed_that_nobody_gave_is_kept(tmp_path):
    with pytest.raises(Stop):
        BOWL.sample((5, 3), sampler="langevin", step_size=0.1, steps=10, checkpoint=tmp_path / "c", callback=stop_at(5))
    first, second = (BOWL.sample((5, 3), sampler="langevin", step_size=0.1, steps=10, checkpoint=tmp_path / "c") for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, BOWL.sample((5, 3), sampler="langevin", step_size=0.1, steps=10))


def test_an_interrupt_in_the_middle_of_a_step_leaves_the_last_whole_one(tmp_path):
    calls = 0

    def energy(x):
        nonlocal calls
        calls += 1
        if calls == 21:  # three chunks: their start, its values for the file, and five steps but for one chunk
            raise KeyboardInterrupt
        return x.square().sum(1) / 2

    call = {"sampler": "langevin", "step_size": 0.1, "steps": 10, "seed": 0, "batch_size": 2, "trace": True}
    quiet = ce.as_energy(energy, name="bowl")
    with pytest.raises(KeyboardInterrupt):
        quiet.sample((6, 3), checkpoint=tmp_path / "c", checkpoint_every=3600, **call)
    told = json.loads(safe_metadata(tmp_path / "c")["composable_energy_checkpoint"])
    assert told["steps"] == 4
    same(quiet.sample((6, 3), **call), quiet.sample((6, 3), checkpoint=tmp_path / "c", **call))


def safe_metadata(path):
    with safetensors.safe_open(path, "pt") as file:
        return file.metadata()


def test_a_divergence_leaves_a_checkpoint_that_another_policy_goes_on_from(tmp_path):
    hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
    call = {"sampler": "langevin", "step_size": 0.2, "steps": 20, "seed": 1, "init": torch.zeros(40, 2)}
    with pytest.raises(SamplingDiverged):
        hole.sample((40, 2), checkpoint=tmp_path / "c", **call)
    wanted = hole.sample((40, 2), on_divergence="drop", **call)
    assert torch.equal(wanted, hole.sample((40, 2), on_divergence="drop", checkpoint=tmp_path / "c", **call))


@pytest.mark.parametrize(
    ("other", "told"),
    [
        ({"seed": 1}, "seed was 0, is 1"),
        ({"step_size": 0.2}, r"sampler was 'Langevin\(step_size=0.1.*, is 'Langevin\(step_size=0.2"),
        ({"init": torch.ones(4, 3, dtype=torch.float64)}, "init was None, is '"),
        ({"best_of": 2}, "best_of was 1, is 2"),
        ({"trace": 5}, "trace was False, is 5"),
        ({"noise": "philox"}, "noise was 'blocks', is 'philox'"),
    ],
)
def test_a_checkpoint_of_another_call_is_told(tmp_path, other, told):
    call = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0, "checkpoint": tmp_path / "c"}
    BOWL.sample((4, 3), **call)
    with pytest.raises(OptionError, match=f"belongs to another call.*{told}.*give another path"):
        BOWL.sample((4, 3), **{**call, **other})


def test_a_checkpoint_of_other_weights_is_told(tmp_path):
    energy = nn.Linear(3, 1)
    bowl = ce.as_energy(lambda x: energy(x).square().squeeze(1) + x.square().sum(1), name="bowl")
    call = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0, "checkpoint": tmp_path / "c"}
    bowl.sample((4, 3), **call)
    nn.init.zeros_(energy.bias)
    with pytest.raises(OptionError, match=r"another energy than bowl: .* the energy was .* delete it to begin anew"):
        bowl.sample((4, 3), **call)


@pytest.mark.parametrize("damage", [lambda data: data[:-7], lambda data: b"", lambda data: b"not a checkpoint", lambda data: data[:40]])
def test_a_damaged_file_is_told_and_left_alone(tmp_path, damage):
    call = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0, "checkpoint": tmp_path / "c"}
    BOWL.sample((4, 3), **call)
    (tmp_path / "c").write_bytes(damage((tmp_path / "c").read_bytes()))
    before = (tmp_path / "c").read_bytes()
    with pytest.raises(FileFormatError, match="no checkpoint, or damaged"):
        BOWL.sample((4, 3), **call)
    assert (tmp_path / "c").read_bytes() == before


def test_one_bit_that_flipped_is_found_or_changes_no_draw(tmp_path):
    """In the lengths, the names, the metadata and the data of the tensors; one place in each stretch of the file."""
    call = {"sampler": "mala", "step_size": 0.1, "seed": 0, "trace": 2, "batch_size": 3, "checkpoint": tmp_path / "c"}
    BOWL.sample((8, 3), steps=4, **call)
    data = (tmp_path / "c").read_bytes()
    wanted = BOWL.sample((8, 3), steps=6, **call)
    harmless, generator, flips = 0, torch.Generator().manual_seed(0), 200
    for i in range(flips):
        stretch = len(data) / flips
        place = int((i + torch.rand(1, generator=generator).item()) * stretch)
        flipped = bytearray(data)
        flipped[place] ^= 1 << int(torch.randint(8, (1,), generator=generator))
        (tmp_path / "c").write_bytes(flipped)
        try:
            same(wanted, BOWL.sample((8, 3), steps=6, **call))
            harmless += 1
        except FileFormatError:
            assert (tmp_path / "c").read_bytes() == flipped
    assert harmless < flips / 50  # such as a small letter of JSON that became a capital one


def test_a_file_of_the_first_format_is_refused_with_what_to_do(tmp_path):
    call = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0, "checkpoint": tmp_path / "c"}
    BOWL.sample((4, 3), **call)
    told = json.loads(safe_metadata(tmp_path / "c")["composable_energy_checkpoint"])
    old = {name: value for name, value in told.items() if name not in ("digest", "reference")} | {"format": 1}
    tensors = safetensors.torch.load_file(tmp_path / "c")
    safetensors.torch.save_file(tensors, tmp_path / "c", {"composable_energy_checkpoint": json.dumps(old)})
    with pytest.raises(FileFormatError, match=r"has format 1, .* reads format 2: finish the run with the version that began it, or"):
        BOWL.sample((4, 3), **call)


@dataclass(frozen=True)
class Pulled(Sampler):
    towards: torch.Tensor

    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        return State(self.towards + 0.1 * noise.normal(state.x), state.energy, state.grad), Info()


def test_options_that_are_tensors_are_compared_to_the_bit(tmp_path):
    one = torch.ones(3, dtype=torch.float64)
    for other, call in ((one.clone(), {}), (one + 1e-9, {"match": "sampler was"})):
        BOWL.sample((4, 3), sampler=Pulled(one), steps=3, seed=0, checkpoint=tmp_path / "c")
        if not call:
            BOWL.sample((4, 3), sampler=Pulled(other), steps=3, seed=0, checkpoint=tmp_path / "c")
            continue
        with pytest.raises(OptionError, **call):
            BOWL.sample((4, 3), sampler=Pulled(other), steps=3, seed=0, checkpoint=tmp_path / "c")


def test_a_file_that_is_no_checkpoint_is_told(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "c")
    for path in (tmp_path / "c", tmp_path):
        with pytest.raises(FileFormatError, match="no checkpoint"):
            BOWL.sample((4, 3), sampler="langevin", step_size=0.1, steps=3, checkpoint=path)


@dataclass(frozen=True)
class Odd(State):
    note: object = None


@dataclass(frozen=True)
class Noting(Sampler):
    note: object

    def init(self, energy, x, noise):
        return Odd(x, *energy_and_gradient(energy, x), note=self.note)

    def step(self, energy, state, noise):
        x = state.x + 0.1 * noise.normal(state.x)
        energies, grad = energy_and_gradient(energy, x)
        return replace(state, x=x, energy=energies, grad=grad), Info()


def test_what_a_state_may_hold(tmp_path):
    for i, note in enumerate((None, 3, 2.5, "text", True)):
        whole = BOWL.sample((4, 3), sampler=Noting(note), steps=6, seed=0, trace=True)
        with pytest.raises(Stop):
            BOWL.sample((4, 3), sampler=Noting(note), steps=6, seed=0, trace=True, checkpoint=tmp_path / f"{i}", callback=stop_at(3))
        _, trace = again = BOWL.sample((4, 3), sampler=Noting(note), steps=6, seed=0, trace=True, checkpoint=tmp_path / f"{i}")
        same(whole, again)
        assert all(state.note == note for *_, state in trace.states)
    with pytest.raises(ExpressionError, match=r"Odd.note is a list: a checkpoint holds tensors, numbers and text"):
        BOWL.sample((4, 3), sampler=Noting([]), steps=6, seed=0, checkpoint=tmp_path / "odd")


PROGRAM = """
import os, random, signal, sys, time, warnings
warnings.simplefilter("ignore")  # forking is fine here: the parent computes nothing, so it has one thread
import torch
import composable_energy as ce

torch.set_num_threads(1)
kills, folder = int(sys.argv[1]), sys.argv[2]
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
energy = ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2)
calls = [
    dict(sampler="langevin", step_size=0.1, steps=200, trace=50),
    dict(sampler="mala", step_size=0.5, steps=150, trace=True, batch_size=3),
    dict(sampler="underdamped", step_size=0.1, steps=200, trace=True, batch_size=4),
]

def run(number, out, **options):
    child = os.fork()
    if child == 0:
        points, trace = energy.sample((7, 2), seed=5, **calls[number], **options)
        torch.save((points, trace.energies, trace.points), out)
        os._exit(0)
    return child

random.seed(0)
for number in range(len(calls)):
    path, killed = f"{folder}/{number}", 0
    assert os.waitpid(run(number, path + ".whole"), 0)[1] == 0
    while True:
        child = run(number, path + ".pt", checkpoint=path, checkpoint_every=0)
        if killed < kills:
            time.sleep(random.uniform(0.0, 0.08))
            os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not os.WIFSIGNALED(status):
            break
        killed += 1
    assert status == 0, "the child failed"
    one, two = torch.load(path + ".whole"), torch.load(path + ".pt")
    print(killed, all(a is b or torch.equal(a, b) for a, b in zip(one, two)))
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_thirty_kills_change_no_bit(tmp_path):
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(PROGRAM), "10", tmp_path], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = [line.split() for line in done.stdout.splitlines()]
    assert [equal for _, equal in told] == ["True"] * 3
    assert sum(int(killed) for killed, _ in told) == 30
    assert not list(tmp_path.glob(".*"))  # what a killed writing left is gone


SLOW = """
import itertools, signal, sys, time, torch
import composable_energy as ce

signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite that a shell runs in the background inherits that it is ignored

calls = itertools.count()

def slow(x):
    if next(calls) == 10:
        print("begin", flush=True)
    time.sleep(0.02)
    return x.square().sum(1) / 2

ce.as_energy(slow).sample((6, 3), sampler="langevin", step_size=0.1, steps=10_000, seed=0, progress=True, checkpoint=sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="sends an interrupt as a terminal does")
def test_an_interrupt_from_the_keyboard_returns_at_once_and_leaves_a_checkpoint(tmp_path):
    running = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path / "c"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert running.stdout is not None and running.stdout.readline() == "begin\n"
    running.send_signal(signal.SIGINT)
    _, told = running.communicate(timeout=30)  # the steps that were asked for take 200 s
    assert running.returncode != 0 and "KeyboardInterrupt" in told
    steps = json.loads(safe_metadata(tmp_path / "c")["composable_energy_checkpoint"])["steps"]
    assert 0 < steps < 10_000
