"""The tables of `docs/results/compositional-2020.md` and `docs/results/comet-2021.md`."""

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import Blocks, code_cell, columns, format_number, markdown_table, mean, number, read_results

NOTS = {"bounded": 'bounded, `mode="contrast"`', "classifier": "`~` of the energies' classifier"}


def compositional() -> Blocks:
    functions = (table1, nots, ors, implication, recursion, several_objects, extrapolation, continual, inference, partition)
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
        ours = [format_number(found["rules"][rule][k]["scores"][part]) for rule in ("grounded", "grounded, weight 1", "weight 1")]
        chance, theirs = (format_number(some[text][part]) for some in (found["chance"], method))
        lines.append([code_cell(text), chance, paper, theirs, f"**{ours[0]}**", *ours[1:]])
    return markdown_table(["row", "chance", "paper", "its method, here", "**ours**", "ours, weight 1", "heads, weight 1"], lines)


def nots() -> str:
    cells = {
        "NOT": lambda row: NOTS.get(row["NOT"], f"$-{row['NOT']}$"),
        "position": number("position"),
        "not the color": number("& ~color"),
        "Frechet": number("Frechet of position & ~color", 1),
    }
    return columns(read_results("compositional-2020/paper_method")["not"], cells)


def ors() -> str:
    cells = {"scale $s$": lambda row: row["scale"], "either": number("either"), "first": number("first"), "second": number("second")}
    return columns([row for row in read_results("compositional-2020/paper_method")["or"] if "less" not in row["scale"]], cells)


def implication() -> str:
    cells = {"form": lambda row: f"`{row['way']}`", "weight": lambda row: f"{row['weight']:g}"}
    return columns(
        read_results("compositional-2020/implication")["rows"], cells | {"holds": number("holds"), "holds for renders": number("chance")}
    )


def recursion() -> str:
    """Returns the table of nested expressions: means over those of a depth."""
    found = read_results("compositional-2020/recursion")
    by = {depth: [row for row in found["rows"] if row["depth"] == depth] for depth in sorted({row["depth"] for row in found["rows"]})}
    lines = [
        [str(depth), str(len(rows)), *(format_number(mean(rows, key)) for key in ("holds", "weight 1", "chance"))]
        for depth, rows in by.items()
    ]
    return markdown_table(["depth", "expressions", f"weight {found['weight']:g}", "weight 1", "chance"], lines)


def several_objects() -> str:
    """Returns the table of conjunctions of positions, and of the maps of two cubes."""
    found = read_results("compositional-2020/several_objects")
    rows = [{**row, "what": f"{row['objects']} objects, {row['pictures']}"} for row in found["rows"]]
    cells = {"what": lambda row: row["what"], "all found": number("all found"), "goal": number("target", 2)}
    maps = {f"two cubes by the map of energies, {row['places']}": row["both"] for row in found["two cubes"]}
    rows += [{"what": name, "all found": value} for name, value in maps.items()]
    return columns([row for row in rows if "coded" not in row["what"]], cells)


def extrapolation() -> str:
    """Returns the sums of the errors of position and size by the share of positions that have all sizes."""
    rows = read_results("compositional-2020/extrapolation")["rows"]
    ratios, rules = dict.fromkeys(row["ratio"] for row in rows), dict.fromkeys(row[""] for row in rows)
    known = {(row["ratio"], row[""]): row["sum"] for row in rows}
    lines = [[rule, *(format_number(known[ratio, rule]) for ratio in ratios)] for rule in rules]
    return markdown_table(["sum of errors", *(f"{ratio:.0%} of positions" for ratio in ratios)], lines)


def continual() -> str:
    rows = [row for row in read_results("compositional-2020/continual")["rows"] if row["after"] == "color"]
    return columns(rows, {"method": lambda row: row[""], **{key: number(key) for key in ("position", "shape", "color", "joint")}})


def inference() -> str:
    names = {"heads": "heads", "conditional": "conditional energies", "supervised": "supervised", "chance": "chance"}
    cells = {"condition": lambda row: row["condition"], **{title: number(name) for name, title in names.items()}}
    return columns(read_results("compositional-2020/inference")["one picture"], cells)


def partition() -> str:
    """Returns the shares of the branches of mixtures that ask for equal ones."""
    cells = {"branches": lambda row: row["branches"], "without `calibrate`": number("as it is"), "with": number("calibrated")}
    return columns([row for row in read_results("compositional-2020/partition")["rows"] if row["requested"] == 0.5], cells)


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
        of = {kind: [row for row in rows if row["pictures"] == kind] for kind in ("rebuilt", "swapped", "before")}
        shares = [format_number(mean(of["swapped"], key)) for key in ("shape", "color", "both")]
        others = [format_number(mean(of[kind], "both")) for kind in ("rebuilt", "before")]
        lines.append([f"`{model}`", *shares, *others])
    return markdown_table(["model", "shape", "color", "both", "both, B reconstructed", "both, A before"], lines)


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
    lines = [
        [f"`{row['model']}`", format_number(row["R2"][0]), *(format_number(row[title][0], 1) for title in titles)] for row in found["table"]
    ]
    for name, row in ((name, row) for name, row in published.items() if name != "seeds"):
        lines.append([f"paper: {name}", "", *(str(row.get(protocol, {}).get(score, "")) for protocol, score in scores)])
    return markdown_table(["model", "$R^2$", *titles], lines)
