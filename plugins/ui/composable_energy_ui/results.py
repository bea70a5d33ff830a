"""What the page gets: images, densities and numbers as plain JSON."""

from __future__ import annotations

import base64
import math
import tempfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.sampling import Trace
from composable_energy_viz.files import is_picture, layout, write_grid

EXTENT = 3.6
_PIXELS = 240


def kind_of(shape: tuple[int, ...]) -> str:
    """Returns how points of a shape are shown: `pictures`, `plane` or `numbers`."""
    return "pictures" if is_picture(shape) else "plane" if shape == (2,) else "numbers"


def numbers(values: Any, digits: int = 4) -> Any:
    """Returns tensors as nested lists, also inside of lists and mappings; JSON has no infinite numbers, so they are text."""
    if isinstance(values, dict):
        return {name: numbers(value, digits) for name, value in values.items()}
    values = values.tolist() if isinstance(values, Tensor) else values
    if isinstance(values, list):
        return [numbers(value, digits) for value in values]
    if not isinstance(values, float):
        return values
    return round(values, digits) if math.isfinite(values) else {math.inf: "Infinity", -math.inf: "-Infinity"}.get(values, "NaN")


def spread(count: int, most: int = 200) -> list[int]:
    """Returns the numbers of steps that are shown, evenly spaced."""
    return torch.linspace(0, count - 1, min(count, most)).round().long().unique().tolist() if count else []


def grid_image(images: Tensor, value_range: tuple[float, float], about: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a grid of images as the command line writes it, and its layout."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "grid.png"
        write_grid(path, images, value_range, about)
        data = path.read_bytes()
    rows, columns = layout(len(images))
    return {"image": _address(data), "n": len(images), "rows": rows, "columns": columns}


def density_image(energy: Energy) -> dict[str, Any]:
    """Returns the density of an energy of the plane as an image; white is 0, the darkest blue its maximum."""
    from PIL import Image

    axis = torch.linspace(-EXTENT, EXTENT, _PIXELS)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        energies = energy(grid).reshape(_PIXELS, _PIXELS)
    share = (energies.min() - energies).exp().nan_to_num(0.0).T.flip(0)[..., None]
    light, middle, dark = (torch.tensor(colour) for colour in ((255.0, 255.0, 255.0), (150.0, 160.0, 214.0), (48.0, 63.0, 159.0)))
    pixels = torch.where(share < 0.5, light + (middle - light) * 2 * share, middle + (dark - middle) * (2 * share - 1))
    file = BytesIO()
    Image.fromarray(pixels.round().byte().numpy()).save(file, "PNG")
    return {"image": _address(file.getvalue()), "extent": EXTENT}


def traces_of(trace: Trace) -> dict[str, Any]:
    """Returns the median and the 10 % and 90 % quantiles of the energies of the chains, at up to 200 steps."""
    chosen = spread(len(trace.energies))
    shown = trace.energies[chosen].float()
    low, middle, high = torch.nanquantile(shown, torch.tensor([0.1, 0.5, 0.9]), 1) if shown.numel() else shown.new_zeros(3, 0)
    return numbers({"steps": [step + 1 for step in chosen], "low": low, "mid": middle, "high": high})


def summary_of(trace: Trace) -> dict[str, Any]:
    """Returns the facts, statistics and warnings of the summary of a trace."""
    summary = trace.summary()
    columns = ("mean", "sd", "mcse", "ess_bulk", "ess_tail", "r_hat")
    rows = [
        {"name": row.name, **{name: None if math.isnan(value := getattr(row, name)) else float(f"{value:.4g}") for name in columns}}
        for row in summary.rows
    ]
    note = "" if trace.sampler.stationary else "R-hat does not apply: the density of these chains changes from step to step"
    about = {"note": note, "title": summary.title, "facts": dict(summary.facts)}
    return {**about, "rows": rows, "warnings": [str(one) for one in summary.warnings]}


def _address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
