"""The fused step on a GPU, its correctness and its speed, in some minutes: `python -m benchmarks.gpu`.

1. *Parity*: the conformance kit's checks of the Triton kernel against the reference, and a tensor of more than 2^31 numbers.
2. *Bandwidth*: a step of one gradient, for 2^16 to 2^28 numbers in each dtype, beside a device copy of as many bytes; beside the same step
   in torch, eager and compiled, with noise from `randn_like`; and beside the reference with its Philox noise.
3. *Loops*: `sample` with Langevin, eager and compiled, beside a plain loop, and beside torchebm and ebmkit where they are installed.
4. *Composition*: gradients of eight terms of one architecture beside those of one.

Times are medians of rounds that are measured in turns, by the clock of the device. Writes `benchmarks/results/gpu.json`, and `gpu.png`
beside it where matplotlib is installed. Without a GPU it says so, writes nothing and exits with 1.

`--device cpu` runs the same lines at tiny sizes on the CPU, with the kernel under Triton's interpreter: a check of this code. It measures
nothing and writes nothing.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import composable_energy as ce
from benchmarks.gpu_measurements import DTYPES, FULL, TINY, bandwidth, composition, loops, parity
from benchmarks.harness import RESULTS, argument_parser, environment, write_json


def write(report: dict[str, Any], folder: Path) -> None:
    """Writes the figures, and a plot of them if matplotlib is installed."""
    write_json(folder / "gpu.json", report)
    if importlib.util.find_spec("matplotlib"):
        plot(report, folder / "gpu.png")


def plot(report: dict[str, Any], path: Path) -> None:
    """Plots bandwidth by size."""
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
    """Measures everything; returns 1 if there is no GPU or a check fails."""
    parser = argument_parser(__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu checks this file at tiny sizes, and writes nothing")
    args = parser.parse_args()
    plan = FULL if args.device == "cuda" else TINY
    if args.device == "cuda" and not torch.cuda.is_available():
        print("There is no GPU here, so nothing was measured and nothing written; `--device cpu` checks this file.", file=sys.stderr)
        return 1
    if args.device == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported
    ready, reason = ce.get("kernel", "triton").available()
    if not ready:
        print(f"The Triton kernel cannot run here: {reason}.", file=sys.stderr)
        return 1
    begin = time.perf_counter()
    torch.manual_seed(0)
    report: dict[str, Any] = {
        **environment(),
        "hardware": torch.cuda.get_device_name() if args.device == "cuda" else "the CPU, by an interpreter",
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
    if args.device == "cpu":
        with tempfile.TemporaryDirectory() as folder:
            write(report, Path(folder))
        print("\nEverything ran but the compiler. Under an interpreter times mean nothing, so nothing was kept.")
    else:
        write(report, RESULTS)
        print(f"\nWrote {RESULTS / 'gpu.json'} after {report['seconds']} s.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
