"""Labels of generated pictures: what a labeller returns, checked, as columns of the heads that will be trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from tqdm import tqdm
from typing_extensions import Self

from composable_energy import Energy
from composable_energy.errors import ComposableEnergyError
from composable_energy_latent.generator import Generator

Labeller = Callable[[Tensor], Mapping[str, Tensor] | Tensor]

_CHUNK = 250
_FEWEST = 10  # of each label; fewer say nothing about the held-out part
_MOST_LABELS = 100


class LabelError(ComposableEnergyError, ValueError):
    """Labels from which no attribute can be learnt, such as one without positives."""

    documentation: ClassVar[str] = "errors.md#labelerror"


@dataclass(frozen=True)
class Column:
    """One attribute and its columns in the output of the heads."""

    name: str
    target: Tensor  # labels from 0 on, or values, with shape (N,)
    labels: int  # 0 for a continuous attribute
    start: int
    centre: float = 0.0  # mean and standard deviation of values
    scale: float = 1.0

    @property
    def columns(self) -> slice:
        """Its columns: one for a binary or continuous attribute."""
        return slice(self.start, self.start + (self.labels if self.labels > 2 else 1))

    def rows(self, rows: Tensor) -> Self:
        """Returns the same attribute with the labels of some rows."""
        return replace(self, target=self.target[rows])


def label_pictures(base: Energy, z: Tensor, labeller: Labeller, names: Sequence[str] | None, progress: bool) -> dict[str, Tensor]:
    """Returns the labels of the pictures of latent points, by attribute."""
    decoder = base.decoder
    if not isinstance(decoder, Generator):
        raise LabelError(f"{base} has no Generator as its decoder, so it has no pictures: `composable_energy_latent.latent` makes a base.")
    found: dict[str, list[Tensor]] = {}
    parts = z.split(_CHUNK)
    with torch.no_grad():
        for part in tqdm(parts, desc="label", disable=not progress):
            for name, labels in _named(labeller(decoder(part)), names, len(part)).items():
                found.setdefault(name, []).append(labels.detach())
    uneven = [name for name, chunks in found.items() if len(chunks) != len(parts)]
    if not found or uneven:
        raise LabelError(
            f"The labeller gave {', '.join(uneven) or 'no attribute'} for some of the batches only; return all names each time."
        )
    return {name: torch.cat(chunks) for name, chunks in found.items()}


def columns_of_labels(labels: Mapping[str, Tensor]) -> list[Column]:
    """Returns the columns of the heads: bool and whole numbers are labels, other numbers are values."""
    columns: list[Column] = []
    for name, target in labels.items():
        start = columns[-1].columns.stop if columns else 0
        column = _continuous(name, target, start) if target.is_floating_point() else _labelled(name, target.long(), start)
        columns.append(column)
    return columns


def _labelled(name: str, target: Tensor, start: int) -> Column:
    if bool((target < 0).any()) or int(target.max()) >= _MOST_LABELS:
        low, high = int(target.min()), int(target.max())
        raise LabelError(f"The labels of {name} go from {low} to {high}; they are whole numbers from 0 to {_MOST_LABELS - 1}.")
    labels = max(2, int(target.max()) + 1)
    counts = torch.bincount(target, minlength=labels).tolist()
    rare = [label for label, count in enumerate(counts) if count < _FEWEST]
    if rare:
        which = f"{name}={rare[0]}" if labels > 2 else f"{name}" if rare[0] == 1 else f"a picture without {name}"
        raise LabelError(
            f"Of {len(target)} pictures {counts[rare[0]]} show {which}, too few to learn it (at least {_FEWEST}): draw more with `count`, "
            "lower the labeller's threshold, or leave the attribute out. If the generator never shows it, no latent point has it."
        )
    return Column(name, target, labels, start)


def _continuous(name: str, target: Tensor, start: int) -> Column:
    broken = int((~target.isfinite()).sum())
    if broken:
        raise LabelError(f"{broken} of {len(target)} values of {name} are not finite; leave those pictures out, or return bool labels.")
    scale = target.float().std().item()
    if scale < 1e-6:
        raise LabelError(f"All pictures have the same value of {name}, {target[0].item():g}, so nothing can be learnt.")
    return Column(name, target.float(), 0, start, target.float().mean().item(), scale)


def _named(labels: object, names: Sequence[str] | None, count: int) -> dict[str, Tensor]:
    if isinstance(labels, Tensor):
        columns = labels.unsqueeze(1) if labels.ndim == 1 else labels
        if names is None or columns.ndim != 2 or columns.shape[1] != len(names):
            raise LabelError(
                f"The labeller returned a tensor of shape {tuple(labels.shape)}: give one name for each column in `names`, or return a "
                "mapping of names to labels."
            )
        labels = dict(zip(names, columns.unbind(1), strict=True))
    if not isinstance(labels, Mapping) or not all(isinstance(value, Tensor) for value in labels.values()):
        raise LabelError(f"The labeller returned a {type(labels).__name__}; return a mapping of names to tensors with shape (B,).")
    wrong = next((name for name, value in labels.items() if value.shape != (count,)), None)
    if wrong is not None:
        raise LabelError(f"The labels of {wrong} have shape {tuple(labels[wrong].shape)} for {count} pictures; expected ({count},).")
    return dict(labels)
