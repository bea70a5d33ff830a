"""The blocks of the page of objectives, from the figures of `benchmarks.objectives`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.harness import RESULTS, read_json
from benchmarks.pages import Blocks, format_number, markdown_table

_HEAD = ("objective", "steps", "log likelihood", "Frechet distance of `smc`", "of its own sampler", "outlying losses", "skipped steps")
_OWN = ("frechet of the buffer", "frechet of annealed", "frechet of its chains")


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    return {"about": about, **{kind: partial(table, kind) for kind in ("digits", "faces")}}


def about() -> str:
    """Returns the cost of the table."""
    found = _read()["about"]
    return (
        f"A training takes {found['seconds']:.0f} processor seconds, the whole command {found['cpu_seconds'] / 60:.0f} minutes of one core."
    )


def table(kind: str) -> str:
    """Returns the table of one set of pictures, with the best log likelihood first."""
    found = _read()["sets"][kind]
    order = sorted(found["objectives"].items(), key=lambda row: -_mean(row[1], "log likelihood"))
    rows = [[name, *_cells(row)] for name, row in order]
    likelihood = {"Gaussian": f"{found['log likelihood of the Gaussian']:.1f}"}
    rows += [[f"*{name}*", "", likelihood.get(name, ""), f"{value:.2f}", "", "", ""] for name, value in found["references"].items()]
    return markdown_table(_HEAD, rows)


def _cells(row: Mapping[str, Any]) -> list[str]:
    own = next((_value(row, name, 2) for name in _OWN if name in row["figures"]), "")
    skipped, outlying = _mean(row, "skipped"), _mean(row, "outlying losses")
    return [
        f"{_mean(row, 'steps'):,.0f}",
        _value(row, "log likelihood", 1),
        _value(row, "frechet", 2),
        own,
        format_number(outlying),
        f"{skipped:.0f}",
    ]


def _mean(row: Mapping[str, Any], name: str) -> float:
    return row["figures"][name]["mean"] if name in row["figures"] else float("-inf")


def _value(row: Mapping[str, Any], name: str, digits: int) -> str:
    if name not in row["figures"]:
        return "failed"
    found = row["figures"][name]
    return f"{found['mean']:.{digits}f} ± {found['deviation']:.{digits}f}"


def _read() -> Any:
    return read_json(RESULTS / "objectives.json")
