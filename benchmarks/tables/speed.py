"""The tables of `benchmarks.md` and `results/scaling.md`, and the condensed form of a file of pytest-benchmark."""

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

from benchmarks.pages import Blocks, markdown_table, read_results, short

BARE, OURS = "bare gradient", "composable-energy"
PACKAGES = ("torch", "torchebm", "ebmkit", "blackjax", "jax", "numpy")


def condense(raw: dict[str, Any]) -> dict[str, Any]:
    """Returns the microseconds of a step by kind, case and implementation, one for each turn, from a file of pytest-benchmark."""
    cases: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in raw["benchmarks"]:
        info = entry["extra_info"]
        kind, title, steps = info["kind"], info["case"], info["steps"]
        found = cases.setdefault((kind, title), {"kind": kind, "case": title, "steps": steps, "who": {}})
        who = found["who"].setdefault(info["who"], {"microseconds": [], "single": [], "first": info["first"]})
        who["microseconds"].append(round(entry["stats"]["total"] / steps * 1e6, 2))
        who["single"].append(round(info["single"] * 1e6, 1))
    machine = {"processor": raw["machine_info"]["cpu"].get("brand_raw", platform.machine()), "processors": os.cpu_count(), "threads": 1}
    versions = {"python": platform.python_version(), **{name: metadata.version(name) for name in PACKAGES}}
    return {"machine": machine | {"system": platform.system()}, "versions": versions, "cases": list(cases.values())}


def ratio(case: dict[str, Any], who: str, to: str) -> float:
    """Returns the median over turns of the ratio of two times."""
    pair = zip(case["who"][who]["microseconds"], case["who"][to]["microseconds"], strict=True)
    return statistics.median(one / other for one, other in pair)


def steps(speed: dict[str, Any], kind: str) -> str:
    cases = [case for case in speed["cases"] if case["kind"] == kind]
    rows = [
        [f"**{who}**" if who.startswith(OURS) else who, *(f"{ratio(case, who, BARE):.2f}" for case in cases)]
        for who in cases[0]["who"]
        if who != BARE
    ]
    unit = "gradient" if kind == "langevin" else "gradients of a trajectory"
    bare = [f"*bare {unit}, in microseconds*", *(f"*{statistics.median(case['who'][BARE]['microseconds']):,.0f}*" for case in cases)]
    return markdown_table(["", *(case["case"] for case in cases)], [*rows, bare])


def quality(found: dict[str, Any], key: str) -> str:
    """Returns a figure of each sampler by target: the median of the seeds."""
    targets, samplers = (dict.fromkeys(row[name] for row in found["rows"]) for name in ("target", "sampler"))
    cells = {(row["sampler"], row["target"]): short(row[key]) for row in found["rows"]}
    lines = [
        [f"**{name}**" if name.split(",")[0] in ("chees", "hmc", "mala") else name, *(cells.get((name, target), "") for target in targets)]
        for name in samplers
    ]
    return markdown_table(["", *targets], lines)


def about(speed: dict[str, Any]) -> str:
    machine, versions = speed["machine"], speed["versions"]
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['processor']}, {machine['processors']} processors, {machine['threads']} thread, {machine['system']}; {names}."


def blocks() -> Blocks:
    speed, draws = (read_results(name) for name in ("speed", "quality"))
    eager = [row for row in draws["rows"] if "compiled" not in row["sampler"]]
    return {
        "machine": lambda: about(speed),
        "langevin": lambda: steps(speed, "langevin"),
        "hmc": lambda: steps(speed, "hmc"),
        "samples a second": lambda: quality(draws, "effective_samples_per_second"),
        "gradients a sample": lambda: quality({"rows": eager}, "gradients_per_effective_sample"),
    }


WAYS = {"plain": "", "batches": ", `batch_size`", "returned": ", `batch_size`, blocks returned"}


def scaling() -> Blocks:
    found = read_results("scaling")
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
        for way, row in ((way, ways[way]) for way in WAYS if way in ways):
            each = {n: float(row["step_microseconds"][n]) * 1e3 / int(n) for n in counts}
            ratio = each[counts[-1]] / each[counts[-2]]
            rows.append([case + WAYS[way], *(short(each[n]) for n in counts), f"{ratio:.2f}"])
    head = ["nanoseconds of a step and a chain", *(f"{int(n):,} chains" for n in counts), "last / one before"]
    return markdown_table(head, rows)


def _memory(memory: Mapping[str, Any]) -> str:
    rows = []
    for case, ways in memory["megabytes"].items():
        for way, row in ((way, ways[way]) for way in WAYS if way in ways):
            last = list(row)[-1]
            rows.append([case + WAYS[way], *(f"{row[n]:,.0f}" for n in list(row)[1:]), f"{row[last] * 2**20 / int(last):,.0f}"])
    counts = list(next(iter(next(iter(memory["megabytes"].values())).values())))[1:]
    head = [f"MB above 100 chains, {memory['steps']} steps", *(f"{int(n):,} chains" for n in counts), "bytes a chain"]
    return markdown_table(head, rows)


def _processes(ranks: Mapping[str, Any]) -> str:
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
