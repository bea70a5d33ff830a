"""The tables of the pages of results about training: `training.md`, `objectives.md`, `continual.md` and `robustness.md`."""

from collections.abc import Mapping
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any

from benchmarks.pages import Blocks, code_cell, columns, format_number, markdown_table, mean, number, read_results
from benchmarks.real.__main__ import FRECHET, KINDS

Row = Mapping[str, Any]
NORMS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}
RADII = {"linf": (0.1, 0.2), "l2": (0.5, 1)}
OWN = ("frechet of the buffer", "frechet of annealed", "frechet of its chains")
SETS = {"scikit-learn": "digits of 8 x 8", "digits": "digits of MNIST", "fashion": "Fashion-MNIST"}
PAPERS = {"energy": "[slides](https://arxiv.org/abs/1903.08689), Split MNIST: energies", "VAE": "slides, Split MNIST: VAE"}


def training() -> Blocks:
    return {"real": real, "edits": edits, "unseen": unseen, "contrastive": contrastive, "speed": speed}


def real() -> str:
    """Returns the mean shares of pictures that fulfil expressions, by a judge, the lowest at weight 1, and the mean distances."""
    lines = []
    for name, group in groupby(sorted(read_results("real")["rows"], key=itemgetter("set")), itemgetter("set")):
        rows = list(group)
        shares, distances = [row for row in rows if "weight 2" in row], [row for row in rows if row["row"] == FRECHET]
        least = min(shares, key=itemgetter("weight 1"))
        cells = [name, str(len(distances)), *(format_number(mean(shares, kind)) for kind in KINDS), format_number(least["weight 1"])]
        lines.append([*cells, code_cell(least["row"]), *(format_number(mean(distances, kind), 1) for kind in KINDS[:3])])
    return markdown_table(["set", "seeds", *KINDS, "lowest", "of", *(f"distance, {kind}" for kind in (*KINDS[:2], "drawn"))], lines)


def edits() -> str:
    """Returns the mean shares of edited pictures that fulfil what was asked, and how far they moved."""
    rows, lines = read_results("real")["rows"], []
    for what in dict.fromkeys(row["row"].removeprefix("edit ") for row in rows if row["row"].startswith("edit ")):
        same = [[row for row in rows if row["row"].startswith(start) and row["row"].endswith(what)] for start in ("edit ", "change ")]
        figures = (format_number(mean(some, kind), 2) for some in same for kind in KINDS[:3])
        lines.append([*map(code_cell, what.split(" to ")), *figures])
    changes = ("between two pictures", "by decoding", "by the edit")
    return markdown_table(["pictures", "to", "real", "before", "edited", *(f"change {by}" for by in changes)], lines)


def unseen() -> str:
    """Returns the shares of letters that have combinations which training never shows."""
    rows = [row for row in read_results("unseen")["rows"] if "&" in row["expression"]]
    return columns(rows, {"letters": lambda row: code_cell(row["expression"]), **{kind: number(kind, 3) for kind in list(rows[0])[2:]}})


def contrastive() -> str:
    """Returns the start, and the last row of each long run."""
    found = read_results("contrastive")
    rows = {"start of each": found["monitored"][0], **{f"`{run}`": found[run][-1] for run in found if run != "about"}}
    lines = [[name, f"{row['seconds'] / 60:.0f}", str(row["attempt"]), f"{row['frechet']:.2f}"] for name, row in rows.items()]
    lines.append(["other clothes", "", "", f"{found['about']['real against real']:.2f}"])
    return markdown_table(["run", "minutes", "returns to a checkpoint", "Frechet distance"], lines)


def speed() -> str:
    tasks, lines = {task: found for task, found in read_results("training_speed").items() if task != "about"}, []
    for task, found in tasks.items():
        ratios = [f" ({row['ours_is_faster_by']:.2f})" if "ours_is_faster_by" in row else "" for row in found.values()]
        lines.append([task, *(f"{row['images_per_second']:.0f}{ratio}" for row, ratio in zip(found.values(), ratios, strict=True))])
    return markdown_table(["pictures a second", *next(iter(tasks.values()))], lines)


def objectives() -> Blocks:
    return {kind: partial(_objectives, kind) for kind in ("digits", "faces")}


def _objectives(kind: str) -> str:
    found = read_results("objectives")["sets"][kind]

    def value(row: Row, name: str, digits: int) -> str:
        known = row["figures"].get(name)
        return "failed" if known is None else f"{known['mean']:.{digits}f} ± {known['deviation']:.{digits}f}"

    lines = []
    for name, row in sorted(found["objectives"].items(), key=lambda item: -item[1]["figures"]["log likelihood"]["mean"]):
        own = next((value(row, key, 2) for key in OWN if key in row["figures"]), "")
        lines.append([name, f"{row['figures']['steps']['mean']:,.0f}", value(row, "log likelihood", 1), value(row, "frechet", 2), own])
    likelihood = {"Gaussian": f"{found['log likelihood of the Gaussian']:.1f}"}
    lines += [[f"*{name}*", "", likelihood.get(name, ""), f"{distance:.2f}", ""] for name, distance in found["references"].items()]
    return markdown_table(["objective", "steps", "log likelihood", "Frechet distance of `smc`", "of its own sampler"], lines)


def continual() -> Blocks:
    return {"learners": learners, "from class to class": from_class_to_class}


def learners() -> str:
    """Returns the accuracies after tasks that come one after the other."""
    found = read_results("implicit-2019/continual")
    sets = found["sets"].values()
    rows = {name: [part["tasks"][name] for part in sets] for name in next(iter(sets))["tasks"]}
    rows["softmax, all pictures at once"] = [part["joint"] for part in sets]
    cells = [[name, *(f"{format_number(row['mean'])} ± {format_number(row['deviation'])}" for row in some)] for name, some in rows.items()]
    cells += [[PAPERS[name], "", format_number(share), ""] for name, (share, _) in found["paper"].items()]
    return markdown_table(["learner", *map(SETS.__getitem__, found["sets"])], cells)


def from_class_to_class() -> str:
    """Returns the table of chains that start at digits of other classes."""
    cells = {"steps": lambda row: f"{row['steps']:.0f}", "read as b": number("read as b"), "distance to the start": number("distance", 2)}
    return columns(read_results("implicit-2019/cross_class")["rows"], cells)


def robustness() -> Blocks:
    return {"accuracy": accuracy, "real areas": real_areas}


def accuracy() -> str:
    """Returns the accuracies over radii of both norms, of digits and of clothes."""
    found = read_results("implicit-2019/robustness")
    sets = {"digits": found["scikit-learn"]["accuracy"], "clothes": found["fashion"]["accuracy"]}
    keys = ["clean", *(f"{norm} {radius:g}" for norm, radii in RADII.items() for radius in radii)]
    lines = [[name, kind, *(format_number(row[key]["mean"]) for key in keys)] for name, some in sets.items() for kind, row in some.items()]
    return markdown_table(["set", "classifier", *map(_radius, keys)], lines)


def real_areas() -> str:
    """Returns the areas of pictures that are unusual for a real set."""
    rows = read_results("unusual")["rows"]
    cells = {"known": lambda row: row["set"], "score": lambda row: row["score"]}
    return columns(rows, cells | {kind: number(kind) for kind in list(rows[0])[2:-1]})


def _radius(key: str) -> str:
    norm, _, radius = key.partition(" ")
    return f"{NORMS[norm]} {format_number(float(radius), 2)}" if norm in NORMS else "no attack"
