"""A kernel that records its calls."""

import pytest
import torch

import composable_energy as ce
from composable_energy.sampling import Kernel, reference_step
from composable_energy.sampling.kernels import forced_kernel

SWITCH = "COMPOSABLE_ENERGY_KERNEL"
F64 = torch.float64


class Recorded(Kernel):
    """The reference as a kernel, which says how often it ran."""

    def __init__(self) -> None:
        self.calls = []

    def available(self):
        return True, ""

    def refusal(self, x):
        return "it takes no float64" if x.dtype == F64 else ""

    def langevin_step(self, x, gradient, momentum, numbers, noise, stream, out, out_momentum):
        tensors = [t for t in (x, gradient, momentum, out, out_momentum) if t is not None]
        assert all(t.is_contiguous() and t.shape == x.shape and t.dtype == x.dtype for t in tensors)
        self.calls.append(noise)
        new = reference_step(x, gradient, momentum, numbers, noise, stream)
        for place, value in zip((out, out_momentum), new, strict=True):
            if place is not None:
                place.copy_(value)


@pytest.fixture
def force(monkeypatch):
    """A function that forces a kernel, as the environment does."""

    def name(kernel):
        monkeypatch.setenv(SWITCH, kernel)
        forced_kernel.cache_clear()

    yield name
    monkeypatch.undo()
    forced_kernel.cache_clear()


@pytest.fixture
def recorded(force):
    """The kernel that the environment names."""
    kernel = Recorded()
    force("recorded")
    with ce.register("kernel", "recorded", lambda: kernel):
        yield kernel


def points(*shape, count=1, dtype=F64):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=F64).to(dtype) for _ in range(count)]
