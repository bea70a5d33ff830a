"""Energies relative to a base, with bound conditions, or in a latent space."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.algebra.node import Node, Transformed, dividing_by
from composable_energy.algebra.spaces import to_common_space
from composable_energy.algebra.text import Operand
from composable_energy.arithmetic import Estimate, subtract, unsqueeze_to, zeros
from composable_energy.bases import WeightedBase, evidence_of, select_conditions, value_of
from composable_energy.conditions import CHAINS, bound_rows, check_names, copy_condition, detach_conditions, rows_for
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.evaluation import evaluate_once, is_denoised, is_left_out, seen
from composable_energy.events import Formula
from composable_energy.identity import token_of
from composable_energy.options import check_instance, check_number
from composable_energy.supports import Support
from composable_energy.twins import tensors_of, twin


class Relative(Node):
    r"""An absolute energy relative to a base: the same density, with evidence $E - \text{base}$.

    Conjunctions count the base once: $\text{base} + \sum_i (E_i - \text{base})$, the corrected product of Du et al. (2023). The evidence is
    0 where the base is infinite, so such a sum is infinite there.
    """

    sums = True

    def __init__(self, operand: Energy, base: Energy) -> None:
        if not isinstance(base, Energy):
            raise OptionError(f"base must be an energy, got {type(base).__name__}; lift it once with composable_energy.as_energy.")
        if operand.bases:
            raise ExpressionError(f"{operand} is already relative to {operand.bases[0].energy}.")
        super().__init__(*to_common_space([operand, base]))
        self._bases = (WeightedBase(self.terms[1]),)
        self._unsatisfiable = operand.unsatisfiable
        self._evidence_has_value = all(term.has_value for term in self.terms)

    @property
    def has_value(self) -> bool:
        return self.terms[0].has_value

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.terms[0].log_normalizer

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        return value_of(self.terms[0], x, conditions)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        with dividing_by(self):
            base = evaluate_once(self.terms[1], x, select_conditions(self.terms[1], conditions))
        return subtract(value_of(self.terms[0], x, conditions), base)

    def text(self, operand: Operand) -> str:
        return f"{operand(self.terms[0], 95)}.relative_to({operand(self.terms[1], 0)})"


class Conditioned(Transformed):
    """An energy with conditions bound to copied values: `E.given(y=3)`, `E.at(0.1)`.

    Args:
        operand: The energy.
        values: The conditions by name; the energy must depend on all of them.
    """

    def __init__(self, operand: Energy, values: Mapping[str, Any]) -> None:
        super().__init__(operand)
        check_names(operand, values, operand.conditions)
        self.values = {name: copy_condition(value) for name, value in values.items()}
        self._conditions -= values.keys()
        self._required -= values.keys()
        self._bases = tuple(WeightedBase(bind_conditions(base.energy, values), base.scaled_by) for base in operand.bases)
        self._formula = None if operand.formula is None else operand.formula.given(self.values)
        self._unsatisfiable |= self._formula is not None and self._formula.constant is False

    def config(self) -> dict[str, Any]:
        return {"values": self.values}

    @property
    def formula(self) -> Formula | None:
        return self._formula

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.terms[0].log_normalizer

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if self._formula is not None:  # variables that became equal are merged in it
            return self._formula.energy(x, **conditions)
        if "sigma" in self.values:
            x = seen(x)
        chains = conditions.get(CHAINS)
        bound = {name: bound_rows(name, value, x, chains) for name, value in self.values.items()}
        term, conditions = self.terms[0], {**conditions, **bound}
        return evidence_of(term, x, conditions) if term.bases else evaluate_once(term, x, select_conditions(term, conditions))

    def _apply(self, fn: Any, recurse: bool = True) -> Conditioned:
        self.values = {name: fn(value) if isinstance(value, Tensor) else value for name, value in self.values.items()}
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "values": detach_conditions(self.values)}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={_format_value(value)}" for name, value in self.values.items())

    def text(self, operand: Operand) -> str:
        call = f"at({_format_value(self.values['sigma'])})" if self.values.keys() == {"sigma"} else f"given({self.extra_repr()})"
        return f"{operand(self.terms[0], 95)}.{call}"


class PulledBack(Transformed):
    r"""The energy $E(g(z))$ of points $z$ in the latent space of a decoder $g$.

    The operand does not depend on noise, so at a noise level $\sigma$ it is evaluated at a denoised point:
    $w(\sigma)\, E(g(\hat z))$ with $w(\sigma) = 1 / (1 + d \sigma^2)$. Samplers along noise levels take the denoised point of the
    other terms of the expression, $\hat z = z - \sigma^2 \nabla E(z, \sigma)$; see `composable_energy_mcmc.level_gradient`. Elsewhere
    it is that of standard normal latents, $\hat z = z / (1 + \sigma^2)$.

    Args:
        operand: The energy of decoded points.
        decoder: The decoder $g$.
        damping: $d \ge 0$, how much the weight falls with the noise; 0 for full weight.

    Raises:
        ExpressionError: The operand is an energy of latent points, or needs a noise level.
        OptionError: The damping is negative.
    """

    def __init__(self, operand: Energy, decoder: nn.Module, damping: float = 0.0) -> None:
        if operand.decoder is not None:
            raise ExpressionError(f"{operand} is already an energy of latent points, of the decoder {type(operand.decoder).__name__}.")
        if "sigma" in operand.required_conditions:
            raise ExpressionError(f"{operand} depends on sigma, here the noise of latent points: bind it first, with `.at(sigma)`.")
        super().__init__(operand)
        self.generator = check_instance("decoder", decoder, nn.Module)
        token_of(decoder)
        self.damping = check_number("damping", damping, least=0)
        self.event_shape = None
        self._conditions |= {"sigma"}
        self._decoders = (decoder,)
        self._evidence_has_value = operand.has_value

    def config(self) -> dict[str, Any]:
        return {"decoder": self.generator, "damping": self.damping}

    @property
    def decoded_shape(self) -> torch.Size | None:
        shape = self.terms[0].event_shape
        return torch.Size(getattr(self.generator, "event_shape", ())) or None if shape is None else shape

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded

    def join_supports(self, supports: Sequence[Support]) -> Support:
        return None

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        sigma = conditions.pop("sigma", None)
        if sigma is None:
            return value_of(self.terms[0], evaluate_once(self.generator, x, {}), conditions)
        if is_left_out(x):
            return zeros(x)
        sigma = rows_for("sigma", sigma, x)
        if is_denoised(x):
            decoded = evaluate_once(self.generator, seen(x), {})
        else:
            decoded = evaluate_once(self.generator, x, {"sigma": sigma}, self._shrunk)
        energies = value_of(self.terms[0], decoded, conditions)
        return energies / (1 + self.damping * sigma.to(x).square()) if self.damping else energies

    def _shrunk(self, x: Tensor, sigma: Tensor) -> Tensor:
        return self.generator(x / unsqueeze_to(1 + sigma.to(x).square(), x))

    def text(self, operand: Operand) -> str:
        damping = f", damping={self.damping:g}" if self.damping else ""
        return f"{operand(self.terms[0], 95)}.pull_back({type(self.generator).__name__}{damping})"


def bind_conditions(energy: Energy, values: Mapping[str, Any]) -> Energy:
    """Binds conditions in the leaves of an expression; parts that do not depend on them are kept.

    So terms that become equal are counted as equal: `(A.at(1) & A).at(1)` is `A.at(1) & A.at(1)`.
    """
    labels = (list, tuple)  # several labels of one event
    own = {name: list(value) if isinstance(value, labels) else copy_condition(value) for name, value in values.items()}
    return _bind_once(energy, own, {})


def _bind_once(energy: Energy, values: Mapping[str, Any], done: dict[Energy, Energy]) -> Energy:
    own = select_conditions(energy, values)
    if not own:
        return energy
    if energy not in done:
        if not isinstance(energy, Node) or isinstance(energy, Conditioned):
            _check_rows(energy, own)
            done[energy] = energy.bind(own)
        elif isinstance(energy, PulledBack) and "sigma" in own:
            rest = {name: value for name, value in own.items() if name != "sigma"}
            done[energy] = Conditioned(_bind_once(energy, rest, {}), {"sigma": own["sigma"]})
        else:
            done[energy] = energy.rebuild(*(_bind_once(term, own, done) for term in energy.terms))
    return done[energy]


def _check_rows(energy: Energy, values: Mapping[str, Any]) -> None:
    """Raises if a vector is one condition of all points and not a number for each, as far as an evaluation at three points shows.

    Raises:
        ShapeError: The energy takes the vector as a whole.
    """
    floats = {key: torch.tensor(value) for key, value in values.items() if isinstance(value, list) and any(type(v) is float for v in value)}
    values = {**values, **floats}
    rows = {name: value for name, value in values.items() if isinstance(value, Tensor) and value.ndim == 1 and len(value) > 1}
    rows = {name: value for name, value in rows.items() if value.is_floating_point()}  # whole numbers are labels
    if not rows or energy.event_shape is None or energy.required_conditions - values.keys() - {CHAINS}:
        return
    count = next(n for n in (3, 5, 7, 9) if n not in {*energy.event_shape, *map(len, rows.values())}) if len(energy.event_shape) < 4 else 3
    for name, value in rows.items():
        others = {other: some[:1] if other in rows else some for other, some in values.items() if other != name}
        each, whole = ({**others, name: some} for some in (value[:1].expand(count), value[None]))
        if _evaluates(energy, count, each) or not _evaluates(energy, count, whole):
            continue
        raise ShapeError(
            f"{name} is a vector of {len(value)} numbers, and {energy} takes it as a whole: a condition of all points has a first axis of "
            f"1, so write `given({name}={name}[None])`. Without it, {name} is {len(value)} numbers, one for each point."
        )


def _evaluates(energy: Energy, count: int, conditions: Mapping[str, Any]) -> bool:
    """Returns whether an energy can be evaluated at points of zeros; neither it nor the global random state changes."""
    like = next((tensor for tensor in tensors_of(energy) if tensor.is_floating_point()), torch.empty(0))
    x = torch.zeros((count, *(energy.event_shape or ())), dtype=like.dtype, device=like.device)
    try:
        with torch.random.fork_rng([]), torch.no_grad():
            twin(energy)(x, **{name: value.to(x) if isinstance(value, Tensor) else value for name, value in conditions.items()})
    except Exception:  # of any function
        return False
    return True


def _format_value(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{value.item():g}" if value.numel() == 1 else f"tensor{tuple(value.shape)}"
    return f"{value:g}" if isinstance(value, (int, float)) else repr(value)
