"""Estimates of what a node of 8 GPUs and 1,000 nodes would do, from measured bytes and operations and from public figures of hardware."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.pages import markdown_table, short

MEMORY, PRODUCTS, CAPACITY = 4.8e12, 67e12, 141e9  # NVIDIA H200 SXM, data sheet: bytes/s, float32 operations/s without tensor cores, bytes
NVLINK, NETWORK = 450e9, 50e9  # bytes/s in one direction: NVLink of a GPU (900 GB/s both ways), 400 Gb/s InfiniBand of a DGX H200
GPUS, NODES = 8, 1_000
IDS = 2**32
MILLION = 1_000_000


def public_figures() -> str:
    """Returns the figures of the hardware that the estimates use."""
    return (
        f"NVIDIA's data sheets of the H200 SXM and the DGX H200: memory of {CAPACITY / 1e9:.0f} GB with {MEMORY / 1e12} TB/s, "
        f"{PRODUCTS / 1e12:.0f} TFLOP/s in single precision, NVLink with {NVLINK / 1e9:.0f} GB/s in each direction, one network adapter "
        f"of {NETWORK / 1e9:.0f} GB/s (400 Gb/s) for each GPU."
    )


def node(found: Mapping[str, Any]) -> str:
    """Returns the table of a node of 8 GPUs."""
    rows = []
    for case, work in found["operations"].items():
        plain = found["steps"][case]["plain"]["step_microseconds"]
        host, core = plain["100"] * 1e-6, plain[str(MILLION)] * 1e-6 / MILLION
        each = max(work["step_bytes"] / MEMORY, work["products"] / PRODUCTS)
        step = max(host, MILLION * each)
        peak = found["memory"]["megabytes"][case]["plain"][str(MILLION)] * 2**20 / MILLION
        rows.append(
            [
                case,
                f"{work['step_bytes']:,.0f} ({work['gradient_bytes']:,.0f})",
                f"{work['products']:,.0f}",
                f"{MILLION * each * 1e3:.2f}",
                f"{host * 1e3:.2f}",
                f"{host / each:,.0f}",
                f"{CAPACITY / peak / 1e6:,.0f}",
                f"{GPUS * MILLION / step / 1e9:.1f}",
                f"{1 / core / 1e9:.4f}",
            ]
        )
    head = [
        "",
        "measured: bytes of a step and a chain (of its gradient)",
        "measured: operations of its products",
        "device: ms of a step of a million chains",
        "host, measured: ms of a step",
        "chains for which both are equal",
        "million chains in a GPU's memory",
        "8 GPUs: 10⁹ chain steps a second",
        "measured: one core",
    ]
    return markdown_table(head, rows)


def cluster(found: Mapping[str, Any]) -> str:
    """Returns the table of 1,000 nodes."""
    ranks, processes = found["ranks"], GPUS * NODES
    own, spoken = IDS // processes, ranks["spoken"]
    mine = ranks["chains"] / 2  # chains of a process when the messages were counted

    def a_step(name: str) -> float:
        return max(0.0, spoken[name]["bytes_a_step"])

    def once(name: str) -> float:
        return max(0.0, spoken[name]["bytes"] - ranks["few_steps"] * a_step(name))

    points = once("gather") - once("shard")
    writing = max(0.0, found["files"]["mixture of 8 Gaussians on a plane"][str(MILLION)]["write_seconds"]) / MILLION
    rows = [
        ["the end of a call, shards", "once", _bytes(once("shard") * processes), _seconds(once("shard") * processes)],
        ["points of all chains, gathered", "once", _bytes(points / mine * IDS), _seconds(points / mine * IDS)],
    ]
    table = markdown_table(["what every process receives", "when", "bytes", "seconds at the network's speed"], rows)
    return (
        f"{processes:,} processes share the {IDS:,} ids of chains, {own:,} each, for the mixture on the plane.\n\n{table}\n\n"
        f"A process would take {short(writing * own)} seconds to write its checkpoint at the measured speed of one core."
    )


def _bytes(value: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{short(value / size)} {unit}"
    return f"{value:.0f}"


def _seconds(value: float) -> str:
    seconds = value / NETWORK
    return f"{seconds:.2g}" if seconds < 10 else f"{seconds:,.0f}"
