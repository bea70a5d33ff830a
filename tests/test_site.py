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
    assert len(list(site.rglob("*.html"))) > 100
    assert broken_links(site) == [] == foreign_loads(site)
    (tmp_path / "index.html").write_text('<h1>a</h1><a href="c/">c</a><script src="https://example.org/a.js"></script>')
    assert "index.html: c/" in broken_links(tmp_path) and len(foreign_loads(tmp_path)) == 1


@needs_chromium
@needs_websockets
@pytest.mark.full
def test_every_page_works_with_the_network_cut(site, tmp_path):
    assert errors_without_network(site) == []
    (tmp_path / "index.html").write_text('<link rel="icon" href="data:,"><img src="https://example.org/a.png"><img src="missing.png">')
    errors = "\n".join(errors_without_network(tmp_path))
    assert "https://example.org/a.png" in errors and "missing.png" in errors
