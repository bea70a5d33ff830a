"""Pictures to learn from: the formats that they come in, their labels, and what is done to a batch before a network sees it."""

from composable_energy.data.labels import Labels
from composable_energy.data.opening import open_pictures
from composable_energy.data.pictures import Pictures
from composable_energy.data.preparation import Preparation
from composable_energy.data.rendered import open_scenes, render_to
from composable_energy.data.world import Field, Scenes, World

__all__ = ["Field", "Labels", "Pictures", "Preparation", "Scenes", "World", "open_pictures", "open_scenes", "render_to"]
