"""Every figure on a page of results comes from a file of results."""

import ast
import json
import re
from pathlib import Path

import pytest

from benchmarks import lace_page, samplers_page, scaling_page, speed_page
from benchmarks.harness import ROOT
from benchmarks.pages import block_names, fill_page, format_number, markdown_table, outside_blocks
from benchmarks.papers import write_pages

SETTINGS = json.loads((ROOT / "benchmarks" / "papers" / "settings.json").read_text(encoding="utf-8"))
SOURCES = {
    "comet-2021": [f"papers/comet_2021/{name}.py" for name in ("page", "factor_blocks", "style_blocks", "window_blocks")],
    "compositional-2020": ["papers/compositional_2020/page.py", "papers/compositional_2020/paper_method_blocks.py"],
    "robustness": ["papers/implicit_2019/robustness_page.py"],
    "continual": ["papers/implicit_2019/continual_page.py"],
    "objectives": ["objectives_page.py"],
    "training": ["training_page.py"],
}
NUMBER = re.compile(r"(?<![\w.])(?:\d[\d,]*\d|\d)?(?:\.\d+)?(?:e-?\d+)?(?![\w])")


def page(name: str) -> str:
    return (write_pages.FOLDER / f"{name}.md").read_text(encoding="utf-8")


def prose(text: str) -> str:
    """Returns text without commands, names in code, formulas, and addresses; a figure in code or in a formula stays."""
    text = re.sub(r"^ {4}.*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    text = re.sub(r"`([^`]*)`", lambda match: match[1] if NUMBER.fullmatch(match[1]) else "", text)
    return re.sub(r"\$([^$]*)\$", lambda match: match[1] if NUMBER.fullmatch(match[1]) else "", text)


def numbers(text: str) -> list[str]:
    return [number for number in NUMBER.findall(text) if any(digit.isdigit() for digit in number)]


def texts(path: Path) -> list[str]:
    """Returns all texts of a module except docstrings, formats of numbers, and keys."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    documentation = {
        ast.get_docstring(node, clean=False) for node in nodes if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef)
    }
    hidden = [node.format_spec for node in nodes if isinstance(node, ast.FormattedValue) and node.format_spec is not None]
    hidden += [node.slice for node in nodes if isinstance(node, ast.Subscript)]
    skipped = {id(part) for node in hidden for part in ast.walk(node)}
    constants = [node for node in nodes if isinstance(node, ast.Constant) and id(node) not in skipped]
    return [node.value for node in constants if isinstance(node.value, str) and node.value not in documentation]


@pytest.mark.parametrize("name", write_pages.PAGES)
def test_the_blocks_of_a_page_are_those_of_the_results(name):
    assert fill_page(page(name), write_pages.PAGES[name]()) == page(name), "run `python -m benchmarks.papers.write_pages`"


def test_the_tables_of_the_page_of_samplers_are_those_of_the_results():
    text = samplers_page.PAGE.read_text(encoding="utf-8")
    assert fill_page(text, samplers_page.blocks()) == text, "run `python -m benchmarks.papers.write_pages`"


@pytest.mark.parametrize("source", [lace_page, scaling_page, speed_page], ids=["lace", "scaling", "speed"])
def test_the_tables_of_a_page_are_those_of_its_results(source):
    text = source.PAGE.read_text(encoding="utf-8")
    assert fill_page(text, source.blocks()) == text, f"run `python -m {source.__name__}` or what writes its results"


@pytest.mark.parametrize("name", write_pages.PAGES)
def test_a_number_outside_of_the_blocks_is_a_setting(name):
    found = set(numbers(prose(outside_blocks(page(name)))))
    unknown = sorted(found - SETTINGS[name].keys())
    assert not unknown, f"{unknown}: put figures into a block, and describe settings in benchmarks/papers/settings.json"
    assert not SETTINGS[name].keys() - found, "settings that the page does not have any more"


@pytest.mark.parametrize("name", write_pages.PAGES)
def test_the_source_of_a_block_has_no_figures(name):
    for source in SOURCES[name]:
        for text in texts(ROOT / "benchmarks" / source):
            assert not set(numbers(prose(text))) - SETTINGS[name].keys(), f"{source}: {text!r}"


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
    text = page("training")
    changed = text.replace(".994", ".995", 1)
    assert changed != text and fill_page(changed, write_pages.PAGES["training"]()) == text


def test_a_page_and_its_functions_have_the_same_blocks():
    text = "a\n<!-- one -->\nold\n<!-- end -->\nb"
    assert block_names(text) == ["one"] and outside_blocks(text) == "a\n\nb"
    assert fill_page(text, {"one": lambda: "new"}) == "a\n<!-- one -->\n\nnew\n\n<!-- end -->\nb"
    with pytest.raises(ValueError, match="each needs the other"):
        fill_page(text, {"two": lambda: "new"})


def test_tables_and_numbers_of_pages():
    assert markdown_table(["", "b"], [["c", "1"]]) == "|  | b |\n| --- | ---: |\n| c | 1 |"
    assert [format_number(value) for value in (0.5, -0.24, 1.0, 0.0004)] == [".500", "-.240", "1.000", ".000"]
