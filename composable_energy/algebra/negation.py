"""Negations `~A`, in four modes, and the levels of those by level: exact ones, and those from draws."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from composable_energy.algebra.factors import Factor, OverTime
from composable_energy.algebra.node import Node, Operand, Weight, as_float, dividing_by, set_weight
from composable_energy.algebra.sums import Conjunction
from composable_energy.algebra.transformed import Conditioned, PulledBack
from composable_energy.arithmetic import Estimate, scale, zeros
from composable_energy.energies import DistributionEnergy, Energy
from composable_energy.energies.bases import evidence_of
from composable_energy.energies.checks import check_value, modules_of
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.identity import contents, same, tensors_of, twin
from composable_energy.errors import CalibrationError, ComposableEnergyError, ContradictionError, ExpressionError, OptionError
from composable_energy.events import complement
from composable_energy.options import check_choice, check_number
from composable_energy.supports import Support, intersect, is_full
from composable_energy.supports.distributions import seeded_draws

Mode = Literal["complement", "contrast", "level", "power"]
_DEFAULT_WEIGHT = {"complement": 1.0, "contrast": 1.0, "level": 1.0, "power": 0.01}
_QUANTILE, _TEMPERATURE = 0.95, 0.1
_SEED = 0
_LEAST_EXACT, _EXACT, _NUMBERS = 16, 65_536, 2**24  # draws of a distribution, and numbers in all of them
_DRAWS, _DRAWS_OF_LARGE_POINTS, _LARGE = 4096, 512, 256  # of a sampler


class Negation(Node):
    r"""The complement of an energy with evidence $e$, over the same bases.

    | mode | evidence of `~A` | default for |
    |---|---|---|
    | `complement` | $-w \log(1 - P(c \mid x))$, exact | events |
    | `contrast` | $w\, \mathrm{softplus}(b - e)$: $x$ came from the base and not from A; bounded below | other relative energies |
    | `level` | $w\, \mathrm{softplus}((L_q - e) / \tau)$: $x$ is outside of a share $q$ of A; bounded below | absolute energies |
    | `power` | $-w\, e$, the rule of Du et al. (2020, section 3.3), $w = .01$; unbounded | none |

    The level $L_q$ is the $q$-quantile of $e$ at draws of A; for a flat density it is higher, so that at most a share of $2 (1 - q)$ of the
    draws passes. `~` of a distribution has it from exact draws, `composable_energy.calibrate` from draws by the default sampler of A, as
    `sample` does for what it evaluates; `E(x)` without it raises. After A was trained, calibrate the first expression again.

    The complement of an unsatisfiable operand has evidence 0; with the mode `power` evaluating it is an error.

    Args:
        operand: The energy A.
        mode: The mode; None for the default.
        weight: $w > 0$; None for 1, or .01 for `power`.
        offset: $b$, for `contrast`: the evidence at which A and the base are equally likely.
        quantile: $q$ between 0 and 1, for `level`.
        temperature: $\tau > 0$, for `level`: the width of the border, in units of energy.
        level: $L_q$, for `level`; None if it is not known yet, other than exactly.
        level_error: The standard error of an estimated level; None for a given one.

    Raises:
        OptionError: The mode is unknown, or a number is out of range.
        ExpressionError: The mode is `complement` and A is no event, or `contrast` or `level` and A has no value; or A has no complement.
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
        self.mode: Mode = mode or _default_mode(operand)
        if mode is not None:
            check_choice("mode", mode, _DEFAULT_WEIGHT)
        elif operand.no_complement is not None:
            raise ExpressionError(f"~ of {operand}: {operand.no_complement}")
        if weight is None:
            self.weight = _DEFAULT_WEIGHT[self.mode]
        else:
            set_weight(self, weight)
            if not as_float(weight) > 0:
                raise OptionError(f"The weight of a negation must be positive, got {as_float(weight)}.")
        self.offset = check_number("offset", offset)
        self.quantile = check_number("quantile", quantile, above=0, below=1)
        self.temperature = check_number("temperature", temperature, above=0)
        self.level = None if level is None else check_number("level", level)
        self.level_error = None if level_error is None else check_number("level_error", level_error, least=0)
        if self.mode != "level" and (quantile, temperature, level, level_error) != (_QUANTILE, _TEMPERATURE, None, None):
            raise OptionError(f"quantile, temperature and level are options of the mode 'level', and the mode is {self.mode!r}.")
        if self.mode != "contrast" and self.offset:
            raise OptionError(f"offset is an option of the mode 'contrast', and the mode is {self.mode!r}.")
        self.bases = operand.bases
        self._signed |= self.mode == "power"
        self._complement = None
        if self.mode == "complement":
            if operand.formula is None:
                raise ExpressionError(f"{operand} is not an event, so 1 - p(c | x) is unknown; use mode 'level', 'contrast' or 'power'.")
            self._complement, self.evidence_has_value = complement(operand.formula), True
            self.formula = self._complement if not isinstance(self.weight, Tensor) and self.weight == 1 else None
        elif self.mode == "contrast":
            self.need_values("A negation by contrast", [operand])
        elif self.mode == "level":
            check_value(operand, "A negation by level", evidence=True)
            if level is None and (found := _exact_level(operand, quantile, temperature)) is not None:
                self.level, self.level_error = found.value, found.standard_error
        self.unsatisfiable = self._complement is not None and self._complement.constant is False  # the operand is always true
        for base in self.bases:
            self.unsatisfiable |= base.energy.unsatisfiable

    def config(self) -> dict[str, Any]:
        own = ("quantile", "temperature", "level", "level_error") if self.mode == "level" else ()
        return {name: getattr(self, name) for name in ("mode", "weight", "offset", *own)}

    def rebuild(self, *terms: Energy, **changes: Any) -> Self:
        if self.level_error is not None and terms and not same(terms[0], self.terms[0]):
            changes = {"level": None, "level_error": None, **changes}
        return super().rebuild(*terms, **changes)

    def join_supports(self, supports: Sequence[Support]) -> Support:
        """Returns the support of the bases; else the space of the operand, as "not in (0, 1)" holds at 2, and on no other simplex."""
        if self.mode == "power":  # the quotient by a density has no value where that is 0
            return supports[0]
        if self.bases:
            return intersect([(base.energy, base.energy.support) for base in self.bases])
        return None if is_full(supports[0]) else supports[0]

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        return self.mode != "power" and super().join_grounded(grounded)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if self._complement is not None:
            return scale(self.weight, self._complement.energy(x, **conditions))
        if self.mode == "power":
            with dividing_by(self):
                return scale(self.weight, -evidence_of(self.terms[0], x, conditions))
        try:
            evidence = evidence_of(self.terms[0], x, conditions)  # first: its errors are about these points
            if self.mode == "contrast":
                return scale(self.weight, F.softplus(self.offset - evidence))
            level = self._known_level(conditions) if self.level is None or conditions else self.level
            return scale(self.weight, F.softplus(torch.rsub(evidence, level) / self.temperature))
        except ContradictionError:
            return zeros(x)

    def _known_level(self, conditions: Mapping[str, Any]) -> float:
        if self.level is not None and self.level_error is None:
            return self.level
        operand = self.terms[0]
        if free := sorted(operand.conditions & conditions.keys() - {CHAINS}):
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
        level = "" if self.level is None else f", level={Estimate(self.level, self.level_error or 0.0)}"
        return f"mode={self.mode!r}{self._options()}{level}"

    def _options(self) -> str:
        """Returns the options that are not the default, other than the mode and the level."""
        found = {"weight": as_float(self.weight), "offset": self.offset, "quantile": self.quantile, "temperature": self.temperature}
        usual = (_DEFAULT_WEIGHT[self.mode], 0.0, _QUANTILE, _TEMPERATURE)
        return "".join(f", {name}={value:g}" for (name, value), default in zip(found.items(), usual, strict=True) if value != default)

    def text(self, operand: Operand) -> str:
        options = self._options() + ("" if self.level is None or self.level_error is not None else f", level={self.level:g}")
        if self.mode != _default_mode(self.terms[0]) or options:
            return f"negate({operand(self.terms[0], 0)}, mode={self.mode!r}{options})"
        return "~" + operand(self.terms[0], self.precedence)


def has_level(conjunction: Conjunction) -> bool:
    """Returns whether a term is an absolute density; the complement of a conjunction without one, as of `~A & ~B`, is `A | B`."""
    terms = conjunction.concepts
    return conjunction.grounded and any(term.formula is None and not term.bases and not isinstance(term, Negation) for term in terms)


def _default_mode(operand: Energy) -> Mode:
    if operand.formula is not None:
        return "complement"
    return "level" if not operand.bases or (isinstance(operand, Conjunction) and has_level(operand)) else "contrast"


def lacks_level(module: nn.Module) -> bool:
    """Returns whether a negation inside of a module has a level that is not known yet."""
    return any(isinstance(part, Negation) and part.mode == "level" and part.level is None for part in modules_of(module))


def with_levels(energy: Energy, find_point: Callable[[], Tensor]) -> Energy:
    """Returns an expression with the levels that it misses, as `fill_levels` at `find_point()`; other parts and weights are shared."""
    if not lacks_level(energy):
        return energy
    shared = (item for item in contents(energy) if isinstance(item, Tensor) or (isinstance(item, nn.Module) and not lacks_level(item)))
    filled = copy.deepcopy(energy, {id(item): item for item in shared})
    fill_levels(filled, find_point())
    return filled


def fill_levels(energy: Energy, x: Tensor, binds: frozenset[str] = frozenset()) -> None:
    """Sets the missing levels of an expression; x, with shape $(1, *)$, is like its draws, and `binds` are conditions bound around it."""
    if not lacks_level(energy):
        return
    inside = binds
    if isinstance(energy, PulledBack):  # its term takes decoded points, and no noise level
        with torch.no_grad():
            x, inside = energy.generator(x), binds - {"sigma"}
    elif isinstance(energy, Conditioned):
        inside = binds | energy.values.keys()
    elif isinstance(energy, Factor | OverTime):
        x = energy.point(x)
    for term in energy.terms:
        fill_levels(term, x, inside)
    for base in energy.bases:
        fill_levels(base.energy, x, inside)
    if isinstance(energy, Negation) and energy.mode == "level" and energy.level is None:
        try:
            found = _estimate_level(energy.terms[0], energy.quantile, energy.temperature, x, binds)
            energy.level, energy.level_error = found.value, found.standard_error
        except ContradictionError:  # no point fulfils the operand, and its complement needs no level
            pass
        except ComposableEnergyError as error:
            raise CalibrationError(
                f"~ of {energy.terms[0]} is the complement of where its draws are, and it cannot be sampled ({error}). Give the level by "
                "`negate(A, mode='level', level=...)`; or take another mode of `negate`: 'power' (-0.01 E, the paper's rule, unbounded), "
                "'contrast' for `A.relative_to(base)`, or 'complement' for an event."
            ) from error


def _estimate_level(energy: Energy, quantile: float, temperature: float, x: Tensor, binds: frozenset[str]) -> Estimate:
    """Returns the level of an energy from draws by its default sampler; raises a `ComposableEnergyError` that says why there are none."""
    if free := sorted((energy.required_conditions | (energy.conditions & binds)) - {CHAINS}):
        raise CalibrationError(f"it depends on {', '.join(free)}: bind it first, as in `~A.given({free[0]}=...)`")
    for part in energy.modules():
        for name, value in part.values.items() if isinstance(part, Conditioned) else ():
            if isinstance(value, Tensor) and value.ndim and len(value) > 1:
                raise CalibrationError(f"it has {len(value)} rows of {name}, each with a level of its own: bind one value for all")
    count = _DRAWS if x[0].numel() <= _LARGE else _DRAWS_OF_LARGE_POINTS
    try:
        points = energy.latents.sample((count, *x.shape[1:]), seed=_SEED, dtype=x.dtype)
        with torch.no_grad():
            evidence = evidence_of(twin(energy), points.to(x.device), {})
    except ContradictionError:
        raise
    except (ComposableEnergyError, RuntimeError) as error:
        raise CalibrationError(f"{type(error).__name__}: {error}") from error
    if not evidence.isfinite().all():
        raise CalibrationError(f"{int((~evidence.isfinite()).sum())} of {len(evidence)} draws have no finite energy")
    return _level_of_draws(evidence, quantile, temperature)


def _exact_level(energy: Energy, quantile: float, temperature: float) -> Estimate | None:
    """Returns the level of an energy that is known in closed form or from exact draws of a distribution; None for any other."""
    if (known := energy.known_level(quantile)) is not None:
        return Estimate(known)
    if not isinstance(energy, DistributionEnergy) or energy.event_shape is None:
        return None
    count = max(_LEAST_EXACT, min(_EXACT, _NUMBERS // max(1, math.prod(energy.event_shape))))
    device = next((tensor.device for tensor in tensors_of(energy)), torch.get_default_device())
    try:
        points = seeded_draws(energy.distribution, count, device, _SEED)
        with torch.no_grad():
            evidence = None if points is None else energy.evidence(points)
    except Exception:  # of any distribution
        return None
    return None if evidence is None or not evidence.isfinite().all() else _level_of_draws(evidence, quantile, temperature)


def _level_of_draws(evidence: Tensor, quantile: float, temperature: float) -> Estimate:
    """Returns a quantile of the evidence of draws; for a flat density one so high that at most a share of $2 (1 - q)$ of them passes."""
    ordered, count = evidence.double().sort().values, len(evidence)
    # The ranks of a quantile are binomial, so the order statistics one deviation apart give its standard error.
    rank, deviation = quantile * count, math.sqrt(count * quantile * (1 - quantile))
    ranks = torch.tensor([rank - deviation, rank, rank + deviation], dtype=torch.float64, device="cpu").ceil().long()
    below, found, above = ordered[ranks.sub(1).clamp(0, count - 1).to(ordered.device)].tolist()
    low, high, share = found, found, min(2 * (1 - quantile), 1 - quantile / 2)
    for _ in range(60):
        if torch.sigmoid((evidence.double() - high) / temperature).mean() <= share:
            break
        low, high = high, high + temperature
    for _ in range(30 if high > found else 0):
        middle = (low + high) / 2
        low, high = (low, middle) if bool(torch.sigmoid((evidence.double() - middle) / temperature).mean() <= share) else (middle, high)
    return Estimate(high, (above - below) / 2)
