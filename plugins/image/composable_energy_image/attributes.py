"""Attributes as energies: selects attributes of pictures, names their energies, and measures the accuracy of heads."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.code_energy import CodeEnergy, CodeHeads
from composable_energy_image.data import Labels, Pictures
from composable_energy_image.label_columns import find_joint_labels, label_columns

_RESERVED = frozenset({"base", "stages", "samples.png", "report.json", "recipe.toml"})
_NAME = re.compile(r"[^./\\\s][^/\\\n\r\0]*")


def select_attributes(pictures: Pictures, names: Sequence[str]) -> dict[str, Labels]:
    """Returns the attributes of pictures to learn: those with the names, or all."""
    found = {name: pictures.variable(name) for name in names or pictures.labels}
    for name, labels in found.items():
        for event in _event_names(name, labels):
            if event in _RESERVED or not _NAME.fullmatch(event):
                raise OptionError(f"The attribute {event!r} cannot name a folder of its energy: rename that column, or leave it out.")
    return found


def count_values(labels: Mapping[str, Labels]) -> dict[str, int]:
    """Returns the number of values of each attribute, by name."""
    return {name: len(some.names) for name, some in labels.items()}


def attribute_energies(base: CodeEnergy, heads: CodeHeads, labels: Mapping[str, Labels]) -> Iterator[ce.ClassifierEnergy]:
    """Yields the energies of attributes: `male` for a binary attribute, `hair=red` and so on for the values of any other."""
    columns, joint = label_columns(count_values(labels)), find_joint_labels(labels)
    for name, some in labels.items():
        for value, event in enumerate(_event_names(name, some), 1 if some.binary else 0):
            if joint is None:
                yield ce.ClassifierEnergy(heads, value, base, columns=columns[name], name=event)
            else:
                yield ce.ClassifierEnergy(heads, joint.having(name, value), base, labels=len(joint), name=event)


@torch.no_grad()
def measure_accuracy(heads: CodeHeads, codes: Tensor, truth: Mapping[str, Labels], labels: Mapping[str, Labels]) -> dict[str, float]:
    """Returns the accuracy of heads, at their lowest noise level, on each attribute, over the codes with a known value."""
    logits, joint, found = heads(codes).cpu(), find_joint_labels(labels), {}
    for name, columns in label_columns(count_values(labels)).items():
        some, known = logits[:, columns] if joint is None else joint.marginals(logits, name), truth[name].known
        predicted = some.argmax(1) if some.shape[1] > 1 else (some[:, 0] > 0).long()
        if known.any():
            found[name] = float((predicted == truth[name].values)[known].float().mean())
    return found


def _event_names(name: str, labels: Labels) -> list[str]:
    return [name] if labels.binary else [f"{name}={value}" for value in labels.names]
