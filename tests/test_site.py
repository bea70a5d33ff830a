"""The built documentation: its links lead somewhere, and every page works in a browser with the network cut."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from docs.scripts.browser import find_chromium
from docs.scripts.check_site import broken_links, errors_without_network, foreign_loads

ROOT = Path(__file__).parent.parent
needs_browser = [
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium: apt install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("websockets") is None, reason="needs websockets: pip install websockets"),
]


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
def test_every_link_leads_somewhere(site):
    assert len(list(site.rglob("*.html"))) > 100
    assert broken_links(site) == []


@pytest.mark.full
def test_no_page_loads_anything_from_another_host(site):
    assert foreign_loads(site) == []


@pytest.mark.full
class TestBrowser:
    pytestmark = needs_browser

    def test_every_page_works_with_the_network_cut(self, site):
        assert errors_without_network(site) == []

    def test_what_comes_from_elsewhere_or_is_missing_is_an_error(self, tmp_path):
        (tmp_path / "index.html").write_text('<link rel="icon" href="data:,"><img src="https://example.org/a.png"><img src="missing.png">')
        errors = "\n".join(errors_without_network(tmp_path))
        assert "https://example.org/a.png" in errors and "missing.png" in errors


class TestLinks:
    PAGE = '<h1 id="top">a</h1><a href="b/#there">b</a><a href="https://example.org">paper</a><a href="#top">up</a>'

    def site(self, folder, page):
        (folder / "b").mkdir()
        (folder / "b" / "index.html").write_text('<p id="there">b</p>')
        (folder / "index.html").write_text(page)
        return folder

    def test_links_that_lead_somewhere_are_no_problem(self, tmp_path):
        site = self.site(tmp_path, self.PAGE)
        assert [line for line in broken_links(site) if line.startswith("index.html")] == [] == foreign_loads(site)

    @pytest.mark.parametrize("wrong", ['<a href="c/">', '<a href="b/#nowhere">', '<a href="#nowhere">', '<img src="img/a.png">'])
    def test_links_that_lead_nowhere_are_listed(self, tmp_path, wrong):
        assert f"index.html: {wrong.split(chr(34))[1]}" in broken_links(self.site(tmp_path, self.PAGE + wrong))

    @pytest.mark.parametrize(
        "load",
        [
            '<script src="https://example.org/a.js"></script>',
            '<link rel="stylesheet" href="//example.org/a.css">',
            '<style>@import "https://example.org/a.css"</style>',
            '<p style="background: url(https://example.org/a.png)">',
        ],
    )
    def test_what_is_loaded_from_elsewhere_is_listed(self, tmp_path, load):
        assert len(foreign_loads(self.site(tmp_path, self.PAGE + load))) == 1
