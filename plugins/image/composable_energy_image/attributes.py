"""Attributes as energies: selects attributes of pictures, names their energies, and measures what is read from codes and pictures."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy_image.autoencoder import Autoencoder
from composable_energy_image.code_energy import CodeEnergy
from composable_energy_image.data import Labels, Pictures
from composable_energy_image.data.pictures import check_spellings
from composable_energy_image.label_columns import JointLabels, label_columns

_LOG = logging.getLogger("composable_energy_training")
_CHUNK = 500
_LOST = 0.1  # of accuracy or probability, which is worth a warning
_RESERVED = frozenset({"base", "stages", "samples.png", "report.json", "recipe.toml"})
_NAME = re.compile(r"[^./\\\s][^/\\\n\r\0]*")


def select_attributes(pictures: Pictures, names: Sequence[str]) -> dict[str, Labels]:
    """Returns the attributes of pictures to learn: those with the names, or all."""
    found, events = {name: pictures.variable(name) for name in names or pictures.labels}, list[str]()
    for name, labels in found.items():
        values, known = len(labels.values[labels.known].unique()), int(labels.known.sum())
        if 2 < values > known / 2:
            raise OptionError(f"The attribute {name!r} has {values} values for {known} pictures: name others in data.attributes.")
        for event in _event_names(name, labels):
            if event.lower() in _RESERVED or not _NAME.fullmatch(event):
                raise OptionError(f"The attribute {event!r} cannot name a folder of its energy: rename that column, or leave it out.")
            events.append(event)
        if absent := [label for value, label in enumerate(labels.names) if not (labels.values == value).any()]:
            _LOG.warning(f"No picture to learn from has the value {', '.join(absent)} of {name}, so the energy of it means nothing.")
    check_spellings(events)  # they become folders
    return found


def count_values(labels: Mapping[str, Labels]) -> dict[str, int]:
    """Returns the number of values of each attribute, by name."""
    return {name: len(some.names) for name, some in labels.items()}


def attribute_energies(
    base: CodeEnergy, heads: nn.Module, labels: Mapping[str, Labels], joint: JointLabels | None
) -> Iterator[ce.ClassifierEnergy]:
    """Yields energies: `male` for a binary attribute, `hair=red` and so on for others' values. With `joint` heads are of combinations."""
    columns = label_columns(count_values(labels))
    for name, some in labels.items():
        for value, event in enumerate(_event_names(name, some), 1 if some.binary else 0):
            if joint is None:
                yield ce.ClassifierEnergy(heads, value, base, columns=columns[name], name=event)
            else:
                yield ce.ClassifierEnergy(heads, joint.having(name, value), base, labels=len(joint), name=event)


@dataclass(frozen=True)
class AttributeReader:
    """Reads attributes from codes of pictures by trained heads, and compares them with the truth.

    Args:
        coder: The autoencoder.
        heads: The heads, at their lowest noise level.
        labels: The attributes.
        joint: The combinations that the heads are of; None for heads of each attribute.
    """

    coder: Autoencoder
    heads: nn.Module
    labels: Mapping[str, Labels]
    joint: JointLabels | None

    @torch.no_grad()
    def read(self, codes: Tensor) -> dict[str, Tensor]:
        """Returns the most probable value of each attribute, with shape $(B,)$."""
        logits, found = self.heads(codes), {}
        for name, columns in label_columns(count_values(self.labels)).items():
            some = logits[:, columns] if self.joint is None else self.joint.marginals(logits, name)
            found[name] = some.argmax(1) if some.shape[1] > 1 else (some[:, 0] > 0).long()
        return found

    def accuracy(self, codes: Tensor, truth: Mapping[str, Labels]) -> dict[str, float]:
        """Returns the accuracy on each attribute over the codes with a known value."""
        hits = {name: (values.cpu() == truth[name].values)[truth[name].known] for name, values in self.read(codes).items()}
        return {name: float(some.float().mean()) for name, some in hits.items() if len(some)}

    def measure(self, codes: Tensor, truth: Mapping[str, Labels]) -> dict[str, dict[str, float]]:
        """Returns accuracies on codes of held-out pictures and of what these decode to; warns in the log of attributes that are lost."""
        held_out, decoded = self.accuracy(codes, truth), self.accuracy(reencode(self.coder, codes), truth)
        for name, share in held_out.items():
            if decoded[name] < share - _LOST - truth[name].known.sum().rsqrt():  # with few pictures, a difference may be chance
                _LOG.warning(
                    f"The decoder loses {name}: it is read right from {share:.2f} of the codes of held-out pictures, but from "
                    f"{decoded[name]:.2f} of the pictures that these decode to. Give the decoder more steps (decoder.steps) or features "
                    "(model.features), codes more numbers (model.code), or attributes more weight (decoder.reading, autoencoder.naming)."
                )
        return {"held_out_accuracy": held_out, "reconstruction_accuracy": decoded}


def draw_events(energies: Sequence[ce.Energy], count: int) -> tuple[list[Tensor], dict[str, dict[str, float]]]:
    """Draws pictures from each energy of a run, and reads its event in them; both have the order of the energies.

    The numbers are the mean probability of the event given the codes that were drawn, and given the codes of the pictures they decode to;
    the base has none. A warning in the log names each event that decoding loses.
    """
    pictures, found = [], {}
    for energy in energies:
        codes, coder = energy.latents.sample(count, seed=0), cast(Autoencoder, energy.decoder)
        with torch.no_grad():
            pictures.append(coder(codes))
            if not isinstance(energy, ce.ClassifierEnergy):
                continue
            drawn, decoded = (float((-energy.evidence(some)).exp().mean()) for some in (codes, reencode(coder, codes)))
        found[energy.name] = {"codes": drawn, "pictures": decoded}
        if decoded < drawn - _LOST:
            _LOG.warning(
                f"Drawn pictures lose {energy.name}: its mean probability is {drawn:.2f} given drawn codes, but {decoded:.2f} given the "
                "pictures that they decode to. Train the decoder for more steps, or on more draws (decoder.steps, decoder.draws)."
            )
    return pictures, found


@torch.no_grad()
def reencode(coder: Autoencoder, codes: Tensor) -> Tensor:
    """Returns the codes of the pictures that codes decode to, with shape $(B, D)$."""
    return torch.cat([coder.encode(coder(some)) for some in codes.split(_CHUNK)]) if len(codes) else codes


def _event_names(name: str, labels: Labels) -> list[str]:
    return [name] if labels.binary else [f"{name}={value}" for value in labels.names]
