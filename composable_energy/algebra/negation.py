"""Negations `~A`, in four modes, and the levels of energies that are known without a sampler."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from typing_extensions import Self

from composable_energy.algebra.node import Node, Operand, Weight, as_float, dividing_by, set_weight
from composable_energy.algebra.sums import Conjunction
from composable_energy.arithmetic import Estimate, scale, zeros
from composable_energy.energies.bases import evidence_of
from composable_energy.energies.checks import check_value
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.distributions import DistributionEnergy, seeded_draws
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import same
from composable_energy.energies.twins import tensors_of, twin
from composable_energy.errors import CalibrationError, ContradictionError, ExpressionError, OptionError
from composable_energy.events import Formula, complement
from composable_energy.options import check_choice, check_number
from composable_energy.supports import Support, intersect, is_full

T = TypeVar("T", bound="Negation")
Mode = Literal["complement", "contrast", "level", "power"]
_DEFAULT_WEIGHT = {"complement": 1.0, "contrast": 1.0, "level": 1.0, "power": 0.01}
_QUANTILE, _TEMPERATURE = 0.95, 0.1
_SEED = 0
_LEAST_DRAWS, _DRAWS = 16, 65_536
_NUMBERS = 2**24  # of all draws together


class Negation(Node):
    r"""The complement of an energy with evidence $e$, over the same bases.

    | mode | evidence of `~A` | default for |
    |---|---|---|
    | `complement` | $-w \log(1 - P(c \mid x))$, exact | events |
    | `contrast` | $w\, \mathrm{softplus}(b - e)$: $x$ came from the base and not from A; bounded below | other relative energies |
    | `level` | $w\, \mathrm{softplus}((L_q - e) / \tau)$: $x$ is outside of a share $q$ of A; bounded below | absolute energies |
    | `power` | $-w\, e$, the rule of Du et al. (2020, section 3.3), $w = .01$; unbounded | none |

    The level $L_q$ is the $q$-quantile of $e$ at draws of A; for a flat density it is higher, so that at most a share of $2 (1 - q)$ of the
    draws of A passes. It is a number: `~` of a distribution has it from exact draws, and for other energies `composable_energy.calibrate`
    returns the expression with it, from draws by the default sampler of A with a fixed seed. `sample` does so for what it evaluates; `E(x)`
    without it raises. After A was trained, calibrate the first expression again.

    The complement of an unsatisfiable operand has evidence 0; with the mode `power` evaluating it is an error.

    Args:
        operand: The energy A.
        mode: The mode; None for the default.
        weight: $w > 0$; None for 1, or .01 for `power`.
        offset: $b$, for `contrast`: the evidence at which A and the base are equally likely.
        quantile: $q$ between 0 and 1, for `level`.
        temperature: $\tau > 0$, for `level`: the width of the border, in units of energy.
        level: $L_q$, for `level`; None if it is not known yet.
        level_error: The standard error of an estimated level; None for a given one.

    Raises:
        OptionError: The mode is unknown, or a number is out of range.
        ExpressionError: The mode is `complement` and A is not an event, the mode is `contrast` or `level` and A has no value, or A has no
            complement.
    """

    precedence = 90
    _notes_needs = True
    weight: Weight

    def __init__(
        self,
        operand: Energy,
        mode: Mode | None = None,
        weight: Weight | None = None,
        offset: float = 0.0,
        *,
        quantile: float = _QUANTILE,
        temperature: float = _TEMPERATURE,
        level: float | None = None,
        level_error: float | None = None,
    ) -> None:
        super().__init__(operand)
        event = operand.formula
        self.mode: Mode = mode or _default_mode(operand)
        check_choice("mode", self.mode, _DEFAULT_WEIGHT)
        if mode is None and operand.no_complement is not None:
            raise ExpressionError(f"~ of {operand}: {operand.no_complement}")
        if self.mode == "complement" and event is None:
            raise ExpressionError(f"{operand} is not an event, so 1 - p(c | x) is unknown; use mode 'level', 'contrast' or 'power'.")
        set_weight(self, _DEFAULT_WEIGHT[self.mode] if weight is None else weight)
        if not as_float(self.weight) > 0:
            raise OptionError(f"The weight of a negation must be positive, got {as_float(self.weight)}.")
        check_number("offset", offset)
        self.offset = offset
        self._set_level(quantile, temperature, level, level_error)
        self._evidence_has_value = self.mode == "complement" or operand.evidence_has_value
        if self.mode == "level":
            check_value(operand, f"The negation of {operand} by level", evidence=True)
        elif self.mode == "contrast":
            self.need_values(f"The negation of {operand} by contrast", [operand])
        self._signed |= self.mode == "power"
        self._bases = operand.bases
        self._complement = complement(event) if self.mode == "complement" and event is not None else None
        always = self._complement is not None and self._complement.constant is False  # the operand is always true
        self._unsatisfiable = always or any(base.energy.unsatisfiable for base in self._bases)

    def _set_level(self, quantile: float, temperature: float, level: float | None, level_error: float | None) -> None:
        self.quantile = check_number("quantile", quantile, above=0, below=1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.level = None if level is None else check_number("level", level)
        self.level_error = None if level_error is None else check_number("level_error", level_error, least=0)
        options = (quantile, temperature, level, level_error)
        if self.mode != "level" and options != (_QUANTILE, _TEMPERATURE, None, None):
            raise OptionError(f"quantile, temperature and level are options of the mode 'level', and the mode is {self.mode!r}.")

    def config(self) -> dict[str, Any]:
        config = {"mode": self.mode, "weight": self.weight, "offset": self.offset}
        if self.mode != "level":
            return config
        numbers = {"quantile": self.quantile, "temperature": self.temperature, "level": self.level, "level_error": self.level_error}
        return {**config, **numbers}

    def rebuild(self, *terms: Energy, **changes: Any) -> Self:
        if self.level_error is not None and terms and not same(terms[0], self.terms[0]):
            changes = {"level": None, "level_error": None, **changes}
        return with_exact_level(super().rebuild(*terms, **changes))

    @property
    def formula(self) -> Formula | None:
        return self._complement if not isinstance(self.weight, Tensor) and self.weight == 1 else None

    def join_supports(self, supports: Sequence[Support]) -> Support:
        """Returns the support of the bases; else the space of the operand, as "not in (0, 1)" holds at 2, and on no other simplex."""
        if self.mode == "power":  # the quotient by a density has no value where that is 0
            return supports[0]
        bases = [(base.energy, base.energy.support) for base in self._bases]
        return intersect(bases) if bases else None if is_full(supports[0]) else supports[0]

    @property
    def grounded(self) -> bool:
        return self.mode != "power" and any(base.energy.grounded for base in self.bases)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        operand = self._terms[0]
        if self._complement is not None:
            return scale(self.weight, self._complement.energy(x, **conditions))
        if self.mode == "power":
            with dividing_by(self):
                return scale(self.weight, -evidence_of(operand, x, conditions))
        try:
            if self.mode == "contrast":
                return scale(self.weight, F.softplus(self.offset - evidence_of(operand, x, conditions)))
            evidence = evidence_of(operand, x, conditions)  # first: its errors are about these points
            level = self._known_level(conditions) if self.level is None or conditions else self.level
            return scale(self.weight, F.softplus(torch.rsub(evidence, level) / self.temperature))
        except ContradictionError:
            return zeros(x)

    def _known_level(self, conditions: Mapping[str, Any]) -> float:
        if self.level is not None and self.level_error is None:
            return self.level
        operand = self._terms[0]
        free = sorted(operand.conditions & conditions.keys() - {CHAINS})
        if free:
            raise ExpressionError(
                f"{self} needs the level of {operand}, and it depends on {', '.join(free)}, which is not bound: bind it inside, as in "
                f"`~A.given({free[0]}=...)`, or take another mode of `negate`: 'power', 'contrast' for `A.relative_to(base)`, or "
                "'complement' for an event."
            )
        if self.level is None:
            raise CalibrationError(
                f"{self} needs the level of {operand}, which is not known yet: `composable_energy.calibrate(E)` returns the expression "
                "with it, from draws of that energy, and `sample` does so itself; or give it by `negate(A, mode='level', level=...)`."
            )
        return self.level

    def extra_repr(self) -> str:
        level = None if self.level is None else Estimate(self.level, self.level_error or 0.0)
        return f"mode={self.mode!r}{self._options()}" + ("" if level is None else f", level={level}")

    def _options(self) -> str:
        """Returns the options that are not the default, other than the mode and the level."""
        weight, text = as_float(self.weight), ""
        if weight != _DEFAULT_WEIGHT[self.mode]:
            text += f", weight={weight:g}"
        if self.offset:
            text += f", offset={self.offset:g}"
        if self.quantile != _QUANTILE:
            text += f", quantile={self.quantile:g}"
        if self.temperature != _TEMPERATURE:
            text += f", temperature={self.temperature:g}"
        return text

    def text(self, operand: Operand) -> str:
        options = self._options() + ("" if self.level is None or self.level_error is not None else f", level={self.level:g}")
        if self.mode != _default_mode(self.terms[0]) or options:
            return f"negate({operand(self.terms[0], 0)}, mode={self.mode!r}{options})"
        return "~" + operand(self.terms[0], self.precedence)


def with_exact_level(negation: T) -> T:
    """Returns a negation with its level, where that is known without a sampler."""
    if negation.mode == "level" and negation.level is None:
        found = exact_level(negation.terms[0], negation.quantile, negation.temperature)
        if found is not None:
            negation.level, negation.level_error = found.value, found.standard_error
    return negation


def has_level(conjunction: Conjunction) -> bool:
    """Returns whether the complement of a conjunction is one of where its own draws are: if a term is an absolute density.

    A conjunction that cannot be sampled, such as `~A & ~B`, has no such place; its complement is `A | B`.
    """
    terms = conjunction.concepts
    return conjunction.grounded and any(term.formula is None and not term.bases and not isinstance(term, Negation) for term in terms)


def _default_mode(operand: Energy) -> Mode:
    if operand.formula is not None:
        return "complement"
    absolute = not operand.bases or (isinstance(operand, Conjunction) and has_level(operand))
    return "level" if absolute else "contrast"


def exact_level(energy: Energy, quantile: float, temperature: float, x: Tensor | None = None) -> Estimate | None:
    r"""Returns the level of an energy that is known in closed form or from exact draws of a distribution; None for any other.

    Args:
        energy: The energy A.
        quantile: $q$.
        temperature: $\tau$.
        x: A point that gives the shape, dtype and device; None takes those of the distribution.
    """
    known = energy.known_level(quantile)
    if known is not None:
        return Estimate(known)
    if not isinstance(energy, DistributionEnergy) or energy.event_shape is None:
        return None
    tensors = tensors_of(energy)
    if x is None and any(tensor.requires_grad for tensor in tensors):  # it is trained later
        return None
    count = max(_LEAST_DRAWS, min(_DRAWS, _NUMBERS // max(1, energy.event_shape.numel())))
    device = x.device if x is not None else tensors[0].device if tensors else torch.get_default_device()
    try:
        with torch.no_grad():
            points = seeded_draws(energy.distribution, count, device, _SEED)
            evidence = None if points is None else twin(energy).evidence(points if x is None else points.to(x))
    except Exception:  # of any distribution
        return None
    return None if evidence is None or not evidence.isfinite().all() else level_of_draws(evidence, quantile, temperature)


def quantile_of(values: Tensor, quantile: float) -> Estimate:
    """Returns a quantile of independent numbers with its standard error."""
    ordered, count = values.double().sort().values, len(values)
    # The ranks of a quantile are binomial, so the order statistics one deviation apart give its standard error.
    rank, deviation = quantile * count, math.sqrt(count * quantile * (1 - quantile))
    low, middle, high = (ordered[min(max(math.ceil(r) - 1, 0), count - 1)].item() for r in (rank - deviation, rank, rank + deviation))
    return Estimate(middle, (high - low) / 2)


def level_of_draws(evidence: Tensor, quantile: float, temperature: float) -> Estimate:
    """Returns a quantile of the evidence of draws, raised until the complement excludes the draws, up to a share of $2 (1 - q)$.

    The energies of a flat density, such as a uniform one, are hardly below their quantile, so the border must lie above them.
    """
    evidence, found = evidence.double(), quantile_of(evidence, quantile)
    low, high, share = found.value, found.value, min(2 * (1 - quantile), 1 - quantile / 2)
    for _ in range(60):
        if torch.sigmoid((evidence - high) / temperature).mean() <= share:
            break
        low, high = high, high + temperature
    for _ in range(30 if high > found.value else 0):
        middle = (low + high) / 2
        passes = bool(torch.sigmoid((evidence - middle) / temperature).mean() <= share)
        low, high = (low, middle) if passes else (middle, high)
    return Estimate(high, found.standard_error)
