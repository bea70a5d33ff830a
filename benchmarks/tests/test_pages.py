"""Every figure on a page of results comes from a file of results."""

import ast
import json
import re
from pathlib import Path

import pytest

from benchmarks.harness import ROOT
from benchmarks.pages import BLOCK, block_names, fill_page, format_number, markdown_table
from benchmarks.tables import DOCS, PAGES

SETTINGS = json.loads((ROOT / "benchmarks" / "papers" / "settings.json").read_text(encoding="utf-8"))
SOURCES = ("papers", "training")
NUMBER = re.compile(r"(?<![\w.])(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?:e-?\d+)?(?![\w])")


def page(name: str) -> str:
    return (DOCS / f"{name}.md").read_text(encoding="utf-8")


def outside_blocks(text: str) -> str:
    return BLOCK.sub("", text)


def prose(text: str) -> str:
    """Returns text without commands, names in code, formulas, and addresses; a figure in code or in a formula stays."""
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"`([^`]*)`", lambda match: match[1] if NUMBER.fullmatch(match[1]) else "", text)
    return re.sub(r"\$([^$]*)\$", lambda match: match[1] if NUMBER.fullmatch(match[1]) else "", text)


def numbers(text: str) -> list[str]:
    return [number for number in NUMBER.findall(text) if any(digit.isdigit() for digit in number)]


def texts(path: Path) -> list[str]:
    """Returns all texts of a module except docstrings, formats of numbers, keys, and the names of results."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    docstrings = {ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)}
    hidden = [node.format_spec for node in nodes if isinstance(node, ast.FormattedValue) and node.format_spec is not None]
    hidden += [node.slice for node in nodes if isinstance(node, ast.Subscript)]
    calls = [node for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)]
    hidden += [name for call in calls if call.func.id == "read_results" for name in call.args]
    skipped = {id(part) for node in hidden for part in ast.walk(node)}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in skipped]
    return [node.value for node in constants if isinstance(node.value, str) and node.value not in docstrings]


@pytest.mark.parametrize("name", PAGES)
def test_the_blocks_of_a_page_are_those_of_the_results(name):
    assert fill_page(page(name), PAGES[name]()) == page(name), "run `python -m benchmarks.tables`"


@pytest.mark.parametrize("path", sorted((DOCS / "results").glob("*.md")), ids=lambda path: path.stem)
def test_a_page_of_results_is_short_and_names_its_command(path):
    text = path.read_text(encoding="utf-8")
    assert f"results/{path.stem}" in PAGES and re.search(r"^ {4}.*python -m benchmarks", text, re.MULTILINE)
    assert len(re.sub(r"^\|.*$", "", text, flags=re.MULTILINE).split()) <= 800


@pytest.mark.parametrize("name", SETTINGS)
def test_a_number_outside_of_the_blocks_is_a_setting(name):
    found = set(numbers(prose(outside_blocks(page(f"results/{name}")))))
    unknown = sorted(found - SETTINGS[name].keys())
    assert not unknown, f"{unknown}: put figures into a block, and describe settings in benchmarks/papers/settings.json"
    assert not SETTINGS[name].keys() - found, "settings that the page does not have any more"


@pytest.mark.parametrize("source", SOURCES)
def test_the_source_of_a_block_has_no_figures(source):
    known = {number for settings in SETTINGS.values() for number in settings}
    for text in texts(ROOT / "benchmarks" / "tables" / f"{source}.py"):
        assert not set(numbers(prose(text))) - known, f"{source}: {text!r}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a share of .93 and 1,000 pictures", [".93", "1,000"]),
        ("took 29.4 minutes on 2 cores", ["29.4", "2"]),
        ("`x & 3`, `.5`, $a = 4$, $7$, [2111](2222) and conv2d of 16-quadratic", [".5", "7", "2111", "16"]),
        ("rate 3e-4.", ["3e-4"]),
    ],
)
def test_numbers_are_found_in_prose(text, expected):
    assert numbers(prose(text)) == expected


def test_a_changed_figure_is_noticed():
    text = page("results/training")
    changed = text.replace(".998", ".995", 1)
    assert changed != text and fill_page(changed, PAGES["results/training"]()) == text


def test_a_page_and_its_functions_have_the_same_blocks():
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb"
    assert block_names(text) == ["one"] and outside_blocks(text) == "a\n\nb"
    assert fill_page(text, {"one": lambda: "new"}) == "a\n<!-- one -->\n\nnew\n\n<!-- end -->\nb"
    with pytest.raises(ValueError, match="each needs the other"):
        fill_page(text, {"two": lambda: "new"})


def test_tables_and_numbers_of_pages():
    assert markdown_table(["", "b"], [["c", "1"]]) == "|  | b |\n| --- | ---: |\n| c | 1 |"
    assert [format_number(value) for value in (0.5, -0.24, 1.0, 0.0004)] == [".500", "-.240", "1.000", ".000"]
