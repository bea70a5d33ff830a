"""Measurements of the fused step on a GPU, for `benchmarks.gpu`."""

from __future__ import annotations

import importlib.util
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.energies import Convolutions, Mixture, Perceptron
from composable_energy.sampling import StepCoefficients, energy_and_gradient, langevin_step
from composable_energy.sampling.kernels import forced_kernel
from composable_energy.sampling.noise import Noise
from composable_energy_triton.testing import kernel_checks

SWITCH = "COMPOSABLE_ENERGY_KERNEL"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EVENT = 1024
STEP_SIZE = 0.01


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements.

    Args:
        device: The device.
        exponents: The sizes of a step are these powers of two.
        slow: The largest exponent for the reference with Philox noise.
        big: The shape of points for the check of large offsets.
        rounds: Number of rounds.
        seconds: How long one round of one function takes, approximately.
        steps: Steps of a loop.
        mixture: The chains of the loops on the plane.
        images: The chains of the loops on images.
        terms: The chains of the composition.
    """

    device: str
    exponents: tuple[int, ...]
    slow: int
    big: tuple[int, int]
    rounds: int
    seconds: float
    steps: int
    mixture: tuple[int, ...]
    images: tuple[int, ...]
    terms: tuple[int, ...]


FULL = Plan("cuda", tuple(range(16, 29, 2)), 24, (131_073, 16_385), 7, 0.03, 200, (4096, 2**20), (16, 256), (64, 4096))
TINY = Plan("cpu", (10,), 10, (3, 1025), 1, 0.0, 2, (16,), (2,), (4,))


def timed(work: Callable[[], object], repeats: int, plan: Plan) -> float:
    """Returns the seconds of one repetition."""
    if plan.device == "cpu":
        begin = time.perf_counter()
        for _ in range(repeats):
            work()
        return (time.perf_counter() - begin) / repeats
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(repeats):
        work()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000 / repeats


def times(works: Mapping[str, Callable[[], object]], plan: Plan) -> dict[str, float]:
    """Returns the median seconds of each, measured in turns; the first calls, which may compile, do not count."""
    repeats = {}
    for name, work in works.items():
        for _ in range(3 if plan.rounds > 1 else 1):
            work()
        repeats[name] = max(1, min(1000, round(plan.seconds / timed(work, 1, plan))))
    found: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(plan.rounds):
        for name, work in works.items():
            found[name].append(timed(work, repeats[name], plan))
    return {name: statistics.median(values) for name, values in found.items()}


def by(kernel: str, work: Callable[[], object]) -> Callable[[], object]:
    """Returns a function that does the work with the kernel of this name, and fails where that kernel cannot run."""

    def run() -> object:
        before = os.environ.get(SWITCH, "")
        os.environ[SWITCH] = kernel
        forced_kernel.cache_clear()
        try:
            return work()
        finally:
            os.environ[SWITCH] = before
            forced_kernel.cache_clear()

    return run


def parity(plan: Plan) -> dict[str, Any]:
    """Returns the result of each check of the conformance kit, and whether the end of a large tensor is right."""
    kernel = ce.get("kernel", "triton")
    found: dict[str, Any] = {}
    checks = kernel_checks(kernel, device=plan.device) if plan.device != "cpu" else kernel_checks(kernel, shapes=[(3, 5)])
    for check in checks:
        try:
            check()
            found[check.name] = "holds"
        except AssertionError as error:
            found[check.name] = f"FAILS: {error}"
    rows, size = plan.big
    free = torch.cuda.mem_get_info()[0] if plan.device != "cpu" else math.inf
    if free < 3 * 2 * rows * size:
        found["beyond 2^31 numbers"] = f"not tried: {free / 2**30:.0f} GiB are free"
        return found
    x = torch.ones(rows, size, dtype=torch.bfloat16, device=plan.device)
    out, numbers = torch.empty_like(x), StepCoefficients(0.0, 1.0)
    kernel.langevin_step(x, None, None, numbers, Noise(1, range(3, 3 + rows), 2, "philox"), 0, out, None)
    wrong = 0
    for row in (0, rows // 2, rows - 2, rows - 1):
        noise = Noise(1, range(3 + row, 4 + row), 2, "philox")
        expected = 1 + noise.normal(torch.empty(1, size, device=plan.device))
        off = (out[row : row + 1].float() - expected).abs()
        wrong += int((off > 1e-5 + 2**-7 * expected.abs()).sum())
    found["beyond 2^31 numbers"] = "holds" if wrong == 0 else f"FAILS: {wrong} of {4 * size} numbers are wrong"
    return found


def bandwidth(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row for each size and dtype: microseconds of a step, of a copy of as many bytes, and of steps in PyTorch."""
    rows = []
    scale, drift = math.sqrt(STEP_SIZE), STEP_SIZE / 2

    def plain(x: Tensor, g: Tensor) -> Tensor:
        return x - drift * g + scale * torch.randn_like(x)

    for name, dtype in DTYPES.items():
        torch._dynamo.reset()  # a function is compiled for eight shapes at most
        compiled = torch.compile(plain, dynamic=False, backend="inductor" if plan.device != "cpu" else "aot_eager")
        for exponent in plan.exponents:
            count = 2**exponent
            x, g = (torch.randn(count // EVENT, EVENT, device=plan.device).to(dtype) for _ in range(2))
            noise = Noise(0, range(len(x)), 1, "philox")
            source, target = (torch.empty(3 * count // 2, dtype=dtype, device=plan.device) for _ in range(2))
            step = lambda x=x, g=g, noise=noise: langevin_step(x, g, noise=noise, drift=drift, scale=scale)  # noqa: E731
            works = {
                "triton": by("triton", step),
                "copy": lambda source=source, target=target: target.copy_(source),
                "eager": lambda x=x, g=g: plain(x, g),
                "compiled": lambda x=x, g=g, compiled=compiled: compiled(x, g),
            }
            if exponent <= plan.slow:
                works["reference"] = by("torch", step)
            seconds = times(works, plan)
            row = {"dtype": name, "numbers": count, **{f"{key}_microseconds": value * 1e6 for key, value in seconds.items()}}
            row["of_copy_bandwidth"] = seconds["copy"] / seconds["triton"]
            row["gigabytes_per_second"] = 3 * count * x.element_size() / seconds["triton"] / 1e9
            row |= {
                f"times_faster_than_{key}": value / seconds["triton"] for key, value in seconds.items() if key not in ("triton", "copy")
            }
            rows.append(row)
            print(
                f"{name:10}{f'2^{exponent}':>6}{seconds['triton'] * 1e6:12.1f} us{row['gigabytes_per_second']:9.0f} GB/s"
                f"{row['of_copy_bandwidth']:8.2f} of copy   eager / step {row['times_faster_than_eager']:6.2f}"
                f"   compiled / step {row['times_faster_than_compiled']:6.2f}",
                flush=True,
            )
            del x, g, source, target, works, step
    return rows


def loops(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row for each energy and number of chains: microseconds of a step by each implementation."""
    rows = []
    for name, energy, sizes in (
        ("mixture on a plane", Mixture(), plan.mixture),
        ("convolutions 3x32x32", Convolutions(64, size=32), plan.images),
    ):
        energy = energy.to(plan.device).requires_grad_(False)
        assert energy.event_shape is not None
        for chains in sizes:
            shape = (chains, *energy.event_shape)
            start = torch.randn(shape, device=plan.device)
            works = langevin_loops(energy, start, plan)
            seconds = times(works, plan)
            row = {"energy": name, "chains": chains, **{f"{key}_microseconds": value / plan.steps * 1e6 for key, value in seconds.items()}}
            rows.append(row)
            text = "".join(f"   {key} {value / plan.steps * 1e6:9.1f} us" for key, value in seconds.items())
            print(f"{name:24}{chains:9}{text}", flush=True)
    return rows


def langevin_loops(energy: ce.Energy, start: Tensor, plan: Plan) -> dict[str, Callable[[], object]]:
    """Returns the implementations of a Langevin loop; each takes `plan.steps` steps from the same points."""

    def gradient(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(energy.forward(x).sum(), x)[0]

    def bare() -> None:
        for _ in range(plan.steps):
            gradient(start)

    def by_hand() -> None:
        x = start
        for _ in range(plan.steps):
            x = x - STEP_SIZE / 2 * gradient(x) + math.sqrt(STEP_SIZE) * torch.randn_like(x)

    def ours(energy: ce.Energy, **more: object) -> Callable[[], object]:
        options = {"sampler": "langevin", "step_size": STEP_SIZE, "steps": plan.steps, "init": start, "seed": 0, **more}
        return lambda: energy.sample(tuple(start.shape), **options)

    found: dict[str, Callable[[], object]] = {
        "bare gradient": bare,
        "loop by hand": by_hand,
        "sample": by("triton", ours(energy)),
        "sample without the kernel": by("torch", ours(energy)),
    }
    if plan.device != "cpu":
        found["sample, compiled"] = by("triton", ours(energy, compile=True))
    if importlib.util.find_spec("torchebm"):
        found["torchebm"] = torchebm(energy, start, plan.steps)
    if importlib.util.find_spec("ebm"):
        found["ebmkit"] = ebmkit(energy, start, plan.steps)
    return found


def torchebm(energy: ce.Energy, start: Tensor, steps: int) -> Callable[[], object]:
    """Returns the loop of torchebm; its points are flat, so the energy unflattens them."""
    from torchebm.core import BaseModel  # pyright: ignore[reportMissingImports]
    from torchebm.samplers import LangevinDynamics  # pyright: ignore[reportMissingImports]

    class Model(BaseModel):
        def forward(self, x: Tensor) -> Tensor:
            return energy.forward(x.unflatten(1, tuple(start.shape[1:])))

    sampler = LangevinDynamics(Model().to(start.device), step_size=STEP_SIZE / 2, device=start.device)
    return lambda: sampler.sample(x=start.flatten(1), n_steps=steps)


def ebmkit(energy: ce.Energy, start: Tensor, steps: int) -> Callable[[], object]:
    from ebm.samplers import LangevinDynamics  # pyright: ignore[reportMissingImports]

    sampler = LangevinDynamics(step_size=STEP_SIZE / 2)
    return lambda: sampler.sample(energy.forward, start, steps=steps)


def composition(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row for each energy and number of chains: the gradient of a conjunction of eight beside that of one."""
    rows = []
    for name, make in (("perceptron of 64", Perceptron), ("convolutions 3x32x32", lambda: Convolutions(32, size=32))):
        terms = [make().to(plan.device).requires_grad_(False) for _ in range(8)]
        eight: ce.Energy = terms[0]
        for term in terms[1:]:
            eight = eight & term
        energies: dict[str, ce.Energy] = {"one": terms[0], "eight": eight}
        assert terms[0].event_shape is not None
        for chains in plan.terms:
            if name.startswith("convolutions"):
                chains = max(chains // 16, 2)
            x = torch.randn(chains, *terms[0].event_shape, device=plan.device)
            works = {key: lambda energy=energy, x=x: energy_and_gradient(energy, x) for key, energy in energies.items()}
            seconds = times(works, plan)
            row = {"energy": name, "chains": chains, **{f"{key}_microseconds": value * 1e6 for key, value in seconds.items()}}
            best = {key: min(seconds[name] for name in seconds if name.startswith(key)) for key in ("one", "eight")}
            row["eight_over_one"] = best["eight"] / best["one"]
            rows.append(row)
            text = "".join(f"   {key} {value * 1e6:9.1f} us" for key, value in seconds.items())
            print(f"{name:24}{chains:9}{text}   eight / one {row['eight_over_one']:.2f}", flush=True)
    return rows
