"""Many chains cost tensors, not Python's objects: a call makes none for each of its chains, nor does a step after chains stopped."""

import pickle
import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.noise import Noise

FEW, MANY = 4_000, 44_000
MOST = 400_000  # bytes, where as many numbers in a list would take 1.4 million
LANGEVIN = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0, "warn": False}
BOWL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))


def peak(work: Callable[[], object]) -> int:
    """Returns the most memory that Python's objects take meanwhile, in bytes; memory of tensors does not count."""
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("options", [{}, {"batch_size": 3_000}, {"trace": True}], ids=str)
def test_a_call_makes_no_object_for_each_chain(options):
    def draw(n: int) -> None:
        BOWL.sample(n, **LANGEVIN, **options)

    draw(FEW)
    few, many = (peak(lambda n=n: draw(n)) for n in (FEW, MANY))
    assert many - few < MOST


def test_a_resumed_call_makes_no_object_for_each_chain():
    def resume(n: int) -> int:
        _, trace = BOWL.sample(n, trace=True, **LANGEVIN)
        return peak(lambda: BOWL.sample(n, resume=trace, steps=2, warn=False, batch_size=n // 3))

    resume(FEW)
    assert resume(MANY) - resume(FEW) < MOST


@pytest.mark.parametrize("noise", ["blocks", "philox"])
@pytest.mark.parametrize("policy", ["drop", "keep"])
def test_a_step_makes_no_object_for_each_chain_after_one_stopped(policy, noise):
    taken: list[int] = []

    def bowl(x: Tensor) -> Tensor:
        now, most = tracemalloc.get_traced_memory()
        taken.append(most - now)
        tracemalloc.reset_peak()
        return torch.where(x[:, 0] > 100, torch.nan, x.square().sum(1) / 2)

    init = torch.zeros(MANY, 2)
    init[MANY // 2, 0] = 101
    call = {**LANGEVIN, "steps": 8, "init": init, "on_divergence": policy, "noise": noise, "trace": True}
    peak(lambda: ce.as_energy(bowl).sample(MANY, **call))
    assert max(taken[-5:]) < MOST


@pytest.mark.parametrize("event", [(), (3,), (5_000,)], ids=str)
@pytest.mark.parametrize(
    "ids", [[0, 1, 2, 4_000, 4_001], [7, 3, 5, 6, 4], [2_047, 2_048, 2_048, 0], [*range(1, 300), *range(301, 2_500)]], ids=len
)
def test_scattered_chains_draw_what_they_draw_among_all(ids, event):
    if event == (5_000,):
        ids = [i % 11 for i in ids[:5]]
    everyone = Noise(3, range(max(ids) + 1))
    some = everyone.for_chains(ids)
    for step in (0, 1):
        whole = everyone.at(step).normal(torch.zeros(max(ids) + 1, *event))
        assert torch.equal(some.at(step).normal(torch.zeros(len(ids), *event)), whole[ids])


def test_ids_of_a_trace_survive_pickling_and_are_short_where_chains_are_all_there():
    hole = ce.as_energy(lambda x: torch.where(x[:, 0] > 1.0, torch.nan, x.square().sum(1) / 2))
    call = {**LANGEVIN, "steps": 10, "init": torch.zeros(200, 2), "trace": True, "on_divergence": "drop"}
    _, whole = BOWL.sample(50_000, trace=True, **LANGEVIN)
    _, holes = hole.sample(200, **call)
    (ids, _, _), *_ = holes.states
    assert 0 < len(ids) < 200
    assert not holes.diverged[list(ids)].any()
    for (before, _, state), (after, _, copy) in zip(holes.states, pickle.loads(pickle.dumps(holes)).states, strict=True):
        assert before == after
        assert torch.equal(state.x, copy.x)
    assert len(pickle.dumps([ids for ids, _, _ in whole.states])) < 1_000
