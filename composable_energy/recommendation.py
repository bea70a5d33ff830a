"""The sampler that an energy recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Recommendation"]


@dataclass(frozen=True)
class Recommendation:
    """The sampler that a trained energy was evaluated with.

    Args:
        sampler: Its name.
        options: Its options, by name.
        threads: Threads within an operation while sampling; None does not change them. Small networks are fastest with one.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
