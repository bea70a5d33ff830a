"""The blocks about factors on the page of the 2021 paper."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmarks.harness import read_json
from benchmarks.pages import Blocks, format_number, markdown_table
from benchmarks.papers.experiment import COMET

SCORES = [(protocol, score) for protocol in ("raw", "PCA 64") for score in ("BetaVAE", "MIG", "MCC")]


def blocks() -> Blocks:
    """Returns the functions of these blocks."""
    functions = (factors, factor_r2, factor_goals, factor_changes, swap_scores, style_shares, style_faces)
    kinds = {f"swaps, {kind}": (lambda kind=kind: swap_matrix(kind)) for kind in ("paper", "labelled")}
    return {function.__name__.replace("_", " "): function for function in functions} | kinds


def factors() -> str:
    """Returns the table of scores, with the published ones below."""
    rows = []
    for row in _read("factors")["table"]:
        cells = [_n(row["seconds"], 0), *(_pair(row.get(name), digits) for name, digits in (("MSE", 4), ("R2", 3)))]
        scores = [_pair(row[f"{score}, {protocol}"], 1) for protocol, score in SCORES]
        rows.append([f"`{row['model']}`", str(row["seeds"]), *cells, *scores])
    rows.append(["InfoGAN", "not run", *[""] * (3 + len(SCORES))])
    published = _read("published")["factors on Falcor3D"]
    for name in ("COMET", "best beta-VAE of six, each score", "InfoGAN"):
        scores = [str(published[name].get(protocol, {}).get(score, "")) for protocol, score in SCORES]
        rows.append([f"paper, Falcor3D: {name}", str(published["seeds"]), "", "", "", *scores])
    titles = [f"{score}, {protocol}" for protocol, score in SCORES]
    return markdown_table(["model", "seeds", "seconds", "error", "$R^2$", *titles], rows)


def factor_r2() -> str:
    """Returns the table of R2 of each factor, of the first seed."""
    result = _read("factors")
    runs = [run for run in result["runs"] if run["seed"] == result["about"]["seeds"][0]]
    names = list(runs[0]["R2 of each"])
    return markdown_table(["model", *names], [[f"`{run['model']}`", *(_n(run["R2 of each"][name]) for name in names)] for run in runs])


def factor_goals() -> str:
    """Returns the table of differences between COMET and the other rows."""
    names, rows = {True: "higher", False: "**lower**", None: "not separated"}, []
    for row in _read("factors")["goals"]:
        digits = 3 if row["score"] == "R2" else 1
        label = row["against"].replace(", ", "`, ") + ("`" if ", " not in row["against"] else "")
        score = {"R2": "$R^2$", "MCC": "MCC, PCA 64"}[row["score"]]
        rows.append([score, f"`{label}", _pair(row["difference"], digits), names[row["higher"]]])
    return markdown_table(["`comet-coarse`", "against", "difference", "COMET is"], rows)


def factor_changes() -> str:
    """Returns the lengths of the changes that factors make to pictures, and their largest cosines."""
    result = _read("factors")
    pictures, names, rows = result["pictures"], list(result["runs"][0]["R2 of each"]), []
    for k, name in enumerate(names):
        size, other = max((abs(value), other) for other, value in enumerate(pictures["cosines"][k]) if other != k)
        rows.append([name, _n(pictures["lengths"][k], 1), names[other], _n(size, 2), ""])
    rows.append(["all", "", "", "", _n(pictures["MCC"], 1)])
    return markdown_table(["factor", "length of its change", "most like the change of", "absolute cosine", "MCC of such codes"], rows)


def swap_matrix(kind: str) -> str:
    """Returns the shares of each component, of the first seed."""
    result = _read("swaps")
    run = next(run for run in result["runs"] if run["objective"] == kind)
    return _matrix(result["about"]["factors"], run)


def swap_scores() -> str:
    """Returns the scores of all models with swaps."""
    rows = [[run["objective"], str(run["seed"]), _n(run["MSE"], 4), *_isolation(run)] for run in _read("swaps")["runs"]]
    return markdown_table(["training", "seed", "error", *ISOLATION.values()], rows)


def style_shares() -> str:
    """Returns the table of attributes and style of faces in two styles."""
    result = _read("style-faces")
    extra = [[_n(a, 2), _n(b, 2)] for a, b in zip(result["R2"]["codes"], result["R2"]["pixels"], strict=True)]
    return _matrix(result["about"]["attributes"], result, ("$R^2$, codes", "$R^2$, pixels"), extra)


def style_faces() -> str:
    """Returns the table of faces with components of faces of the other style."""
    result = _read("style-faces")
    attributes = result["about"]["attributes"][:-1]
    names = ("style", "attributes", *attributes)
    rows = [[FACES.get(row["pictures"]) or _component(row["pictures"]), *(_n(row[name], 2) for name in names)] for row in result["rows"]]
    return markdown_table(["pictures", "style of A", "attributes of A", *attributes], rows)


def _component(name: str) -> str:
    component, _, moved = name.partition(", ")
    return f"A with {component} of B" + (", **in the style of A**" if moved else "")


FACES = {
    "A": "A itself",
    "A, rebuilt": "A, reconstructed",
    "all, moved": "A with all components of B, **in the style of A**",
    "B, rebuilt": "B, reconstructed",
}
ISOLATION = {
    "isolation": "isolation",
    "largest share": "largest share",
    "components used": "components used",
    "moved": "moved",
    "sum": "sum of a row",
}


def _isolation(run: dict[str, Any]) -> list[str]:
    digits = {"components used": 1, "moved": 2, "sum": 2}
    return [_n(run[name], digits.get(name, 3)) for name in ISOLATION]


def _matrix(names: Sequence[str], run: dict[str, Any], titles: Sequence[str] = (), extra: Sequence[Sequence[str]] = ()) -> str:
    rows = []
    for number, (name, shares, r2) in enumerate(zip(names, run["matrix"], run["R2 of the regressor"], strict=True)):
        cells = [f"**{_n(value, 2)}**" if value == max(shares) else _n(value, 2) for value in shares]
        rows.append([name, *(extra[number] if extra else ()), *cells, _n(r2, 2)])
    columns = [f"component {k + 1}" for k in range(len(run["matrix"][0]))]
    return markdown_table(["factor", *titles, *columns, "regressor's $R^2$"], rows)


def _pair(value: Sequence[float | None] | None, digits: int) -> str:
    if value is None:
        return ""
    mean, error = value
    return _n(mean or 0.0, digits) + ("" if error is None else f" ± {_n(error, digits)}")


def _n(value: float, digits: int = 3) -> str:
    return format_number(value, digits)


def _read(name: str) -> dict[str, Any]:
    return read_json(COMET.results / f"{name}.json")
