"""Memory that runs out and a default device without values are typed errors."""

import pytest
import torch

import composable_energy as ce
from composable_energy.errors import ComposableEnergyError, DeviceError, MemoryShortage
from composable_energy_training import Trainer
from plugins.training.tests.run_helpers import DATA, Scripted, network

ALLOCATOR = "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 3 bytes."
NORMAL = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))


def full_after(calls, error):
    left = [calls]

    def energy(x):
        left[0] -= 1
        if left[0] < 0:
            raise error
        return x.square().sum(1) / 2

    return ce.as_energy(energy), left


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError(ALLOCATOR), RuntimeError("std::bad_alloc")], ids=["python", "torch", "c++"])
@pytest.mark.parametrize(("calls", "doing"), [(0, "langevin was at step 1"), (5, "langevin was at step")])
def test_memory_that_runs_out_is_one_typed_error_and_is_not_tried_point_by_point(error, calls, doing):
    energy, left = full_after(calls, error)
    with pytest.raises(MemoryShortage, match=rf"Memory ran out while {doing}.*chains of shape \(8, 2\).*`batch_size=`") as caught:
        energy.sample((8, 2), sampler="langevin", step_size=0.1, steps=20, seed=0)
    assert isinstance(caught.value, MemoryError) and caught.value.__cause__ is error
    assert left[0] == -1


def test_memory_that_runs_out_while_a_sampler_is_tuned():
    energy, _ = full_after(3, RuntimeError(ALLOCATOR))
    with pytest.raises(MemoryShortage, match="while chees was being tuned"):
        energy.sample((8, 2), seed=0)


def test_a_default_device_without_values_is_refused():
    with torch.device("meta"):
        with pytest.raises(DeviceError, match="default device is meta"):
            NORMAL.sample(4, seed=0)
        with pytest.raises(DeviceError, match="default device is meta"):
            ce.as_energy(lambda x: x.square().sum(1)).sample((4, 2), device="cpu")
        with pytest.raises(DeviceError, match="default device is meta"):
            Trainer(network(), Scripted({}), DATA, steps=2, batch_size=8)
        with pytest.raises(ComposableEnergyError, match="meta"):
            ce.log_z(NORMAL)
    assert NORMAL.sample(4, seed=0, steps=2).device.type == "cpu"
