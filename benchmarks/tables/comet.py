"""The tables of `docs/results/comet-2021.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table, mean
from benchmarks.papers.experiment import COMET

Rows = Sequence[Mapping[str, Any]]


def blocks() -> Blocks:
    """Returns the functions of all blocks."""
    return {"objects": objects, "recombination": recombination, "larger scenes": larger_scenes, "factors": factors}


def objects() -> str:
    """Returns the agreement of masks with objects: means over seeds, with the least and the highest."""
    found, windows, solids = (_read(name) for name in ("objects", "window-sprites", "window-objects"))
    rows = [{**row, "world": row["plan"].rpartition("-")[0]} for row in (*found["rows"], *windows["masks"])]
    rows += [{**row, "plan": "solids-window", "world": "solids"} for row in solids["masks"]]
    worlds = {**found["baselines"], "solids": solids["baselines"]}
    lines = []
    for plan in dict.fromkeys(row["plan"] for row in rows):
        some = [row for row in rows if row["plan"] == plan]
        floor = max(worlds[some[0]["world"]][name] for name in ("quadrants", "k-means"))
        scores = [row["FG-ARI"] for row in some]
        spread = f"{_n(mean(some, 'FG-ARI'))} ({_n(min(scores))} to {_n(max(scores))})"
        lines.append([f"`{plan}`", f"{mean(some, 'seconds') / 60:.1f}", spread, _n(floor)])
    paper = _read("published")["objects on CLEVR"]
    lines += [[f"paper, CLEVR: {name}", "", _n(row["ARI"]), ""] for name, row in paper.items()]
    return markdown_table(["model", "minutes of a core", "FG-ARI, seeds", "highest baseline"], lines)


def recombination() -> str:
    """Returns the shares of right objects in recombined pictures: means over seeds."""
    runs = [(run["model"], run["rows"]) for run in _read("recombination")["runs"] + _read("window-sprites")["runs"]]
    runs.append(("solids-window", _read("window-objects")["recombined"]))
    lines = []
    for model in dict.fromkeys(model for model, _ in runs):
        rows = [row for name, some in runs if name == model for row in some]
        of = {kind: [row for row in rows if row["pictures"] == kind] for kind in ("rebuilt", "swapped", "before")}
        shares = [_n(mean(of["swapped"], key)) for key in ("shape", "color", "both")]
        others = [_n(mean(of[kind], "both")) for kind in ("rebuilt", "before")]
        lines.append([f"`{model}`", *shares, *others])
    return markdown_table(["model", "shape", "color", "both", "both, B reconstructed", "both, A before"], lines)


def larger_scenes() -> str:
    """Returns what is found in pictures that join objects, lights and worlds, beside the goals and renders."""
    goals, solids = _read("goals"), _read("window-objects")
    eight, light = solids["eight"], _read("light")["rows"]
    both = _read("two-worlds")["joined"]
    window = goals["window"]
    rows = [
        _line(
            "objects found of eight, from pictures of four", eight, "each found", "**joined**", "renders of all eight", window["each found"]
        ),
        _line("colors of objects under the light of another picture", light, "color", "swapped", "renders", goals["light"]["color"]),
        _line("degrees from that light", light, "light of B", "swapped", "renders", goals["light"]["degrees"], 1),
        _line("objects found of six, three from each of two models", both, "each found", "joined", "renders", None),
    ]
    return markdown_table(["measure", "mean", "worst seed", "goal", "renders"], rows)


def _line(name: str, rows: Rows, key: str, ours: str, renders: str, goal: float | None, digits: int = 3) -> list[str]:
    mine, best = ([row for row in rows if row["pictures"] == kind] for kind in (ours, renders))
    values = [row[key] for row in mine]
    worst = max(values) if digits == 1 else min(values)
    limit = "" if goal is None else format_number(goal, 2 if digits == 3 else 0)
    return [name, _n(mean(mine, key), digits), _n(worst, digits), limit, _n(mean(best, key), digits)]


def factors() -> str:
    """Returns the scores of factors, with the published ones below."""
    found, published = _read("factors"), _read("published")["factors on Falcor3D"]
    scores = [(protocol, score) for protocol in ("raw", "PCA 64") for score in ("BetaVAE", "MIG", "MCC")]
    titles = [f"{score}, {protocol}" for protocol, score in scores]
    lines = [[f"`{row['model']}`", _n(row["R2"][0]), *(_n(row[title][0], 1) for title in titles)] for row in found["table"]]
    for name, row in ((name, row) for name, row in published.items() if name != "seeds"):
        lines.append([f"paper: {name}", "", *(str(row.get(protocol, {}).get(score, "")) for protocol, score in scores)])
    return markdown_table(["model", "$R^2$", *titles], lines)


def _n(value: float, digits: int = 3) -> str:
    return format_number(value, digits)


def _read(name: str) -> Any:
    return read_json(COMET.results / f"{name}.json")
