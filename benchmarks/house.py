"""Measures how much there is to read and how far one call travels: `python -m benchmarks.house` fails where a number exceeds its limit.

The limits are today's numbers with little room. Whoever makes a number smaller lowers its limit.
"""

import ast
import importlib
import inspect
import re
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import composable_energy as ce

ROOT = Path(__file__).resolve().parents[1]
CORE = ROOT / "composable_energy"
LIMITS = {
    "core: lines": 14_020,
    "core: files": 65,
    "core: modules beside the packages": 6,
    "core: files in circles of imports": 8,
    "core: context variables": 1,
    "core: lines of the longest file": 420,
    "core: lines of the longest function, without docstring": 60,
    "plug-ins: lines without tests": 32_883,
    "plug-ins: core names they import": 110,
    "benchmarks: lines": 10_915,
    "tests: lines": 27_808,
    "docs: words": 59_976,
    "sample(): keywords": 14,
    "ce.__all__": 31,
    "a call with langevin: functions of the core": 190,
    "a call with langevin: files of the core": 30,
    "a call with the default sampler: functions of the core": 190,
    "a call with the default sampler: files of the core": 30,
    "a Langevin step: Python calls": 60,
}


def _sources(*folders: str, tests: bool) -> list[Path]:
    """Returns the Python files in folders, those of tests or all others."""
    found = (path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return sorted(path for path in found if ("tests" in path.relative_to(ROOT).parts) is tests)


def _lines(paths: Iterable[Path]) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in paths)


def _imports(path: Path) -> set[tuple[str, str]]:
    """Returns the modules of the core, with a name of each, that a file imports: at the top, late, or for types alone."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    froms = (node for node in nodes if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == CORE.name)
    return {(str(node.module), alias.name) for node in froms for alias in node.names}


def _files_in_circles(paths: list[Path]) -> int:
    """Returns the number of files that import each other, directly or by others."""
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    graph: dict[str, set[str]] = {}
    for name, path in names.items():
        found = {f"{module}.{part}" if f"{module}.{part}" in names else module for module, part in _imports(path)}
        graph[name] = found & set(names) - {name}
    reach = {name: _reachable(graph, name) for name in graph}
    return sum(name in reach[name] for name in graph)


def _reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    found, open_ = set[str](), set(graph[start])
    while open_:
        found |= open_
        open_ = set[str]().union(*(graph[name] for name in open_)) - found
    return found


def _longest_function(paths: Iterable[Path]) -> int:
    nodes = (node for path in paths for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    functions = (node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))
    return max(
        (node.end_lineno or 0) - node.lineno + 1 - len((ast.get_docstring(node, clean=False) or "").splitlines()) for node in functions
    )


def _pass(steps: int, **options: Any) -> tuple[set[tuple[str, int]], int]:
    """Returns the functions of the core that a call of `sample` passes, as file and line, and the number of all Python calls."""
    passed: set[tuple[str, int]] = set()
    calls = 0

    def profile(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        if event == "call":
            calls += 1
            code = frame.f_code
            if code.co_filename.startswith(str(CORE)):
                passed.add((code.co_filename, code.co_firstlineno))

    sys.setprofile(profile)
    try:
        left = ce.as_energy(torch.distributions.Normal(torch.zeros(2), 1.0))
        right = ce.as_energy(lambda x: (x - 1).square().sum(1), event_shape=(2,))
        (left & ~right).sample(64, seed=0, steps=steps, **options)
    finally:
        sys.setprofile(None)
    return passed, calls


def measure() -> dict[str, int]:
    """Returns the numbers by the names of their limits."""
    core, plugins = _sources(CORE.name, tests=False), _sources("plugins", tests=False)
    text = "\n".join(path.read_text(encoding="utf-8") for path in core)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ce.SamplingWarning)  # of runs this short
        _pass(2, sampler="langevin", step_size=0.1)  # what is imported late is imported now
        langevin, few = _pass(5, sampler="langevin", step_size=0.1)
        _, many = _pass(205, sampler="langevin", step_size=0.1)
        default, _ = _pass(5)
    keywords = [p for p in inspect.signature(ce.Energy.sample).parameters.values() if p.kind is p.KEYWORD_ONLY]
    numbers = [
        _lines(core),
        len(core),
        sum(path.parent == CORE and not path.name.startswith("__") for path in core),
        _files_in_circles(core),
        len(re.findall(r"\bContextVar\(|\bthreading\.local\(", text)),
        max(_lines([path]) for path in core),
        _longest_function(core),
        _lines(plugins),
        len({pair for path in plugins for pair in _imports(path)}),
        _lines(_sources("benchmarks", tests=False)),
        _lines(_sources("tests", "plugins", tests=True)),
        sum(len(path.read_text(encoding="utf-8").split()) for path in (ROOT / "docs").rglob("*.md")),
        len(keywords),
        len(importlib.import_module(CORE.name).__all__),
        len(langevin),
        len({file for file, _ in langevin}),
        len(default),
        len({file for file, _ in default}),
        round((many - few) / 200),
    ]
    return dict(zip(LIMITS, numbers, strict=True))


def main() -> int:
    """Prints the numbers beside their limits; returns 1 if one exceeds its limit."""
    found = measure()
    for name, number in found.items():
        print(f"{name:<55} {number:>7,}  limit {LIMITS[name]:>7,}{'  EXCEEDED' if number > LIMITS[name] else ''}")
    return int(any(number > LIMITS[name] for name, number in found.items()))


if __name__ == "__main__":
    sys.exit(main())
