"""Numbers with a standard error."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error.

    Attributes:
        value: The number.
        standard_error: Its standard error; 0 for an exact number.
    """

    value: float
    standard_error: float = 0.0

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4g}" + (f" +- {self.standard_error:.2g}" if self.standard_error else "")
