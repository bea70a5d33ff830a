"""What a call costs: one read from the device a step, and no object of Python for each chain."""

import tracemalloc
from collections import Counter
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import composable_energy as ce
from tests.factories import quadratic

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

QUADRATIC = ce.as_energy(quadratic, event_shape=(2,))
READS = {"aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"}
"""Operations whose result Python gets, so that it waits for the device."""


class Reads(TorchDispatchMode):
    """Counts reads."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func._schema.name] += 1
        return func(*args, **(kwargs or {}))


def count(steps: int, **call) -> Counter[str]:
    """Returns how often each operation ran in a call."""
    with Reads() as counted:
        QUADRATIC.sample(32, init=torch.ones(32, 2), steps=steps, seed=0, **call)
    return counted.counts


@pytest.mark.parametrize(
    ("sampler", "trace", "options"),
    [
        ("langevin", False, {"step_size": 0.1}),
        ("underdamped", True, {"step_size": 0.1}),
        ("hmc", True, {"step_size": 0.1, "leapfrogs": 2}),
        ("tempering", True, {"levels": 3, "leapfrogs": 2, "mean": 0.0, "scale": 2.0}),
    ],
)
def test_a_step_reads_from_the_device_once(sampler, trace, options):
    """The check of finite numbers is a `dot`; numbers that a sampler reports are read when the call ends."""
    tuned = QUADRATIC.sample(32, sampler=sampler, steps=1, seed=0, trace=True, **options)[1].sampler
    short, long = (count(steps, sampler=tuned, trace=trace) for steps in (30, 40))
    more = long - short
    assert more["aten::dot"] == 10 and sum(more[name] for name in READS) <= 10


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
