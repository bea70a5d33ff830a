"""Sizes of the networks of `base-and-attributes` that follow the pictures: their number, and their height and width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

AUTOMATIC = {
    "code": (64, 20),
    "width": (256, 192),
    "blocks": (4, 3),
    "heads_width": (256, 128),
    "corrector_steps": (3, 8),
    "features": (64, 64),  # 32 for 16 pixels and 48 for 32, whatever the number of pictures
}
"""Settings of the table `model` that may be `"auto"`, with their values for many pictures and for a small set."""

_FEATURES = {16: 32, 32: 48}


def resolve_sizes(model: Mapping[str, Any], side: int, *, small: bool) -> dict[str, int]:
    """Returns the values of all settings in `AUTOMATIC`; those that are `"auto"` follow the pictures.

    Args:
        model: The table `model` of a recipe.
        side: Height and width of the pictures. The decoder has fewer features for small ones, so that the cost follows the size.
        small: Whether the set of pictures is small.
    """
    automatic = {name: values[small] for name, values in AUTOMATIC.items()} | {"features": _FEATURES.get(side, 64)}
    return {name: value if model[name] == "auto" else model[name] for name, value in automatic.items()}
