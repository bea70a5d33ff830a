"""A sheet of decomposed pictures."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from composable_energy_comet.comet import Comet

__all__ = ["sheet", "write_sheet"]

_GAP = 2


def sheet(model: Comet, x: Tensor) -> Tensor:
    """Returns rows of pictures below one another, with shape $(C, H, W)$: pictures, what they are rebuilt to, each component alone.

    Args:
        model: What decomposes them.
        x: Pictures, with shape $(B, C, S, S)$.
    """
    z = model.encode(x)
    rows = [x, model.decode(z), *(model.decode(z[:, k : k + 1]) for k in range(model.components))]
    tiles = F.pad(torch.stack(rows), (0, _GAP, 0, _GAP), value=1.0)
    return tiles.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2)


def write_sheet(model: Comet, x: Tensor, path: Path) -> None:
    """Writes the sheet as a PNG file; arguments as those of `sheet`."""
    from PIL import Image

    pixels = sheet(model, x).mul(255).round().byte().permute(1, 2, 0).cpu()
    Image.fromarray(pixels.squeeze(-1).numpy()).save(path, optimize=True)
