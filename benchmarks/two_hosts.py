"""Trains on two hosts, which are two network namespaces of this machine: `python -m benchmarks.two_hosts [--write]`, as root.

A virtual cable joins the two; each host has its own address and nothing else, and starts its process by `torchrun` as a separate machine
would. The weights are compared with those of one process on the same batches, and the throughput of both is recorded. Then the cable is
cut in the middle of a run: the run must end with an error about the lost process, and the same command must then end with the same
weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.harness import RESULTS, argument_parser, environment, latest_checkpoint, read_json, write_json
from composable_energy_training import Callback, ContrastiveDivergence, DenoisingScoreMatching, Objective, Trainer, join, leave

PATH = RESULTS / "two_hosts.json"
HOSTS = ("energy-a", "energy-b")
ADDRESSES = ("10.77.0.1", "10.77.0.2")
OBJECTIVES: dict[str, Objective] = {
    "contrastive": ContrastiveDivergence(steps=20, options={"step_size": 0.1, "temperature": 1e-4, "clamp": (0, 1)}, buffer=512),
    "denoising": DenoisingScoreMatching(0.05, 1.0),
}


class Net(ce.Energy):
    """A small network of 32 pixels."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        norm = nn.utils.parametrizations.spectral_norm
        widths, layers = (4, 32, 64, 64), []
        for i, o in pairwise(widths):
            layers += [norm(nn.Conv2d(i, o, 3, 2, 1)), nn.SiLU()]
        self.net = nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 16, 1))

    def forward(self, x: Tensor, sigma: float | Tensor = 0.5) -> Tensor:
        level = torch.as_tensor(sigma, dtype=x.dtype).expand(len(x))
        return self.net(torch.cat([x, level[:, None, None, None].expand(-1, -1, 32, 32)], 1)).squeeze(1)


class Slow(Callback):
    """Slows a run down, so that there is time to cut the cable."""

    def on_step(self, trainer: Trainer, scalars: Any) -> None:
        time.sleep(0.3)


def work(kind: str, out: Path, steps: int, dtype: str, slow: bool) -> None:
    """Trains in one of the processes."""
    torch.set_num_threads(1)
    ranks = join(timeout=15)
    data = torch.rand(256, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    options = {"steps": steps, "batch_size": 32, "ema": 0.99, "checkpoint_every": 5, "monitor": None}
    report = Trainer(Net().to(getattr(torch, dtype)), OBJECTIVES[kind], data, out=out, callbacks=[Slow()] if slow else [], **options).fit()
    if ranks.is_first:
        (out / "speed.json").write_text(json.dumps(report.rows_per_second))
    leave()


def call(*words: str) -> None:
    """Runs a command."""
    subprocess.run(words, check=True)


def create_hosts() -> None:
    """Creates the hosts and joins them."""
    for host in HOSTS:
        call("ip", "netns", "add", host)
    call("ip", "link", "add", "cable", "netns", HOSTS[0], "type", "veth", "peer", "name", "cable", "netns", HOSTS[1])
    for host, address in zip(HOSTS, ADDRESSES, strict=True):
        call("ip", "-n", host, "address", "add", f"{address}/24", "dev", "cable")
        call("ip", "-n", host, "link", "set", "lo", "up")
        call("ip", "-n", host, "link", "set", "cable", "up")


def arguments(kind: str, out: Path, steps: int, dtype: str = "float32") -> list[str]:
    """Returns the arguments of Python that start `work`."""
    return ["-m", "benchmarks.two_hosts", "--work", kind, "--out", str(out), "--steps", str(steps), "--dtype", dtype]


def start_hosts(own: list[str]) -> list[subprocess.Popen[str]]:
    """Starts the processes of both hosts."""
    settings = {**os.environ, "GLOO_SOCKET_IFNAME": "cable", "OMP_NUM_THREADS": "1"}
    found = []
    for rank, host in enumerate(HOSTS):
        run = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1", "--node-rank", str(rank)]
        where = ["--master-addr", ADDRESSES[0], "--master-port", "29577"]
        started = ["ip", "netns", "exec", host, *run, *where, *own]
        found.append(subprocess.Popen(started, env=settings, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True))
    return found


def finish(processes: list[subprocess.Popen[str]]) -> list[str]:
    """Waits for all processes; returns their error output."""
    said = [process.communicate(timeout=1200)[1] for process in processes]
    if any(process.returncode for process in processes):
        raise SystemExit("\n".join(said))
    return said


def largest_differences(one: Path, other: Path) -> dict[str, float]:
    """Returns the largest differences between two checkpoints, by kind of tensor."""
    a, b = (load_file(latest_checkpoint(out)) for out in (one, other))
    if a.keys() != b.keys():
        raise SystemExit("The checkpoints hold different tensors.")
    found: dict[str, float] = {}
    for name in a:
        part = name.partition(".")[0]
        found[part] = max(found.get(part, 0.0), (a[name].double() - b[name].double()).abs().max().item())
    return found


def speed(out: Path) -> float:
    """Returns the images per second of a run."""
    return round(read_json(out / "speed.json"), 1)


def cut_cable(folder: Path, steps: int) -> dict[str, Any]:
    """Cuts the cable in the middle of a run, then runs it again; returns the errors and the differences."""
    out = folder / "lost"
    processes = start_hosts([*arguments("contrastive", out, steps), "--slow"])
    while not (out / "checkpoints" / "step-00000005.safetensors").exists():
        time.sleep(0.05)
    began = time.monotonic()
    call("ip", "-n", HOSTS[1], "link", "set", "cable", "down")
    said = [process.communicate(timeout=600)[1] for process in processes]
    errors = [next((line.strip() for line in text.splitlines() if "ProcessLost:" in line), "") for text in said]
    seconds = time.monotonic() - began
    call("ip", "-n", HOSTS[1], "link", "set", "cable", "up")
    finish(start_hosts(arguments("contrastive", out, steps)))
    return {
        "ended_with_errors": [process.returncode != 0 for process in processes],
        "errors": [text.partition("ProcessLost: ")[2].partition(" (")[0] for text in errors],
        "seconds_until_error": round(seconds, 1),
        "difference_after_restart": largest_differences(folder / "one contrastive float32", out),
    }


def compare(folder: Path, steps: int) -> dict[str, Any]:
    """Returns differences of weights and throughputs of each objective in both precisions."""
    found: dict[str, Any] = {}
    for kind in OBJECTIVES:
        found[kind] = {}
        for dtype in ("float32", "float64"):
            one, two = folder / f"one {kind} {dtype}", folder / f"two {kind} {dtype}"
            own = [sys.executable, *arguments(kind, one, steps, dtype)]
            subprocess.run(own, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            finish(start_hosts(arguments(kind, two, steps, dtype)))
            speeds = {"1": speed(one), "2": speed(two)}
            found[kind][dtype] = {"largest_differences": largest_differences(one, two), "images_per_second": speeds}
            print(kind, dtype, found[kind][dtype], flush=True)
    return found


def main() -> None:
    parser = argument_parser(__doc__, PATH)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--work", choices=OBJECTIVES, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--dtype", default="float32", help=argparse.SUPPRESS)
    parser.add_argument("--slow", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.out, args.steps, args.dtype, args.slow)
        return
    if os.geteuid() != 0 or shutil.which("ip") is None:
        raise SystemExit("Two hosts on one machine need root and the program `ip`, to create network namespaces.")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            create_hosts()
            report = {**environment(steps=args.steps, cores=os.cpu_count()), **compare(folder, args.steps)}
            report["lost host"] = cut_cable(folder, args.steps)
            print(json.dumps(report, indent=1))
        finally:
            for host in HOSTS:
                subprocess.run(["ip", "netns", "delete", host], check=False, stderr=subprocess.DEVNULL)
    if args.write:
        write_json(PATH, report)


if __name__ == "__main__":
    main()
