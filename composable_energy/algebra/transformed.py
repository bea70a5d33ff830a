"""Energies at other points or conditions: bound conditions, latent points of a decoder, a support; and what depends on a noise level."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from composable_energy.algebra.node import Node, Operand, Transformed, as_float, format_value
from composable_energy.algebra.sums import Weighted
from composable_energy.arithmetic import Estimate, unsqueeze_to, zeros
from composable_energy.energies.bases import WeightedBase, evidence_of, select_conditions, value_of
from composable_energy.energies.conditions import CHAINS, bound_rows, check_names, copy_condition, rows_for
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import evaluate_once, is_left_out, seen
from composable_energy.energies.identity import token_of
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.events import HeadEnergy
from composable_energy.options import check_instance, check_number
from composable_energy.supports import Support, check_support, evaluate_inside, format_support, intersect, is_bounded, map_support


class Conditioned(Transformed):
    """An energy with conditions bound to copied values: `E.given(y=3)`, `E.at(0.1)`; the energy must depend on all."""

    def __init__(self, operand: Energy, values: Mapping[str, Any]) -> None:
        super().__init__(operand)
        check_names(operand, values, operand.conditions)
        self.values = {name: copy_condition(value) for name, value in values.items()}
        rows = any(isinstance(value, Tensor) and value.ndim > 0 and len(value) != 1 for value in self.values.values())
        self.conditions = (self.conditions - values.keys()) | ({CHAINS} if rows else set())
        self.required_conditions -= values.keys()
        self.bases = tuple(WeightedBase(bind_conditions(base.energy, values), base.scaled_by) for base in operand.bases)
        if operand.formula is not None:
            self.formula = operand.formula.given(self.values)
            self.unsatisfiable |= self.formula.constant is False

    def config(self) -> dict[str, Any]:
        return {"values": self.values}

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.terms[0].log_normalizer

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if self.formula is not None:  # variables that became equal are merged in it
            return self.formula.energy(x, **conditions)
        if "sigma" in self.values:
            x = seen(x)
        bound = {name: bound_rows(name, value, x, conditions.get(CHAINS)) for name, value in self.values.items()}
        term, conditions = self.terms[0], {**conditions, **bound}
        return evidence_of(term, x, conditions) if term.bases else evaluate_once(term, x, select_conditions(term, conditions))

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={format_value(value)}" for name, value in self.values.items())

    def text(self, operand: Operand) -> str:
        call = f"at({format_value(self.values['sigma'])})" if self.values.keys() == {"sigma"} else f"given({self.extra_repr()})"
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
        super().__init__(operand)
        if "sigma" in operand.required_conditions:
            raise ExpressionError(f"{operand} depends on sigma, here the noise of latent points: bind it first, with `.at(sigma)`.")
        self.generator = _check_decoder(operand, decoder)
        self.damping = check_number("damping", damping, least=0)
        self._decoders = (decoder,)
        self.decoded_shape = operand.event_shape or torch.Size(getattr(decoder, "event_shape", ())) or None
        self.event_shape, self.variables = None, {}
        self.conditions |= {"sigma"}
        self.evidence_has_value = operand.has_value

    def config(self) -> dict[str, Any]:
        return {"decoder": self.generator, "damping": self.damping}

    def join_supports(self, supports: Sequence[Support]) -> Support:
        return None

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        if (sigma := conditions.pop("sigma", None)) is None:
            return value_of(self.terms[0], evaluate_once(self.generator, x, {}), conditions)
        if is_left_out(x):
            return zeros(x)
        sigma, points = rows_for("sigma", sigma, x), seen(x)
        if points is not x:  # a sampler gave the denoised ones
            decoded = evaluate_once(self.generator, points, {})
        else:
            shrunk = unsqueeze_to(1 + sigma.to(x).square(), x)
            decoded = evaluate_once(self.generator, x, {"sigma": sigma}, lambda x, sigma: self.generator(x / shrunk))
        energies = value_of(self.terms[0], decoded, conditions)
        return energies / (1 + self.damping * sigma.to(x).square()) if self.damping else energies

    def text(self, operand: Operand) -> str:
        damping = f", damping={self.damping:g}" if self.damping else ""
        return f"{operand(self.terms[0], 95)}.pull_back({type(self.generator).__name__}{damping})"


def _check_decoder(operand: Energy, decoder: nn.Module) -> nn.Module:
    if operand.decoder is not None:
        raise ExpressionError(f"{operand} is already an energy of latent points, of the decoder {type(operand.decoder).__name__}.")
    token_of(check_instance("decoder", decoder, nn.Module))
    return decoder


def bind_conditions(energy: Energy, values: Mapping[str, Any]) -> Energy:
    """Binds conditions in the leaves, so that `(A.at(1) & A).at(1)` is `A.at(1) & A.at(1)`; parts that do not depend on them are kept."""
    labels = (list, tuple)  # several labels of one event
    own = {name: list(value) if isinstance(value, labels) else copy_condition(value) for name, value in values.items()}
    if "sigma" in own and not ((levels := torch.as_tensor(copy_condition(values["sigma"]))) >= 0).logical_and(levels < torch.inf).all():
        raise OptionError(f"sigma must be a number of at least 0, or a tensor of such, got {format_value(values['sigma'])}.", ["sigma"])
    return _bind_once(energy, own, {})


def _bind_once(energy: Energy, values: Mapping[str, Any], done: dict[Energy, Energy]) -> Energy:
    if not (own := select_conditions(energy, values)):
        return energy
    if energy not in done:
        if not isinstance(energy, Node) or isinstance(energy, Conditioned):
            done[energy] = energy.bind(own)
        elif isinstance(energy, PulledBack) and "sigma" in own:
            rest = {name: value for name, value in own.items() if name != "sigma"}
            done[energy] = Conditioned(_bind_once(energy, rest, {}), {"sigma": own["sigma"]})
        else:
            done[energy] = energy.rebuild(*(_bind_once(term, own, done) for term in energy.terms))
    return done[energy]


class Decoded(Transformed):
    r"""The same energy $E(z)$, whose points $z$ are latent points of a decoder $g$: `sample` returns $g(z)$. Other than `PulledBack`, it
    changes no value: it says in which space an energy without a decoder lives, as a prior does."""

    def __init__(self, operand: Energy, decoder: nn.Module) -> None:
        super().__init__(operand)
        self.generator = _check_decoder(operand, decoder)
        self._decoders = (decoder,)
        self.decoded_shape = torch.Size(getattr(decoder, "event_shape", ())) or None
        self.bases = operand.bases

    def config(self) -> dict[str, Any]:
        return {"decoder": self.generator}

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.terms[0].log_normalizer

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return evidence_of(self.terms[0], x, conditions)

    def text(self, operand: Operand) -> str:
        return self.name or f"{operand(self.terms[0], 95)}.shown_by({type(self.generator).__name__})"


class Restricted(Transformed):
    r"""An energy on a support; outside it is $\infty$ with zero gradient, and the operand is not evaluated there. If the operand has a
    support too, the density lives on the intersection. What is no continuous constraint raises `OptionError`."""

    def __init__(self, operand: Energy, support: Support) -> None:
        super().__init__(operand)
        self._within = check_support(support)
        self.bases = operand.bases

    def config(self) -> dict[str, Any]:
        return {"support": self._within}

    def find(self, name: Literal["support", "grounded"], found: dict[Energy, Any]) -> Any:
        try:
            inner = super().find(name, found)
        except ExpressionError:  # the support of the operand is not known, and need not be
            return self._within
        return intersect([(self.terms[0], inner), (self, self._within)]) if name == "support" else inner

    def join_grounded(self, grounded: Sequence[bool]) -> bool:
        return grounded[0] or is_bounded(self._within)

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return evaluate_inside(self._within, x, lambda points: evidence_of(self.terms[0], points, conditions))

    def _apply(self, fn: Any, recurse: bool = True) -> "Restricted":
        self._within = map_support(self._within, fn)
        return super()._apply(fn, recurse)

    def extra_repr(self) -> str:
        return format_support(self._within)

    def text(self, operand: Operand) -> str:
        return f"{operand(self.terms[0], 95)}.on({format_support(self._within)})"


class Inside(Energy):
    r"""The energy 0 inside a support and $\infty$ outside, a wall: `E & inside(support)` is E within it.

    Args:
        support: The support, such as `constraints.interval(0, 1)`; what is no continuous constraint raises `OptionError`.
        event_shape: The shape of one point, if there is only one.

    Example:
        >>> from torch.distributions import Normal, constraints
        >>> half = ce.as_energy(Normal(torch.zeros(1), 1.0)) & ce.inside(constraints.positive)
        >>> bool((half.sample(100, seed=0) > 0).all())
        True
    """

    no_complement = "the outside of a wall may have infinite volume; lift a function that is infinite inside."

    def __init__(self, support: Support, event_shape: Sequence[int] | None = None) -> None:
        super().__init__()
        self.support, self.event_shape = support, event_shape

    def config(self) -> dict[str, Any]:
        return {"support": self.support, "event_shape": None if self.event_shape is None else tuple(self.event_shape)}

    @property
    def grounded(self) -> bool:
        return is_bounded(self.support)

    def forward(self, x: Tensor) -> Tensor:
        return zeros(x)

    def __str__(self) -> str:
        return self.name or f"inside({format_support(self.support)})"


inside = Inside
"""An energy that is 0 inside a support and infinite outside; see `Inside`."""


class NoiseLeaves(NamedTuple):
    """The parts that an expression is a function of."""

    leaves: tuple[Energy, ...]  # absolute energies, and those without value, that depend on the noise level
    others: tuple[Energy, ...]  # all others, such as energies without noise levels and evidence with values
    additive: bool  # whether parts without noise levels add to the energy, and are not inside of a mixture
    weighted: bool  # whether one of them has a weight

    @property
    def plain(self) -> tuple[Energy, ...]:
        """The other parts that do not depend on the noise level, such as a network of pictures."""
        return tuple(part for part in self.others if not _takes_noise(part))

    @property
    def widened(self) -> bool:
        """Whether one term without noise levels allows for the spread of the data itself. Several share it, and none knows its weight."""
        leaves = [term for part in self.plain for term in part.modules() if isinstance(term, Energy) and not term.terms]
        return len(leaves) == 1 and leaves[0].widens_itself and not self.weighted


def noise_leaves(energy: Energy) -> NoiseLeaves:
    """Returns the parts of which an expression is a function; an energy whose evidence has values is another part, and its base a leaf."""
    leaves, others = dict[Energy, None](), dict[Energy, None]()
    seen, todo = {energy}, [energy]
    while todo:
        part = todo.pop()
        bases = [base.energy for base in part.bases]
        if isinstance(part, Node) and not isinstance(part, Transformed):
            parts = [*part.terms, *bases]
        elif "sigma" in part.conditions and not (bases and part.evidence_has_value) and not isinstance(part, PulledBack | Restricted):
            leaves[part], parts = None, []
        else:
            others[part], parts = None, bases
        todo += [inner for inner in reversed(parts) if inner not in seen]
        seen.update(parts)
    plain = {part for part in others if not _takes_noise(part)}
    above = [part for part in seen if isinstance(part, Node) and not plain.isdisjoint(part.modules())] if plain else []
    return NoiseLeaves(tuple(leaves), tuple(others), all(part.sums for part in above), any(isinstance(part, Weighted) for part in above))


def weakens_evidence(energy: Energy) -> bool:
    """Returns whether an expression takes a power below 1 of evidence with noise levels, which is far from the density of noisy data."""
    powers = (part for part in energy.modules() if isinstance(part, Weighted) and "sigma" in part.conditions)
    return any(noise_leaves(part).leaves for part in powers if 0 < as_float(part.factor) < 1)


def _takes_noise(part: Energy) -> bool:
    """Returns whether a part that is no leaf depends on the noise level, as a classifier of points with noise does."""
    if isinstance(part, PulledBack):
        return False
    return "sigma" in (part.evidence_parameters.names if isinstance(part, HeadEnergy) else part.conditions)
