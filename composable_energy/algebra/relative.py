"""Energies seen from another side: relative to a base, under conditions, in a latent space."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

from torch import Tensor, nn

from composable_energy.algebra.node import Node, one_space, written
from composable_energy.conditions import CHAINS, bound_rows, key_of, rows_for
from composable_energy.energy import Energy, WeightedBase, less
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.events import Formula
from composable_energy.sharing import once

__all__ = ["Conditioned", "PulledBack", "Relative", "condition"]


class Relative(Node):
    r"""An absolute energy with a base named: evidence $E - \text{base}$, the same density.

    Conjunctions then count the base once: $\text{base} + \sum_i (E_i - \text{base})$, the corrected product of Du et al. (2023). The
    evidence is 0 where the base is infinite, so that such a sum is infinite there.
    """

    def __init__(self, operand: Energy, base: Energy) -> None:
        if not isinstance(base, Energy):
            raise OptionError(f"base must be an energy, got {type(base).__name__}; lift it once with composable_energy.as_energy.")
        if operand.bases:
            raise ExpressionError(f"{operand} is relative to {operand.bases[0].energy} already.")
        super().__init__(*one_space([operand, base]))
        self._bases = (WeightedBase(self.terms[1]),)
        self._evidence_has_value = all(term.has_value for term in self.terms)

    @property
    def has_value(self) -> bool:
        return self.terms[0].has_value

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return self.terms[0](x, **conditions)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return less(self.terms[0](x, **conditions), once(self.terms[1], x, conditions))

    def __str__(self) -> str:
        return f"{written(self.terms[0], 95)}.relative_to({self.terms[1]})"


class Conditioned(Node):
    """An energy with conditions bound: `E.given(y=3)`, `E.at(0.1)`. What is bound already stays."""

    def __init__(self, operand: Energy, values: Mapping[str, Any]) -> None:
        super().__init__(operand)
        self.values = dict(values)
        self._conditions -= values.keys()
        self._required -= values.keys()
        self._bases = tuple(WeightedBase(condition(base.energy, values), base.scaled_by) for base in operand.bases)
        self._formula = None if operand.formula is None else operand.formula.given(self.values)

    @property
    def formula(self) -> Formula | None:
        return self._formula

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded

    @property
    def key(self) -> Hashable:
        return (self.terms[0].key, key_of(self.values))

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        chains = conditions.get(CHAINS)
        bound = {name: bound_rows(name, value, x, chains) for name, value in self.values.items()}
        term, conditions = self.terms[0], {**conditions, **bound}
        return term.evidence(x, **conditions) if term.bases else once(term, x, conditions)

    def _apply(self, fn: Any, recurse: bool = True) -> Conditioned:
        self.values = {name: fn(value) if isinstance(value, Tensor) else value for name, value in self.values.items()}
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={_short(value)}" for name, value in self.values.items())

    def __str__(self) -> str:
        call = f"at({_short(self.values['sigma'])})" if self.values.keys() == {"sigma"} else f"given({self.extra_repr()})"
        return f"{written(self.terms[0], 95)}.{call}"


class PulledBack(Node):
    r"""The energy $E(g(z))$ of points $z$ in the latent space of a decoder $g$.

    At a noise level $\sigma$ the picture is that of the denoised point, $g(z / (1 + \sigma^2))$, and the weight $1 / (1 + 20 \sigma^2)$
    lets the term in as the noise goes, for an energy that does not know noise itself.

    Args:
        operand: The energy of decoded points.
        decoder: The decoder $g$.
    """

    def __init__(self, operand: Energy, decoder: nn.Module) -> None:
        if operand.decoder is not None:
            raise ExpressionError(f"{operand} lives in a latent space already, that of {type(operand.decoder).__name__}.")
        if "sigma" in operand.required_conditions:
            raise ExpressionError(
                f"{operand} depends on sigma, which a pulled-back energy takes for itself: bind it first, with `.at(sigma)`."
            )
        super().__init__(operand)
        self.generator = decoder
        self.event_shape = None
        self._conditions |= {"sigma"}
        self._decoders = (decoder,)
        self._evidence_has_value = operand.has_value

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        sigma = conditions.pop("sigma", None)
        if sigma is None:
            return self.terms[0](once(self.generator, x, {}), **conditions)
        sigma = rows_for("sigma", sigma, x)
        seen = once(self.generator, x, {"sigma": sigma}, self._denoised)
        return self.terms[0](seen, **conditions) / (1 + 20 * sigma.to(x).square())

    def _denoised(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.generator(x / (1 + sigma.to(x).square()).view(-1, *[1] * (x.ndim - 1)))

    def __str__(self) -> str:
        return f"{written(self.terms[0], 95)}.pull_back({type(self.generator).__name__})"


def condition(energy: Energy, values: Mapping[str, Any]) -> Energy:
    """Binds the conditions that an energy depends on; an energy that depends on none of them stays as it is."""
    known = {name: value for name, value in values.items() if name in energy.conditions}
    return Conditioned(energy, known) if known else energy


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
    return f"{value:g}" if isinstance(value, (int, float)) else repr(value)
