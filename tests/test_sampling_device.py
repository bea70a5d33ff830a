"""Reads from the device: on a GPU each one waits until all steps before it are done."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import composable_energy as ce

pytestmark = pytest.mark.filterwarnings("ignore::composable_energy.SamplingWarning")

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


def count(sampler: str, steps: int, **options) -> Counter[str]:
    """Returns how often each operation ran in a call."""
    energy = ce.as_energy(lambda x: x.square().sum(1) / 2, event_shape=(2,))
    with Reads() as counted:
        energy.sample(32, sampler=sampler, init=torch.ones(32, 2), steps=steps, seed=0, **options)
    return counted.counts


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("langevin", {"step_size": 0.1}),
        ("underdamped", {"step_size": 0.1, "trace": True}),
        ("hmc", {"step_size": 0.1, "leapfrogs": 2, "trace": True}),
        ("tempering", {"levels": 3, "leapfrogs": 2, "trace": True}),
    ],
)
def test_a_step_reads_from_the_device_once(sampler, options):
    """The check of finite numbers is a `dot`; numbers that a sampler reports are read when the call ends."""
    short, long = (count(sampler, steps, **options) for steps in (30, 60))
    more = long - short
    assert more["aten::dot"] == 30 and sum(more[name] for name in READS) <= 30
