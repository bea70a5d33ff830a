"""Two processes draw what one draws, to the bit."""

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import OptionError, ProcessLost, SamplingDiverged
from tests.processes import ended, needs_forkserver, start

BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0))

PROGRAM = """
import os, sys
from dataclasses import dataclass
import torch
import composable_energy as ce
from composable_energy.errors import SamplingDiverged
from composable_energy.sampling import Info, Sampler, State, energy_and_gradient
from composable_energy_mcmc import FeynmanKac
from torch import distributed

torch.set_num_threads(1)
folder, ranks = sys.argv[1], None
if "RANK" in os.environ:
    distributed.init_process_group("gloo")
    ranks = "gather"

@dataclass(frozen=True)
class Mixing(Sampler):
    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        x = state.x + 0.1 * noise.normal(state.x)
        return State(x, *energy_and_gradient(energy, x)), Info(scalars={"own": 1.0})

    def couple(self, energy, state, noise):
        x = state.x.flip(0) + 0.1 * noise.uniform(state.x, 3)[:, None]
        return State(x, *energy_and_gradient(energy, x)), {"mean": x.mean().item()}

@dataclass(frozen=True)
class Telling(Sampler):
    def init(self, energy, x, noise):
        return State(x, *energy_and_gradient(energy, x))

    def step(self, energy, state, noise):
        x = state.x + 0.5 * noise.normal(state.x)
        scalars = {"level": 0.1 * noise.step, "height": x[:, 0], "mean": x[:, 0].mean().item()}
        return State(x, *energy_and_gradient(energy, x)), Info(scalars=scalars)

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double().eval()
energies = {
    "plane": ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0)),
    "network": ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2),
    "hole": ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2)),
}
energies["shares"] = ce.as_energy(torch.distributions.Dirichlet(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)))
energies["mixture"] = energies["plane"] | ce.as_energy(torch.distributions.Normal(torch.ones(3, dtype=torch.float64), 0.5))
one, two = (ce.ScoreEnergy(lambda x, sigma, c=c: (c - x) / (1 + sigma[:, None] ** 2), name=f"at {c}") for c in (-1.0, 1.0))
energies["scores"] = one | two & one
double = {"dtype": torch.float64}
long = {"sampler": "langevin", "step_size": 0.2}
hole = {"steps": 12, "init": torch.zeros(11, 3)}
walk = {"sampler": "langevin", "step_size": 0.1, "trace": True}
calls = {
    "langevin": ("plane", {"sampler": "langevin", "step_size": 0.1, "steps": 12, "trace": 3}),
    "hmc": ("network", {"sampler": "hmc", "steps": 6, "trace": True, "batch_size": 4, **double}),
    "annealed": ("plane", {"sampler": "annealed", "levels": 8, "trace": True}),
    "mixture": ("mixture", {"sampler": "mala", "steps": 20, "trace": True}),
    "smc": ("mixture", {"sampler": "smc", "levels": 6, "trace": True, "batch_size": 4}),
    "scores": ("scores", {"sampler": FeynmanKac(levels=6, sigma_min=0.5), "trace": True, "batch_size": 4, **double}),
    "support": ("shares", {"sampler": "hmc", "step_size": 0.3, "leapfrogs": 3, "steps": 6, "trace": 2, "batch_size": 4}),
    "keep": ("hole", {**hole, **long, "on_divergence": "keep", "trace": 2}),
    "coupled": ("plane", {"sampler": Mixing(), "steps": 8, "trace": True, "batch_size": 3}),
    "coupled keep": ("hole", {**hole, "steps": 20, "sampler": Mixing(), "on_divergence": "keep", "trace": True, "batch_size": 3}),
    "telling": ("hole", {**hole, "sampler": Telling(), "on_divergence": "keep", "trace": True}),
    "stopped": ("plane", {**walk, "steps": 50, "callback": lambda step, state, info: step == 7}),
}
out = {}
for name, (energy, call) in calls.items():
    points, trace = energies[energy].sample((11, 3), seed=3, ranks=ranks, **call)
    out[name] = [points, trace.energies, trace.acceptance, trace.points, trace.diverged_at]
    out[name] += [trace.branch_shares, trace.steps, trace.scalars]
    if name in ("langevin", "support", "keep", "coupled"):
        more = {key: call[key] for key in ("batch_size",) if key in call}
        out[name + " on"] = energies[energy].sample((11, 3), resume=trace, steps=5, ranks=ranks, **more)

for name in ("langevin", "coupled"):
    call = {**calls[name][1], "seed": 3, "ranks": ranks, "checkpoint": f"{folder}/{ranks} {name}", "checkpoint_every": 0}
    energies["plane"].sample((11, 3), callback=lambda step, state, info: step == 4, **call)
    if name == "coupled":
        out["checkpoint"] = energies["plane"].sample((11, 3), **call)[0]
try:
    energies["hole"].sample((11, 3), seed=3, ranks=ranks, **hole, **long)
except SamplingDiverged as error:
    out["error"] = [len(error.samples), error.diverged.any(), str(error).split(":")[-1]]
other = ce.as_energy(torch.distributions.Normal(torch.tensor([0.0, 0.0, 0.01], **double), 1.0))
for name, call in (("checkpoint", {"checkpoint": f"{folder}/{ranks} langevin", "seed": 3, **calls["langevin"][1]}), ("trace", {})):
    try:
        given = call or {"resume": energies["plane"].sample((11, 3), seed=3, ranks=ranks, **walk, steps=2)[1], "steps": 2}
        other.sample((11, 3), ranks=ranks, **given)
    except ce.errors.OptionError as error:
        out[f"other {name}"] = "another energy" in str(error)
if ranks is None or distributed.get_rank() == 0:
    torch.save(out, f"{folder}/{ranks}.pt")
if ranks is not None:
    shard, trace = energies["plane"].sample((11, 3), seed=3, ranks="shard", sampler="langevin", step_size=0.1, steps=12, trace=True)
    more = energies["plane"].sample((11, 3), resume=trace, steps=5, ranks="shard")
    torch.save((shard, more, list(trace.chains), trace.energies), f"{folder}/shard{distributed.get_rank()}.pt")
    seeds = energies["plane"].sample((2, 3), ranks="gather", sampler="langevin", step_size=0.1, steps=2, trace=True)[1].seed
    torch.save(seeds, f"{folder}/seed{distributed.get_rank()}.pt")
    distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    program = folder / "program.py"
    program.write_text(PROGRAM)
    for how in ([], ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]):
        done = subprocess.run([sys.executable, *how, program, folder], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
    return folder


def load(path):
    return torch.load(path, weights_only=True)


def compare(one, two, **tolerance):
    if isinstance(one, torch.Tensor) and one.is_floating_point():
        torch.testing.assert_close(one, two, equal_nan=True, **tolerance)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    elif isinstance(one, list):
        assert len(one) == len(two)
        for a, b in zip(one, two, strict=True):
            compare(a, b, **tolerance)
    else:
        assert one == two


@pytest.mark.full
@pytest.mark.parametrize(
    "name",
    [
        "langevin",
        "langevin on",
        "annealed",
        "mixture",
        "smc",
        "scores",
        "support",
        "support on",
        "keep",
        "keep on",
        "coupled",
        "coupled on",
        "coupled keep",
        "stopped",
        "checkpoint",
        "error",
        "other checkpoint",
        "other trace",
    ],
)
def test_two_processes_draw_what_one_does(drawn, name):
    one, two = load(drawn / "None.pt")[name], load(drawn / "gather.pt")[name]
    if name in ("mixture", "smc"):  # the mean of shares is summed in another order
        compare(one.pop(5), two.pop(5), rtol=0, atol=1e-14)
    compare(one, two, rtol=0, atol=0)
    if name.endswith("keep"):
        assert 0 < (one[4] >= 0).sum() < 11


@pytest.mark.full
def test_scalars_are_those_of_all_processes(drawn):
    one, two = (load(drawn / file)["telling"] for file in ("None.pt", "gather.pt"))
    compare(one[:-1], two[:-1], rtol=0, atol=0)
    assert 0 < (one[4] >= 0).sum() < 11 and one[-1]["level"] == two[-1]["level"]
    for name in ("height", "mean"):
        assert two[-1][name] == pytest.approx(one[-1][name], abs=1e-6)  # in float32, and summed in another order


@pytest.mark.full
def test_two_processes_refuse_another_energy(drawn):
    assert load(drawn / "gather.pt")["other checkpoint"] is True and load(drawn / "gather.pt")["other trace"] is True


@pytest.mark.full
def test_networks_differ_by_rounding(drawn):
    compare(load(drawn / "None.pt")["hmc"], load(drawn / "gather.pt")["hmc"], rtol=0, atol=1e-12)


@pytest.mark.full
def test_shards_are_the_parts_of_the_whole(drawn):
    whole, parts = load(drawn / "None.pt"), [load(drawn / f"shard{rank}.pt") for rank in range(2)]
    assert [len(part[0]) for part in parts] == [5, 6]
    assert torch.equal(torch.cat([part[0] for part in parts]), whole["langevin"][0])
    assert torch.equal(torch.cat([part[1] for part in parts]), whole["langevin on"])
    assert [part[2] for part in parts] == [[*range(5)], [*range(5, 11)]]
    assert torch.equal(torch.cat([part[3] for part in parts], 1), whole["langevin"][1])


@pytest.mark.full
def test_a_seed_that_nobody_gave_is_one_for_all(drawn):
    assert load(drawn / "seed0.pt") == load(drawn / "seed1.pt")


@pytest.mark.full
def test_the_file_of_two_processes_goes_on_in_one(drawn):
    whole = load(drawn / "None.pt")
    assert torch.equal(whole["checkpoint"], whole["coupled"][0])
    for file in ("None langevin", "gather langevin"):
        points, trace = BOWL.sample((11, 3), sampler="langevin", step_size=0.1, steps=12, seed=3, trace=3, checkpoint=drawn / file)
        assert torch.equal(points, whole["langevin"][0]) and torch.equal(trace.energies, whole["langevin"][1])


def test_without_a_process_group_it_is_reported():
    with pytest.raises(OptionError, match=r"needs a process group.*torchrun"):
        BOWL.sample((4, 3), ranks="gather")
    with pytest.raises(OptionError, match="ranks is 'gather', 'shard' or None, got 'all'"):
        BOWL.sample((4, 3), ranks="all")


def test_one_process_of_a_group_draws_all(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        alone = BOWL.sample((4, 3), sampler="langevin", step_size=0.1, steps=5, seed=0)
        assert torch.equal(alone, BOWL.sample((4, 3), sampler="langevin", step_size=0.1, steps=5, seed=0, ranks="gather"))
        hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
        with pytest.raises(SamplingDiverged, match="of 40 chains"):
            hole.sample((40, 2), sampler="langevin", step_size=0.2, steps=20, init=torch.zeros(40, 2), seed=1, ranks="gather")
    finally:
        torch.distributed.destroy_process_group()


def draw_until_alone(folder, rank, how):
    """One of two processes; the second stops or ends itself in a step, and the first then needs its draws."""

    def leave(step, state, info):
        if rank == 1 and step == 3:
            os.kill(os.getpid(), how)

    store = f"file://{folder}/store"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=5))
    with pytest.raises(ProcessLost, match="Another process of this run was lost, or did not answer in time"):
        BOWL.sample((4, 3), ranks="gather", sampler="langevin", step_size=0.1, steps=5, seed=0, callback=leave)


@pytest.mark.full
@needs_forkserver
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_process_that_loses_the_other_one_says_so_in_time(tmp_path, how):
    first, second = (start(f"process {rank}", draw_until_alone, tmp_path, rank, how) for rank in range(2))
    assert ended([first]) == [0]
    second.kill()
    assert ended([second]) == [-signal.SIGKILL]
