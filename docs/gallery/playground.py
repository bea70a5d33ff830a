"""Takes the screenshots of the page `playground.md` in a headless Chromium.

python docs/gallery/playground.py
"""

import sys
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).parent.parent
sys.path.insert(0, str(DOCS.parent))

from composable_energy_ui import Playground  # noqa: E402
from docs.scripts.browser import Browser  # noqa: E402

READY = "document.body.dataset.ready"
DONE = "!document.querySelector('#cards').hidden"
CHECKED = "document.querySelectorAll('#weights .slider').length == {}"


def shoot(browser, name):
    """Writes a screenshot with a palette, which is a third as large."""
    path = DOCS / "img" / name
    browser.screenshot(path)
    with Image.open(path) as image:
        few = image.convert("RGB").quantize(
            200, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE
        )
    few.save(path, optimize=True)
    print(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def start(browser):
    """Shoots the page as it opens."""
    shoot(browser, "playground-start.png")


def result(browser):
    """Shoots a grid with a chosen image."""
    browser.type("#expression", "male & ~smiling & glasses")
    browser.wait(CHECKED.format(3))
    browser.click("#sample")
    browser.wait(DONE, 120)
    browser.click("#grid", 0.1, 0.1)
    shoot(browser, "playground-result.png")


def error(browser):
    """Shoots an error at its place."""
    browser.type("#expression", "male & ~smilling & (hat | old)")
    browser.wait("!document.querySelector('#error').hidden")
    shoot(browser, "playground-error.png")


def plane(browser):
    """Shoots chains on the plane, one of them chosen."""
    browser.click("#tab-plane")
    browser.wait("document.querySelector('#expression').value.includes('ring')")
    browser.type("#expression", "bar | ring & ~right")
    browser.wait(CHECKED.format(1))
    browser.evaluate("document.querySelector('#sampler').value = 'langevin'")
    browser.click("#sample")
    browser.wait(DONE, 120)
    browser.wait("document.querySelector('#play').textContent == 'Play'")
    browser.click("#plane", 0.45, 0.5)
    shoot(browser, "playground-plane.png")


if __name__ == "__main__":
    with Playground() as playground:
        for picture in (start, result, error, plane):
            tall = 1400 if picture in (result, plane) else 780
            with Browser(height=tall, dark=picture is error) as browser:
                browser.open(playground.address)
                browser.wait(READY)
                picture(browser)
