"""The tables of `docs/results/compositional-2020.md`."""

from __future__ import annotations

import re
from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, code_cell, columns, format_number, markdown_table, mean, number
from benchmarks.papers.experiment import COMPOSITIONAL

CELL = re.compile(r"(?P<part>.+?) (?P<value>[\d.]+)(?: \[[\d.]+\])? \([\d.]+\)")
NOTS = {"bounded": 'bounded, `mode="contrast"`', "classifier": "`~` of the energies' classifier"}


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    functions = (table1, nots, ors, implication, recursion, several_objects, extrapolation, continual, inference, partition)
    return {function.__name__.replace("_", " "): function for function in functions}


def table1() -> str:
    """Returns the shares of pictures with all that a row asks for."""
    found, method, lines = _read("table1"), {row["row"]: row for row in _read("paper_method")["table"]}, []
    for k, row in enumerate(found["rules"]["grounded"]):
        text = row["text"]
        part = "joint" if "joint" in row["scores"] else next(iter(row["scores"]))
        cells = filter(None, (CELL.fullmatch(method[text].get(str(i), "")) for i in range(1, 6)))
        theirs = next(cell["value"] for cell in cells if cell["part"] == part)
        published = [value for value in found["paper"][text] if value is not None]
        paper = _n(published[-1]) if len(published) in (1, 3) else " and ".join(map(_n, published))
        ours = [_n(found["rules"][rule][k]["scores"][part]) for rule in ("grounded", "grounded, weight 1", "weight 1")]
        lines.append([code_cell(text), _n(found["chance"][text][part]), paper, _n(float(theirs)), f"**{ours[0]}**", *ours[1:]])
    return markdown_table(["row", "chance", "paper", "its method, here", "**ours**", "ours, weight 1", "heads, weight 1"], lines)


def nots() -> str:
    """Returns the table of the paper's negation by its factor, and of two others."""
    cells = {
        "NOT": lambda row: NOTS.get(row["NOT"], f"$-{row['NOT']}$"),
        "position": number("position"),
        "not the color": number("& ~color"),
        "Frechet": number("Frechet of position & ~color", 1),
    }
    return columns(_read("paper_method")["not"], cells)


def ors() -> str:
    """Returns the table of the paper's disjunction by scale."""
    cells = {"scale $s$": lambda row: row["scale"], "either": number("either"), "first": number("first"), "second": number("second")}
    return columns([row for row in _read("paper_method")["or"] if "less" not in row["scale"]], cells)


def implication() -> str:
    """Returns the table of implications."""
    cells = {"form": lambda row: f"`{row['way']}`", "weight": lambda row: f"{row['weight']:g}"}
    return columns(_read("implication")["rows"], cells | {"holds": number("holds"), "holds for renders": number("chance")})


def recursion() -> str:
    """Returns the table of nested expressions: means over those of a depth."""
    found = _read("recursion")
    by = {depth: [row for row in found["rows"] if row["depth"] == depth] for depth in sorted({row["depth"] for row in found["rows"]})}
    lines = [[str(depth), str(len(rows)), *(_n(mean(rows, key)) for key in ("holds", "weight 1", "chance"))] for depth, rows in by.items()]
    return markdown_table(["depth", "expressions", f"weight {found['weight']:g}", "weight 1", "chance"], lines)


def several_objects() -> str:
    """Returns the table of conjunctions of positions, and of the maps of two cubes."""
    found = _read("several_objects")
    rows = [{**row, "what": f"{row['objects']} objects, {row['pictures']}"} for row in found["rows"]]
    cells = {"what": lambda row: row["what"], "all found": number("all found"), "goal": number("target", 2)}
    maps = {f"two cubes by the map of energies, {row['places']}": row["both"] for row in found["two cubes"]}
    rows += [{"what": name, "all found": value} for name, value in maps.items()]
    return columns([row for row in rows if "coded" not in row["what"]], cells)


def extrapolation() -> str:
    """Returns the sums of the errors of position and size by the share of positions that have all sizes."""
    rows = _read("extrapolation")["rows"]
    ratios, rules = dict.fromkeys(row["ratio"] for row in rows), dict.fromkeys(row[""] for row in rows)
    known = {(row["ratio"], row[""]): row["sum"] for row in rows}
    lines = [[rule, *(_n(known[ratio, rule]) for ratio in ratios)] for rule in rules]
    return markdown_table(["sum of errors", *(f"{ratio:.0%} of positions" for ratio in ratios)], lines)


def continual() -> str:
    """Returns the table of concepts after the last one was added."""
    rows = [row for row in _read("continual")["rows"] if row["after"] == "color"]
    return columns(rows, {"method": lambda row: row[""], **{key: number(key) for key in ("position", "shape", "color", "joint")}})


def inference() -> str:
    """Returns the table of answers from one picture."""
    names = {"heads": "heads", "conditional": "conditional energies", "supervised": "supervised", "chance": "chance"}
    cells = {"condition": lambda row: row["condition"], **{title: number(name) for name, title in names.items()}}
    return columns(_read("inference")["one picture"], cells)


def partition() -> str:
    """Returns the shares of the branches of mixtures that ask for equal ones."""
    cells = {"branches": lambda row: row["branches"], "without `calibrate`": number("as it is"), "with": number("calibrated")}
    return columns([row for row in _read("partition")["rows"] if row["requested"] == 0.5], cells)


def _n(value: float) -> str:
    return format_number(value)


def _read(name: str) -> Any:
    return read_json(COMPOSITIONAL.results / f"{name}.json")
