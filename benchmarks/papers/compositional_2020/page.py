"""The blocks of the page `docs/results/compositional-2020.md`, from the files of results."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.compositional_2020 import paper_method_blocks
from benchmarks.papers.experiment import COMPOSITIONAL

RULES = ("grounded", "heads", "grounded, weight 1", "weight 1")


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    own = (
        evaluator,
        *(table1, free_attributes, implication, recursion, several_objects, counts, two_cubes),
        *(extrapolation, continual, one_picture, several_pictures, partition, cost),
    )
    return {function.__name__.replace("_", " "): function for function in own} | paper_method_blocks.blocks()


def evaluator() -> str:
    """Returns the sentence about the accuracy of the evaluator."""
    known = _read("table1")["evaluator"]
    return (
        f"On renders that no network was trained on, the share of positions within the tolerance is {_n(known['position within .4'])} "
        f"(mean error {_n(known['position error'])}), of correct shapes {_n(known['shape'])} and colors {_n(known['color'])}; the mean "
        f"error of sizes is {_n(known['size error'])}."
    )


def table1() -> str:
    """Returns Table 1: the scores of each part of each row."""
    result, method = _read("table1"), paper_method_blocks.parsed_table("table")
    rows = []
    for number, found in enumerate(result["rules"]["grounded"]):
        text = found["text"]
        for place, part in enumerate(found["scores"]):
            published = result["paper"][text]
            paper = published[place] if place < len(published) and published[place] is not None else None
            scores = [_n(result["rules"][rule][number]["scores"][part]) for rule in RULES]
            scores[0] = f"**{scores[0]}**"
            chance, theirs = _n(result["chance"][text][part]), method[text][part]["value"]
            rows.append([f"`{text}`" if place == 0 else "", part, chance, "" if paper is None else _n(paper), theirs, *scores])
    return markdown_table(["row", "part", "chance", "paper", "its method", "**ours**", "heads", "ours, weight 1", "heads, weight 1"], rows)


def free_attributes() -> str:
    """Returns the table of attributes that were not requested."""
    result = _read("table1")
    found = [("renders", result["renders"])]
    for rule, name in (("grounded", "ours"), ("grounded, weight 1", "ours, weight 1")):
        found += [(f"`{row['text']}`, {name}", row["free"]) for row in result["rules"][rule][:5]]
    rows = []
    for name, free in found:
        colors = f"{_n(min(free['colors']))} to {_n(max(free['colors']))}"
        rows.append([name, _n(free["size"]), _n(free["position spread"]), ", ".join(map(_n, free["shapes"])), colors])
    return markdown_table(["pictures", "mean size", "spread of positions", "box, sphere, cylinder", "each color"], rows)


def implication() -> str:
    """Returns the table of implications."""
    rows = [
        [f"`{row['way']}`", f"{row['weight']:g}", *(_n(row[name]) for name in ("holds", "color", "position", "chance"))]
        for row in _read("implication")["rows"]
    ]
    return markdown_table(["form", "weight", "holds", "the color", "position", "holds for renders"], rows)


def recursion() -> str:
    """Returns the table of nested expressions."""
    result = _read("recursion")
    rows = [
        [str(row["depth"]), f"`{row['expression']}`", *(_n(row[name]) for name in ("holds", "weight 1", "chance"))]
        for row in result["rows"]
    ]
    return markdown_table(["depth", "expression", f"weight {result['weight']:g}", "weight 1", "chance"], rows)


def several_objects() -> str:
    """Returns the table of conjunctions of positions."""
    rows = []
    for row in _read("several_objects")["rows"]:
        scores = [_n(row[name]) for name in ("each found", "error", "as many", "count error")]
        rows.append([str(row["objects"]), row["pictures"], _n(row["all found"]), _n(row["target"]) if "target" in row else "", *scores])
    return markdown_table(["objects", "pictures", "all found", "goal", "each found", "position error", "right number", "count error"], rows)


def counts() -> str:
    """Returns the table of the number of objects in pictures of the base."""
    found = _read("several_objects")["base"]["counts"]
    return markdown_table(["objects in a picture", *found], [["share", *map(_n, found.values())]])


def two_cubes() -> str:
    """Returns the table of energy maps of two cubes."""
    rows = [[row["places"], *(_n(row[name]) for name in ("both", "each", "error"))] for row in _read("two_cubes")["rows"]]
    return markdown_table(["maxima of", "both cubes found", "each", "error"], rows)


def extrapolation() -> str:
    """Returns the table of new pairs of position and size."""
    rows = []
    for row in _read("extrapolation")["rows"]:
        errors = [_n(row[name]) for name in ("position error", "size error", "sum")]
        rows.append([f"{row['ratio']:.0%}", row[""], *errors, f"{row['ours / this']:.2f}"])
    return markdown_table(["positions with all sizes", "rule", "position error", "size error", "sum", "ours / this"], rows)


def continual() -> str:
    """Returns the table of concepts that are learned one after the other."""
    rows = []
    for row in _read("continual")["rows"]:
        scores = [row[name] if row[name] == "-" else _n(row[name]) for name in ("position", "shape", "color", "joint")]
        paper = "-" if row["paper"] == "-" else ", ".join(map(_n, row["paper"]))
        rows.append([row["after"], row[""], *scores, paper])
    return markdown_table(["after", "method", "position", "shape", "color", "all", "paper: energies, or its GAN"], rows)


def one_picture() -> str:
    """Returns the table of answers from one picture."""
    rows = []
    for row in _read("inference")["one picture"]:
        scores = [_n(row[name]) if name in row else "" for name in ("heads", "conditional", "supervised", "chance")]
        rows.append([row["condition"], *scores])
    return markdown_table(["condition", "heads", "conditional energies", "supervised", "chance"], rows)


def several_pictures() -> str:
    """Returns the table of positions from several pictures."""
    means = _read("inference")["several pictures"]["mean"]
    names = {"heads": "heads", "supervised": "supervised, averaged"}
    rows = [[text, *(format_number(value, 4) for value in means[name])] for name, text in names.items()]
    return markdown_table(["pictures", *(str(k + 1) for k in range(len(means["heads"])))], rows)


def partition() -> str:
    """Returns the table of shares of the branches of a mixture."""
    rows = [
        [row["branches"], *(format_number(row[name], digits) for name, digits in (("requested", 2), ("as it is", 3), ("calibrated", 3)))]
        for row in _read("partition")["rows"]
    ]
    return markdown_table(["branches", "requested share of A", "without `calibrate`", "with `calibrate`"], rows)


def cost() -> str:
    """Returns the table of the size and the time of each experiment."""
    rows = []
    for path in sorted(COMPOSITIONAL.results.glob("*.json")):
        about = read_json(path)["about"]
        rows.append([f"`{path.stem}`", f"{about['samples']:,}", str(about["seed"]), f"{about['seconds']:.0f}"])
    return markdown_table(["experiment", "pictures a row", "seed", "seconds"], rows)


def _n(value: float) -> str:
    return format_number(value)


def _read(name: str) -> dict[str, Any]:
    return read_json(COMPOSITIONAL.results / f"{name}.json")
