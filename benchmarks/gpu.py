"""The fused step on a GPU: whether it is right, and how fast. One command, some minutes:

    python benchmarks/gpu.py

1. *Parity*: the conformance kit's checks of the Triton kernel beside the reference, and a tensor of more than 2^31 numbers.
2. *Bandwidth*: a step of one gradient, for 2^16 to 2^28 numbers in each dtype, beside a device copy of as many bytes; beside the same step
   in torch, eager and compiled, whose noise is `randn_like`; and beside the reference with its Philox noise.
3. *Loops*: `sample` with Langevin, eager and compiled, beside a loop by hand, and beside torchebm and ebmkit where they are installed.
4. *Composition*: gradients of eight terms of one architecture beside those of one.

Times are medians of rounds that are measured in turns, by the device's own clock. Writes `benchmarks/results/gpu.json`, and `gpu.png`
beside it where matplotlib is installed. Without a GPU it says so, writes nothing and exits with 1.

    python benchmarks/gpu.py --device cpu

runs the same lines at tiny sizes on the CPU, the kernel under Triton's interpreter: a check of this file. It measures nothing and writes
nothing.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.kernels import Counter, StepCoefficients, langevin_step
from composable_energy.noise import Noise
from composable_energy.sampling import compiled, energy_and_gradient
from composable_energy.testing import kernel_checks

RESULTS = Path(__file__).parent / "results"
SWITCH = "COMPOSABLE_ENERGY_KERNEL"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EVENT = 1024
STEP_SIZE = 0.01


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Args:
        device: Where.
        exponents: Of two, for the numbers of points in a step.
        slow: The largest exponent for the reference with Philox noise.
        big: The shape of points for the check of large offsets.
        rounds: How many rounds.
        seconds: How long one round of one contestant takes, about.
        steps: Of a loop.
        mixture: The chains of the loops on the plane.
        images: Those of the loops on images.
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


class Mixture(ce.Energy):
    """Eight Gaussians on a circle."""

    means: Tensor

    def __init__(self) -> None:
        super().__init__()
        angle = torch.arange(8) * torch.pi / 4
        self.register_buffer("means", 3 * torch.stack([angle.cos(), angle.sin()], 1))
        self.event_shape = torch.Size([2])

    def forward(self, x: Tensor) -> Tensor:
        return -torch.logsumexp(-(x[:, None] - self.means).square().sum(2) / 0.18, 1)


class Convolutions(ce.Energy):
    """Three layers."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for c_in, c_out in ((3, width), (width, width), (width, width)):
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.SiLU()]
        self.net = nn.Sequential(*layers)
        self.event_shape = torch.Size([3, 32, 32])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).mean((2, 3)).sum(1) + x.square().flatten(1).sum(1) / 2


class Perceptron(ce.Energy):
    """Two hidden layers of 256."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 1))
        self.event_shape = torch.Size([64])

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).squeeze(1) + x.square().sum(1) / 2


# Measuring ----------------------------------------------------------------------------------------------------------------------------


def timed(work: Callable[[], object], repeats: int, plan: Plan) -> float:
    """Returns the seconds of one of some repetitions."""
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
    """Does work with the kernel of that name, or fails: never silently with another."""

    def doing() -> object:
        before = os.environ.get(SWITCH)
        os.environ[SWITCH] = kernel
        try:
            return work()
        finally:
            if before is None:
                del os.environ[SWITCH]
            else:
                os.environ[SWITCH] = before

    return doing


# Parts --------------------------------------------------------------------------------------------------------------------------------


def parity(plan: Plan) -> dict[str, Any]:
    """Returns what the conformance kit finds, and whether the end of a large tensor is right."""
    kernel = ce.get_kernel("triton")
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
    out, numbers = torch.empty_like(x), StepCoefficients((), 0.0, 1.0, 1.0, 0.0, None, None)
    kernel.langevin_step(x, [], None, numbers, Counter(1, 2, 3, 0), out, None)
    wrong = 0
    for row in (0, rows // 2, rows - 2, rows - 1):
        noise = Noise(1, range(3 + row, 4 + row), 2, "philox")
        expected = 1 + noise.normal(torch.empty(1, size, device=plan.device))
        off = (out[row : row + 1].float() - expected).abs()
        wrong += int((off > 1e-5 + 2**-7 * expected.abs()).sum())
    found["beyond 2^31 numbers"] = "holds" if wrong == 0 else f"FAILS: {wrong} of {4 * size} numbers are wrong"
    return found


def bandwidth(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row for each size and dtype: microseconds of a step, of a copy of its bytes, and of others' steps."""
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
            contestants = {
                "triton": by("triton", step),
                "copy": lambda source=source, target=target: target.copy_(source),
                "eager": lambda x=x, g=g: plain(x, g),
                "compiled": lambda x=x, g=g, compiled=compiled: compiled(x, g),
            }
            if exponent <= plan.slow:
                contestants["reference"] = by("torch", step)
            seconds = times(contestants, plan)
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
            del x, g, source, target, contestants, step
    return rows


def loops(plan: Plan) -> list[dict[str, Any]]:
    """Returns a row for each energy and number of chains: microseconds of a step by each contestant."""
    rows = []
    for name, energy, sizes in (("mixture on a plane", Mixture(), plan.mixture), ("convolutions 3x32x32", Convolutions(), plan.images)):
        energy = energy.to(plan.device).requires_grad_(False)
        assert energy.event_shape is not None
        for chains in sizes:
            shape = (chains, *energy.event_shape)
            start = torch.randn(shape, device=plan.device)
            contestants = rivals(energy, start, plan)
            seconds = times(contestants, plan)
            row = {"energy": name, "chains": chains, **{f"{key}_microseconds": value / plan.steps * 1e6 for key, value in seconds.items()}}
            rows.append(row)
            told = "".join(f"   {key} {value / plan.steps * 1e6:9.1f} us" for key, value in seconds.items())
            print(f"{name:24}{chains:9}{told}", flush=True)
    return rows


def rivals(energy: ce.Energy, start: Tensor, plan: Plan) -> dict[str, Callable[[], object]]:
    """Returns who takes part in a loop of Langevin: each takes `plan.steps` steps from the same points."""

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

    def ours(energy: ce.Energy) -> Callable[[], object]:
        options = {"sampler": "langevin", "step_size": STEP_SIZE, "steps": plan.steps, "init": start, "seed": 0, "noise": "philox"}
        return lambda: energy.sample(tuple(start.shape), **options)

    found: dict[str, Callable[[], object]] = {
        "bare gradient": bare,
        "loop by hand": by_hand,
        "sample": by("triton", ours(energy)),
        "sample without the kernel": by("torch", ours(energy)),
    }
    if plan.device != "cpu":
        found["sample, compiled"] = by("triton", ours(compiled(energy)))
    if importlib.util.find_spec("torchebm"):
        found["torchebm"] = torchebm(energy, start, plan.steps)
    if importlib.util.find_spec("ebm"):
        found["ebmkit"] = ebmkit(energy, start, plan.steps)
    return found


def torchebm(energy: ce.Energy, start: Tensor, steps: int) -> Callable[[], object]:
    """Its points are flat, so its energy unflattens them."""
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
    for name, make in (("perceptron of 64", Perceptron), ("convolutions 3x32x32", lambda: Convolutions(32))):
        terms = [make().to(plan.device).requires_grad_(False) for _ in range(8)]
        eight: ce.Energy = terms[0]
        for term in terms[1:]:
            eight = eight & term
        contestants: dict[str, ce.Energy] = {"one": terms[0], "eight": eight}
        if plan.device != "cpu":
            contestants |= {"one, compiled": compiled(terms[0]), "eight, compiled": compiled(eight)}
        assert terms[0].event_shape is not None
        for chains in plan.terms:
            if name.startswith("convolutions"):
                chains = max(chains // 16, 2)
            x = torch.randn(chains, *terms[0].event_shape, device=plan.device)
            works = {key: lambda energy=energy, x=x: energy_and_gradient(energy, x) for key, energy in contestants.items()}
            seconds = times(works, plan)
            row = {"energy": name, "chains": chains, **{f"{key}_microseconds": value * 1e6 for key, value in seconds.items()}}
            best = {key: min(seconds[name] for name in seconds if name.startswith(key)) for key in ("one", "eight")}
            row["eight_over_one"] = best["eight"] / best["one"]
            rows.append(row)
            told = "".join(f"   {key} {value * 1e6:9.1f} us" for key, value in seconds.items())
            print(f"{name:24}{chains:9}{told}   eight / one {row['eight_over_one']:.2f}", flush=True)
    return rows


def write(report: dict[str, Any], folder: Path) -> None:
    """Writes the figures, and draws them if matplotlib is installed."""
    folder.mkdir(exist_ok=True)
    (folder / "gpu.json").write_text(json.dumps(report, indent=1) + "\n")
    if importlib.util.find_spec("matplotlib"):
        plot(report, folder / "gpu.png")


def plot(report: dict[str, Any], path: Path) -> None:
    """Draws bandwidth by size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for name in DTYPES:
        rows = [row for row in report["bandwidth"] if row["dtype"] == name]
        numbers = [row["numbers"] for row in rows]
        axes[0].plot(numbers, [row["of_copy_bandwidth"] for row in rows], marker="o", label=name)
        for other, style in (("eager", "-"), ("compiled", "--")):
            ratios = [row[f"times_faster_than_{other}"] for row in rows]
            axes[1].plot(numbers, ratios, style, marker="o", label=f"{name}, {other}")
    for axis, title in zip(axes, ("bandwidth over that of a copy", "time in PyTorch over that of the fused step"), strict=True):
        axis.set(xscale="log", xlabel="numbers", title=title)
        axis.set_xscale("log", base=2)
        axis.axhline(1, color="gray", linewidth=0.8)
        axis.legend()
    figure.suptitle(f"The fused Langevin step on {report['hardware']}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> int:
    """Measures everything; returns 1 where there is no GPU, or something is wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu checks this file at tiny sizes, and writes nothing")
    asked = parser.parse_args()
    plan = FULL if asked.device == "cuda" else TINY
    if asked.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured and nothing written; `--device cpu` checks this file.", file=sys.stderr)
        return 1
    if asked.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    ready, reason = ce.get_kernel("triton").available()
    if not ready:
        print(f"The Triton kernel cannot run here: {reason}.", file=sys.stderr)
        return 1
    begin = time.perf_counter()
    torch.manual_seed(0)
    report: dict[str, Any] = {
        "command": "python benchmarks/gpu.py",
        "hardware": torch.cuda.get_device_name() if asked.device == "cuda" else "the CPU, by an interpreter",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }
    print(f"{report['hardware']}, torch {report['torch']}\n\nParity")
    report["parity"] = parity(plan)
    for name, found in report["parity"].items():
        print(f"  {name:20} {found}")
    for name, part in (("bandwidth", bandwidth), ("loops", loops), ("composition", composition)):
        print(f"\n{name.capitalize()}")
        report[name] = part(plan)
    report["seconds"] = round(time.perf_counter() - begin)
    failed = [name for name, found in report["parity"].items() if found.startswith("FAILS")]
    if asked.device == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            write(report, Path(folder))
        print("\nEverything ran but the compiler. Under an interpreter times mean nothing, so nothing was kept.")
    else:
        write(report, RESULTS)
        print(f"\nWrote {RESULTS / 'gpu.json'} after {report['seconds']} s.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
