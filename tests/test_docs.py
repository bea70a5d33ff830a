"""Documentation: its code runs, its API pages list every public name, its pictures have scripts."""

import ast
import doctest
import importlib
import importlib.util
import json
import os
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

import composable_energy
from composable_energy.registry import Command, get, get_factory, names, registry
from composable_energy.sampling import Trace
from composable_energy_cli import main
from docs.scripts.browser import find_chromium
from docs.scripts.check_site import broken_links, errors_without_network, foreign_loads
from tests.factories import COMPILES

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
PACKAGES = ["composable_energy", *sorted(p.parent.name for p in ROOT.glob("plugins/[!_]*/composable_energy_*/__init__.py"))]
PUBLIC_MODULES = [
    "composable_energy",
    *(f"composable_energy.{m}" for m in ("diagnostics", "errors", "events", "registry", "sampling", "testing")),
    "composable_energy_comet.metrics",
    "composable_energy_image.data",
    "composable_energy_image.metrics",
    "composable_energy_image.testing",
    "composable_energy_training",
    "composable_energy_training.testing",
    "composable_energy_training.toys",
]


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, DOCS / "scripts" / f"{name}.py")
    assert spec and spec.loader
    module = sys.modules[name] = importlib.util.module_from_spec(spec)  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


run_blocks = _script("run_blocks")
notebooks = _script("notebooks")


def _modules() -> list[str]:
    walks = (pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.") for package in PACKAGES)
    return PACKAGES + [module.name for walk in walks for module in walk]


SESSIONS = [(page, session) for page in PAGES for session in run_blocks.sessions(page)]


@pytest.mark.full
@pytest.mark.parametrize("page, session", SESSIONS, ids=[f"{page.relative_to(ROOT)}:{session[0].line}" for page, session in SESSIONS])
def test_a_block_runs_alone_or_after_those_that_its_page_says(page, session, tmp_path, monkeypatch):
    if page.name == "speed.md" and not COMPILES:
        pytest.skip("its examples compile, which fails where torch is installed in a path with a space")
    small_faces = any("composable_energy_small_faces" in block.code for block in session)
    if small_faces and importlib.util.find_spec("diffusers") is None:
        pytest.skip("needs the extra diffusers, which Python 3.10 does not have")
    monkeypatch.chdir(tmp_path)
    try:
        with mock.patch.dict(registry.registered):  # what a page registers stays on the page
            run_blocks.run(page, session)
    finally:
        torch.set_printoptions(profile="default")  # a page may print fewer digits


@pytest.mark.full
@pytest.mark.parametrize("module", _modules())
def test_the_examples_in_docstrings_show_what_comes_out(module):
    if module == "composable_energy_triton.step":
        pytest.importorskip("triton", reason="Triton runs on Linux")
    known = {"torch": torch, "ce": composable_energy}
    options = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(importlib.import_module(module), extraglobs=known, optionflags=options).failed == 0


def _names(*homes: Any) -> set[str]:
    return {name for home in homes for name in (*dir(home), *getattr(home, "__annotations__", ()), *getattr(home, "__all__", ()))}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_name_in_prose_exists(page):
    """Code between backticks: `ce.name`, `trace.name`, and `E.name` of any energy or of a diffusion model."""
    energies = _names(composable_energy.Energy, get_factory("energy", "diffusion"))
    known = {"ce": _names(composable_energy), "E": energies, "A": energies, "trace": _names(Trace)}
    prose = re.sub(r"^ *```.*?^ *```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    found = {name for code in re.findall(r"`([^`\n]+)`", prose) for name in re.findall(r"(?<![\w.])(ce|E|A|trace)\.([A-Za-z]\w*)", code)}
    assert not sorted(f"{home}.{name}" for home, name in found if name not in known[home])


COMMANDS = sorted({line for page in PAGES for line in re.findall(r"^ {4}(?:\$ )?composable-energy (.*)", page.read_text(), re.M)})


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_line_takes_what_pages_show(line, monkeypatch):
    assert all(get("command", name) for name in names("command"))  # which imports those of plug-ins
    for command in Command.__subclasses__():
        monkeypatch.setattr(command, "run", lambda command, arguments: 0)
    if (words := shlex.split(line, comments=True)) == ["--version"]:
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 0
    else:
        assert main(words) == 0


def blocks(tmp_path, text):
    page = tmp_path / "page.md"
    page.write_text(text)
    return page, run_blocks.blocks(page)


def test_what_a_page_shows_is_what_comes_out(tmp_path):
    text = "```python\nprint('share', 0.501, [1.0, -2e-5])\n```\n\n```text\nshare {} [1.0, -2e-5]\n```\n"
    run_blocks.run(*blocks(tmp_path, text.format("0.5")))
    for wrong in ("0.6", "", "x0.5"):
        with pytest.raises(AssertionError, match=r"page\.md:2: the block prints"):
            run_blocks.run(*blocks(tmp_path, text.format(wrong)))
    with pytest.raises(ZeroDivisionError) as caught:
        run_blocks.run(*blocks(tmp_path, "one\ntwo\n\n```python\na = 1\n1 / 0\n```\n"))
    assert caught.traceback[-1].lineno + 1 == 6  # of the page


def _documented() -> dict[str, Any]:
    """All objects that the API pages show, by their paths."""
    found = {}
    for page in (DOCS / "api").glob("*.md"):
        for path in re.findall(r"^::: ([\w.]+)", page.read_text(), re.M):
            head, _, name = path.rpartition(".")
            try:
                found[path] = getattr(importlib.import_module(head), name)
            except ImportError as error:
                raise AssertionError(f"{page.name} shows {path}, which is not there") from error
    return found


def _public(home: Any) -> list[str]:
    """Returns the public names of a module: those that it lists, or else its classes of exceptions."""
    exceptions = (name for name, value in vars(home).items() if isinstance(value, type) and issubclass(value, BaseException))
    return getattr(home, "__all__", None) or list(exceptions)


@pytest.mark.parametrize("module", PUBLIC_MODULES)
def test_api_pages_show_every_public_name(module):
    documented, home = set(map(id, _documented().values())), importlib.import_module(module)
    missing = [name for name in _public(home) if id(getattr(home, name)) not in documented]
    assert not missing, f"no page under docs/api shows {', '.join(f'{module}.{name}' for name in missing)}"


def _names_in(code: str) -> set[str]:
    """The variables, attributes and imports of code."""
    nodes = list(ast.walk(ast.parse(code)))
    fields = {getattr(node, field, "") for node in nodes for field in ("id", "attr")}
    return fields | {alias.name for node in nodes if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names}


def _has_doctest(found: Any) -> bool:
    """Whether the docstring of an object, or of one of its methods, has an example that is not skipped."""
    tests = doctest.DocTestFinder().find(found, "found", globs={})
    return callable(found) and any(not example.options.get(doctest.SKIP) for test in tests for example in test.examples)


def test_every_public_object_has_an_example_that_runs():
    """In its docstring, or by its name in a block of a page; `::: path` in `docs/api` shows an object."""
    used = set().union(*(_names_in(block.code) for _, session in SESSIONS for block in session))
    missing = [path for path, found in _documented().items() if path.rpartition(".")[2] not in used and not _has_doctest(found)]
    assert not missing, f"add to a block of its page under docs/api: {', '.join(missing)}"


@pytest.mark.parametrize("page", sorted((DOCS / "tutorials").glob("*.md")), ids=lambda page: page.stem)
def test_a_notebook_has_the_text_of_its_tutorial_and_outputs(page):
    """`python docs/scripts/notebooks.py` writes them again."""
    path = notebooks.NOTEBOOKS / f"{page.stem}.ipynb"
    cells = json.loads(path.read_text())["cells"]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells] == notebooks.cells(page) and path.stat().st_size < 400_000
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell["outputs"] if output["output_type"] == "error" or output.get("name") == "stderr"]


def test_the_page_of_errors_lists_every_error_whose_note_names_a_place_that_exists():
    """Third parties inherit the place of their base, or name their own."""
    page = (DOCS / "errors.md").read_text()
    assert [name for name in _public(composable_energy.errors) if f"`{name}`" not in page] == []
    found, todo = [], [composable_energy.errors.ComposableEnergyError]
    for module in _modules():
        importlib.import_module(module)
    while todo:
        error = todo.pop()
        todo += error.__subclasses__()
        if error.__module__.startswith("composable_energy"):
            found.append(error)
    assert len(found) > 25
    for error in found:
        page, _, anchor = error.documentation.partition("#")
        assert f"{{#{anchor}}}" in (DOCS / page).read_text() if anchor else (DOCS / page).exists(), f"{error.__name__} names {anchor}"
    own = type("Own", (composable_energy.errors.ShapeError,), {"documentation": "https://example.org/own"})
    assert sys.version_info < (3, 11) or own("no").__notes__ == ["The documentation explains this error: https://example.org/own"]


def test_every_picture_is_shown_and_drawn_by_a_script():
    scripts = "".join(script.read_text() for script in (DOCS / "gallery").glob("*.py"))
    pages = "".join(page.read_text() for page in PAGES)
    for picture in (path for path in (DOCS / "img").rglob("*") if path.is_file()):
        place = picture.relative_to(DOCS).as_posix()
        experiments = sorted((ROOT / "benchmarks" / "papers" / picture.parent.name.replace("-", "_")).glob("*.py"))
        named = any(f"{picture.stem.replace('-', '_')}_".startswith(f"{script.stem}_") for script in experiments)
        written = any(f'"{picture.stem}"' in script.read_text() for script in experiments)
        assert f'"{picture.name}"' in scripts or named or written, f"{place} has no script"
        assert place in pages, f"{place} is on no page"


needs_chromium = pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium: apt install chromium")
needs_websockets = pytest.mark.skipif(importlib.util.find_spec("websockets") is None, reason="needs websockets: pip install websockets")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    if os.environ.get("BUILT_SITE"):  # `make test-all` has just built it
        return Path(os.environ["BUILT_SITE"])
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.full
def test_every_link_leads_somewhere_and_no_page_loads_anything_from_another_host(site, tmp_path):
    assert len(list(site.rglob("*.html"))) > 100 and broken_links(site) == [] == foreign_loads(site)
    (tmp_path / "index.html").write_text('<h1>a</h1><a href="c/">c</a><script src="https://example.org/a.js"></script>')
    assert "index.html: c/" in broken_links(tmp_path) and len(foreign_loads(tmp_path)) == 1


@needs_chromium
@needs_websockets
@pytest.mark.full
def test_pages_work_with_the_network_cut(site, tmp_path):
    assert errors_without_network(site) == []
    (tmp_path / "index.html").write_text('<link rel="icon" href="data:,"><img src="https://example.org/a.png"><img src="missing.png">')
    errors = "\n".join(errors_without_network(tmp_path))
    assert "https://example.org/a.png" in errors and "missing.png" in errors
