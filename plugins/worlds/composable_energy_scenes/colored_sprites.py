"""The world `colored-sprites`: several sprites on black, with masks, similar to Multi-dSprites (Burgess et al., 2019)."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from composable_energy.errors import OptionError
from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.renderer import check_picture_size
from composable_energy_scenes.sprites import SPRITES, inside

FULL_COLORS = ("red", "green", "blue", "yellow", "magenta", "cyan")
"""The colors of sprites and pieces, as classes: all mixtures of full red, green and blue."""

TONES = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [255, 0, 255], [0, 255, 255]], np.uint8)
"""Red, green and blue of each of `FULL_COLORS`."""

_MOST = 4
_TRIES = 1_000
_REACH = 0.59  # range of centres
_RADIUS = 0.41  # of the circle around a sprite of scale 1


class ColoredSprites(World):
    """Separate squares, ellipses and hearts; `count` is their smallest and largest number, at most 4."""

    name = "colored-sprites"

    def __init__(self, size: int = 32, count: tuple[int, int] = (2, 3)) -> None:
        self.size, self.count = check_picture_size(size), tuple(count)
        if len(self.count) != 2 or not 1 <= self.count[0] <= self.count[1] <= _MOST:
            raise OptionError(f"count must be the smallest and the largest number of sprites, 1 to {_MOST}, got {count!r}.")
        most = self.count[1]
        self.fields = MappingProxyType(
            {
                "present": Field((most,), "bool", "whether the i-th sprite exists; existing sprites come first, the others have values 0"),
                "shape": Field((most,), "int64", "shapes", SPRITES),
                "color": Field((most,), "int64", "colors", FULL_COLORS),
                "scale": Field((most,), "float32", "scales, 0.5 to 1; areas are proportional to the square"),
                "orientation": Field((most, 2), "float32", "cosines and sines of the angles of rotation, counterclockwise"),
                "position": Field((most, 2), "float32", "centres, right and up, each in [-1, 1]"),
            }
        )

    def sample_labels(self, random: np.random.Generator) -> dict[str, object]:
        n = int(random.integers(self.count[0], self.count[1], endpoint=True))
        for _ in range(_TRIES):
            scale, position = random.uniform(0.5, 1, n), random.uniform(-1, 1, (n, 2))
            between = _REACH * np.linalg.norm(position[:, None] - position, axis=2) - _RADIUS * (scale[:, None] + scale)
            if (between[np.triu_indices(n, 1)] > 0).all():
                break
        else:
            raise OptionError(f"No arrangement of {n} separate sprites was found: use fewer.")
        angle = random.uniform(0, 2 * np.pi, n)
        drawn = {
            "present": np.ones(n, bool),
            "shape": random.integers(len(SPRITES), size=n),
            "color": random.integers(len(FULL_COLORS), size=n),
            "scale": scale,
            "orientation": np.stack([np.cos(angle), np.sin(angle)], 1),
            "position": position,
        }
        return {name: np.concatenate([array, np.zeros((self.count[1] - n, *array.shape[1:]))]) for name, array in drawn.items()}

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        values = self.check_labels(labels)
        n = len(values["present"])
        found = np.zeros((n, self.size, self.size), np.uint8)
        tones = np.zeros((n, self.count[1] + 1, 3), np.uint8)  # 0 is the background, and black
        for k in range(self.count[1]):
            rows = np.flatnonzero(values["present"][:, k])
            shape, middle, scale, turn = (values[name][rows, k] for name in ("shape", "position", "scale", "orientation"))
            found[rows] = np.where(inside(self.size, shape, _REACH * middle, scale, turn), k + 1, found[rows])
            tones[:, k + 1] = TONES[values["color"][:, k]]
        images = tones[np.arange(n)[:, None, None], found]
        return Scenes(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), values, found if masks else None)
