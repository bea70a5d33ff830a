"""The sampler that an energy recommends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from composable_energy.errors import OptionError
from composable_energy.options import check_integer

_MOST_THREADS = 1024


@dataclass(frozen=True)
class Recommendation:
    """The sampler that a trained energy was evaluated with.

    Args:
        sampler: Its name.
        options: Its options, by name.
        threads: Threads within an operation while sampling, at most 1024; None does not change them. Small networks are fastest with one.
        precedence: Of the recommendations in an expression, those with the highest number count. A term that changes what the others were
            evaluated for, such as a precise measurement, has a higher one.

    Raises:
        OptionError: One of them is out of range, or of another type.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    precedence: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str):
            raise OptionError(f"A recommended sampler is a name, got {self.sampler!r}.", ["sampler"])
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            raise OptionError(f"Recommended options are a mapping from names, got {self.options!r}.", ["options"])
        if self.threads is not None and check_integer("threads", self.threads) > _MOST_THREADS:
            raise OptionError(f"threads must be at most {_MOST_THREADS}, got {self.threads}.", ["threads"])
        check_integer("precedence", self.precedence, -_MOST_THREADS)
