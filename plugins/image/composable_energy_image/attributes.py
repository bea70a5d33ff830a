"""Attributes as energies: which there are, by which names, and how well their heads know pictures that they have not seen."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.data import Labels, Pictures
from composable_energy_image.heads import CodeHeads
from composable_energy_image.label_columns import label_columns

__all__ = ["accuracies", "chosen", "count_values", "energies"]

_TAKEN = frozenset({"base", "stages", "samples.png", "report.json", "recipe.toml"})
_NAME = re.compile(r"[^./\\\s][^/\\\n\r\0]*")


def chosen(pictures: Pictures, names: Sequence[str]) -> dict[str, Labels]:
    """Returns the attributes to learn.

    Args:
        pictures: Labelled pictures.
        names: Which; all if empty.

    Raises:
        OptionError: There is no such attribute, all pictures have the same value, or its name is none for a folder.
    """
    found = {name: pictures.variable(name) for name in names or pictures.labels}
    for name, labels in found.items():
        for event in _names(name, labels):
            if event in _TAKEN or not _NAME.fullmatch(event):
                raise OptionError(f"The attribute {event!r} cannot name a folder of its energy: rename that column, or leave it out.")
    return found


def count_values(labels: Mapping[str, Labels]) -> dict[str, int]:
    """Returns how many values each attribute has, by name."""
    return {name: len(some.names) for name, some in labels.items()}


def energies(base: CodeEnergy, heads: CodeHeads, labels: Mapping[str, Labels]) -> Iterator[ce.ClassifierEnergy]:
    """Yields the energy of each attribute: `male` for one of no and yes, `hair=red` and so on for each value of any other."""
    columns = label_columns(count_values(labels))
    for name, some in labels.items():
        for value, event in enumerate(_names(name, some), 1 if some.binary else 0):
            yield ce.ClassifierEnergy(heads, value, base, columns=columns[name], name=event)


@torch.no_grad()
def accuracies(heads: CodeHeads, codes: Tensor, truth: Mapping[str, Labels], labels: Mapping[str, Labels]) -> dict[str, float]:
    """Returns for each attribute the share of codes that heads name rightly, of those where it is known.

    Args:
        heads: Which are asked at their lowest noise level.
        codes: Of pictures, with shape $(N, D)$.
        truth: Attributes of these pictures, and perhaps others.
        labels: The attributes that the heads know.
    """
    logits, found = heads(codes).cpu(), {}
    for name, columns in label_columns(count_values(labels)).items():
        some, known = logits[:, columns], truth[name].known
        said = some.argmax(1) if some.shape[1] > 1 else (some[:, 0] > 0).long()
        if known.any():
            found[name] = float((said == truth[name].values)[known].float().mean())
    return found


def _names(name: str, labels: Labels) -> list[str]:
    return [name] if labels.binary else [f"{name}={value}" for value in labels.names]
