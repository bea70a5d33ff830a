"""Training data: readers of picture formats, labels, worlds, and the preparation of batches."""

from composable_energy_image.data.formats import open_pictures
from composable_energy_image.data.pictures import Labels, Pictures
from composable_energy_image.data.preparation import Preparation
from composable_energy_image.data.scene_files import open_scenes, render_to
from composable_energy_image.data.world import Field, Scenes, World

__all__ = ["Field", "Labels", "Pictures", "Preparation", "Scenes", "World", "open_pictures", "open_scenes", "render_to"]
