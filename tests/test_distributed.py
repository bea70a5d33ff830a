"""Two processes draw what one draws, to the bit."""

import os
import signal
import subprocess
import sys
from datetime import timedelta

import pytest
import torch

import composable_energy as ce
from composable_energy import distributed
from composable_energy.errors import OptionError, ProcessLost, SamplingDiverged
from tests.processes import ended, needs_forkserver, start

BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0))

PROGRAM = """
import os, sys
import torch
import composable_energy as ce
from composable_energy import distributed
from composable_energy.errors import OptionError, ProcessLost, SamplingDiverged

torch.set_num_threads(1)
folder, alone = sys.argv[1], "RANK" not in os.environ
if not alone:
    torch.distributed.init_process_group("gloo")
rank = 0 if alone else torch.distributed.get_rank()

def sample(energy, shape, **call):
    return energy.sample(shape, **call) if alone else distributed.sample(energy, shape, **call)

torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(3, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1)).double().eval()
energies = {
    "plane": ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0)),
    "network": ce.as_energy(lambda x: net(x).squeeze(1) + x.square().sum(1) / 2),
    "hole": ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2)),
}
energies["shares"] = ce.as_energy(torch.distributions.Dirichlet(torch.tensor([2.0, 3.0, 1.0], dtype=torch.float64)))
energies["mixture"] = energies["plane"] | ce.as_energy(torch.distributions.Normal(torch.ones(3, dtype=torch.float64), 0.5))
hole = {"steps": 12, "init": torch.zeros(11, 3), "sampler": "langevin", "step_size": 0.2}
calls = {
    "langevin": ("plane", {"sampler": "langevin", "step_size": 0.1, "steps": 12}),
    "hmc": ("network", {"sampler": "hmc", "steps": 6, "batch_size": 4, "dtype": torch.float64}),
    "annealed": ("plane", {"sampler": "annealed", "levels": 8}),
    "mixture": ("mixture", {"sampler": "mala", "steps": 20}),
    "support": ("shares", {"sampler": "hmc", "step_size": 0.3, "leapfrogs": 3, "steps": 6, "batch_size": 4}),
    "keep": ("hole", {**hole, "on_divergence": "keep"}),
}
out = {}
for name, (energy, call) in calls.items():
    out[name], trace = sample(energies[energy], (11, 3), seed=3, trace=True, **call)
    if name in ("langevin", "support", "keep"):
        shape = (11, 3)
        out[name + " on"] = sample(energies[energy], shape, resume=trace, steps=5)
named = energies["plane"].over("x") & ce.as_energy(lambda x, y: (y - x[:, 0]).square(), variables={"x": (3,), "y": ()})
start = {"x": torch.zeros(11, 3, dtype=torch.float64), "y": torch.arange(11.0, dtype=torch.float64)}
drawn = sample(named, 11, seed=3, init=start, sampler="langevin", step_size=0.1, steps=5)
out |= {f"named {name}": values for name, values in drawn.items()}
file = {"observers": [ce.sampling.Checkpoint(f"{folder}/{alone}")], "seed": 3, "sampler": "langevin", "step_size": 0.1}
sample(energies["plane"], (11, 3), steps=4, **file)
out["checkpoint"] = sample(energies["plane"], (11, 3), steps=12, **file)
torch.save(out, f"{folder}/{alone}{rank}.pt")
if not alone:
    shard = distributed.sample(energies["plane"], (11, 3), gather=False, seed=3, sampler="langevin", step_size=0.1, steps=12)
    refused = []
    try:
        distributed.sample(energies["plane"], (11, 3), seed=3, sampler="smc")
    except OptionError as error:
        refused.append("couples all chains" in str(error))
    try:
        distributed.sample(energies["hole"], (11, 3), seed=3, **hole)
    except (SamplingDiverged, ProcessLost) as error:
        refused.append("reached a non-finite point" in str(error))
    seed = distributed.sample(energies["plane"], (2, 3), sampler="langevin", step_size=0.1, steps=2, trace=True)[1].seed
    far = energies["plane"] | ce.as_energy(torch.distributions.Normal(torch.full((3,), 50.0, dtype=torch.float64), 1.0))
    starts = torch.tensor([0.0, 50.0]).repeat(16)[:, None].expand(32, 3)
    steps = distributed.sample(far, (32, 3), sampler="mala", init=starts, trace=True)[1].steps
    torch.save((shard, refused, seed, steps), f"{folder}/shard{rank}.pt")
    torch.distributed.barrier()  # a process that is still connected ends the other one
    torch.distributed.destroy_process_group()
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


@pytest.mark.full
def test_two_processes_draw_what_one_does_and_networks_differ_by_rounding(drawn):
    one, *two = (load(drawn / file) for file in ("True0.pt", "False0.pt", "False1.pt"))
    for name, points in one.items():
        for other in two:
            torch.testing.assert_close(other[name], points, rtol=0, atol=1e-12 if name == "hmc" else 0, msg=name)


@pytest.mark.full
def test_shards_are_the_parts_of_the_whole_and_errors_and_seeds_those_of_all(drawn):
    (first, *told), (second, *other) = (load(drawn / f"shard{rank}.pt") for rank in range(2))
    assert [len(first), len(second)] == [5, 6] and told == other and told[0] == [True, True] and told[2] == 500
    assert torch.equal(torch.cat([first, second]), load(drawn / "True0.pt")["langevin"])


def test_without_a_process_group_it_is_reported():
    with pytest.raises(OptionError, match=r"no process group.*torchrun"):
        distributed.sample(BOWL, (4, 3))


def test_one_process_of_a_group_draws_all(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        alone = BOWL.sample((4, 3), sampler="langevin", step_size=0.1, steps=5, seed=0)
        assert torch.equal(alone, distributed.sample(BOWL, (4, 3), sampler="langevin", step_size=0.1, steps=5, seed=0))
        hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
        with pytest.raises(SamplingDiverged, match="of 40 chains"):
            distributed.sample(hole, (40, 2), sampler="langevin", step_size=0.2, steps=20, init=torch.zeros(40, 2), seed=1)
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
        distributed.sample(BOWL, (4, 3), sampler="langevin", step_size=0.1, steps=5, seed=0, observers=[ce.sampling.Stop(leave)])


@pytest.mark.full
@needs_forkserver
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_process_that_loses_the_other_one_says_so_in_time(tmp_path, how):
    first, second = (start(f"process {rank}", draw_until_alone, tmp_path, rank, how) for rank in range(2))
    assert ended([first]) == [0]
    second.kill()
    assert ended([second]) == [-signal.SIGKILL]
