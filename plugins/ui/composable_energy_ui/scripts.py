"""The same samples on the command line and in Python."""

from __future__ import annotations

import keyword
import re
import shlex
from collections.abc import Mapping, Sequence

import composable_energy as ce
from composable_energy_cli.names import DEFAULT_FAMILY, Names
from composable_energy_cli.parsing import Name, parse
from composable_energy_ui.orders import Order

_TAKEN = {"ce", "torch", "E", "start", "noise", "points", "samples"}


def command_line(order: Order, energy: ce.Energy, pictures: bool) -> str:
    """Returns the command that draws the same; empty for an edited image, which the command line cannot start from."""
    if order.edit is not None:
        return ""
    words = ["composable-energy", "sample", order.text, "-n", str(order.n), "--seed", str(order.seed)]
    if order.family not in (None, DEFAULT_FAMILY):
        words += ["--in", order.family]
    for name, value in order.options(energy).items():
        words += [f"--{name}", str(value)] if name in ("sampler", "steps") else ["--option", f"{name}={value}"]
    if order.sharpen != 1:
        words += ["--sharpen", f"{order.sharpen:g}"]
    for name, text in order.given.items():
        words += ["--given", f"{name}={text.replace(' ', '')}"]
    words += ["--untrained"] if order.untrained else []
    return shlex.join([*words, "-o", "samples.png" if pictures else "samples.npy"])


def python_lines(orders: Sequence[Order], energies: Sequence[ce.Energy]) -> str:
    """Returns the lines of Python that draw the same, for an order after those whose images it starts from."""
    names, lines = _identifiers(orders), []
    for order, energy in zip(orders, energies, strict=True):
        lines += _sample_lines(order, energy, names, "samples" if order is orders[-1] else "points")
    loads = [f"{name} = ce.load({source!r})" for source, name in names.items()]
    return "\n".join([*["import torch", ""] * (len(orders) > 1), "import composable_energy as ce", "", *loads, *lines])


def _sample_lines(order: Order, energy: ce.Energy, names: Mapping[str, str], result: str) -> list[str]:
    """Returns the lines of one order; a result that another order starts from is kept in the space of the chains."""
    lines, options = [], [f"{order.n}", f"seed={order.seed}"]
    if order.edit is not None:
        strength = f"{order.edit.strength:g}"
        lines.append(f"start = points[{order.edit.index}].expand({order.n}, *points.shape[1:])")
        if "sigma" in energy.conditions:
            lines.append(f"noise = torch.randn(start.shape, generator=torch.Generator().manual_seed({order.seed}))")
            options.append(f"init=start + {strength} * noise")
        else:
            options.append("init=start")
    options += [f"{name}={value!r}" for name, value in order.options(energy).items()]
    expression = _renamed(order, names)
    latent = ".latents" if result == "points" else ""
    given = ", ".join(f"{name}={value}" for name, value in order.conditions.items())
    methods = f".given({given})" * bool(given) + f".sharpened({order.sharpen:g})" * (order.sharpen != 1)
    expression = f"({expression}){methods}" if methods and not expression.isidentifier() else f"{expression}{methods}"
    return [f"E = {expression}", *lines, f"{result} = E{latent}.sample({', '.join(options)})"]


def _identifiers(orders: Sequence[Order]) -> dict[str, str]:
    """Returns a Python identifier for what each name loads."""
    found: dict[str, str] = {}
    for order in orders:
        for leaf in parse(order.text).names:
            if (source := _source(order, leaf)) not in found:
                word = re.sub(r"\W+", "_", source.rsplit("/", 1)[-1]).strip("_")
                word = word if word.isidentifier() and not keyword.iskeyword(word) else f"energy_{word}"
                while word in _TAKEN or word in found.values():
                    word += "_"
                found[source] = word
    return found


def _source(order: Order, leaf: Name) -> str:
    """Returns what `ce.load` takes for a name."""
    source = Names(order.family).locate(leaf)
    return leaf.name if callable(source) else str(source)


def _renamed(order: Order, names: Mapping[str, str]) -> str:
    """Returns the expression in one line of Python, with identifiers for names."""
    parts, at = [], 0
    for leaf in parse(order.text).names:
        parts += [order.text[at : leaf.place.start], names[_source(order, leaf)]]
        at = leaf.place.end
    return " ".join("".join([*parts, order.text[at:]]).split())
