"""The blocks of the page `docs/results/robustness.md`, from the files of results."""

from __future__ import annotations

from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.experiment import IMPLICIT
from benchmarks.papers.implicit_2019.picture_sets import SETS

BASELINES = ("softmax probability", "nearest neighbour", "reconstruction", "autoregressive")
NORMS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    functions = (accuracy, refined, verdict, calibration, areas, false_positives, ranks, cost)
    return {function.__name__.replace("_", " "): function for function in functions}


def accuracy() -> str:
    """Returns the tables of accuracies over radii, one for each norm."""
    found = _read("robustness")["accuracy"]
    tables = []
    for norm, symbol in NORMS.items():
        keys = ["clean", *_radii(found, norm)]
        rows = [[name, *(_spread(row[key]) for key in keys)] for name, row in found.items()]
        tables.append(markdown_table([f"{symbol} radius", "no attack", *(_radius(key) for key in keys[1:])], rows))
    return "\n\n".join(tables)


def refined() -> str:
    """Returns the table of refined classifiers by what the attack sees."""
    found, tables = _read("robustness")["accuracy"], []
    for norm, symbol in NORMS.items():
        keys, rows = _radii(found, norm), []
        for name, row in found.items():
            for kind in ("unaware", "adaptive"):
                if f"{keys[0]} {kind}" in row:
                    rows.append([name, kind, *(_n(row[f"{key} {kind}"]["mean"]) for key in keys)])
            if f"{keys[0]} adaptive" in row:
                rows.append([name, "both", *(_n(row[key]["mean"]) for key in keys)])
        tables.append(markdown_table([f"{symbol} radius", "attack", *map(_radius, keys)], rows))
    return "\n\n".join(tables)


def verdict() -> str:
    """Returns the sentences that compare the refined energy with the other networks."""
    found = _read("robustness")["accuracy"]
    keys = [key for norm in NORMS for key in _radii(found, norm)]
    lines = []
    for name in ("JEM, descent", "JEM, Langevin"):
        for other in ("softmax", "softmax, noise", "JEM", "adversarial"):
            pairs = {key: (found[name][key]["mean"], found[other][key]["mean"]) for key in keys}
            above = [key for key, (mine, theirs) in pairs.items() if mine > theirs]
            none = [key for key, pair in pairs.items() if max(pair) == 0]
            below = [key for key in keys if key not in above and key not in none]
            rest = _listed("not at", below) + _listed("nothing is left at", none)
            lines.append(f"- **{name}** is above *{other}* at {len(above)} of {len(keys)} radii{rest}.")
    return "\n".join(lines)


def calibration() -> str:
    """Returns the table of temperatures and calibration errors."""
    rows = []
    for name, row in _read("robustness")["calibration"].items():
        cells = [_spread(row["accuracy"]), f"{row['temperature']['mean']:.2f}", _spread(row["error"]), _spread(row["fitted error"])]
        rows.append([name, *cells])
    return markdown_table(["network", "accuracy", "fitted temperature", "calibration error", "after the fit"], rows)


def areas() -> str:
    """Returns the table of areas under the ROC curve."""
    found = _read("out_of_distribution")["scores"]
    best = {kind: sorted({round(row[kind]["mean"], 3) for row in found.values()}, reverse=True)[:1] for kind in SETS}
    rows = []
    for name, row in found.items():
        cells = [_n(row[kind]["mean"]) for kind in SETS]
        rows.append([name, *(f"**{c}**" if round(row[k]["mean"], 3) in best[k] else c for c, k in zip(cells, SETS, strict=True))])
    return markdown_table(["score", *SETS], rows)


def false_positives() -> str:
    """Returns the table of accepted pictures if 95 % of the digits are."""
    found = _read("out_of_distribution")["scores"]
    rows = [[name, *(_n(row[f"{kind}, false positives"]["mean"]) for kind in SETS)] for name, row in found.items()]
    return markdown_table(["score", *SETS], rows)


def ranks() -> str:
    """Returns the sentences about the ranks of the energy among the baselines."""
    found, lines = _read("out_of_distribution")["scores"], []
    for name in ("energy", "relative energy", "JEM's energy"):
        places = {}
        for kind in SETS:
            mine = round(found[name][kind]["mean"], 3)
            better = [other for other in BASELINES if round(found[other][kind]["mean"], 3) > mine]
            places[kind] = better
        good = [kind for kind in SETS if len(places[kind]) <= 1]
        lost = "; ".join(f"{kind}: behind {', '.join(better)}" for kind, better in places.items() if better)
        lines.append(f"- **{name}** is best or second in {len(good)} of {len(SETS)} sets" + (f" ({lost})." if lost else "."))
    return "\n".join(lines)


def cost() -> str:
    """Returns the sentence about sizes and times."""
    robust, unusual = _read("robustness"), _read("out_of_distribution")
    seconds = {**unusual["training seconds"], **robust["training seconds"]}
    times = ", ".join(f"{name} {row['mean']:.0f} s" for name, row in seconds.items())
    sizes = ", ".join(f"{name} {count:,}" for name, count in unusual["weights"].items())
    total = (robust["about"]["processor_seconds"] + unusual["about"]["processor_seconds"]) / 60
    count = len(robust["about"]["seeds"])
    return f"Weights: {sizes}. Processor time of a training: {times}. Everything, {count} seeds: {total:.0f} minutes of one core."


def _listed(what: str, keys: list[str]) -> str:
    return f"; {what} {', '.join(f'{NORMS[key.split()[0]]} {_radius(key)}' for key in keys)}" if keys else ""


def _radii(found: dict[str, Any], norm: str) -> list[str]:
    return [key for key in found["softmax"] if key.startswith(f"{norm} ")]


def _radius(key: str) -> str:
    return format_number(float(key.split()[1]), 2)


def _spread(figure: dict[str, float]) -> str:
    return f"{_n(figure['mean'])} ± {_n(figure['deviation'])}"


def _n(value: float) -> str:
    return format_number(value)


def _read(name: str) -> Any:
    return read_json(IMPLICIT.results / f"{name}.json")
