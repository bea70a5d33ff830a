"""The page in a headless Chromium: expressions, images, errors, editing, the plane, the keyboard, a phone."""

import importlib.util

import pytest

from composable_energy_ui import Playground
from docs.scripts.browser import Browser, find_chromium

pytestmark = [
    pytest.mark.full,
    pytest.mark.skipif(find_chromium() is None, reason="there is no Chromium: apt install chromium"),
    pytest.mark.skipif(importlib.util.find_spec("websockets") is None, reason="needs websockets: pip install websockets"),
]

STATUS = "document.querySelector('#status').textContent"
DONE = "!document.querySelector('#cards').hidden"


@pytest.fixture(scope="module")
def playground():
    with Playground() as playground:
        yield playground


@pytest.fixture
def page(playground):
    with Browser() as browser:
        browser.open(playground.address)
        browser.wait("document.body.dataset.ready")
        yield browser
        assert browser.errors == []
        hosts = {address.split("/")[2] for address in browser.requests if not address.startswith("data:")}
        assert hosts == {playground.address.removeprefix("http://")}


def text(page, selector):
    return page.evaluate(f"document.querySelector({selector!r}).textContent")


def sample(page):
    page.click("#sample")
    page.wait(DONE, 120)


def test_a_typed_expression_becomes_images_with_numbers(page):
    page.type("#expression", "male & ~smil")
    page.wait("!document.querySelector('#completions').hidden")
    page.press("Tab", 9)
    page.wait("document.querySelectorAll('#weights .slider').length == 2")
    sample(page)
    assert page.evaluate("document.querySelector('#grid').naturalWidth") == 4 * 66 - 2
    assert text(page, "#command") == "composable-energy sample 'male & ~smiling' -n 16 --seed 0 -o samples.png"
    assert page.evaluate("document.querySelector('#trace svg') !== null")
    page.click("#grid", 0.9, 0.9)
    assert "16 is chosen" in text(page, "#terms-hint")
    assert page.evaluate("document.querySelector('#save').href").startswith("data:image/png")


def test_an_error_is_shown_at_its_place(page):
    page.type("#expression", "male & ~smilling & hat")
    page.wait("!document.querySelector('#error').hidden")
    assert "did you mean `smiling`" in text(page, "#error") and text(page, "#mirror mark") == "smilling"
    page.click("#sample")
    page.wait(f"{STATUS} .startsWith('This did not work')")
    page.type("#expression", "male & ~male")
    page.wait("document.querySelector('#error').hidden")
    page.click("#sample")
    page.wait("document.querySelector('#error').textContent.includes('No point fulfils')")


def test_a_chosen_image_is_edited(page):
    page.type("#steps", "4")
    sample(page)
    page.click("#grid", 0.1, 0.1)
    page.click("#edit-start")
    page.type("#expression", "glasses")
    page.wait("document.querySelectorAll('#weights .slider').length == 1")
    sample(page)
    assert "start = points[0]" in text(page, "#python")
    assert page.evaluate("document.querySelector('[data-copy=command]').disabled")


def test_the_plane_shows_a_density_and_chains_that_move(page):
    page.click("#tab-plane")
    page.wait("document.querySelector('#expression').value.includes('ring')")
    page.wait("document.querySelectorAll('#weights .slider').length == 2")
    sample(page)
    shown = "document.querySelector('#frame').value"
    before = page.evaluate(shown)
    page.wait(f"{shown} != {before!r}")
    assert {"energy", "x[0]", "x[1]"} <= set(
        page.evaluate("[...document.querySelectorAll('#statistics td:first-child')].map(e => e.textContent)")
    )
    page.click("#plane", 0.3, 0.5)
    assert "is chosen" in text(page, "#terms-hint")
    colours = "document.querySelector('#plane').getContext('2d').getImageData(0, 0, 640, 640).data"
    assert page.evaluate(f"{colours}.some((value, i) => i % 4 == 0 && value < 100)")


def test_a_server_that_ended_is_reported():
    with Browser() as page:
        with Playground() as playground:
            page.open(playground.address)
            page.wait("document.body.dataset.ready")
        page.type("#expression", "old")
        page.wait("document.querySelector('#error').textContent.includes('still running?')")
        page.click("#sample")
        page.wait(f"{STATUS}.startsWith('This did not work')")
        assert not page.evaluate("document.querySelector('#sample').disabled")


def test_nothing_is_wider_than_a_phone(playground):
    with Browser(390, 800) as page:
        page.open(playground.address)
        page.wait("document.body.dataset.ready")
        page.type("#steps", "2")
        sample(page)
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        assert page.evaluate("document.querySelector('#status').getBoundingClientRect().top") < 400  # the result, not the form


def test_images_are_chosen_and_lines_copied_by_keyboard(page):
    page.type("#steps", "2")
    page.type("#expression", "male")
    for kind in ("keyDown", "keyUp"):
        page.send("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, modifiers=2)
    page.wait(DONE, 120)
    page.evaluate("document.querySelector('#stage').focus()")
    for key, code in (("ArrowRight", 39), ("ArrowRight", 39), ("ArrowDown", 40)):
        page.press(key, code)
    assert text(page, "#terms-hint") == "Image or chain 6 is chosen."
    page.click("[data-copy=python]")
    assert text(page, "[data-copy=python]") == "Copied"
