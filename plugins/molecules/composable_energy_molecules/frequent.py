"""The most frequent rotamer, by amino acid and by bins of the context: what a library says without a model."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer
from composable_energy_molecules.angles import wrap
from composable_energy_molecules.data import SideChains
from composable_energy_molecules.residues import ANGLES, GROUPS, RESIDUES, angle_mask, angle_periods


class FrequentRotamer:
    r"""Predicts the mean angles of the most frequent rotamer.

    A rotamer is a combination of thirds of the circle, from 0 on, of all angles but a symmetric one, which has one well.

    Args:
        bins: Bins of $\phi$ and of $\psi$; 1 ignores the backbone.
        neighbours: Whether the groups of both neighbours count.
        least: The least number of residues in a bin; with fewer the prediction is that of the amino acid alone.

    Raises:
        OptionError: A number is not positive.
    """

    def __init__(self, bins: int = 1, *, neighbours: bool = False, least: int = 10) -> None:
        self.bins, self.least = check_integer("bins", bins), check_integer("least", least)
        self.neighbours = check_flag("neighbours", neighbours)
        self.found: dict[int, Tensor] = {}

    def fit(self, data: SideChains) -> FrequentRotamer:
        """Counts rotamers of complete side chains, and returns itself."""
        rotamer = _rotamers(data)
        residue = data.context[:, 2].long()
        self.found = _most_frequent(residue - len(RESIDUES), rotamer, data, 1)  # negative keys are those of the amino acid alone
        if self.bins > 1 or self.neighbours:
            self.found |= _most_frequent(self._keys(data.context), rotamer, data, self.least)
        return self

    def predict(self, context: Tensor) -> Tensor:
        """Returns angles, with shape (B, 4); 0 beyond the angles of an amino acid.

        Raises:
            OptionError: An amino acid was not in the data of `fit`.
        """
        rows = []
        for key, residue in zip(self._keys(context).tolist(), context[:, 2].long().tolist(), strict=True):
            found = self.found.get(key, self.found.get(residue - len(RESIDUES)))
            if found is None:
                raise OptionError(f"No side chain of {RESIDUES[residue].name} was in the data of `fit`.")
            rows.append(found)
        return torch.stack(rows)

    def _keys(self, context: Tensor) -> Tensor:
        key = context[:, 2].long()
        for angle in context[:, :2].T:
            bins = ((wrap(angle.nan_to_num()) + math.pi) / (2 * math.pi) * self.bins).long().clamp(0, self.bins - 1)
            key = key * (self.bins + 1) + torch.where(angle.isfinite(), bins, self.bins)
        for group in context[:, 3:].T.long():
            key = key * len(GROUPS) + (group if self.neighbours else 0)
        return key


def _rotamers(data: SideChains) -> Tensor:
    """Returns the number of the rotamer of each side chain, with shape (N,)."""
    thirds = (torch.remainder(data.chi, 2 * math.pi) * (3 / (2 * math.pi))).long().clamp(0, 2)
    several = data.mask & (angle_periods(data.context) > 1.5 * math.pi)
    return (torch.where(several, thirds, 0) * 3 ** torch.arange(ANGLES)).sum(1)


def _most_frequent(keys: Tensor, rotamer: Tensor, data: SideChains, least: int) -> dict[int, Tensor]:
    """Returns the mean angles of the most frequent rotamer of each key with enough rows."""
    periods, mask = angle_periods(data.context), angle_mask(data.context)
    order = torch.argsort(keys, stable=True)
    found, counts = keys[order].unique_consecutive(return_counts=True)
    ends = [0, *counts.cumsum(0).tolist()]
    result = {}
    for key, (start, end) in zip(found.tolist(), pairwise(ends), strict=True):
        rows = order[start:end]
        if len(rows) < least:
            continue
        rows = rows[rotamer[rows] == torch.bincount(rotamer[rows]).argmax()]
        folds = 2 * math.pi / periods[rows]
        turned = data.chi[rows] * folds
        mean = torch.atan2(turned.sin().mean(0), turned.cos().mean(0)) / folds[0]
        result[key] = torch.where(mask[rows[0]], mean, 0.0)
    return result
