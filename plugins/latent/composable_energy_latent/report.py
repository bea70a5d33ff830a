"""How good fitted attributes are, on pictures that were not used for training."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AttributeReport:
    """One attribute on held-out pictures.

    Attributes:
        name: The attribute.
        kind: `binary`, `labels` or `continuous`.
        share: The share of the most frequent label, the accuracy of a guess; 0 for a continuous one.
        accuracy: The share of right labels; for a continuous one the share of the variance that is explained.
        ece: The expected calibration error; for a continuous one $\\lvert c - .9 \\rvert$ with the coverage $c$ of 90 % intervals.
        width: The width of the Gaussian of a continuous attribute; the temperature of labels.
    """

    name: str
    kind: str
    share: float
    accuracy: float
    ece: float
    width: float


@dataclass(frozen=True)
class FitReport:
    """All attributes on held-out pictures.

    Attributes:
        rows: One report for each attribute.
        pictures: How many pictures were labelled.
        held_out: How many of them the figures are from.
        seconds: How long it took.
    """

    rows: tuple[AttributeReport, ...]
    pictures: int
    held_out: int
    seconds: float

    def __getitem__(self, name: str) -> AttributeReport:
        """Returns the report of an attribute."""
        return next(row for row in self.rows if row.name == name)

    def __str__(self) -> str:
        width = max(len(row.name) for row in self.rows)
        head = f"{'':{width}}  kind        accuracy  guess   ECE"
        lines = [f"{r.name:{width}}  {r.kind:10}  {r.accuracy:8.3f}  {r.share:5.3f}  {r.ece:.3f}" for r in self.rows]
        return "\n".join([head, *lines, f"{self.pictures} pictures, {self.held_out} held out, {self.seconds:.0f} s"])
