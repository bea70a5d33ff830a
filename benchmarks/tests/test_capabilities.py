"""The table of capabilities: each row names one benchmark, command or page, and that exists."""

import ast
import importlib.util
import re
from pathlib import Path

import pytest

from benchmarks.harness import ROOT
from composable_energy.registry import names

DOCS = ROOT / "docs"
ROWS = re.findall(r"^\| .* \| (`[^`|]+`|\[[^|]+\)) \|$", (DOCS / "capabilities.md").read_text(encoding="utf-8"), re.MULTILINE)
BUILT_IN = {"sample", "explain", "energies", "plugins", "new-plugin", "doctor"}


def anchors(path: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w]+", "-", title.partition(" {")[0].lower()).strip("-") for title in titles}


def test_every_row_of_the_table_is_checked():
    lines = [line for line in (DOCS / "capabilities.md").read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    assert len(ROWS) == len(lines) - 3 > 40, "three heads, and a benchmark, a command or a link in the last cell of each row"


@pytest.mark.parametrize("shown", ROWS)
def test_what_shows_a_capability_exists(shown):
    if found := re.fullmatch(r"`python -m (benchmarks[\w.]+)`", shown):
        spec = importlib.util.find_spec(found[1])
        path = Path(spec.submodule_search_locations[0]) / "__main__.py" if spec.submodule_search_locations else Path(spec.origin)
        nodes = ast.parse(path.read_text(encoding="utf-8")).body
        assert "main" in ast.unparse(nodes[-1]), "it runs as a program"
    elif found := re.fullmatch(r"`composable-energy ([\w-]+)`", shown):
        assert found[1] in BUILT_IN | set(names("command"))
    else:
        page, anchor = re.fullmatch(r"\[[^]]+\]\(([\w/-]+\.md)#([\w-]+)\)", shown).groups()
        assert anchor in anchors(DOCS / page)
