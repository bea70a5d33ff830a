"""The tables of `docs/results/scaling.md`."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import RESULTS, read_json
from benchmarks.pages import Blocks, markdown_table, short

WAYS = {
    "plain": "",
    "batches": ", `batch_size`",
    "trace": ", `trace=True`",
    "checkpoint": ", `checkpoint`",
    "returned": ", `batch_size`, blocks returned",
}


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    found = read_json(RESULTS / "scaling.json")
    return {
        "machine": lambda: _machine(found),
        "time": lambda: _time(found["steps"]),
        "memory": lambda: _memory(found["memory"]),
        "processes": lambda: _processes(found["ranks"]),
    }


def _machine(found: Mapping[str, Any]) -> str:
    about = found["about"]
    return (
        f"Processor time on {about['threads']} thread of {found['ranks']['cores']} cores, {about['machine']}, Python {about['python']}, "
        f"torch {about['torch']}; the least of {about['rounds']} rounds; batches of {about['batch_size']:,} chains."
    )


def _time(steps: Mapping[str, Any]) -> str:
    """Returns the table of nanoseconds of a step and a chain."""
    counts = list(next(iter(next(iter(steps.values())).values()))["step_microseconds"])
    rows = []
    for case, ways in steps.items():
        for way, row in ways.items():
            each = {n: float(row["step_microseconds"][n]) * 1e3 / int(n) for n in counts}
            ratio = each[counts[-1]] / each[counts[-2]]
            rows.append([case + WAYS[way], *(short(each[n]) for n in counts), f"{ratio:.2f}"])
    head = ["nanoseconds of a step and a chain", *(f"{int(n):,} chains" for n in counts), "last / one before"]
    return markdown_table(head, rows)


def _memory(memory: Mapping[str, Any]) -> str:
    """Returns the table of peak memory."""
    rows = []
    for case, ways in memory["megabytes"].items():
        for way, row in ways.items():
            last = list(row)[-1]
            rows.append([case + WAYS[way], *(f"{value:,.0f}" for value in row.values()), f"{row[last] * 2**20 / int(last):,.0f}"])
    counts = list(next(iter(next(iter(memory["megabytes"].values())).values())))
    head = [f"MB above 100 chains, {memory['steps']} steps", *(f"{int(n):,} chains" for n in counts), "bytes a chain"]
    return markdown_table(head, rows)


def _processes(ranks: Mapping[str, Any]) -> str:
    """Returns the table of one and two processes."""
    rows = []
    for row in ranks["times"].values():
        one, two = row["turns"]["1"], row["turns"]["2"]
        pairs = list(zip(one, two, strict=True))
        speed = [a["processor"][0] / max(b["processor"]) for a, b in pairs]
        wall = [max(a["wall"]) / max(b["wall"]) for a, b in pairs]
        alone = statistics.median(a["processor"][0] for a in one)
        shared = statistics.median(max(b["processor"]) for b in two)
        rows.append([row["title"], f"{alone:.2f}", f"{shared:.2f}", _range(speed), _range(wall)])
    head = ["", "seconds of 1 process", "of the slower of 2", "speed-up in processor time", "speed-up by the clock"]
    return f"{markdown_table(head, rows)}\n\nThe load of the {ranks['cores']} cores was {ranks['load']:.1f} at the end."


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"
