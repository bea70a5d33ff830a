"""Contact sheets with a given layout: rows of pictures below one another. `composable_energy_viz.files` lays out pictures by itself."""

from collections.abc import Sequence
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor
from torch.nn.functional import pad

from composable_energy_viz.files import write_image

_GAP = 2  # white pixels right of and below each picture


def tile_rows(rows: Sequence[Tensor]) -> Tensor:
    """Returns rows of pictures in [0, 1], each with shape $(B, C, S, S)$, as one picture with shape $(C, H, W)$."""
    tiles = pad(torch.stack(list(rows)), (0, _GAP, 0, _GAP), value=1.0)
    return rearrange(tiles, "rows columns c h w -> c (rows h) (columns w)")


def write_rows(path: Path, rows: Sequence[Tensor]) -> None:
    """Writes rows of pictures in [0, 1], each with shape $(B, C, S, S)$, as a PNG file."""
    from PIL import Image

    pixels = rearrange(tile_rows(rows).mul(255).round().byte().cpu(), "c h w -> h w c")
    write_image(path, Image.fromarray(pixels.squeeze(-1).numpy()), optimize=True)
