"""Steps in succession as one compiled function: the draws of single steps, wherever a block begins and whoever looks on."""

import dataclasses
from typing import ClassVar

import pytest
import torch
from torch import nn

import composable_energy as ce
from composable_energy.sampling import Info, Sampler, State, compiled, energy_and_gradient, iterate
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin
from composable_energy_mcmc.metric import Metric
from tests.factories import needs_compiler

pytestmark = [pytest.mark.full, needs_compiler]

PAIR = ce.as_energy(torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)), name="zero") | ce.as_energy(
    torch.distributions.MultivariateNormal(torch.ones(3), torch.eye(3) / 2), name="one"
)
CALL = {"steps": 21, "seed": 3, "init": torch.zeros(20, 3), "warn": False, "noise": "philox"}


@dataclasses.dataclass(frozen=True, eq=False)
class Counted(Sampler):
    """Langevin steps that count how often they are called, and may look at a number."""

    looks: bool = False
    scale: float = 0.3
    calls: ClassVar[list[int]] = []

    def init(self, energy, x, noise):
        return State(x, *energy.with_gradient(x))

    def step(self, energy, state, noise):
        self.calls.append(1)
        x = noise.add_normal_(state.x - 0.05 * state.grad, self.scale)
        if self.looks and x.max().item() > 1e6:
            raise ValueError
        return State(x, *energy.with_gradient(x)), Info(scalars={"height": x.sum(1), "length": 0.3})


@pytest.fixture(scope="module")
def pair():
    """One energy for all tests, which keeps what is compiled."""
    return compiled(PAIR)


TUNED = {
    "identity": ChEES(0.2, 2.2),
    "diagonal": ChEES(0.2, 2.2, Metric(torch.tensor([0.5, 1.0, 2.0]))),
    "dense": ChEES(0.2, 2.2, Metric(torch.tensor([[1.0, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.3, 1.0]]), torch.Size([3]))),
}


@pytest.fixture
def no_single_steps(caplog):
    """Fails if the steps of a compiled energy could not be compiled, which only the log says."""
    with caplog.at_level("DEBUG", "composable_energy.sampling"):
        yield
    told = [record.getMessage() for record in caplog.get_records("call")]
    assert not [line for line in told if "one by one" in line or "without compilation" in line]


@pytest.mark.usefixtures("no_single_steps")
@pytest.mark.parametrize("sampler", [Langevin(0.1), MALA(0.3), HMC(0.3, 2, jitter=False), HMC(0.3, 12), *TUNED.values()])
def test_points_and_infos_are_those_of_single_steps(pair, sampler):
    plain, wanted = PAIR.sample((20, 3), sampler=sampler, trace=1, **CALL)
    found, trace = pair.sample((20, 3), sampler=sampler, trace=1, **CALL)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(trace.points, wanted.points)
    torch.testing.assert_close(trace.acceptance, wanted.acceptance)


@pytest.mark.usefixtures("no_single_steps")
@pytest.mark.parametrize("sampler", [MALA(0.3), HMC(0.2, 5), ChEES(0.2, 1.1), TUNED["dense"]])
def test_steps_of_a_network_are_compiled(sampler):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1), nn.Flatten(0)).requires_grad_(False).eval()
    energy = ce.as_energy(lambda x: net(x) + x.square().sum(1) / 2, event_shape=(3,))
    call = {"sampler": sampler, **CALL}
    torch.testing.assert_close(compiled(energy).sample((20, 3), **call), energy.sample((20, 3), **call))


@pytest.mark.usefixtures("no_single_steps")
@pytest.mark.parametrize("sampler", [HMC(0.2, 5), ChEES(0.2, 1.1)])
def test_supports_and_other_shapes_have_loops_too(sampler):
    energy = ce.as_energy(torch.distributions.LogNormal(torch.zeros(3), torch.ones(3)))
    fast = compiled(energy)
    for chains in (16, 5):  # compiled for each
        call = {
            "sampler": sampler,
            "steps": 9,
            "seed": 1,
            "warn": False,
            "trace": 1,
            "init": torch.full((chains, 3), 1.5),
            "noise": "philox",
        }
        (_, wanted), (_, trace) = energy.sample((chains, 3), **call), fast.sample((chains, 3), **call)
        torch.testing.assert_close(trace.points, wanted.points)
        assert trace.scalars["leapfrogs"] == wanted.scalars["leapfrogs"]


@pytest.mark.parametrize("sampler", [MALA(0.3), HMC(0.3, 12)])
def test_the_points_do_not_depend_on_where_a_block_begins_and_who_looks_on(pair, sampler, tmp_path):
    call, seen = {"sampler": sampler, **CALL}, []
    wanted, trace = pair.sample((20, 3), trace=1, **call)

    def look(step, state, info):
        seen.append(state.x)
        info.scalars.clear()

    assert torch.equal(pair.sample((20, 3), callback=look, **call), wanted)
    assert torch.equal(torch.stack(seen), trace.points)
    part = pair.sample((20, 3), checkpoint=tmp_path / "c", **{**call, "steps": 5})
    assert torch.equal(part, trace.points[4])
    assert torch.equal(pair.sample((20, 3), checkpoint=tmp_path / "c", **call), wanted)


def test_a_callback_stops_at_its_step(pair):
    _, trace = pair.sample((20, 3), sampler=Langevin(0.1), callback=lambda step, state, info: step == 6, trace=True, **CALL)
    assert trace.steps == 6


def test_steps_are_compiled_and_not_taken_one_by_one():
    Counted.calls.clear()
    energy, wanted = compiled(PAIR), PAIR.sample((20, 3), sampler=Counted(), trace=True, **CALL)
    assert len(Counted.calls) == 21
    for most in (9, 0):  # one step for the checks and eight that are recorded, then none
        Counted.calls.clear()
        found, trace = energy.sample((20, 3), sampler=Counted(), trace=True, **CALL)
        torch.testing.assert_close(found, wanted[0])
        assert trace.scalars["height"] == pytest.approx(wanted[1].scalars["height"], rel=1e-5)
        assert trace.scalars["length"] == wanted[1].scalars["length"]
        assert len(Counted.calls) == most


@dataclasses.dataclass(frozen=True, eq=False)
class Repeated(Counted):
    """As many short steps as the number of the step says, up to three."""

    def step(self, energy, state, noise):
        self.calls.append(1)
        count = noise.of_step(lambda step: 1 + step % 3)
        x, energies = iterate(move, energy, (noise.add_normal_(state.x.clone(), self.scale), state.energy), (torch.tensor(0.1),), count)
        return State(x, energies, state.grad), Info(scalars={"count": count})


def test_steps_of_different_lengths_are_one_function():
    Counted.calls.clear()
    energy, wanted = compiled(PAIR), PAIR.sample((20, 3), sampler=Repeated(), trace=True, **CALL)
    for most in (4, 0):  # one step for the checks and three that are recorded, then none
        Counted.calls.clear()
        found, trace = energy.sample((20, 3), sampler=Repeated(), trace=True, **CALL)
        torch.testing.assert_close(found, wanted[0])
        assert trace.scalars["count"] == wanted[1].scalars["count"] == [1 + step % 3 for step in range(1, 22)]
        assert len(Counted.calls) == most


def test_a_sampler_that_looks_at_numbers_takes_single_steps():
    wanted = PAIR.sample((20, 3), sampler=Counted(looks=True), **CALL)
    torch.testing.assert_close(compiled(PAIR).sample((20, 3), sampler=Counted(looks=True), **CALL), wanted)


@pytest.mark.parametrize("sampler", [Counted(), HMC(0.3, 12)])
def test_steps_of_many_points_are_compiled_alone(sampler):
    Counted.calls.clear()
    call = {**CALL, "init": torch.zeros(4000, 3)}
    wanted, energy = PAIR.sample((4000, 3), sampler=sampler, **call), compiled(PAIR)
    for _ in range(2):
        torch.testing.assert_close(energy.sample((4000, 3), sampler=sampler, **call), wanted, rtol=1e-4, atol=1e-4)  # 12,000 numbers
    if isinstance(sampler, Counted):
        assert len(Counted.calls) == 21 + 2  # one for the checks and one that is recorded


def test_compiled_steps_draw_the_noise_of_other_devices_and_other_steps_that_of_the_cpu(pair):
    call = {**CALL, "noise": None, "trace": True}
    for sampler, energy, kind in (("langevin", pair, "philox"), ("langevin", PAIR, "blocks"), ("smc", pair, "blocks")):
        assert energy.sample((20, 3), sampler=sampler, **{**call, "steps": None, "init": None})[1].noise == kind
    _, trace = pair.sample((20, 3), sampler=Langevin(0.1), **call)
    resumed = PAIR.sample((20, 3), resume=trace, steps=4, warn=False)
    torch.testing.assert_close(resumed, PAIR.sample((20, 3), sampler=Langevin(0.1), **{**CALL, "steps": 25}))


class Cliff(ce.Energy):
    """A plane that ends: its energy is not a number beyond 2."""

    def __init__(self, edge=2.0):
        super().__init__()
        self.edge = edge

    def forward(self, x):
        return torch.where(x[:, 0] > self.edge, torch.nan, -x.sum(1))


def test_chains_that_diverge_end_at_the_same_step_and_the_others_go_on():
    call = {**CALL, "sampler": Langevin(0.05), "steps": 60, "on_divergence": "keep", "trace": True}
    wanted, trace = Cliff().sample((20, 3), **call)
    found, fused = compiled(Cliff()).sample((20, 3), **call)
    assert 0 < trace.diverged.sum() < 20
    torch.testing.assert_close(found, wanted)
    assert torch.equal(trace.diverged_at, fused.diverged_at)


def move(energy, x, energies, length):
    energies, grad = energy_and_gradient(energy, x)
    move.calls += 1
    return torch.addcmul(x, grad, length, value=-1), energies


move.calls = 0


@pytest.mark.parametrize("count", [0, 1, 7, 23])
def test_applications_are_compiled_once_and_counted(count):
    energy, x, move.calls = compiled(PAIR), torch.randn(20, 3, generator=torch.Generator().manual_seed(1)), 0
    tensors, constants = (x, x.sum(1)), (torch.tensor(0.1),)
    wanted = iterate(move, PAIR, tensors, constants, count)
    assert move.calls == count
    for most in (22, 0):  # 8, 2 and 1 are recorded and checked, then none is called
        move.calls = 0
        found = iterate(move, energy, tensors, constants, count)
        assert len(found) == 2 and move.calls <= most
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
    assert torch.equal(found[0], iterate(move, energy, tensors, (torch.tensor(0.1),), count)[0])


def test_many_points_and_what_looks_at_numbers_are_applied_without_compilation():
    def look(energy, x, length):
        return (x * length if x.max().item() > 0 else x,)

    def shrink(energy, x, length):
        shrink.calls += 1
        return (x * length,)

    small, large, shrink.calls = torch.ones(20, 3), torch.ones(4000, 3), 0
    for function, x in ((look, small), (shrink, large)):
        (found,) = iterate(function, compiled(PAIR), (x,), (torch.tensor(0.5),), 3)
        assert torch.equal(found, x / 8)
    assert shrink.calls == 3
