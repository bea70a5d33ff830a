"""The tables of `docs/results/compositional-2020.md` and `docs/results/comet-2021.md`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import Blocks, code_cell, columns, format_number, markdown_table, mean, number, read_results

FORMS = ("denied together", "by classifiers apart", "modus ponens, c8 & (c8 >> P)")
NOTS = {"bounded": 'bounded, `mode="contrast"`', "classifier": "`~` of the energies' classifier"}


def compositional() -> Blocks:
    functions = (table1, nots, nested_expressions, several_objects, extrapolation, continual)
    return {function.__name__.replace("_", " "): function for function in functions}


def table1() -> str:
    """Returns the shares of pictures with all that a row asks for."""
    method = {row["row"]: row["scores"] for row in read_results("compositional-2020/paper_method")["table"]}
    found, lines = read_results("compositional-2020/table1"), []
    for k, row in enumerate(found["rules"]["grounded"]):
        text = row["text"]
        part = "joint" if "joint" in row["scores"] else next(iter(row["scores"]))
        published = [value for value in found["paper"][text] if value is not None]
        paper = format_number(published[-1]) if len(published) in (1, 3) else " and ".join(map(format_number, published))
        ours = [format_number(found["rules"][rule][k]["scores"][part]) for rule in ("grounded", "grounded, weight 1")]
        chance, theirs = (format_number(some[text][part]) for some in (found["chance"], method))
        lines.append([code_cell(text), chance, paper, theirs, f"**{ours[0]}**", *ours[1:]])
    return markdown_table(["row", "chance", "paper", "its method, here", "**ours**", "ours, weight 1"], lines)


def nots() -> str:
    cells = {
        "NOT": lambda row: NOTS.get(row["NOT"], f"$-{row['NOT']}$"),
        "position": number("position"),
        "not the color": number("& ~color"),
    }
    rows = read_results("compositional-2020/paper_method")["not"]
    return columns([rows[0], *rows[3:]], cells)


def nested_expressions() -> str:
    """Returns the shares of pictures for which implications hold, and the means over the nested expressions of a depth."""
    found = read_results("compositional-2020/recursion")["rows"]
    forms = [row for row in read_results("compositional-2020/implication")["rows"] if row["way"] in FORMS]
    lines = []
    for way in FORMS:
        holds = {row["weight"]: format_number(row["holds"]) for row in forms if row["way"] == way}
        chance = next(row["chance"] for row in forms if row["way"] == way)
        lines.append([f"`{way}`", holds[8], holds.get(1, ""), format_number(chance)])
    for depth in sorted({row["depth"] for row in found}):
        rows = [row for row in found if row["depth"] == depth]
        name = f"nested, depth {depth}, mean of {len(rows)}"
        lines.append([name, *(format_number(mean(rows, key)) for key in ("holds", "weight 1", "chance"))])
    return markdown_table(["expression", "weight 8", "weight 1", "chance"], lines)


def several_objects() -> str:
    """Returns the shares of pictures that have an object at each requested place."""
    lines = []
    for count in (2, 3):
        rows = read_results("compositional-2020/several_objects")["rows"]
        some = {row["pictures"].partition(":")[0]: row for row in rows if row["objects"] == count}
        kinds = [some["sampled, weight 8"], some["sampled, weight 1"], some["renders"], some["chance"]]
        lines.append([str(count), *(format_number(row["all found"]) for row in kinds), format_number(kinds[0]["target"], 2)])
    return markdown_table(["objects", "weight 8", "weight 1", "renders", "places of another picture", "goal"], lines)


def extrapolation() -> str:
    """Returns the sums of the errors of position and size by the share of positions that have all sizes."""
    rows = read_results("compositional-2020/extrapolation")["rows"]
    ratios, rules = dict.fromkeys(row["ratio"] for row in rows), dict.fromkeys(row[""] for row in rows)
    known = {(row["ratio"], row[""]): row["sum"] for row in rows}
    lines = [[rule, *(format_number(known[ratio, rule]) for ratio in ratios)] for rule in rules]
    return markdown_table(["sum of errors", *(f"{ratio:.0%} of positions" for ratio in ratios)], lines)


def continual() -> str:
    rows = [row for row in read_results("compositional-2020/continual")["rows"] if row["after"] == "color" and "better" not in row[""]]
    return columns(rows, {"method": lambda row: row[""], **{key: number(key) for key in ("position", "shape", "color", "joint")}})


Rows = Sequence[Mapping[str, Any]]


def comet() -> Blocks:
    return {"objects": objects, "recombination": recombination, "larger scenes": larger_scenes, "factors": factors}


def objects() -> str:
    """Returns the agreement of masks with objects: means over seeds, with the least and the highest."""
    found = read_results("comet-2021/objects")
    rows, lines = found["rows"], []
    for plan in dict.fromkeys(row["plan"] for row in rows):
        some = [row for row in rows if row["plan"] == plan]
        floor = max(found["baselines"][plan.rpartition("-")[0]][name] for name in ("quadrants", "k-means"))
        scores = [row["FG-ARI"] for row in some]
        spread = f"{format_number(mean(some, 'FG-ARI'))} ({format_number(min(scores))} to {format_number(max(scores))})"
        lines.append([f"`{plan}`", f"{mean(some, 'seconds') / 60:.1f}", spread, format_number(floor)])
    paper = read_results("comet-2021/published")["objects on CLEVR"]
    lines += [[f"paper, CLEVR: {name}", "", format_number(row["ARI"]), ""] for name, row in paper.items()]
    return markdown_table(["model", "minutes of a core", "FG-ARI, seeds", "highest baseline"], lines)


def recombination() -> str:
    """Returns the shares of right objects in recombined pictures: means over seeds."""
    runs = [(run["model"], run["rows"]) for run in read_results("comet-2021/recombination")["runs"]]
    lines = []
    for model in dict.fromkeys(model for model, _ in runs):
        rows = [row for name, some in runs if name == model for row in some]
        swapped, rebuilt = ([row for row in rows if row["pictures"] == kind] for kind in ("swapped", "rebuilt"))
        shares = [format_number(mean(swapped, key)) for key in ("shape", "color", "both")]
        lines.append([f"`{model}`", *shares, format_number(mean(rebuilt, "both"))])
    return markdown_table(["model", "shape", "color", "both", "both, B reconstructed"], lines)


def larger_scenes() -> str:
    """Returns what is found in pictures that join objects, lights and worlds, beside the goals and renders."""
    goals, solids = read_results("comet-2021/goals"), read_results("comet-2021/window-objects")
    eight, light = solids["eight"], read_results("comet-2021/light")["rows"]
    both = read_results("comet-2021/two-worlds")["joined"]
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
    return [name, format_number(mean(mine, key), digits), format_number(worst, digits), limit, format_number(mean(best, key), digits)]


def factors() -> str:
    """Returns the scores of factors, with the published ones below."""
    found, published = read_results("comet-2021/factors"), read_results("comet-2021/published")["factors on Falcor3D"]
    scores = [(protocol, score) for protocol in ("raw", "PCA 64") for score in ("BetaVAE", "MIG", "MCC")]
    titles = [f"{score}, {protocol}" for protocol, score in scores]
    betas = [row for row in found["table"] if row["model"].startswith("beta")]
    rows = [{**row, "model": f"`{row['model']}`"} for row in found["table"] if row not in betas]
    rows.insert(2, {"model": "best of four beta-VAEs, each score", **{key: [max(row[key][0] for row in betas)] for key in ("R2", *titles)}})
    lines = [[row["model"], format_number(row["R2"][0]), *(format_number(row[title][0], 1) for title in titles)] for row in rows]
    for name, row in ((name, row) for name, row in published.items() if name != "seeds"):
        lines.append([f"paper: {name}", "", *(str(row.get(protocol, {}).get(score, "")) for protocol, score in scores)])
    return markdown_table(["model", "$R^2$", *titles], lines)
