"""The world `tetris`: three pieces of four cells on a board, with masks, similar to the Tetrominoes of Greff et al. (2019)."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from composable_energy.errors import OptionError
from composable_energy_image.data import Field, Scenes, World
from composable_energy_scenes.renderer import check_picture_size
from composable_energy_scenes.sprites import FULL_COLORS, TONES

_COUNT = 3
_FREE = {
    "I": ["####"],
    "O": ["##", "##"],
    "T": ["###", ".#."],
    "S": [".##", "##."],
    "Z": ["##.", ".##"],
    "J": ["#..", "###"],
    "L": ["..#", "###"],
}


def _rotate_pieces() -> dict[str, np.ndarray]:
    """Returns the cells of each piece in each orientation: rows and columns from the upper left corner, with shape (4, 2)."""
    found: dict[str, np.ndarray] = {}
    for letter, lines in _FREE.items():
        piece, seen = np.array([[cell == "#" for cell in line] for line in lines]), set()
        for _ in range(4):
            if (key := (piece.shape, piece.tobytes())) not in seen:
                found[f"{letter}{len(seen)}"] = np.argwhere(piece)
                seen.add(key)
            piece = np.rot90(piece)
    return found


PIECES = MappingProxyType(_rotate_pieces())
"""The 19 pieces by name, a letter and the number of quarter turns; the order is that of the classes 0 to 18."""

_CELLS = np.stack(list(PIECES.values()))
_EXTENT = _CELLS.max(1) + 1


class Tetris(World):
    """Three pieces that do not overlap; pieces that touch, by an edge or a corner, have different colors.

    All such arrangements are equally likely, and given the arrangement all such colors.

    Args:
        size: Height and width of the pictures, a multiple of `cells`.
        cells: Number of rows and columns of the board.
    """

    name = "tetris"

    def __init__(self, size: int = 35, cells: int = 7) -> None:
        self.size, self.cells = check_picture_size(size), cells
        if isinstance(cells, bool) or not isinstance(cells, int | np.integer) or not 5 <= cells <= size or size % cells:
            raise OptionError(f"size must be a multiple of the number of cells, 5 or more; got {size} pixels and {cells!r} cells.")
        self.fields = MappingProxyType(
            {
                "shape": Field((_COUNT,), "int64", "pieces, with their orientation", tuple(PIECES)),
                "color": Field((_COUNT,), "int64", "colors", FULL_COLORS),
                "cell": Field((_COUNT, 2), "int64", "row and column, from 0, of the upper left corners of the bounding boxes"),
            }
        )

    def sample_labels(self, random: np.random.Generator) -> dict[str, object]:
        while True:
            shape = random.integers(len(PIECES), size=_COUNT)
            cell = random.integers(self.cells, size=(_COUNT, 2))  # also outside the board, so that all positions are equally likely
            taken = (_CELLS[shape] + cell[:, None]).reshape(-1, 2)
            if taken.max() < self.cells and len(np.unique(taken, axis=0)) == len(taken):
                break
        color, apart = np.zeros(_COUNT, np.int64), np.abs(taken[:, None] - taken).max(2)
        for k in range(_COUNT):
            used = {color[j] for j in range(k) if apart[4 * j : 4 * j + 4, 4 * k : 4 * k + 4].min() <= 1}
            color[k] = random.choice([tone for tone in range(len(FULL_COLORS)) if tone not in used])
        return {"shape": shape, "color": color, "cell": cell}

    def render(self, labels: Mapping[str, np.ndarray], *, masks: bool = False) -> Scenes:
        values = self.check_labels(labels)
        n, wide = len(values["shape"]), self.size // self.cells
        if ((values["cell"] < 0) | (values["cell"] + _EXTENT[values["shape"]] > self.cells)).any():
            raise OptionError(f"A piece is outside the board of {self.cells} x {self.cells} cells.")
        board = np.zeros((n, self.cells, self.cells), np.uint8)
        for k in range(_COUNT):
            row, column = np.moveaxis(_CELLS[values["shape"][:, k]] + values["cell"][:, k, None], 2, 0)
            board[np.arange(n)[:, None], row, column] = k + 1
        if (np.count_nonzero(board, axis=(1, 2)) < 4 * _COUNT).any():
            raise OptionError("Pieces overlap.")
        tones = np.concatenate([np.zeros((n, 1, 3), np.uint8), TONES[values["color"]]], 1)  # 0 is the background, and black
        found = board.repeat(wide, 1).repeat(wide, 2)
        images = tones[np.arange(n)[:, None, None], found]
        return Scenes(np.ascontiguousarray(images.transpose(0, 3, 1, 2)), values, found if masks else None)
