"""The Triton kernel under Triton's interpreter, which runs it on the CPU; started by `test_triton.py` with `TRITON_INTERPRET=1`."""

import os

import pytest
import torch
import triton
import triton.language as tl

import composable_energy as ce
from composable_energy.sampling import Noise, StepCoefficients, langevin_step, reference_step
from composable_energy.sampling.noise import key_of, philox
from composable_energy.testing import Gaussian, parametrize_with_checks
from composable_energy_mcmc import HMC, MALA, ChEES, Langevin, Underdamped
from composable_energy_triton import TritonKernel, kernel
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


@triton.jit
def words(out_ptr, seed, c1, c2, c3, COUNT: tl.constexpr):
    place = tl.arange(0, COUNT)
    zero = tl.zeros((COUNT,), tl.uint32)
    a, b, c, d = tl.philox(seed, place.to(tl.uint32), zero + c1.to(tl.uint32), zero + c2.to(tl.uint32), zero + c3.to(tl.uint32))
    tl.store(out_ptr + place, a.to(tl.int64))
    tl.store(out_ptr + COUNT + place, b.to(tl.int64))
    tl.store(out_ptr + 2 * COUNT + place, c.to(tl.int64))
    tl.store(out_ptr + 3 * COUNT + place, d.to(tl.int64))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("counter", [(0, 0, 0), (1, 2**31 + 7, 3), (2**32 - 1, 2**32 - 1, 2**32 - 1)])
def test_words_are_those_of_the_reference(seed, counter):
    out = torch.empty(4, 256, dtype=torch.int64)
    words[(1,)](out, seed % 2**64, *counter, COUNT=256)
    assert torch.equal(out, torch.stack(philox(key_of(seed), (torch.arange(256), *counter))))


def test_there_are_fifty_odd_shapes():
    assert len(set(ODD)) == 50


@pytest.mark.parametrize("index", range(50))
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
    expected = reference_step(x, g, p, numbers, noise, stream)
    for got, wanted in zip((out, out_momentum), expected, strict=True):
        assert wanted is not None
        ulp = 0.0 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert ((got - wanted).abs() <= 2e-6 * wanted.abs().clamp_min(1) + ulp * wanted.abs()).all()


@pytest.mark.parametrize("tile", [4, 16, 4096])
def test_tiles_change_nothing(tile, monkeypatch):
    results = []
    for size in (kernel._TILE, tile):
        monkeypatch.setattr(kernel, "_TILE", size)
        x = torch.linspace(-1, 1, 5 * 37).view(5, 37)
        out = torch.empty_like(x)
        noise = Noise(1, range(3, 8), 2, "philox")
        TritonKernel().langevin_step(x, x, None, StepCoefficients(0.3, 0.7, low=-1.0, high=1.0), noise, 4, out, None)
        results.append(out)
    assert torch.equal(*results)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_environment_brings_the_step_to_the_kernel(seed, force):
    x, g = torch.randn(6, 5), torch.randn(5, 6).T
    options = {"noise": Noise(seed, range(2, 8), 3, "philox"), "drift": 0.1, "scale": 0.5}
    expected = langevin_step(x, g, **options)
    force("triton")
    torch.testing.assert_close(langevin_step(x, g, **options), expected, rtol=0, atol=1e-6)


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
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert TritonKernel().available() == (True, "")
    assert "it takes float32, bfloat16 and float16, not float64" in TritonKernel().refusal(torch.zeros(1, dtype=torch.float64))
    assert "on the CPU under the interpreter, not on meta" in TritonKernel().refusal(torch.zeros(1, device="meta"))
    assert ce.get("kernel", "triton").available() == (True, "")
    assert TritonKernel().refusal(torch.zeros(1)) == ""
