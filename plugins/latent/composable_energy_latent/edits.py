"""Sequences of edits: what was asked, what came of it, undoing, and files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Self

from composable_energy import Energy
from composable_energy.errors import FileFormatError
from composable_energy.files import read_record, write_record
from composable_energy.options import check_integer
from composable_energy.sampling import twin
from composable_energy_latent.errors import EditError

_TENSORS = ("latents", "reached", "distance", "evaluations")


@dataclass(frozen=True, eq=False)
class EditStep:
    """One edit.

    Attributes:
        asked: The text of the expression.
        latents: The latent points after it, with shape $(B, *)$.
        reached: The probability of the expression at each point, with shape $(B,)$; NaN for one that is no event.
        kept: For each kept attribute the share of points whose label stayed; for a continuous one 1 minus the mean change in standard
            deviations.
        distance: The distance of identities from the original pictures, with shape $(B,)$.
        evaluations: How often each point was evaluated, with shape $(B,)$.
    """

    asked: str
    latents: Tensor
    reached: Tensor
    kept: dict[str, float]
    distance: Tensor
    evaluations: Tensor


@dataclass(frozen=True, eq=False)
class Edits:
    """Edits of some pictures, one after another. An edit gives new `Edits`; the old ones stay as they are.

    Attributes:
        base: The prior.
        original: The latent points at the start, with shape $(B, *)$.
        steps: The edits.
    """

    base: Energy
    original: Tensor
    steps: tuple[EditStep, ...] = ()

    @property
    def latents(self) -> Tensor:
        """The latent points after the last edit."""
        return self.steps[-1].latents if self.steps else self.original

    @property
    def images(self) -> Tensor:
        """The pictures after the last edit."""
        return self._decode(self.latents)

    @property
    def last(self) -> EditStep:
        """The last edit.

        Raises:
            EditError: There is none.
        """
        if not self.steps:
            raise EditError("There is no edit yet, or all were undone.")
        return self.steps[-1]

    def edit(self, expression: Energy, **options: Any) -> Edits:
        """Returns the edits with one more; see `composable_energy_latent.edit`."""
        from composable_energy_latent.edit import edit

        return edit(self, expression, **options)

    def undo(self, steps: int = 1) -> Self:
        """Returns the edits without the last ones.

        Raises:
            EditError: There are not as many.
        """
        if check_integer("steps", steps) > len(self.steps):
            raise EditError(f"There are {len(self.steps)} edits, so {steps} cannot be undone.")
        return type(self)(self.base, self.original, self.steps[:-steps])

    def between(self, count: int) -> Tensor:
        """Returns pictures on the way of the last edit, with shape (count, B, *): from before it to after it."""
        check_integer("count", count, 2)
        before = self.steps[-2].latents if len(self.steps) > 1 else self.original
        return torch.stack([self._decode(torch.lerp(before, self.last.latents, i / (count - 1))) for i in range(count)])

    def save(self, path: str | Path) -> None:
        """Writes all edits to a file, for `Edits.load`; the generator is not part of it."""
        tensors = {f"{i}.{name}": getattr(step, name) for i, step in enumerate(self.steps) for name in _TENSORS}
        texts = [{"asked": step.asked, "kept": step.kept} for step in self.steps]
        write_record(Path(path), "edits", 1, {"steps": texts}, {"original": self.original, **tensors})

    @classmethod
    def load(cls, path: str | Path, base: Energy) -> Self:
        """Reads edits.

        Args:
            path: The file.
            base: The prior with the generator of the edits.

        Raises:
            FileFormatError: The file is missing, damaged, or not one of edits of such latent points.
        """
        header, tensors = read_record(Path(path), "edits", 1)
        try:
            original = tensors["original"]
            steps = tuple(
                EditStep(asked=str(text["asked"]), kept=dict(text["kept"]), **{name: tensors[f"{i}.{name}"] for name in _TENSORS})
                for i, text in enumerate(header["steps"])
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FileFormatError(f"{path} cannot be read as edits: {error!r}.") from error
        if original.shape[1:] != base.event_shape or any(step.latents.shape != original.shape for step in steps):
            raise FileFormatError(f"{path} has latent points of shape {tuple(original.shape[1:])}, {base} takes {base.event_shape}.")
        return cls(base, original, steps)

    def _decode(self, z: Tensor) -> Tensor:
        with torch.no_grad():
            return twin(self.base.decoder)(z)  # pyright: ignore[reportOptionalCall]

    def __str__(self) -> str:
        rows = [f"{len(self.original)} pictures, {len(self.steps)} edits"]
        for step in self.steps:
            reached = f"{step.reached.mean().item():.3f}" if not step.reached.isnan().any() else "     "
            kept = f", kept {min(step.kept.values()):.3f}" if step.kept else ""
            rows.append(f"  {step.asked}: reached {reached}{kept}, distance {step.distance.mean().item():.3f}")
        return "\n".join(rows)
