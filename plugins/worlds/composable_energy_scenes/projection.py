"""Camera projection and ray casting: the pixels of points, and how many show each solid, for labels that depend on no renderer."""

from dataclasses import dataclass

import numpy as np

from composable_energy_scenes.renderer import KINDS

# A solid is the intersection of slabs along some axes and a quadric over others.
_SLABS = {"box": (0, 1, 2), "sphere": (), "cylinder": (2,)}
_ROUND = {"box": (), "sphere": (0, 1, 2), "cylinder": (0, 1)}
_FAR = 1e6


@dataclass(frozen=True)
class CameraView:
    """A camera that looks along the second axis and down; its right is the first axis."""

    position: tuple[float, float, float]
    down: float  # tilt below the horizon, in degrees
    angle: float  # vertical field of view, in degrees

    def axes(self) -> np.ndarray:
        """Returns the directions right, up and forward, as rows."""
        sine, cosine = np.sin(np.radians(self.down)), np.cos(np.radians(self.down))
        return np.array([[1.0, 0.0, 0.0], [0.0, sine, cosine], [0.0, cosine, -sine]])

    def xml(self) -> str:
        """Returns the camera as XML of a MuJoCo model, with the name `c`."""
        right, up, _ = self.axes()
        return f'<camera name="c" pos="{_text(self.position)}" fovy="{self.angle}" xyaxes="{_text(right)} {_text(up)}"/>'

    def rays(self, size: int) -> np.ndarray:
        """Returns the directions through the centres of pixels, with shape $(S^2, 3)$, row by row from the top."""
        reach = np.tan(np.radians(self.angle / 2)) * ((np.arange(size) + 0.5) / size * 2 - 1)
        right, up, forward = self.axes()
        return (forward + reach[None, :, None] * right - reach[:, None, None] * up).reshape(-1, 3)

    def pixels(self, points: np.ndarray, size: int) -> np.ndarray:
        """Returns the columns and rows, with shape $(*, 2)$, of points with shape $(*, 3)$, from the upper left corner."""
        across, above, depth = np.moveaxis((points - np.array(self.position)) @ self.axes().T, -1, 0)
        reach = np.tan(np.radians(self.angle / 2)) * depth
        return np.stack([across / reach + 1, 1 - above / reach], -1) * size / 2


def count_visible_pixels(view: CameraView, kinds: np.ndarray, where: np.ndarray, halves: np.ndarray, size: int = 64) -> np.ndarray:
    """Returns the number of pixels that show each of $K$ solids on the floor, with shape $(K,)$. The classes of the solids in `KINDS` and
    the half widths, also half heights, have shape $(K,)$; the centres have shape $(K, 2)$."""
    rays = view.rays(size)
    entries = np.stack([_entry(rays, view, KINDS[i], (*middle, half), half) for i, middle, half in zip(kinds, where, halves, strict=True)])
    nearest = np.where(entries.min(0) < _FAR, entries.argmin(0), -1)
    return (nearest == np.arange(len(kinds))[:, None]).sum(1)


def _entry(rays: np.ndarray, view: CameraView, kind: str, middle: tuple[float, float, float], half: float) -> np.ndarray:
    """Returns the distance along each ray at which it enters a solid; `_FAR` if it misses."""
    start = (np.array(view.position) - np.array(middle)) / half
    first, last = np.full(len(rays), -_FAR), np.full(len(rays), _FAR)
    rays = np.where(np.abs(rays) < 1e-9, 1e-9, rays) / half
    for axis in _SLABS[kind]:
        at = np.stack([(-1 - start[axis]) / rays[:, axis], (1 - start[axis]) / rays[:, axis]])
        first, last = np.maximum(first, at.min(0)), np.minimum(last, at.max(0))
    if axes := list(_ROUND[kind]):
        a, b, c = (rays[:, axes] ** 2).sum(1), rays[:, axes] @ start[axes], start[axes] @ start[axes] - 1
        root = np.sqrt(np.maximum(b * b - a * c, 0))
        first = np.where(b * b > a * c, np.maximum(first, (-b - root) / a), _FAR)
        last = np.minimum(last, (root - b) / a)
    return np.where(first < last, first, _FAR)


def _text(numbers: np.ndarray | tuple[float, ...]) -> str:
    return " ".join(f"{number:.9g}" for number in numbers)
