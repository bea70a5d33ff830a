"""Contact sheets of decomposed pictures."""

from pathlib import Path

import torch
from torch import Tensor

from composable_energy_comet.model import Comet
from composable_energy_viz.files import write_grid


def write_sheet(model: Comet, x: Tensor, path: Path) -> None:
    """Writes a sheet of pictures with shape $(B, C, S, S)$, their reconstructions, and each component alone, as a PNG file."""
    z = model.encode(x)
    rows = [x, model.decode(z), *(model.decode(z[:, k : k + 1]) for k in range(model.components))]
    write_grid(path, torch.cat(rows), (0.0, 1.0), {}, columns=len(x))
