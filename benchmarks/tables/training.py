"""The tables of the pages of results about training: `training.md`, `objectives.md`, `continual.md` and `robustness.md`."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from benchmarks.pages import Blocks, code_cell, columns, format_number, markdown_table, number, read_results
from benchmarks.real.__main__ import table

Row = Mapping[str, Any]
NORMS = {"linf": r"$\ell_\infty$", "l2": r"$\ell_2$"}
OWN = ("frechet of the buffer", "frechet of annealed", "frechet of its chains")
SETS = {"scikit-learn": "digits of 8 x 8", "digits": "digits of MNIST", "fashion": "Fashion-MNIST"}
PAPERS = {
    "energy": "[slides](https://arxiv.org/abs/1903.08689), Split MNIST: energies",
    "VAE": "slides, Split MNIST: VAE",
}


def training() -> Blocks:
    return {"real": real, "unseen": unseen, "contrastive": contrastive, "speed": speed}


def real() -> str:
    """Returns the shares of pictures that fulfil expressions, by a judge."""
    return table(read_results("real")["rows"])


def unseen() -> str:
    """Returns the shares of letters that have combinations which training never shows."""
    rows = read_results("unseen")["rows"]
    return columns(rows, {"letters": lambda row: code_cell(row["expression"]), **{kind: number(kind, 3) for kind in list(rows[0])[2:]}})


def contrastive() -> str:
    """Returns the first and the last row of each long run."""
    found = read_results("contrastive")
    lines = []
    for run in (run for run in found if run != "about"):
        for row in (found[run][0], found[run][-1]):
            lines.append([f"`{run}`", f"{row['step']:,}", f"{row['seconds'] / 60:.0f}", str(row["attempt"]), f"{row['frechet']:.2f}"])
    lines.append(["other drawn faces", "", "", "", f"{found['about']['real against real']:.2f}"])
    return markdown_table(["run", "step", "minutes", "returns to a checkpoint", "Frechet distance"], lines)


def speed() -> str:
    lines = []
    for task, found in ((task, found) for task, found in read_results("training_speed").items() if task != "about"):
        for name, row in found.items():
            faster = f"{row['ours_is_faster_by']:.2f}" if "ours_is_faster_by" in row else ""
            lines.append([task, name, f"{row['images_per_second']:.0f}", faster])
    return markdown_table(["step, pictures", "library", "pictures a second", "this library is faster by"], lines)


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
    return {"accuracy": accuracy, "what the attack sees": attacks, "calibration": calibration, "areas": areas, "real areas": real_areas}


def accuracy() -> str:
    """Returns the accuracies over radii of both norms."""
    found = read_results("implicit-2019/robustness")["scikit-learn"]["accuracy"]
    keys = ["clean", *_radii(found)]
    return markdown_table(
        ["", *map(_radius, keys)], [[name, *(format_number(row[key]["mean"]) for key in keys)] for name, row in found.items()]
    )


def attacks() -> str:
    """Returns the accuracies of refined classifiers by what the attack sees."""
    found, lines = read_results("implicit-2019/robustness")["scikit-learn"]["accuracy"], []
    keys = _radii(found)
    for name, row in ((name, row) for name, row in found.items() if f"{keys[0]} adaptive" in row):
        lines += [[name, kind, *(format_number(row[f"{key} {kind}"]["mean"]) for key in keys)] for kind in ("unaware", "adaptive")]
        lines.append([name, "both", *(format_number(row[key]["mean"]) for key in keys)])
    return markdown_table(["", "attack", *map(_radius, keys)], lines)


def calibration() -> str:
    """Returns the calibration errors before and after a temperature is fitted."""
    rows = read_results("implicit-2019/robustness")["scikit-learn"]["calibration"].items()
    keys = {"accuracy": "accuracy", "calibration error": "error", "after the fit": "fitted error"}
    return markdown_table(["", *keys], [[name, *(format_number(row[key]["mean"]) for key in keys.values())] for name, row in rows])


def areas() -> str:
    """Returns the areas under the ROC curve; the best of a kind are bold."""
    found = read_results("implicit-2019/out_of_distribution")["scores"]
    kinds = [kind for kind in next(iter(found.values())) if ", " not in kind]
    best = {kind: max(round(row[kind]["mean"], 3) for row in found.values()) for kind in kinds}
    lines = []
    for name, row in found.items():
        cells = {kind: round(row[kind]["mean"], 3) for kind in kinds}
        lines.append(
            [name, *(f"**{format_number(value)}**" if value == best[kind] else format_number(value) for kind, value in cells.items())]
        )
    return markdown_table(["score", *kinds], lines)


def real_areas() -> str:
    """Returns the areas of pictures that are unusual for a real set."""
    rows = read_results("unusual")["rows"]
    cells = {"known": lambda row: row["set"], "score": lambda row: row["score"]}
    return columns(rows, cells | {kind: number(kind) for kind in list(rows[0])[2:]})


def _radii(found: Mapping[str, Row]) -> list[str]:
    return [key for norm in NORMS for key in found["softmax"] if key.startswith(f"{norm} ")]


def _radius(key: str) -> str:
    norm, _, radius = key.partition(" ")
    return f"{NORMS[norm]} {format_number(float(radius), 2)}" if norm in NORMS else "no attack"
