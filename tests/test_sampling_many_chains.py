"""Many chains cost tensors, not Python's objects: a call makes none for each of its chains, nor does a step after chains stopped."""

import tracemalloc
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

import composable_energy as ce

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

FEW, MANY = 4_000, 44_000
MOST = 800_000  # bytes: NumPy's words of two runs of chains take 700,000, as many numbers in a list 1.4 million
LANGEVIN = {"sampler": "langevin", "step_size": 0.1, "steps": 3, "seed": 0}
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
        return peak(lambda: BOWL.sample(n, resume=trace, steps=2, batch_size=n // 3))

    resume(FEW)
    assert resume(MANY) - resume(FEW) < MOST


def test_a_step_makes_no_object_for_each_chain_after_one_stopped():
    taken: list[int] = []

    def bowl(x: Tensor) -> Tensor:
        now, most = tracemalloc.get_traced_memory()
        taken.append(most - now)
        tracemalloc.reset_peak()
        return torch.where(x[:, 0] > 100, torch.nan, x.square().sum(1) / 2)

    init = torch.zeros(MANY, 2)
    init[MANY // 2, 0] = 101
    call = {**LANGEVIN, "steps": 8, "init": init, "on_divergence": "keep", "trace": True}
    peak(lambda: ce.as_energy(bowl).sample(MANY, **call))
    assert max(taken[-5:]) < MOST
