"""Toys of the world `objects`: several solids with one mask, drawn as they are labelled, beside solids that do not change."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

import composable_energy as ce
from composable_energy.errors import ExtraNotInstalled
from composable_energy_image.data import World
from composable_energy_scenes import COLORS, KINDS, PALETTE, TOYS

SHAPES = (*KINDS, *TOYS)


@cache
def world(shapes: tuple[str, ...]) -> World:
    """One of each, so that what draws is started once."""
    made = ce.get("world", "objects", size=64, count=(1, 4), sizes=(0.22, 0.40), shapes=shapes)
    try:
        made.draw(1)
    except ExtraNotInstalled as error:
        pytest.skip(f"nothing draws here: {error}")
    return made


def alone(shape: str, color: str = "red") -> dict[str, np.ndarray]:
    """Returns the labels of one object in the middle of the floor."""
    labels = {name: np.zeros_like(values[:1]) for name, values in world(SHAPES).labels(1, seed=0).items()}
    labels["present"][0, 0], labels["size"][0, 0] = True, 0.4
    labels["shape"][0, 0], labels["color"][0, 0] = SHAPES.index(shape), COLORS.index(color)
    labels["light"][0], labels["floor"][0] = (0.0, -1.0), 0.37
    return labels


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_is_one_object_as_large_as_a_solid(name):
    scenes, box = (world(SHAPES).render(alone(shape), masks=True) for shape in (name, "box"))
    assert scenes.masks is not None and box.masks is not None
    assert set(np.unique(scenes.masks)) == {0, 1}
    area, whole = (scenes.masks > 0).sum(), (box.masks > 0).sum()
    assert 0.25 * whole < area < 1.1 * whole
    columns = np.nonzero(scenes.masks[0].any(0))[0]
    assert abs(columns.mean() - 31.5) < 1.5


@pytest.mark.parametrize("name", TOYS)
def test_a_toy_has_its_color_and_colors_of_its_parts(name):
    red, blue = (world(SHAPES).render(alone(name, color), masks=True) for color in ("red", "blue"))
    assert red.masks is not None
    here = red.masks[0] > 0
    np.testing.assert_array_equal(red.masks, blue.masks)
    changed = (np.abs(red.images[0].astype(int) - blue.images[0]).max(0) > 30)[here].mean()
    assert 0.3 < changed < 1.0
    brightest = red.images[0][:, here].max(1)
    assert brightest[0] > 150 and PALETTE[COLORS.index("red")][0] > 0.8


def test_nothing_of_a_toy_stays_for_the_next_picture():
    first, second = alone("truck"), alone("sphere")
    both = {name: np.concatenate([first[name], second[name]]) for name in first}
    np.testing.assert_array_equal(world(SHAPES).render(both).images[1], world(SHAPES).render(second).images[0])
