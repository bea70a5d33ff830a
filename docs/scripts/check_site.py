"""Checks the built documentation: its links, and that it needs no network.

    mkdocs build --strict --site-dir site
    python docs/scripts/check_site.py site

Links and anchors of pages, and the links of notebooks and of the Markdown files of the
repository, must lead to something. Pages load nothing from other hosts. If Chromium is
installed, it opens the pages with the network cut, and must report no error.
"""

import argparse
import functools
import json
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

sys.path.insert(0, str(Path(__file__).parent))
from browser import Browser, find_chromium

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"
_LOADS = {"src", "srcset", "poster", "data"}
_LOADING_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch"}
_IN_STYLES = re.compile(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)")
_IN_MARKDOWN = re.compile(r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)")
_CODE = re.compile(r"^ *```.*?^ *```|`[^`\n]*`", re.M | re.S)


class _Page(HTMLParser):
    """What a page loads, what it links to, and its anchors."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self._in_style = tag == "style"
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        self.loads += [found[name].split(" ")[0] for name in _LOADS & found.keys()]
        self.loads += _in_styles(found.get("style", ""))
        if "href" in found:
            loads = _LOADING_LINKS & set(found.get("rel", "").split())
            (self.loads if tag == "link" and loads else self.links).append(
                found["href"]
            )

    def handle_data(self, data: str) -> None:
        if self._in_style:
            self.loads += _in_styles(data)


def broken_links(site: Path) -> list[str]:
    """Returns a line for each link of the site or the repository that leads nowhere."""
    pages = _pages(site)
    anchors = {page: found.anchors for page, found in pages.items()}
    broken = []
    for page, found in pages.items():
        for link in (*found.links, *found.loads):
            target, anchor = _target(site, page, link)
            if target and not _leads(target, anchor, anchors):
                broken.append(f"{page.relative_to(site)}: {link}")
    for style in site.rglob("*.css"):
        for load in _in_styles(style.read_text(encoding="utf-8")):
            target, _ = _target(site, style, load)
            if target and not target.is_file():
                broken.append(f"{style.relative_to(site)}: {load}")
    for source, text in _sources():
        for link in _IN_MARKDOWN.findall(_CODE.sub("", text)):
            target, anchor = _target(ROOT, source, link)
            built = _built(site, target) if target and anchor else None
            there = target is None or target.exists()
            if not there or (built and not _leads(built, anchor, anchors)):
                broken.append(f"{source.relative_to(ROOT)}: {link}")
    return broken


def foreign_loads(site: Path) -> list[str]:
    """Returns a line for each file of another host that a page or a style loads."""
    loads = {page: found.loads for page, found in _pages(site).items()}
    for style in site.rglob("*.css"):
        loads[style] = _in_styles(style.read_text(encoding="utf-8"))
    return [
        f"{file.relative_to(site)}: {load}"
        for file, found in loads.items()
        for load in found
        if urlsplit(load).netloc
    ]


def errors_without_network(site: Path) -> list[str]:
    """Opens the pages in Chromium, with the network cut, and returns their errors.

    A request to another host is an error as well. Of pages that load the same files,
    which differ in text alone, one is opened.

    Raises:
        FileNotFoundError: There is no Chromium.
    """
    errors, opened, pages = [], set[frozenset[str]](), _pages(site)
    with _served(site) as address, Browser() as browser:
        for page in sorted(site.rglob("*.html")):
            place = page.relative_to(site).as_posix()
            if (loads := frozenset(pages[page.resolve()].loads)) in opened:
                continue
            opened.add(loads)
            browser.requests.clear()
            browser.errors.clear()
            browser.open(f"{address}/{place}")
            browser.evaluate("document.fonts.ready.then(() => true)")
            elsewhere = [r for r in browser.requests if not r.startswith(address)]
            found = [r for r in elsewhere if not r.startswith(("data:", "blob:"))]
            errors += [f"{place}: {error}" for error in (*browser.errors, *found)]
    return errors


@contextmanager
def _served(site: Path) -> Iterator[str]:
    handler = functools.partial(_Files, directory=str(site))
    with _Server(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    """Sends the index of the search once, and then one without entries.

    Filling the index takes half of the time of a page.
    """

    sent_index = False


class _Files(SimpleHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        file = Path(self.translate_path(self.path))
        if file.name != "search_index.json" or not self.server.sent_index:
            self.server.sent_index |= file.name == "search_index.json"
            super().do_GET()
            return
        index = json.loads(file.read_text(encoding="utf-8"))
        body = json.dumps({**index, "docs": []}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def end_headers(self) -> None:
        self.send_header("Cache-Control", "max-age=600")  # pages share most files
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        pass


@functools.cache  # for both kinds of checks
def _pages(site: Path) -> dict[Path, _Page]:
    return {
        page.resolve(): _Page(page.read_text(encoding="utf-8"))
        for page in sorted(site.resolve().rglob("*.html"))
    }


def _in_styles(text: str) -> list[str]:
    return [a or b for a, b in _IN_STYLES.findall(text)]


def _target(root: Path, page: Path, link: str) -> tuple[Path | None, str]:
    """Returns the file that a link of a page means, and the anchor; None elsewhere."""
    parts = urlsplit(link)
    if parts.scheme or parts.netloc:
        return None, ""
    path = unquote(parts.path)
    start = root if path.startswith("/") else page.parent
    target = (start / path.lstrip("/")).resolve() if path else page
    return target, unquote(parts.fragment)


def _leads(target: Path, anchor: str, anchors: dict[Path, set[str]]) -> bool:
    file = target / "index.html" if target.is_dir() else target
    return file.is_file() and (not anchor or anchor in anchors.get(file, {anchor}))


def _built(site: Path, source: Path) -> Path | None:
    """Returns the page of the site that a Markdown file becomes, if any."""
    if source.suffix != ".md" or not source.is_relative_to(DOCS):
        return None
    place = source.relative_to(DOCS).with_suffix("")
    place = place.parent if place.name in ("index", "README") else place
    return site.resolve() / place / "index.html"


def _sources() -> Iterator[tuple[Path, str]]:
    """Yields the texts that are no pages of the site: files beside code, notebooks."""
    for folder in (ROOT, ROOT / "benchmarks", *ROOT.glob("plugins/*")):
        for file in sorted(folder.glob("*.md")):
            yield file, file.read_text(encoding="utf-8")
    for notebook in sorted((DOCS / "notebooks").glob("*.ipynb")):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        texts = ("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
        yield notebook, "\n\n".join(texts)


def main() -> int:
    """Checks a site; returns the number of problems, at most 1."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("site", type=Path, help="the folder that mkdocs built")
    site = parser.parse_args().site
    problems = broken_links(site) + foreign_loads(site)
    if find_chromium() is None:
        print("No page was opened: there is no Chromium.")
    else:
        problems += errors_without_network(site)
    print("\n".join(problems) or f"{len(_pages(site))} pages: no problem")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
