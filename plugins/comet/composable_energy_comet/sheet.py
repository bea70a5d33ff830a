"""Contact sheets of decomposed pictures."""

from pathlib import Path

from torch import Tensor

from composable_energy_comet.model import Comet
from composable_energy_image.sheets import tile_rows, write_rows


def sheet(model: Comet, x: Tensor) -> Tensor:
    """Returns a sheet with shape $(C, H, W)$ of pictures with shape $(B, C, S, S)$, their reconstructions, and each component alone."""
    return tile_rows(_rows(model, x))


def write_sheet(model: Comet, x: Tensor, path: Path) -> None:
    """Writes the sheet as a PNG file."""
    write_rows(path, _rows(model, x))


def _rows(model: Comet, x: Tensor) -> list[Tensor]:
    z = model.encode(x)
    return [x, model.decode(z), *(model.decode(z[:, k : k + 1]) for k in range(model.components))]
