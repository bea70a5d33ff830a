"""Draws the layers of the library from its imports.

python docs/gallery/architecture.py
"""

import re
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import grimp
import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent.parent
CORE = "composable_energy"
PICTURE = ROOT / "docs" / "img" / "architecture.png"
INK, CORE_FILL, PACKAGE_FILL = "#303f9f", "#e8eaf6", "#fff3e0"
WIDTH, HEIGHT, GAP, PAD = 100.0, 5.2, 0.7, 1.1
LONGEST_ROW, LETTERS = 9, 6.5  # boxes; points of a letter by its share of a box
# Bands of layers from top to bottom, with the first name of each.
BANDS = {
    "packages": "composable_energy_comet",
    "people": "__main__",
    "processes": "distributed",
    "sampling": "sampling",
    "files": "files",
    "expressions": "algebra",
    "ground": "lazy",
}


def bands():
    """Returns the names in each band, by the contracts of import-linter."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    found = {}
    for contract in settings["tool"]["importlinter"]["contracts"]:
        found["containers" in contract] = contract["layers"]
    layers = [*found[False][:-1], *found[True]]  # packages stand on the core
    names = [name for layer in layers for name in re.split(r" [|:] ", layer)]
    starts = [*map(names.index, BANDS.values()), len(names)]
    ranges = zip(BANDS, pairwise(starts), strict=True)
    return {title: names[first:last] for title, (first, last) in ranges}


def name_of(module):
    """Returns the file or folder of a module of the core, else its package."""
    head, *rest = module.split(".")
    return rest[0] if head == CORE and rest else head


def files():
    """Returns the lines of each file by the name of its file, folder or package."""
    tops = [ROOT / CORE, *sorted((ROOT / "plugins").glob(f"[!_]*/{CORE}_*"))]
    found = {}
    for path in (path for top in tops for path in sorted(top.rglob("*.py"))):
        top = next(top for top in tops if path.is_relative_to(top))
        module = path.relative_to(top.parent).with_suffix("").as_posix()
        count = len(path.read_text(encoding="utf-8").splitlines())
        found.setdefault(name_of(module.replace("/", ".")), {})[module] = count
    return found


def imports(names):
    """Returns how many modules of one name import another; doors of Energy left out."""
    packages = [CORE, *(name for name in names if name.startswith(f"{CORE}_"))]
    graph = grimp.build_graph(*packages, exclude_type_checking_imports=True)
    counts = Counter()
    for module in graph.modules - {CORE, f"{CORE}.energy"}:
        for other in graph.find_modules_directly_imported_by(module):
            counts[name_of(module), name_of(other)] += 1
    return {pair: count for pair, count in counts.items() if {*pair} <= names}


def draw_row(axes, y, row, sizes):
    """Draws boxes beside each other, wider for more lines."""
    shares = [sizes[name] ** 0.5 + 20 for name in row]
    scale, x = (WIDTH - GAP * (len(row) - 1)) / sum(shares), 0.0
    for name, share in zip(row, shares, strict=True):
        width, middle = share * scale, x + share * scale / 2
        fill = PACKAGE_FILL if name.startswith(f"{CORE}_") else CORE_FILL
        style = "round,pad=0,rounding_size=.6"
        box = FancyBboxPatch((x, y), width, HEIGHT, style, fc=fill, ec=INK, lw=0.6)
        axes.add_patch(box)
        label = name.removeprefix(f"{CORE}_").strip("_")
        label = label.replace("_", "\n") if len(label) > 9 else label
        center = {"ha": "center", "va": "center"}
        longest = max(map(len, label.split("\n")))
        largest = 5.6 if "\n" in label else 6.5
        size = min(largest, LETTERS * width / longest)
        axes.text(middle, y + 3.3, label, fontsize=size, color=INK, **center)
        axes.text(
            middle, y + 0.9, f"{sizes[name]:,}", fontsize=5, color="#555", **center
        )
        x += width + GAP


def draw(groups, sizes, counts):
    """Draws the bands, and an arrow for the imports between each two of them."""
    figure, axes = plt.subplots(figsize=(10, 6))
    band = {name: title for title, names in groups.items() for name in names}
    y, middles = 0.0, {}
    for title, names in groups.items():
        count = -(-len(names) // -(-len(names) // LONGEST_ROW))
        rows = [names[i : i + count] for i in range(0, len(names), count)]
        height = len(rows) * (HEIGHT + GAP) - GAP
        frame = FancyBboxPatch(
            (0, y - height),
            WIDTH,
            height,
            f"round,pad={PAD}",
            fc="white",
            ec=INK,
            lw=0.6,
        )
        axes.add_patch(frame)
        middles[title] = y - height / 2
        axes.text(-PAD - 1, middles[title], title, ha="right", va="center", color=INK)
        for row in rows:
            draw_row(axes, y - HEIGHT, row, sizes)
            y -= HEIGHT + GAP
        y -= 2 * PAD + GAP
    between = Counter()
    for (name, other), count in counts.items():
        between[band[name], band[other]] += count
    titles = list(groups)
    for (upper, lower), count in between.items():
        span = titles.index(lower) - titles.index(upper)
        if span < 0:
            raise SystemExit(f"{upper} is imported by {lower}: the order is wrong.")
        if span:
            start = (WIDTH + PAD, middles[upper] - 0.3 * span)
            end = (WIDTH + PAD, middles[lower] + 0.3 * (len(titles) - span))
            bend = f"arc3,rad={-0.14 - 0.05 * span}"
            look = {"arrowstyle": "-|>", "mutation_scale": 6, "color": INK}
            width = 0.3 + count / 120
            arrow = FancyArrowPatch(start, end, connectionstyle=bend, lw=width, **look)
            axes.add_patch(arrow)
    axes.set_xlim(-16, WIDTH + 16)
    axes.set_ylim(y, PAD + 1)
    axes.axis("off")
    figure.savefig(PICTURE, dpi=150, bbox_inches="tight")


def main():
    """Draws the picture."""
    groups, found = bands(), files()
    sizes = {name: sum(modules.values()) for name, modules in found.items()}
    draw(groups, sizes, imports({name for names in groups.values() for name in names}))


if __name__ == "__main__":
    main()
