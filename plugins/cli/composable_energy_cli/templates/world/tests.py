"""Tests of the world: the conformance kit, its name, its pictures."""

import numpy as np
from my_plugin import MyPlugin

import composable_energy as ce
from composable_energy.testing import parametrize_with_checks
from composable_energy_image.testing import world_checks


@parametrize_with_checks(world_checks(MyPlugin(size=16)))
def test_the_world_conforms(check):
    check()


def test_it_has_a_name():
    assert isinstance(ce.get("world", "my-plugin", size=16), MyPlugin)


def test_a_square_has_its_color_and_position():
    labels = {"color": np.array([1, 2]), "position": np.array([[0.0, 0.0], [1.0, 1.0]])}
    images = MyPlugin(size=32).render(labels).images
    assert images[0, :, 16, 16].tolist() == [0, 255, 0]
    assert images[1, :, 4, 27].tolist() == [0, 0, 255]
