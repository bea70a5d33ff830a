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
        precedence: Of the recommendations in an expression, those with the highest number count. A term that changes what the others were
            evaluated for, such as a precise measurement, has a higher one.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    precedence: int = 0
