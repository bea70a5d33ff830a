"""The table of the docs lists every option of a plug-in that a file may give."""

from pathlib import Path

import pytest

from composable_energy.files import stored_options
from composable_energy.registry import get_factory, plugins

DOCS = Path(__file__).parents[2] / "docs" / "files.md"
KINDS = {"energy": "composable_energy.energies", "encoder": "composable_energy.encoders", "sampler": "composable_energy.samplers"}
OURS = {"composable-energy", "composable-energy-worlds"}


def shown(name: str, texts: frozenset[str] | None) -> str:
    if texts is None:
        return f"`{name}` (text)"
    return f"`{name}` ({', '.join(sorted(texts))})" if texts else f"`{name}`"


def table() -> list[str]:
    """Returns the rows: the plug-ins of one kind that take the same options are one row."""
    rows: dict[tuple[str, str], list[str]] = {}
    for kind, group in KINDS.items():
        for record in plugins():
            if record.group == group and record.distribution in OURS:
                options = stored_options(get_factory(kind, record.qualified))
                text = ", ".join(shown(name, texts) for name, texts in options.items()) or "none"
                rows.setdefault((kind, text), []).append(f"`{record.name}`")
    return [f"| {kind} | {', '.join(entries)} | {text} |" for (kind, text), entries in rows.items()]


def test_the_docs_list_every_option_that_a_file_may_give():
    text = DOCS.read_text(encoding="utf-8")
    missing = [row for row in table() if row not in text]
    assert not missing, "docs/files.md lacks:\n" + "\n".join(missing)
    begin = text.index("| kind | plug-ins | options that a file may give |")
    rows = text[begin:].split("\n\n")[0].splitlines()[2:]
    assert sorted(rows) == sorted(table()), "docs/files.md has rows of plug-ins that are not there"


@pytest.mark.parametrize("name", ["path", "folder", "location", "weights", "file", "url", "checkpoint", "function", "callback"])
def test_no_option_with_the_name_of_a_path_takes_any_text(name):
    for kind, group in KINDS.items():
        for record in plugins():
            if record.group == group and record.distribution in OURS:
                texts = stored_options(get_factory(kind, record.qualified)).get(name, frozenset())
                assert texts is not None and not any("/" in text for text in texts), record
