"""The tables of `docs/samplers.md`, `docs/results/posteriors.md` and `docs/results/discrete.md`."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.pages import Blocks, code_cell, columns, format_number, markdown_table, number, read_results, short
from benchmarks.posteriors.accuracy import NUTS, OURS, verdict
from benchmarks.posteriors.targets import get_target

LEAST = 100  # effective draws, below which costs mean little
Rows = Sequence[Mapping[str, Any]]


def blocks() -> Blocks:
    return {"which sampler": which_sampler}


def which_sampler() -> str:
    """Returns the table of what one has, the sampler to take, and what was measured."""
    rows = [
        ["a density, such as a posterior: the default", "`chees`", _default()],
        ["equal scales, a short run", "`hmc`", _steps("hmc")],
        ["equal scales, cheap exact steps", "`mala`", _steps("mala")],
        ["images or scores, where a bias is acceptable", "`langevin`", _biased("langevin", "gaussian, bias of 0.3, T 1.0")],
        ["the same in long valleys", "`underdamped`", _biased("underdamped", "gaussian, bias of 0.6, T 1.0")],
        ["[well-separated modes](#well-separated-modes)", "`tempering`", _modes("tempering")],
        ["the same in one pass, and $\\log Z$", "`smc`", _modes("smc")],
        ["[noise levels](diffusion.md#samplers), one model", "`sde`, `ode`", f"`sde`, {_levels('sde', 40)}; `ode`, {_levels('ode', 40)}"],
        ["noise levels, an expression of values", "`annealed`", _levels("annealed", 160)],
        ["[an expression of scores](#expressions-of-scores), or weak evidence", "`feynman-kac`", _scores()],
        ["attributes of a [generator](tutorials/generators.md), many pictures fast", "`lace`, `draws=0`", _lace()],
    ]
    return markdown_table(["what you have", "sampler", "measured"], rows, align="---")


def noise_levels() -> Blocks:
    found = read_results("noise_levels")

    def bias() -> str:
        rows: dict[str, dict[int, str]] = {}
        for row in found["rows"]:
            rows.setdefault(row["sampler"], {})[row["evaluations"]] = f"{format_number(row['share'])} / {row['spread']:+.0%}"
        head = ["sampler", *map(str, list(next(iter(rows.values())))[::2])]
        return markdown_table(head, [[name, *list(cells.values())[::2]] for name, cells in rows.items()])

    def expressions() -> str:
        lines = [["exact", *(f"{mean:.2f}, {variance:.2f}" for mean, variance in found["exact"].values())]]
        for row in found["expressions"]:
            lines.append([row["sampler"], *(f"{cell['mean']:.2f}, {cell['variance']:.2f}" for cell in row["expressions"].values())])
        return markdown_table(["", *(f"`{name}`" for name in found["exact"])], lines)

    return {"bias": bias, "expressions": expressions}


def posteriors() -> Blocks:
    rows = read_results("posteriors")["rows"]
    return {"accuracy": lambda: accuracy(rows), "cost": lambda: cost(rows)}


def discrete() -> Blocks:
    found = read_results("discrete")

    def speed() -> str:
        def cell(key: str) -> Any:
            """Returns a figure; a bound where autocorrelation times exceed a tenth of the run: they are longer, and draws fewer."""
            measured = "{0:,.0f}" if "second" in key else "{0:.0f} ± {1:.0f}"
            bound = "< {0:,.1f}" if "second" in key else "> {0:.0f}"

            def text(row: Mapping[str, Any]) -> str:
                bounded = row["energy_sweeps"][0] > found["sweeps"][row["library"]] / 10
                return (bound if bounded else measured).format(*(row[key] if "sweeps" in key else [row[key]]))

            return lambda row: row.get("error") or text(row)

        cells: dict[str, Any] = {
            "chains": lambda row: str(row["chains"]),
            "library": lambda row: f"{row['library']} {found.get(row['library'], '')}".strip(),
            "microseconds a chain and sweep": number("microseconds", 1),
            "effective energies a second": cell("energy_per_second"),
            "magnetizations a second": cell("magnetization_per_second"),
            "sweeps for an effective energy": cell("energy_sweeps"),
            "for a magnetization": cell("magnetization_sweeps"),
        }
        return columns(found["speed"], cells)

    def ratios() -> str:
        rows, lines = {(row["library"], row["chains"]): row for row in found["speed"]}, []
        for chains in (row["chains"] for row in found["speed"] if row["library"] == "thrml" and "error" not in row):
            mine, other = rows["composable-energy", chains], rows["thrml", chains]
            shares = (format_number(mine[f"{key}_per_second"] / other[f"{key}_per_second"], 2) for key in ("energy", "magnetization"))
            lines.append(f"{' and '.join(shares)} times THRML's with {chains} chains")
        return f"Effective energies and magnetizations a second are {', '.join(lines)}."

    def table(part: str, title: str, name: Any, text: str) -> str:
        lines = dict[str, dict[str, str]]()
        for row in found[part]:
            lines.setdefault(str(name(row)), {})[row["sampler"]] = text.format(**row)
        names = list(dict.fromkeys(row["sampler"] for row in found[part]))
        return markdown_table([title, *names], [[key, *(cells.get(name, "") for name in names)] for key, cells in lines.items()])

    return {
        "speed": speed,
        "ratios": ratios,
        "evaluations": lambda: table("evaluations", "coupling", lambda row: row["coupling"], "{evaluations[0]:.0f} ± {evaluations[1]:.0f}"),
        "errors": lambda: table(
            "accuracy", "model", lambda row: f"{code_cell(row['model'])} ({row['numbers']})", "{deviation:.1f} of {chance:.1f}"
        ),
    }


def accuracy(rows: Rows) -> str:
    """Returns the verdicts on the defaults by start, the calls with warnings, and the verdicts on NUTS."""
    lines = []
    for name in dict.fromkeys(row["row"] for row in rows if row["sampler"] == OURS):
        mine = [row for row in rows if row["row"] == name and row["sampler"] == OURS]
        verdicts = [_verdicts([row for row in mine if row["start"] == start]) for start in ("default", "zeros", "far")]
        warned = str(sum(bool(row["warnings"]) or "error" in row for row in mine))
        nuts = _verdicts([row for row in rows if row["row"] == name and row["sampler"] == NUTS])
        lines.append([get_target(name).title, *verdicts, warned, nuts])
    return markdown_table(["posterior", "default", "zeros", "far", "warned", NUTS], lines)


def _verdicts(rows: Rows) -> str:
    found = [verdict(row) for row in rows]
    errors = found.count("error")
    return "/".join(str(found.count(kind)) for kind in ("right", "undecided", "wrong")) + f", {errors} error" * bool(errors)


def cost(rows: Rows) -> str:
    """Returns the costs of an effective draw, tuning included: medians over seeds, from default starts."""
    samplers, lines = list(dict.fromkeys(row["sampler"] for row in rows)), []
    for name in dict.fromkeys(row["row"] for row in rows):
        cells = [get_target(name).title]
        for sampler in samplers:
            found = [row for row in rows if (row["row"], row["sampler"], row["start"]) == (name, sampler, "default")]
            known = [row for row in found if verdict(row) in ("right", "undecided") and row["ess"] >= LEAST]
            units = (("all_gradients_per_effective", 1), ("seconds_per_effective", 1000)) if known else ()
            cells.append("; ".join(short(factor * statistics.median(row[key] for row in known)) for key, factor in units) or "-")
        if set(cells[1:]) != {"-"}:
            lines.append(cells)
    return markdown_table(["gradients; milliseconds", *samplers], lines)


def _default() -> str:
    """Returns what `posteriors.json` says about the defaults."""
    rows = [row for row in read_results("posteriors")["rows"] if row["sampler"] == OURS and row["start"] == "default"]
    runs = {name: [row for row in rows if row["row"] == name] for name in dict.fromkeys(row["row"] for row in rows)}
    right = {name: some for name, some in runs.items() if {verdict(row) for row in some} == {"right"}}
    missed = [row for name, some in runs.items() if name not in right for row in some if verdict(row) != "right"]
    warned = "warned in all other runs" if all(row["warnings"] for row in missed) else "not warned in all other runs"
    costs = [statistics.median(row["all_gradients_per_effective"] for row in some) for some in right.values()]
    speeds = [1 / statistics.median(row["seconds_per_effective"] for row in some) for some in right.values()]
    return (
        f"[right on {len(right)} of {len(runs)} posteriors](results/posteriors.md), {warned}; {_range(speeds)} effective draws a second,"
        f" {_range(costs)} gradients for each with tuning"
    )


def _steps(sampler: str) -> str:
    rows = {row["sampler"]: row for row in read_results("quality")["rows"] if row["target"] == "perceptron"}
    costs, tunings = (
        {name: short(rows[name][key]) for name in (sampler, "chees")}
        for key in ("gradients_per_effective_sample", "tuning_gradients_per_chain")
    )
    return (
        f"a [network](benchmarks.md#effective-samples): {costs[sampler]} gradients for an effective draw after {tunings[sampler]} of tuning"
        f" (`chees` {costs['chees']} after {tunings['chees']})"
    )


def _biased(sampler: str, target: str) -> str:
    row = next(row for row in read_results("closed_forms")["rows"] if (row["name"], row["target"]) == (sampler, target))
    return f"{short(row['gradients_per_effective'])} gradients for an effective draw of a Gaussian"


def _modes(sampler: str) -> str:
    rows = {row["sampler"]: row for row in read_results("multimodal")["rows"] if row["target"] == "modes"}
    cost = (rows[sampler]["gradients"] + rows[sampler]["tuning_gradients"]) / 1e6
    error, default = (format_number(rows[name]["error"]) for name in (sampler, "chees"))
    return f"weights of four modes within {error} for {cost:.2f} M gradients (`chees` {default})"


def _levels(sampler: str, evaluations: int) -> str:
    row = next(row for row in read_results("noise_levels")["rows"] if (row["sampler"], row["evaluations"]) == (f"`{sampler}`", evaluations))
    wrong = f"shares within {format_number(row['share'])}, spread within {abs(row['spread']):.0%}"
    return f"{evaluations} gradients a draw: {wrong}"


def _scores() -> str:
    rows = read_results("score_expressions")["plane"].values()
    errors = [max(row[variant]["error"] for row in rows) for variant in ("weighted", "unweighted")]
    weighted, plain = map(format_number, errors)
    return f"shares of {len(rows)} expressions [within {weighted}](results/score-expressions.md) (without weights {plain})"


def _lace() -> str:
    rows = {(row["expression"], row["sampler"]): row for row in read_results("lace")["faces"]}
    fast, exact = rows["male & ~smiling", "lace, draws=0"], rows["male & ~smiling", "chees"]
    texts = [f"{format_number(row['accuracy'])} correct in {row['seconds']:.1f} s" for row in (fast, exact)]
    return f"`male & ~smiling`: {texts[0]}, [with too little variety](results/lace.md); `chees` {texts[1]}"


def _range(values: Sequence[float]) -> str:
    return f"{short(min(values))} to {short(max(values))}"
