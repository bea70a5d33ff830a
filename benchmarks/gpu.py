"""The fused step on a GPU, its correctness and its speed, in a minute: `python -m benchmarks.gpu`.

1. *Parity*: the conformance kit's checks of the Triton kernel against the reference, and a tensor of more than 2^31 numbers.
2. *Bandwidth*: a step of one gradient, for 2^16 to 2^28 numbers in each dtype, beside a device copy of as many bytes; beside the same step
   in torch, eager and compiled, with noise from `randn_like`; and beside the reference with its Philox noise.

Times are medians of rounds that are measured in turns, by the clock of the device. The file of results is written after each row, so a run
that is broken off leaves what it measured. A row that fails has its error in the table and in the file, and the next one runs.
`--only TEXT ...` measures the rows whose names have one of these texts; the other rows of the file stay if the same machine measured them.

`--device cpu` runs the same lines at tiny sizes on the CPU, with the kernel under Triton's interpreter: a check of this code. Its times
mean nothing, so it writes to a folder that git ignores.
"""

import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import composable_energy as ce
from benchmarks.harness import RESULTS, ROOT, argument_parser, chosen, environment, read_json, write_json
from composable_energy.sampling import StepCoefficients, langevin_step
from composable_energy.sampling.kernels import forced_kernel
from composable_energy.sampling.noise import Noise
from composable_energy_triton.testing import kernel_checks

SWITCH = "COMPOSABLE_ENERGY_KERNEL"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
EVENT = 1024
STEP_SIZE = 0.01
Row = dict[str, Any]
Works = dict[str, Callable[[], object]]


@dataclass(frozen=True)
class Plan:
    """Sizes of the measurements."""

    device: str
    exponents: tuple[int, ...]  # sizes of a step are these powers of two
    slow: int  # largest exponent for the reference with Philox noise
    big: tuple[int, int]  # shape of points for the check of large offsets
    rounds: int
    seconds: float  # how long one round of one function takes, approximately


FULL = Plan("cuda", tuple(range(16, 29, 2)), 24, (131_073, 16_385), 7, 0.03)
TINY = Plan("cpu", (10,), 10, (3, 1025), 1, 0.0)


def rows(plan: Plan) -> Iterator[tuple[str, Callable[[], Row]]]:
    """Yields the name of each row and the function that measures it."""
    kernel = ce.get("kernel", "triton")
    checks = kernel_checks(kernel, device=plan.device) if plan.device != "cpu" else kernel_checks(kernel, shapes=[(3, 5)])
    for check in checks:
        yield f"parity, {check.name}", lambda check=check: check() or {"found": "holds"}
    yield "parity, beyond 2^31 numbers", partial(beyond_int32, plan)
    for name, exponent in ((name, exponent) for name in DTYPES for exponent in plan.exponents):
        yield f"bandwidth, {name}, 2^{exponent}", partial(bandwidth, plan, DTYPES[name], exponent)


def beyond_int32(plan: Plan) -> Row:
    """Compares the noise of some rows of a large tensor with the reference."""
    rows, size = plan.big
    free = torch.cuda.mem_get_info()[0] if plan.device != "cpu" else math.inf
    if free < 3 * 2 * rows * size:
        return {"found": f"not tried: {free / 2**30:.0f} GiB are free"}
    x = torch.ones(rows, size, dtype=torch.bfloat16, device=plan.device)
    out, wrong = torch.empty_like(x), 0
    noise = Noise(1, range(3, 3 + rows), 2, "philox")
    ce.get("kernel", "triton").langevin_step(x, None, None, StepCoefficients(0.0, 1.0), noise, 0, out, None)
    for row in (0, rows // 2, rows - 2, rows - 1):
        expected = 1 + Noise(1, range(3 + row, 4 + row), 2, "philox").normal(torch.empty(1, size, device=plan.device))
        wrong += int(((out[row : row + 1].float() - expected).abs() > 1e-5 + 2**-7 * expected.abs()).sum())
    if wrong:
        raise AssertionError(f"{wrong} of {4 * size} numbers are wrong")
    return {"found": "holds"}


def bandwidth(plan: Plan, dtype: torch.dtype, exponent: int) -> Row:
    """Returns microseconds of a step, of a copy of as many bytes, and of steps in PyTorch."""
    count, scale, drift = 2**exponent, math.sqrt(STEP_SIZE), STEP_SIZE / 2
    x, g = (torch.randn(count // EVENT, EVENT, device=plan.device).to(dtype) for _ in range(2))
    noise = Noise(0, range(len(x)), 1, "philox")
    source, target = (torch.empty(3 * count // 2, dtype=dtype, device=plan.device) for _ in range(2))

    def plain(x: Tensor, g: Tensor) -> Tensor:
        return x - drift * g + scale * torch.randn_like(x)

    def step() -> Tensor:
        return langevin_step(x, g, noise=noise, drift=drift, scale=scale)

    torch._dynamo.reset()  # a function is compiled for eight shapes at most
    compiled = torch.compile(plain, dynamic=False, backend="inductor" if plan.device != "cpu" else "aot_eager")
    works: Works = {"triton": by("triton", step), "copy": lambda: target.copy_(source)}
    works |= {"eager": lambda: plain(x, g), "compiled": lambda: compiled(x, g)}
    if exponent <= plan.slow:
        works["reference"] = by("torch", step)
    row = measured(works, plan)
    if ours := row.get("triton_microseconds"):
        row["gigabytes_per_second"] = 3 * count * x.element_size() / ours / 1e3
        for name in ("copy", "eager", "compiled", "reference"):
            if theirs := row.get(f"{name}_microseconds"):
                row["of_copy_bandwidth" if name == "copy" else f"times_faster_than_{name}"] = theirs / ours
    return row


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


def measured(works: Mapping[str, Callable[[], object]], plan: Plan) -> Row:
    """Returns the median microseconds of each work, measured in turns, or its error.

    The first calls, which may compile, do not count.
    """
    repeats: dict[str, int] = {}
    row: Row = {}
    for name, work in works.items():
        try:
            for _ in range(3 if plan.rounds > 1 else 1):
                work()
            repeats[name] = max(1, min(1000, round(plan.seconds / timed(work, 1, plan))))
        except Exception as error:  # of a kernel, a compiler, or another library: the others are measured
            row[f"{name}_error"] = told(error)
    found: dict[str, list[float]] = {name: [] for name in repeats}
    for _ in range(plan.rounds):
        for name, count in repeats.items():
            found[name].append(timed(works[name], count, plan))
    return row | {f"{name}_microseconds": statistics.median(values) * 1e6 for name, values in found.items()}


def timed(work: Callable[[], object], repeats: int, plan: Plan) -> float:
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


def told(error: Exception) -> str:
    """Returns an error as one line of the table."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def run(some: Mapping[str, Callable[[], Row]], out: Path, about: Mapping[str, Any]) -> int:
    """Measures rows, prints each, and writes the file after each; returns the number of rows with an error."""
    before = read_json(out) if out.exists() else {}
    same = all(before.get(key) == value for key, value in about.items())
    kept: dict[str, Row] = {row["row"]: row for row in before["rows"]} if same and before else {}
    failed = 0
    for name, measure in some.items():
        begin = time.perf_counter()
        torch.manual_seed(0)
        try:
            row = measure()
        except Exception as error:  # one row that fails is one line of the table
            row = {"error": told(error)}
        failed += any(key.endswith("error") for key in row)
        kept[name] = {"row": name, **row, "seconds": round(time.perf_counter() - begin, 2)}
        write_json(out, {**about, "rows": list(kept.values())})
        figures = (f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items())
        print(f"{name}: {', '.join(figures)}", flush=True)
    return failed


def main(arguments: list[str] | None = None) -> int:
    """Measures the chosen rows; returns 1 if there is no GPU or a row has an error."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu checks this file at tiny sizes")
    parser.add_argument("--only", nargs="+", default=[], metavar="TEXT", help="measure the rows whose names have one of these")
    parser.add_argument("--out", type=Path, help="the file of results (default benchmarks/results/gpu.json, for cpu .benchmarks/gpu.json)")
    args = parser.parse_args(arguments)
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured and nothing written; `--device cpu` checks this file.", file=sys.stderr)
        return 1
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    ready, reason = ce.get("kernel", "triton").available()
    if not ready:
        print(f"The Triton kernel cannot run here: {reason}. Rows that need it have its error.", file=sys.stderr)
    some = chosen(dict(rows(FULL if args.device == "cuda" else TINY)), args.only)
    hardware = torch.cuda.get_device_name() if args.device == "cuda" else "the CPU, by an interpreter"
    out = args.out or (RESULTS / "gpu.json" if args.device == "cuda" else ROOT / ".benchmarks" / "gpu.json")
    failed = run(some, out, {**environment(), "hardware": hardware, "cuda": torch.version.cuda})
    print(f"\n{len(some)} rows, {failed} with errors; written to {out}.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
