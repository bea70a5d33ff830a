"""Writes the figures of the benchmarks into the blocks of `docs/benchmarks.md`: `python -m benchmarks.report [--speed FILE]`.

`--speed` takes the file of `pytest --benchmark-json=FILE` and writes its condensed form to `results/speed.json` first.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, ROOT, argument_parser, read_json, write_json
from benchmarks.pages import markdown_table, short, write_page

PAGE = ROOT / "docs" / "benchmarks.md"
BARE, OURS, HAND = "bare gradient", "composable-energy", "loop by hand"
PACKAGES = ("torch", "torchebm", "ebmkit", "blackjax", "jax", "numpy")
MIXTURE, CONVOLUTIONS = "mixture on a plane, 4,096 chains", "3 convolutions, 16 pictures 3 x 32 x 32"


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
    """Returns the table of ratios to the bare gradient."""
    cases = [case for case in speed["cases"] if case["kind"] == kind]
    rows = [
        [f"**{who}**" if who.startswith(OURS) else who, *(f"{ratio(case, who, BARE):.2f}" for case in cases)]
        for who in cases[0]["who"]
        if who != BARE
    ]
    unit = "gradient" if kind == "langevin" else "gradients of a trajectory"
    bare = [f"*bare {unit}, in microseconds*", *(f"*{statistics.median(case['who'][BARE]['microseconds']):,.0f}*" for case in cases)]
    return markdown_table(["", *(case["case"] for case in cases)], [*rows, bare])


def once(speed: dict[str, Any]) -> str:
    """Returns the table of the fixed cost of a call."""
    names = [who for who in speed["cases"][0]["who"] if who != BARE]
    chosen = [case for case in speed["cases"] if case["kind"] == "langevin" and case["case"] in (MIXTURE, CONVOLUTIONS)]
    rows = []
    for who in names:
        row = [f"**{who}**" if who.startswith(OURS) else who]
        for case in chosen:
            row += [f"{statistics.median(case['who'][who]['single']) / 1e3:.2f} ms"]
        row += [f"{max(case['who'][who]['first'] for case in chosen):.1f} s" if "compiled" in who else ""]
        rows.append(row)
    return markdown_table(["", *(f"{case['case']}: a call of one step" for case in chosen), "first call, with compiling"], rows)


def goals(speed: dict[str, Any]) -> str:
    """Returns the table of goals and speeds."""
    cases = {(case["kind"], case["case"]): case for case in speed["cases"]}
    fast = f"{OURS}, compiled"

    def row(kind: str, title: str, who: str, to: str, limit: float) -> list[str]:
        found = ratio(cases[kind, title], who, to)
        return [f"{kind}, {title}: {who} / {to}", f"{limit:.2f}", f"{found:.2f}", "yes" if found <= limit else "**no**"]

    rows = [
        row("langevin", CONVOLUTIONS, OURS, BARE, 1.08),
        row("langevin", CONVOLUTIONS, fast, BARE, 1.0),
        row("langevin", MIXTURE, OURS, BARE, 1.15),
        row("langevin", MIXTURE, fast, BARE, 0.4),
        *(row("langevin", MIXTURE, fast, other, 1 / 2.5) for other in (HAND, "torchebm", "ebmkit")),
        *(row("langevin", MIXTURE, fast, f"{other}, compiled", 1.0) for other in (HAND, "torchebm", "ebmkit")),
        *(row("langevin", case, OURS, other, 1.0) for kind, case in cases if kind == "langevin" for other in (HAND, "torchebm", "ebmkit")),
        *(row("langevin", case, f"{OURS}, watched", OURS, 1.05) for kind, case in cases if kind == "langevin"),
        *(row("hmc", case, OURS, "ebmkit", 1.0) for kind, case in cases if kind == "hmc"),
        *(row("hmc", case, OURS, "torchebm", 0.5) for kind, case in cases if kind == "hmc"),
        *(row("hmc", MIXTURE, fast, other, 0.5) for other in ("ebmkit", "torchebm")),
        *(row("hmc", MIXTURE, fast, f"{other}, compiled", 1.0) for other in ("ebmkit", "torchebm")),
    ]
    return markdown_table(["time of a step, one over the other", "at most", "is", "met"], rows)


def quality(found: dict[str, Any]) -> str:
    """Returns the tables of effective samples, one for each target."""
    parts = []
    for target in dict.fromkeys(row["target"] for row in found["rows"]):
        rows = [row for row in found["rows"] if row["target"] == target]
        best = max(row["effective_samples_per_second"] for row in rows if _is_ours(row))
        parts.append(f"### {target}\n")
        lines = [
            [
                f"**{row['sampler']}**" if _is_ours(row) else row["sampler"],
                f"{short(row['gradients_per_effective_sample'])} ({short(row['least'])} to {short(row['most'])})",
                f"{short(row['effective_samples_per_second'])} ({short(row['least_per_second'])} to {short(row['most_per_second'])})",
                f"{best / row['effective_samples_per_second']:.2f}",
            ]
            for row in rows
        ]
        parts.append(
            markdown_table(["", "gradients for an effective sample", "effective samples in a second", "our best / this"], lines) + "\n"
        )
    return "\n".join(parts)


def quality_goals(found: dict[str, Any]) -> str:
    """Returns the table of goals and effective samples."""
    rows = {(row["target"], row["sampler"]): row for row in found["rows"]}
    lines = []
    for target, sampler, most in (("gaussian", "chees, metric='identity'", 28), ("gaussian", "chees", 8), ("banana", "chees", 200)):
        cost = rows[target, sampler]["gradients_per_effective_sample"]
        lines.append([f"{target}, {sampler}: gradients for an effective sample", f"at most {most}", f"{cost:.1f}", _met(cost <= most)])
    for target in dict.fromkeys(target for target, _ in rows):
        ours = max(row["effective_samples_per_second"] for key, row in rows.items() if key[0] == target and _is_ours(row))
        for other, least in (("ebmkit", 3.0), ("torchebm", 3.0), ("BlackJAX", None if target in ("gaussian", "banana") else 1.0)):
            theirs = [row["effective_samples_per_second"] for (of, who), row in rows.items() if of == target and who.startswith(other)]
            if theirs:
                share = ours / max(theirs)
                goal = "no goal" if least is None else f"at least {least:g}"
                lines.append(
                    [
                        f"{target}: effective samples in a second, our best / best of {other}",
                        goal,
                        f"{share:.2f}",
                        "" if least is None else _met(share >= least),
                    ]
                )
    return markdown_table(["", "goal", "is", "met"], lines)


def about(speed: dict[str, Any]) -> str:
    """Returns the machine and the versions."""
    machine, versions = speed["machine"], speed["versions"]
    names = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f"{machine['processor']}, {machine['processors']} processors, {machine['threads']} thread, {machine['system']}; {names}."


def _is_ours(row: dict[str, Any]) -> bool:
    return row["sampler"].split(",")[0] in ("chees", "hmc", "mala")


def _met(met: bool) -> str:
    return "yes" if met else "**no**"


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--speed", type=Path, help="the file of pytest-benchmark")
    args = parser.parse_args()
    if args.speed is not None:
        write_json(RESULTS / "speed.json", condense(read_json(args.speed)))
    write_page(PAGE, blocks())


def blocks() -> dict[str, Callable[[], str]]:
    """Returns the functions of the blocks of the page."""
    speed, draws = (read_json(RESULTS / f"{name}.json") for name in ("speed", "quality"))
    return {
        "machine": lambda: about(speed),
        "langevin": lambda: steps(speed, "langevin"),
        "hmc": lambda: steps(speed, "hmc"),
        "once": lambda: once(speed),
        "goals": lambda: goals(speed),
        "quality": lambda: quality(draws),
        "quality goals": lambda: quality_goals(draws),
    }


if __name__ == "__main__":
    main()
