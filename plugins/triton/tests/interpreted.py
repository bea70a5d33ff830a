"""The Triton kernel under Triton's interpreter, which runs it on the CPU; started by `test_triton.py` with `TRITON_INTERPRET=1`."""

import os

import pytest
import torch

import composable_energy as ce
from composable_energy.sampling import Noise, StepCoefficients, reference_step
from composable_energy.testing import Gaussian, parametrize_with_checks
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin, Underdamped
from composable_energy_triton import TritonKernel
from composable_energy_triton.testing import kernel_checks

SEEDS = [-1, 2**31 + 5, 2**63, 2**64 - 1]
ODD = [
    *((rows, size) for rows in (1, 3, 10, 33) for size in (1, 2, 5, 7, 31, 129, 257)),
    *((rows,) for rows in (1, 2, 17, 255, 257, 513)),
    *((rows, 3, side, side) for rows in (1, 2, 5) for side in (1, 3, 5, 9)),
    (1, 4097),
    (2, 1023),
    (1025, 1),
    (301, 3),
]


@parametrize_with_checks(kernel_checks(TritonKernel()))
def test_the_kernel_conforms(check):
    check()


@pytest.mark.parametrize("index", range(len(ODD)))
def test_odd_shapes(index):
    """Normal numbers within 1e-6; a step of every dtype within its rounding (Triton's interpreter cuts bfloat16 off)."""
    shape, taken = ODD[index], TritonKernel()
    first, stream = 2**32 - 2000 + index, index % 5
    noise = Noise(SEEDS[index % 4], range(first, first + shape[0]), index * 2**26, "philox")
    x = torch.zeros(shape)
    out = torch.empty_like(x)
    taken.langevin_step(x, None, None, StepCoefficients(0.0, 1.0, 0.0), noise, stream, out, None)
    assert (out - noise.normal(x, stream)).abs().max() <= 1e-6
    dtype = (torch.float32, torch.bfloat16, torch.float16)[index % 3]
    x, p, g = (noise.at(step).normal(x, 1).to(dtype) for step in range(3))
    numbers = StepCoefficients(0.3, 0.7, 0.9, 0.2, -1.0 if index % 2 else None, 1.5)
    out, out_momentum = torch.empty_like(x), torch.empty_like(x)
    taken.langevin_step(x, g, p, numbers, noise, stream, out, out_momentum)
    for got, wanted in zip((out, out_momentum), reference_step(x, g, p, numbers, noise, stream), strict=True):
        assert wanted is not None
        ulp = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert ((got - wanted).abs() <= 2e-6 * wanted.abs().clamp_min(1) + ulp * wanted.abs()).all()


@pytest.mark.parametrize("sampler", [Langevin(0.1), MALA(0.1), Underdamped(0.1), HMC(0.2), ChEES(0.2, 0.5)], ids=repr)
def test_samplers_draw_the_same_by_the_kernel(sampler, force, monkeypatch):
    launches = []
    original = TritonKernel.langevin_step
    monkeypatch.setattr(TritonKernel, "langevin_step", lambda *given: launches.append(1) or original(*given))
    draws, target, noise = [], Gaussian(torch.zeros(3)), Noise(1, range(9), kind="philox")
    for implementation in ("torch", "triton"):
        force(implementation)
        with torch.no_grad():
            state = sampler.init(target, torch.zeros(9, 3), noise)
            for step in range(1, 7):
                state, _ = sampler.step(target, state, noise.at(step))
        draws.append(state.x)
    assert len(launches) == 6 + isinstance(sampler, Underdamped)  # which also draws its first momentum
    torch.testing.assert_close(*draws, rtol=0, atol=1e-4)


def test_under_the_interpreter_it_takes_the_cpu_only():
    assert os.environ["TRITON_INTERPRET"] == "1" and TritonKernel().available() == (True, "")
    assert "it takes float32, bfloat16 and float16, not float64" in TritonKernel().refusal(torch.zeros(1, dtype=torch.float64))
    assert "on the CPU under the interpreter, not on meta" in TritonKernel().refusal(torch.zeros(1, device="meta"))
    assert ce.get("kernel", "triton").available() == (True, "") and TritonKernel().refusal(torch.zeros(1)) == ""
