"""Noise is a function of its key: known answers, statistical tests, and two processes that draw what one draws, to the bit."""

import math
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import composable_energy as ce
from composable_energy import distributed
from composable_energy.errors import OptionError, ProcessLost, SamplingDiverged, ShapeError
from composable_energy.sampling.noise import Noise, key_of, philox
from tests.processes import ended, needs_forkserver, start
from tests.refusals import refused

KINDS = ["numpy", "philox"]
BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(3, dtype=torch.float64), 1.0))

PROGRAM = """
import os, sys, weakref
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
        out[name + " on"] = sample(energies[energy], (11, 3), resume=trace, steps=5)
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
    refused, energies["rows"] = [], ce.as_energy(lambda x, c: (x.sum(1) - c).square()).given(c=torch.arange(5.0))
    for text, name, options in (("couples all", "plane", {"sampler": "smc"}), ("each point", "rows", {}), ("non-finite", "hole", hole)):
        try:
            distributed.sample(energies[name], (11, 3), seed=3, **options)
        except (OptionError, SamplingDiverged, ProcessLost) as error:
            refused.append(text in str(error))
    seed = distributed.sample(energies["plane"], (2, 3), sampler="langevin", step_size=0.1, steps=2, trace=True)[1].seed
    far = energies["plane"] | ce.as_energy(torch.distributions.Normal(torch.full((3,), 50.0, dtype=torch.float64), 1.0))
    starts = torch.tensor([0.0, 50.0]).repeat(16)[:, None].expand(32, 3)
    steps = distributed.sample(far, (32, 3), sampler="mala", init=starts, trace=True)[1].steps
    torch.save((shard, refused, seed, steps), f"{folder}/shard{rank}.pt")
    torch.distributed.barrier()  # a process that is still connected ends the other one
    group = weakref.ref(torch.distributed.group.WORLD)
    torch.distributed.destroy_process_group()
    assert group() is None  # threads of a group that is kept may abort the process at its end
"""


@pytest.mark.parametrize(
    ("seed", "counter", "words"),
    [
        (0, (0, 0, 0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (2**64 - 1, (0xFFFFFFFF,) * 4, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (0x299F31D0A4093822, (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
    ],
)
@pytest.mark.parametrize("tensors", [1, 4])
def test_philox_gives_the_answers_of_random123(seed, counter, words, tensors):
    mixed = [torch.tensor([word]) if i < tensors else word for i, word in enumerate(counter)]
    assert tuple(int(word) for word in philox(key_of(seed), mixed)) == words


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    event=st.sampled_from([(), (1,), (2,), (3, 5), (64,), (3, 8, 8), (3, 40, 40), (0,)]),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    cut=st.tuples(st.integers(0, 150), st.integers(0, 150)),
    first=st.sampled_from([0, 1, 60, 2**31]),
)
def test_noise_does_not_depend_on_who_else_draws(kind, event, dtype, cut, first):
    low, high = sorted(cut)
    noise, x = Noise(7, range(first, first + 150), step=3, kind=kind), torch.zeros(150, *event, dtype=dtype)
    whole, uniform = noise.normal(x, 1), noise.uniform(x, 2)
    assert whole.dtype == dtype and whole.shape == x.shape and uniform.shape == (150,)
    some = noise.for_chains(range(first + low, first + high))
    assert torch.equal(some.normal(x[low:high], 1), whole[low:high]) and torch.equal(some.uniform(x[low:high], 2), uniform[low:high])
    ids = [high, low, 77] if low < high < 150 else [3, 149]
    other = Noise(7, range(1), step=3, kind=kind).for_chains([first + i for i in ids])
    assert torch.equal(other.normal(x[ids], 1), whole[ids]) and torch.equal(other.uniform(x[ids], 2), uniform[ids])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("chains", [range(5, 300), (7, 3, 2049)])
def test_noise_that_is_added_is_that_which_is_drawn(kind, dtype, chains):
    """Its place is used again and again, by every draw of one shape: what was drawn before must stay."""
    noise, x = Noise(7, chains, kind=kind), torch.linspace(-1, 1, 3 * len(chains), dtype=dtype).view(-1, 3)
    before = noise.normal(x, 1)
    kept = before.clone()
    for step in (0, 1, 0):
        for other in (noise, noise.for_chains(chains[:3])):
            drawn, some = other.at(step).normal(x[: len(other.chains)], 1), x[: len(other.chains)].clone()
            assert other.at(step).add_normal_(some, 0.25, 1) is some
            assert torch.equal(some, torch.add(x[: len(other.chains)], drawn, alpha=0.25))
    assert torch.equal(before, kept)
    refused(ShapeError, None, noise.add_normal_, x[:2])


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    event=st.sampled_from([(), (2,), (64,), (3, 40, 40)]),
    starts=st.lists(st.tuples(st.sampled_from([0, 3, 70, 2**32 - 9]), st.integers(1, 9)), min_size=1, max_size=6),
)
def test_steps_in_succession_draw_what_each_draws_alone(event, starts):
    """They are drawn together, more and more of them, up to the last step that there is."""
    noise, x = Noise(7, range(16)), torch.zeros(16, *event)
    for first, count in starts:
        for step in range(first, first + count):
            alone, both = Noise(7, range(16), step), noise.at(step)
            assert torch.equal(both.normal(x), alone.normal(x)) and torch.equal(both.uniform(x, 1), alone.uniform(x, 1))
            assert torch.equal(both.add_normal_(x.clone(), stream=2), alone.normal(x, 2))


def test_threads_and_inference_mode_have_places_of_their_own():
    noise, x = Noise(0, range(64)), torch.zeros(64, 64)
    expected = [noise.at(step).normal(x) for step in range(40)]
    with torch.inference_mode():
        assert torch.equal(noise.at(0).add_normal_(torch.zeros(64, 64)), expected[0])
    with ThreadPoolExecutor(8) as pool:
        drawn = list(pool.map(lambda step: noise.at(step).add_normal_(torch.zeros(64, 64)), list(range(40)) * 5))
    assert all(torch.equal(one, expected[i % 40]) for i, one in enumerate(drawn))
    assert noise.at(0).normal(x).requires_grad_().sum().backward() is None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("event", [(2,), (700,)])
def test_normal_numbers_are_normal_and_independent(kind, event):
    """Over chains, steps, streams and seeds; each bound is 5 standard errors."""
    x = torch.zeros(42_000 // math.prod(event), *event, dtype=torch.float64)
    draws = [
        noise.normal(x, stream).flatten()
        for noise, stream in (
            (Noise(0, range(len(x)), kind=kind), 0),
            (Noise(0, range(len(x)), step=1, kind=kind), 0),
            (Noise(0, range(len(x)), kind=kind), 1),
            (Noise(1, range(len(x)), kind=kind), 0),
            (Noise(0, range(len(x)), kind=kind).child("pilot"), 0),
            (Noise(0, range(len(x), 2 * len(x)), kind=kind), 0),
        )
    ]
    n = draws[0].numel()
    for draw in draws:
        assert stats.kstest(draw.numpy(), "norm").pvalue > 1e-5 and abs(draw.pow(4).mean() - 3) < 5 * math.sqrt(96 / n)
    assert (torch.corrcoef(torch.stack(draws)) - torch.eye(len(draws), dtype=torch.float64)).abs().max() < 5 / math.sqrt(n)
    rows = draws[0].view(len(x), -1)
    assert abs((rows[:-1] * rows[1:]).mean()) < 5 / math.sqrt(n)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_uniform_numbers_are_uniform_inside_the_open_interval(kind, dtype):
    x = torch.zeros(60_000, 1, dtype=dtype)
    uniform = Noise(5, range(len(x)), kind=kind).uniform(x)
    assert uniform.dtype == dtype and uniform.min() > 0 and uniform.max() < 1
    assert stats.kstest(uniform.double().numpy(), "uniform").pvalue > 1e-5


@pytest.mark.full
def test_no_two_of_many_steps_and_chains_have_the_same_noise():
    noise, x = Noise(2, range(1)), torch.zeros(1, 2, dtype=torch.float64)
    drawn = {noise.at(step).normal(x).numpy().tobytes() for step in range(70_000)}  # more than 16 bits
    assert len(drawn) == 70_000
    chains = range(0, 2048 * 1000, 2048)
    assert len(Noise(0, tuple(chains)).normal(torch.zeros(len(chains), 2, dtype=torch.float64)).unique(dim=0)) == len(chains)


def test_kinds_and_dtypes_agree_where_they_can():
    x = torch.zeros(40, 6)
    philox_noise = Noise(9, range(40), kind="philox")
    assert torch.equal(philox_noise.normal(x.double()).float(), philox_noise.normal(x))
    assert torch.equal(philox_noise.normal(x.half()), philox_noise.normal(x).half())
    own = Noise(9, range(40))
    assert torch.equal(own.normal(x.bfloat16()), own.normal(x).bfloat16())
    assert (own.normal(x.double()) % 2**-20).unique().numel() > 200  # more bits than a float32 has
    assert not torch.equal(own.normal(x), philox_noise.normal(x))


@pytest.mark.parametrize("kind", KINDS)
def test_steps_chains_and_streams_out_of_range_are_option_errors(kind):
    noise, x = Noise(0, range(2), kind=kind), torch.zeros(2, 2)
    refused(ShapeError, r"2 chains, got 3 points; use `noise.for_chains`", noise.normal, torch.zeros(3, 2))
    refused(OptionError, "'numpy' or 'philox', got 'torch'", Noise, 0, range(3), kind="torch")
    for step in (-1, 2**32, 1.5, True, "1", None):
        refused(OptionError, "step of a noise is a whole number from 0 to 2\\^32 - 1, got", noise.at, step)
    for chains in ([-1, 0], [0, 2**32], [0, 0.5], range(-1, 1), range(2**32 - 1, 2**32 + 1)):
        refused(OptionError, "id of a chain is a whole number", noise.for_chains, chains)
    for stream in (-1, 2**32, 0.5):
        for draw in (noise.normal, noise.uniform, lambda x, stream: noise.add_normal_(x, 1.0, stream)):
            refused(OptionError, "stream of a draw is a whole number", draw, x, stream)
    last = noise.at(2**32 - 1).for_chains(range(2**32 - 2, 2**32)).normal(x, stream=2**32 - 1)
    assert last.isfinite().all() and not torch.equal(last, noise.normal(x))


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
    assert [len(first), len(second)] == [5, 6] and told == other and told[0] == [True] * 3 and told[2] == 500
    assert torch.equal(torch.cat([first, second]), load(drawn / "True0.pt")["langevin"])


def test_one_process_of_a_group_draws_all_and_none_is_reported(tmp_path):
    refused(OptionError, r"no process group.*torchrun", distributed.sample, BOWL, (4, 3))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        call = {"sampler": "langevin", "step_size": 0.2, "steps": 20, "seed": 1}
        for energy, shape in ((BOWL, (4, 3)), (BOWL, torch.tensor(4)), (ce.as_energy(lambda x: x.square()), (4,))):
            assert torch.equal(energy.sample(shape, **call), distributed.sample(energy, shape, **call))
        hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.2, torch.nan, x.square().sum(1) / 2))
        refused(SamplingDiverged, "of 40 chains", distributed.sample, hole, (40, 2), init=torch.zeros(40, 2), **call)
    finally:
        torch.distributed.destroy_process_group()


def draw_until_alone(folder, rank, how):
    """One of two processes; the second stops or ends itself in a step, and the first then needs its draws."""

    def leave(step, state, info):
        if rank == 1 and step == 3:
            os.kill(os.getpid(), how)

    store, wait = f"file://{folder}/store", timedelta(seconds=5)
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=wait)
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
