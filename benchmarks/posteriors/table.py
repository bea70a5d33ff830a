"""The tables of the suite: one line of a run in the terminal, and all runs of a target in the page of results."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import ROOT
from benchmarks.pages import markdown_table, short, write_page
from benchmarks.posteriors.targets import get_target

OURS, NUTS = "composable-energy", "NumPyro NUTS"
PAGE = ROOT / "docs" / "results" / "posteriors.md"
_LEAST = 100  # effective draws, below which costs mean little
Rows = Sequence[Mapping[str, Any]]


def verdict(row: Mapping[str, Any]) -> str:
    """Returns `right`, `wrong`, `undecided` or `error`."""
    if "error" in row:
        return "error"
    return "wrong" if row["wrong"] else "undecided" if row["undecided"] else "right"


def print_rows(rows: Rows, *, head: bool = True) -> None:
    """Prints one line for each run."""
    if head:
        titles = f"{'mean error':>18}{'sd ratio':>15}{'ESS':>8}{'grad/ESS':>10}{'all/ESS':>10}{'seconds':>9}"
        print(f"{'row':18}{'sampler':18}{'seed':>4} {'start':8}{titles}  verdict    warnings")
    for row in rows:
        line = f"{row['row']:18}{row['sampler']:18}{row['seed']:4} {row['start']:8}"
        if "error" in row:
            print(f"{line}{row['error'][:100]}  {' '.join(row['warnings'])}", flush=True)
            continue
        errors = [f" ({'-' if row[name] is None else format(row[name], '.2f')})" for name in ("mean_error", "ratio_error")]
        line += f"{row['mean']:+11.3f}{errors[0]}{row['ratio']:8.3f}{errors[1]}{row['ess']:8.0f}"
        line += f"{row['gradients_per_effective']:10.1f}{row['all_gradients_per_effective']:10.1f}{row['seconds']:9.1f}"
        print(f"{line}  {verdict(row):10} {' '.join(row['warnings'])}", flush=True)


def accuracy_table(rows: Rows) -> str:
    """Returns the table of errors of the defaults: the worst of all seeds for each start, beside the verdicts on NUTS."""
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows if row["sampler"] == OURS):
        mine = [row for row in rows if row["row"] == name and row["sampler"] == OURS]
        nuts = _verdicts([row for row in rows if row["row"] == name and row["sampler"] == NUTS])
        for start in dict.fromkeys(row["start"] for row in mine):
            some = [row for row in mine if row["start"] == start]
            done = [row for row in some if "error" not in row]
            cells = ["-", "-"]
            if done:
                ratios = [row["ratio"] for row in done]
                cells = [f"{max(abs(row['mean']) for row in done):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"]
            warned = f"{sum(bool(row['warnings']) or 'error' in row for row in some)} of {len(some)}"
            lines.append([get_target(name).title, start, *cells, _verdicts(some), warned, nuts])
    return markdown_table(["posterior", "start", "mean error, sd", "sd ratio", "verdict", "warned", NUTS], lines)


def _verdicts(rows: Rows) -> str:
    found = [verdict(row) for row in rows]
    return ", ".join(f"{found.count(kind)} {kind}" for kind in dict.fromkeys(found))


def cost_table(rows: Rows) -> str:
    """Returns the table of costs per effective draw, recorded part and whole call: medians over seeds, from default starts."""
    samplers = list(dict.fromkeys(row["sampler"] for row in rows))
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows):
        cells = [get_target(name).title]
        for column in ("gradients_per_effective", "all_gradients_per_effective", "seconds_per_effective"):
            for sampler in samplers:
                found = [row for row in rows if (row["row"], row["sampler"], row["start"]) == (name, sampler, "default")]
                known = [row for row in found if verdict(row) in ("right", "undecided") and row["ess"] >= _LEAST]
                factor = 1000 if column.startswith("seconds") else 1
                cells.append(short(factor * statistics.median(row[column] for row in known)) if known else "-" if found else "")
        lines.append(cells)
    units = ("gradients", "all gradients", "milliseconds")
    return markdown_table(["posterior", *(f"{unit}: {sampler}" for unit in units for sampler in samplers)], lines)


def write_table(rows: Rows) -> None:
    """Writes both tables into the page of results."""
    write_page(PAGE, {"accuracy": lambda: accuracy_table(rows), "cost": lambda: cost_table(rows)})
