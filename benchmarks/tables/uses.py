"""The tables of the pages of results about uses: planning, generators, side chains, observations, pipelines, and shares of expressions."""

from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks.pages import Blocks, code_cell, columns, format_number, markdown_table, mean, number, read_results

PLANNERS = {
    "energies": "energies",
    "reference": "reference (true map and dynamics)",
    "grid": "shortest path on a grid (true map)",
    "cem": "forward model, cross-entropy method",
}


def planning() -> Blocks:
    found = read_results("planning")["rows"]
    worlds = dict.fromkeys(tuple(key.split("/")[:2]) for key in found)

    def table(cell: Callable[[Mapping[str, Any]], str], later: str) -> list[list[str]]:
        some = [pair for pair in worlds if pair[1] == later]
        return [
            [title, later, *(cell(found["/".join((*pair, name))]) for pair in some if "/".join((*pair, name)) in found)]
            for name, title in PLANNERS.items()
        ]

    def success(row: Mapping[str, Any]) -> str:
        share, count = sum(row["success"]) / len(row["success"]), len(row["success"])
        return f"{format_number(share)} ± {format_number((share * (1 - share) / count) ** 0.5)}"

    def cost(row: Mapping[str, Any]) -> str:
        count = len(row["seconds"])
        return f"{sum(row['evaluations']) / count / 1000:,.0f}; {sum(row['seconds']) / count:.2f}"

    head = ["planner", "obstacle", *dict.fromkeys(world for world, _ in worlds)]
    return {
        "success": lambda: markdown_table(head, [*table(success, "known"), *table(success, "later")]),
        "cost": lambda: markdown_table(head, table(cost, "later")),
    }


def lace() -> Blocks:
    found = read_results("lace")

    def closed() -> str:
        def worst(key: str) -> Callable[[Any], str]:
            return lambda row: f"{max(abs(part[key]) for part in row['dimensions']):.1f}"

        cells: dict[str, Callable[[Any], str]] = {
            "slope, offset": lambda row: f"{row['slope']:g}, {row['offset']:g}",
            "sampler": lambda row: f"`{row['sampler']}`",
            "mean": worst("mean"),
            "variance": worst("variance"),
            "evaluations, 32-D": lambda row: f"{row['dimensions'][-1]['evaluations']:.0f}",
        }
        return columns([row for row in found["closed"] if row["offset"] != -2.5], cells)

    def faces() -> str:
        cells: dict[str, Callable[[Any], str]] = {
            "expression": lambda row: code_cell(row["expression"]),
            "sampler": lambda row: row["sampler"] if row["sampler"] == "exact" else f"`{row['sampler']}`",
            "correct": number("accuracy"),
            "seconds": lambda row: f"{row['seconds']:.0f}" if "seconds" in row else "",
            "Frechet": lambda row: f"{row['frechet']:.2f}" if "frechet" in row else "",
        }
        return columns([row for row in found["faces"] if row["expression"].lstrip("~") != "smiling"], cells)

    def edits() -> str:
        cells = {"edit": lambda row: f"`{row['edit']}`", "new": number("new"), "earlier ones": number("earlier")}
        cells |= {"untouched": number("untouched"), "identity distance": number("distance")}
        return columns(found["edits"]["rows"], cells)

    return {"closed": closed, "faces": faces, "edits": edits}


def side_chains() -> Blocks:
    found = read_results("side_chains")

    def recovery() -> str:
        def spread(rows: list[Any], key: str) -> str:
            values = torch.tensor([row[key] for row in rows if key in row])
            return f"{format_number(float(values.mean()))} ± {format_number(float(values.std()))}" if len(values) else ""

        lines = []
        for name in dict.fromkeys(row["model"] for row in found["rows"]):
            rows = [row for row in found["rows"] if row["model"] == name]
            seconds = f"{mean(rows, 'seconds'):.0f}" if "seconds" in rows[0] else ""
            lines.append([name, *(spread(rows, key) for key in ("angles", "residues", "divergence")), seconds])
        return markdown_table(["", "angles", "residues", "nats above exact", "seconds"], lines)

    def draws() -> str:
        cells: dict[str, Callable[[Any], str]] = {key: lambda row, key=key: row[key] for key in ("residue", "model", "by")}
        cells |= {"total variation": number("variation"), "of independent draws": number("expected")}
        cells |= {"largest, s.e.": number("largest", 1), "seconds": number("seconds", 0)}
        return columns(found["draws"], cells)

    return {"recovery": recovery, "draws": draws}


def observations() -> Blocks:
    found = read_results("observations")

    def coverage() -> str:
        lines = []
        keys = ("psnr of the mean", "psnr of a draw", "psnr of dps", "psnr of projection")
        for name in dict.fromkeys(row["operator"] for row in found["rows"]):
            rows = [row for row in found["rows"] if row["operator"] == name]
            covered = torch.tensor([row["coverage"] for row in rows])
            error = float(covered.std()) / len(rows) ** 0.5
            cells = [f"{format_number(float(covered.mean()))} ± {format_number(error)}", format_number(mean(rows, "coverage before"))]
            cells += [*(f"{mean(rows, key):.1f}" for key in keys), f"{mean(rows, 'misfit'):.2f}", f"{mean(rows, 'seconds'):.0f}"]
            lines.append([name, *cells])
        head = ["", "coverage", "by `annealed` alone", "mean", "draw", "DPS", "projection", "misfit", "seconds"]
        return markdown_table(head, lines)

    def composed() -> str:
        texts = {True: "`smiling & seen`", False: "`~smiling & seen`", None: "`faces & seen`"}
        rows = [
            (name, text, [row for row in found["composed"] if row["smiling"] is wanted and row["operator"] == name])
            for name in dict.fromkeys(row["operator"] for row in found["composed"])
            for wanted, text in texts.items()
        ]
        lines = [[name, text, format_number(mean(some, "share"))] for name, text, some in rows]
        return markdown_table(["", "expression", "smiling"], lines)

    return {"coverage": coverage, "composed": composed}


def diffusers() -> Blocks:
    found = read_results("diffusers")
    cells = {(row["row"], row["rule"]): row for row in found["rows"]}
    texts, rules = (list(dict.fromkeys(key[k] for key in cells)) for k in (0, 1))

    def table(value: Callable[[Mapping[str, Any]], str]) -> str:
        lines = [[f"`{text}`", *(value(cells[text, rule]) if (text, rule) in cells else "" for rule in rules)] for text in texts]
        return markdown_table(["expression", *rules], lines)

    return {
        "shares": lambda: table(lambda cell: format_number(cell["joint"])),
        "distances": lambda: table(lambda cell: f"{cell['frechet']:.1f}"),
        "costs": lambda: table(lambda cell: f"{cell['evaluations']:.0f}; {cell['seconds'] / found['samples']:.2f} s"),
    }


def faces_shares() -> Blocks:
    def shares() -> str:
        def average(sampler: str) -> Callable[[Any], str]:
            return lambda row: format_number(row[sampler]["mean"]) if sampler in row else ""

        cells: dict[str, Callable[[Any], str]] = {"expression": lambda row: code_cell(row["row"])}
        cells["exact"] = lambda row: f"{format_number(row['exact'])} ± {format_number(row['standard error'])}"
        cells |= {name: average(name) for name in ("default", "annealed", "feynman-kac", "correctors")}
        cells["default is"] = lambda row: row["default"]["runs"][0]["sampler"]
        cells["ms a sample"] = lambda row: f"{mean(row['default']['runs'], 'milliseconds'):.0f}"
        return columns(read_results("faces_shares")["rows"], cells)

    return {"shares": shares}


def score_expressions() -> Blocks:
    found = read_results("score_expressions")

    def plane() -> str:
        rows = [{"name": code_cell(name), **row} for name, row in found["plane"].items()]

        def error(variant: str) -> Callable[[Any], str]:
            return lambda row: format_number(row[variant]["error"])

        cells: dict[str, Callable[[Any], str]] = {"expression": lambda row: row["name"], "error": error("weighted")}
        cells |= {"error without weights": error("unweighted"), "error of `annealed`": error("annealed")}
        return columns(rows, cells | {"lowest ESS": lambda row: format_number(row["weighted"]["lowest_ess"], 2)})

    def dimensions() -> str:
        lines = []
        for name, sizes in found["dimensions"].items():
            for label, variant in (("error", "weighted"), ("error without weights", "unweighted")):
                lines.append([code_cell(name), label, *(format_number(row[variant]["error"]) for row in sizes.values())])
            lines.append([code_cell(name), "lowest ESS", *(format_number(row["weighted"]["lowest_ess"], 2) for row in sizes.values())])
        return markdown_table(["expression", "", *next(iter(found["dimensions"].values()))], lines)

    return {"plane": plane, "dimensions": dimensions}
