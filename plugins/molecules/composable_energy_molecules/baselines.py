r"""Baselines without a model of energy: the most frequent rotamer, and mixtures of von Mises densities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from composable_energy.errors import OptionError
from composable_energy.options import check_flag, check_integer
from composable_energy_molecules.residues import ANGLES, GROUPS, RESIDUES, SideChains, angle_mask, angle_periods, wrap

_STRONGEST = 500.0


class FrequentRotamer:
    r"""Predicts the mean angles of the most frequent rotamer; amino acids that were not in the data of `fit` raise `OptionError`.

    A rotamer is a combination of thirds of the circle, from 0 on, of all angles but a symmetric one, which has one well.

    Args:
        bins: Bins of $\phi$ and of $\psi$; 1 ignores the backbone.
        neighbours: Whether the groups of both neighbours count.
        least: The least number of residues in a bin; with fewer the prediction is that of the amino acid alone.
    """

    def __init__(self, bins: int = 1, *, neighbours: bool = False, least: int = 10) -> None:
        self.bins, self.least = check_integer("bins", bins), check_integer("least", least)
        self.neighbours = check_flag("neighbours", neighbours)
        self.found: dict[int, Tensor] = {}

    def fit(self, data: SideChains) -> FrequentRotamer:
        """Counts rotamers of complete side chains, and returns itself."""
        thirds = (torch.remainder(data.chi, 2 * math.pi) * (3 / (2 * math.pi))).long().clamp(0, 2)
        several = data.mask & (angle_periods(data.context) > 1.5 * math.pi)
        rotamer = (torch.where(several, thirds, 0) * 3 ** torch.arange(ANGLES)).sum(1)
        residue = data.context[:, 2].long()
        self.found = _most_frequent(residue - len(RESIDUES), rotamer, data, 1)  # negative keys are those of the amino acid alone
        if self.bins > 1 or self.neighbours:
            self.found |= _most_frequent(self._keys(data.context), rotamer, data, self.least)
        return self

    def predict(self, context: Tensor) -> Tensor:
        """Returns angles, with shape (B, 4); 0 beyond the angles of an amino acid."""
        rows = []
        for key, residue in zip(self._keys(context).tolist(), context[:, 2].long().tolist(), strict=True):
            if (found := self.found.get(key, self.found.get(residue - len(RESIDUES)))) is None:
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
        result[key] = torch.where(mask[rows[0]], torch.atan2(turned.sin().mean(0), turned.cos().mean(0)) / folds[0], 0.0)
    return result


@dataclass(frozen=True)
class _Components:
    r"""The components of one amino acid; the first two of the $D$ angles are those of the backbone, if the context counts."""

    weights: Tensor  # log weights, (K,)
    means: Tensor  # (K, D)
    strengths: Tensor  # concentrations, (K, D)
    neighbours: Tensor  # log probabilities of the groups before and after, (K, 2, G)


class VonMisesMixture:
    r"""A mixture $\sum_k w_k \prod_i \text{vM}(\alpha_i; \mu_{ki}, \kappa_{ki})$ for each amino acid, fitted by expectation maximisation.

    Angles are independent in a component. If the density depends on the `context`, they are those of backbone and side chain, and the
    groups of the neighbours have a probability in each component; the density of $\chi$ given the context is then a mixture too. Amino
    acids that were not in the data of `fit` raise `OptionError`.
    """

    def __init__(self, components: int = 32, *, context: bool = True, iterations: int = 60, seed: int = 0) -> None:
        self.components, self.iterations = check_integer("components", components), check_integer("iterations", iterations)
        self.context, self.seed = check_flag("context", context), seed
        self.found: dict[int, _Components] = {}

    def fit(self, data: SideChains) -> VonMisesMixture:
        """Fits the mixtures of all amino acids in complete side chains, and returns itself."""
        generator = torch.Generator().manual_seed(self.seed)
        for residue in data.context[:, 2].long().unique().tolist():
            part = data[data.context[:, 2] == residue]
            angles, groups = self._features(part.chi, part.context, residue)
            start = angles[torch.randint(len(angles), (self.components,), generator=generator)]
            found = _Components(
                torch.full((self.components,), -math.log(self.components)),
                torch.where(start.isfinite(), start, 0.0),
                torch.full_like(start, 8.0),
                torch.full((self.components, 2, len(GROUPS)), -math.log(len(GROUPS))),
            )
            for _ in range(self.iterations):
                found = _maximise(angles, groups, self._joint(found, angles, groups).softmax(1))
            self.found[residue] = found
        return self

    def log_prob(self, chi: Tensor, context: Tensor) -> Tensor:
        """Returns the log densities of the angles that each amino acid has, with shape (B,)."""
        result = chi.new_empty(len(chi))
        for residue, rows, found in self._parts(context):
            angles, groups = self._features(chi[rows], context[rows], residue)
            by_context = self._joint(found, angles[:, :2], groups) if self.context else found.weights
            folds = (2 * math.pi / angle_periods(context[rows][:1])).log() * angle_mask(context[rows][:1])
            joint = self._joint(found, angles, groups).logsumexp(1) - by_context.logsumexp(-1)
            result[rows] = joint + folds.sum() - math.log(2) * int(RESIDUES[residue].symmetric)
        return result

    def predict(self, context: Tensor) -> Tensor:
        """Returns for each context the mean of a component with the highest density there, with shape (B, 4)."""
        result = context.new_zeros(len(context), 4)
        for residue, rows, found in self._parts(context):
            count, first = RESIDUES[residue].angles, 2 if self.context else 0
            folds = 2 * math.pi / angle_periods(context[rows][:1])[:, :count]
            centres = torch.zeros(self.components, 4)
            centres[:, :count] = found.means[:, first:] / folds
            each = torch.stack([self.log_prob(centre.expand(len(rows), 4), context[rows]) for centre in centres], 1)
            result[rows] = centres[each.argmax(1)]
        return result

    def _parts(self, context: Tensor) -> list[tuple[int, Tensor, _Components]]:
        kinds = context[:, 2].long()
        if unknown := [RESIDUES[index].name for index in kinds.unique().tolist() if index not in self.found]:
            raise OptionError(f"No side chain of {', '.join(unknown)} was in the data of `fit`.")
        return [(index, (kinds == index).nonzero()[:, 0], self.found[index]) for index in kinds.unique().tolist()]

    def _features(self, chi: Tensor, context: Tensor, residue: int) -> tuple[Tensor, Tensor]:
        """Returns the angles of the mixture, NaN where unknown and each with period 2 pi, and the groups of the neighbours."""
        count = RESIDUES[residue].angles
        own = chi[:, :count] * (2 * math.pi / angle_periods(context)[:, :count])
        return (torch.cat([context[:, :2], own], 1) if self.context else own), context[:, 3:].long()

    def _joint(self, found: _Components, angles: Tensor, groups: Tensor) -> Tensor:
        """Returns log weights plus log densities of the first angles, with shape (N, K)."""
        means, strengths = found.means[:, : angles.shape[1]], found.strengths[:, : angles.shape[1]]
        log_i0 = torch.special.i0e(strengths).log() + strengths
        each = strengths * (angles[:, None] - means).cos() - log_i0 - math.log(2 * math.pi)
        joint = found.weights + torch.where(angles.isfinite()[:, None], each, 0.0).sum(2)
        if self.context:
            joint = joint + found.neighbours[:, 0, groups[:, 0]].T + found.neighbours[:, 1, groups[:, 1]].T
        return joint


def _maximise(angles: Tensor, groups: Tensor, shares: Tensor) -> _Components:
    """Returns the components of highest likelihood given the shares of rows, with shape (N, K)."""
    known = angles.isfinite().to(shares)
    filled = angles.nan_to_num()
    counts = (shares.T @ known).clamp_min(1e-6)
    cosine, sine = (shares.T @ (known * part) / counts for part in (filled.cos(), filled.sin()))
    length = (cosine.square() + sine.square()).sqrt().clamp(max=0.9999)
    strengths = (length * (2 - length.square()) / (1 - length.square())).clamp(0.01, _STRONGEST)  # Banerjee et al. (2005)
    beside = torch.einsum("nk,nsg->ksg", shares, torch.nn.functional.one_hot(groups, len(GROUPS)).to(shares)) + 1.0
    totals = shares.sum(0) + 1e-3
    return _Components((totals / totals.sum()).log(), torch.atan2(sine, cosine), strengths, (beside / beside.sum(2, keepdim=True)).log())
