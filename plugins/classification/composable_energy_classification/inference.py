r"""Inference of conditions from points, $p(c \mid x) \propto e^{-E(x \mid c)}$."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.algebra.explain import encode_points
from composable_energy.energies.evaluation import evaluating
from composable_energy.errors import ContradictionError, ExpressionError, OptionError
from composable_energy.options import check_flag


@dataclass(frozen=True)
class Inference:
    """A distribution over $K$ candidate conditions; log probabilities have shape $(B, K)$, or $(1, K)$ for one condition of all points."""

    candidates: tuple[Mapping[str, Any], ...]
    log_probabilities: Tensor

    @property
    def probabilities(self) -> Tensor:
        """The probabilities, with the shape of the log probabilities."""
        return self.log_probabilities.exp()

    @property
    def best(self) -> list[Mapping[str, Any]]:
        """The most probable candidate of each row."""
        return [self.candidates[k] for k in self.log_probabilities.argmax(1).tolist()]

    def mean(self, name: str) -> Tensor:
        """Returns the mean of a condition for each row, with shape $(B, *)$; for numbers and points, not for labels.

        If candidates are closer to each other than the width of the posterior, the error is smaller than their distance.

        Raises:
            OptionError: The condition was not inferred.
        """
        if name not in self.candidates[0]:
            raise OptionError(f"{name} was not inferred; there is {', '.join(sorted(self.candidates[0]))}.")
        values = torch.stack([torch.as_tensor(candidate[name]) for candidate in self.candidates]).to(self.log_probabilities)
        return torch.einsum("bk,k...->b...", self.probabilities, values)


def infer(energy: Energy, x: Tensor, over: Mapping[str, Sequence[Any] | Tensor], *, joint: bool = False) -> Inference:
    r"""Compares conditions by their energies at given points.

    The prior over candidates is uniform, and the normalisers of $e^{-E(x \mid c)}$ equal for all $c$, as for evidence and a classifier.

    Args:
        energy: An energy that depends on the conditions.
        x: Points of shape $(B, *)$, without the variables in `over`; for a latent energy also decoded points, if its decoder can encode.
        over: The candidates of each condition or named variable: numbers, or the rows of a tensor. Several are combined in all ways. Points
            of a continuous concept are the condition `c` of `GaussianHead()`, labels the condition `y` of a classifier without a label.
        joint: Whether all points have the same condition; their energies are then added.

    Raises:
        OptionError: The energy does not depend on a condition, or `over` is no mapping from conditions to lists of candidates.
        ContradictionError: No point fulfils the energy for any candidate. A candidate that no point fulfils has probability 0.
        ExpressionError: The energy has no value, is not a number, or is infinite for all candidates at a point.
    """
    names = sorted({*energy.conditions, *energy.variables})
    if not isinstance(over, Mapping) or any(isinstance(values, str | Mapping) for values in over.values()):
        raise OptionError(f"`over` maps conditions to lists of candidates, as in over={{{(names or ['y'])[0]!r}: [...]}}, got {over!r}.")
    check_flag("joint", joint)
    if over.keys() - names or not over:
        raise OptionError(f"{energy} depends on {names or 'no condition'}; got candidates of {sorted(map(str, over))}.")
    try:
        candidates = [dict(zip(over, values, strict=True)) for values in itertools.product(*over.values())]
    except TypeError as error:  # a single number
        raise OptionError(f"Candidates must be lists, as in over={{'y': [0, 1]}} or {{'y': range(10)}}, got {dict(over)}.") from error
    if not candidates:
        raise OptionError("Inference needs at least one candidate for each condition.")
    if not energy.has_value:
        raise ExpressionError(f"`infer` needs values of an energy, and {energy} has none: it has only a gradient.")
    fixed = {name: value for name, value in candidates[0].items() if name in energy.variables}
    x = encode_points(energy.given(**fixed) if fixed else energy, x)
    found: list[Tensor | None] = []
    with torch.no_grad(), evaluating():  # a network that depends on no candidate is evaluated once
        for candidate in candidates:
            try:
                found.append(energy.given(**{name: value if name in fixed else _as_row(value) for name, value in candidate.items()})(x))
            except ContradictionError:  # no point fulfils it
                found.append(None)
    if (like := next((energies for energies in found if energies is not None), None)) is None:
        raise ContradictionError(f"No point fulfils {energy} for any candidate: each has probability 0.")
    energies = torch.stack([torch.full_like(like, torch.inf) if one is None else one for one in found], 1)
    energies = energies - energies.amin(1, keepdim=True)  # a sum would round small differences of large energies
    logs = torch.log_softmax(-(energies.sum(0, keepdim=True) if joint else energies), 1)
    if wrong := int(logs.isnan().any(1).sum()):
        raise ExpressionError(f"{wrong} of {len(logs)} rows: no candidate is possible under {energy}, or an energy is not a number.")
    return Inference(tuple(candidates), logs)


def _as_row(value: Any) -> Any:
    if isinstance(value, np.ndarray) or (isinstance(value, list | tuple) and any(isinstance(number, float) for number in value)):
        value = torch.as_tensor(value)  # a list of whole numbers is several labels
    return value.unsqueeze(0) if isinstance(value, Tensor) and value.ndim > 0 else value
