r"""Energies: the interface, and what every energy can do.

An energy $E(x)$ stands for the density $p(x) \propto e^{-E(x)}$ of points $x$. A batch of $B$ points has shape $(B, *)$, their energies
have shape $(B,)$. Energies may be *relative*: $E(x) = \sum_b w_b\, b(x) + \text{evidence}(x)$ with bases $b$, what all points look like,
and the evidence of one concept; the algebra counts each base once and combines evidences.

Operators, `sample` and `save` belong to the floors above; their imports stand inside the methods, the only ones that do.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy.checks import check_points
from composable_energy.conditions import CHAINS, check_names, method_parameters, rows_for
from composable_energy.errors import ExpressionError
from composable_energy.gradients import evaluate, value_and_gradient
from composable_energy.identity import Origin, same, token_of

if TYPE_CHECKING:
    from composable_energy.bases import WeightedBase
    from composable_energy.events import Formula
    from composable_energy.explain import Explanation
    from composable_energy.inference import Inference

__all__ = ["Energy", "Recommendation"]


@dataclass(frozen=True)
class Recommendation:
    """The sampler that a trained energy was judged with.

    Args:
        sampler: Its name.
        options: Its options, by name.
        threads: Threads inside an operation while sampling; None leaves them alone. Small networks are fastest on one, and with two a
            busy machine makes them wait for each other at every operation.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None


class Energy(nn.Module, ABC):
    r"""Abstract energy $E$ of the density $p(x) \propto e^{-E(x)}$.

    A subclass writes `forward(self, x)`, or `forward(self, x, sigma)` and the like where it depends on conditions, and is final: to
    change an energy, wrap it. In its constructor it may set what it knows of itself:

    Attributes:
        name: How it is written in an expression; the class name if empty.
        event_shape: The shape of one point; None where it takes several.
        decoder: What turns points of a latent space into what people see: `decoder(z)` has shape $(B, *)$; with a method `encode` it
            also turns round.
        recommended: The sampler to use.
        no_complement: Why `~` makes no sense, for an energy that refuses it.
        has_value: Whether the energy has values. False for one that knows its gradient alone, such as a score; it writes `with_gradient`.
        origin: How the registry made it; None if it did not.
        has_config: Whether the class has a `config()`.
        has_own_gradient: Whether the class overrides `with_gradient`.
    """

    __array_ufunc__ = None  # numpy scalars on the left yield to our operators

    name: str = ""
    recommended: Recommendation | None = None
    no_complement: str | None = None
    has_value: bool = True
    origin: Origin | None = None
    has_config: ClassVar[bool] = False
    has_own_gradient: ClassVar[bool] = False
    _event_shape: torch.Size | None = None
    _signed: bool = False  # whether energies may be minus infinity: a negative weight, a difference

    def __init__(self) -> None:
        super().__init__()
        token_of(self)  # given at birth, so that copies have the same

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.has_config = cls.has_config or "config" in vars(cls)
        cls.has_own_gradient = cls.with_gradient is not Energy.with_gradient

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **conditions: Any) -> Tensor:
        """Returns the energies, with shape $(B,)$, of points with shape $(B, *)$."""

    def __call__(self, x: Tensor, **conditions: Any) -> Tensor:
        """Checks points and conditions, evaluates `forward`, checks the energies.

        Args:
            x: Points, with shape $(B, *)$.
            **conditions: One value for all points, or one row for each.

        Returns:
            The energies, with shape $(B,)$.

        Raises:
            ShapeError: The points do not fit `event_shape`, or `forward` gave another shape than $(B,)$.
            DtypeError: The points are integers, or of another dtype than the energy's weights.
            DeviceError: The points are on another device than the energy's weights.
            ExpressionError: A condition without default is not bound, no term takes a condition of that name, or the energy has no value.
        """
        return evaluate(self, x, self._check_input(x, conditions), super().__call__)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        """Returns the energies less those of the bases, with shape $(B,)$; all of it for an absolute energy."""
        return self(x, **conditions)

    def with_gradient(self, x: Tensor, **conditions: Any) -> tuple[Tensor, Tensor]:
        r"""Returns energies and $\nabla E$ with one pass, and keeps no graph.

        An energy that knows its gradient overrides it. Inside an expression the override is used as well: the gradient of the expression
        follows by the chain rule. An energy without value returns zeros for the energies, and $\infty$ where a term of it is infinite.

        Args:
            x: The points, with shape $(B, *)$; they stay as they are.
            **conditions: One value for all points, or one row for each.

        Returns:
            The energies, with shape $(B,)$, and the gradients, with shape $(B, *)$.

        Raises:
            ExpressionError: The energies have no gradient.
        """
        return value_and_gradient(self, x, conditions)

    @property
    def evidence_has_value(self) -> bool:
        """Whether the evidence has values; that of an event has, even over a base without."""
        return self.has_value

    @property
    def event_shape(self) -> torch.Size | None:
        """The shape of one point; None where the energy takes several."""
        return self._event_shape

    @event_shape.setter
    def event_shape(self, shape: Sequence[int] | None) -> None:
        self._event_shape = None if shape is None else torch.Size(shape)

    @property
    def bases(self) -> tuple[WeightedBase, ...]:
        """The energies that this one is relative to; none for an absolute energy."""
        return ()

    @property
    def decoder(self) -> nn.Module | None:
        """What turns points of a latent space into what people see; None for an energy of the seen points themselves."""
        return self._modules.get("decoder")

    @decoder.setter
    def decoder(self, module: nn.Module | None) -> None:
        self._modules["decoder"] = module

    @property
    def decoded_shape(self) -> torch.Size | None:
        """The shape of one decoded point, for an energy of a latent space whose decoder has an `event_shape`; else None."""
        shape = getattr(self.decoder, "event_shape", None)
        return None if shape is None else torch.Size(shape)

    @property
    def conditions(self) -> frozenset[str]:
        """Names of the conditions that the energy depends on."""
        return method_parameters(type(self).forward).names

    @property
    def required_conditions(self) -> frozenset[str]:
        """Those without a default, which must be bound before the energy has a value."""
        return method_parameters(type(self).forward).required

    @property
    def terms(self) -> tuple[Energy, ...]:
        """The sub-expressions; none for a leaf."""
        return ()

    @property
    def formula(self) -> Formula | None:
        """The Boolean formula that an event stands for; None for any other energy."""
        return None

    @property
    def grounded(self) -> bool:
        r"""Whether $e^{-E}$ can be normalised, as far as structure tells."""
        return True

    @property
    def unsatisfiable(self) -> bool:
        """Whether no point fulfils it, as far as structure tells: its probability is 0, so it has no energy and no density.

        It can be combined; as a whole it raises `ContradictionError` where it is evaluated.
        """
        if self.formula is not None and self.formula.constant is False:
            return True
        return any(part.unsatisfiable for part in (*self.terms, *(base.energy for base in self.bases)))

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments besides `terms`, by name: what describes, compares, saves and rebuilds the energy.

        To be saved they must be plain data, tensors, energies, and modules that the registry made or that are parts of what it made.

        Raises:
            ExpressionError: The class has no `config()`; then an energy can be saved only if the registry made it.
        """
        raise ExpressionError(
            f"{self} cannot be described: {type(self).__name__} has no `config()`. Give it one that returns its constructor's "
            "arguments. To save it, also offer the class as a plug-in, or make the energy through `composable_energy.get_energy`."
        )

    def rebuild(self, *terms: Energy, **changes: Any) -> Self:
        """Returns an energy of the same class with other terms or other constructor arguments.

        Args:
            *terms: The new terms, as many as there are now; none keeps those.
            **changes: Arguments that replace those of `config()`, such as `base`.

        Raises:
            ExpressionError: The class has no `config()`.
            OptionError: The constructor does not take an argument.
        """
        rebuilt = type(self)(*(terms or self.terms), **{**self.config(), **check_names(self, changes, self.config())})
        rebuilt.name, rebuilt.recommended, rebuilt.training = self.name, self.recommended, self.training
        return rebuilt

    def equals(self, other: Energy) -> bool:
        """Returns whether two energies are the same: one class, description, terms, and equal numbers in all tensors.

        A copy, a pickle or a loaded file equals what it was made from, also after a conversion to another precision.
        """
        return same(self, other)

    def _check_input(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        """Checks the points; returns the conditions that the energy depends on."""
        check_points(self, x)
        required = self.required_conditions
        if not (required or conditions):
            return conditions
        check_names(self, conditions, self.conditions | {CHAINS})
        missing = required - conditions.keys()
        if missing:
            names = ", ".join(sorted(missing))
            ways = " or ".join(f"`.at({n})`" if n == "sigma" else f"`.given({n}=...)`" for n in sorted(missing))
            raise ExpressionError(f"{self} depends on {names}, which is not bound: bind it with {ways}.")
        own = self.conditions & conditions.keys()
        return {name: conditions[name] if name == CHAINS else rows_for(name, conditions[name], x) for name in own}

    # Operators ------------------------------------------------------------------------------------------------------------------------

    def __and__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().all_of, self, other)

    def __rand__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().all_of, other, self)

    def __or__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().any_of, self, other)

    def __ror__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().any_of, other, self)

    def __sub__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().Difference, self, other)

    def __rsub__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().Difference, other, self)

    def __rshift__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().implies, self, other)

    def __rrshift__(self, other: object) -> Energy:
        return _algebra().apply_operator(_algebra().implies, other, self)

    def __invert__(self) -> Energy:
        return _algebra().negate(self)

    def __mul__(self, weight: object) -> Energy:
        return _algebra().scale_weight(self, weight)

    __rmul__ = __mul__

    def __truediv__(self, temperature: object) -> Energy:
        return _algebra().scale_temperature(self, temperature)

    def __bool__(self) -> bool:
        raise TypeError("An energy has no truth value: write `A & B`, `A | B` and `~A`, not `A and B`, `A or B` and `not A`.")

    # What can be made of it -----------------------------------------------------------------------------------------------------------

    def given(self, **conditions: Any) -> Energy:
        """Returns the energy with conditions bound, such as `given(y=3)`.

        Args:
            **conditions: Numbers or tensors; the first axis of a tensor is 1, for all points, or has one row for each. Tensors are copied.
                Terms that do not depend on a condition ignore it.

        Raises:
            ExpressionError: No term takes a condition of that name, or it is bound already.
        """
        return _algebra().bind_conditions(self, check_names(self, conditions, self.conditions))

    def bind(self, conditions: Mapping[str, Any]) -> Energy:
        """Returns a leaf with conditions bound that it depends on; `given` calls it for each leaf of an expression."""
        return _algebra().Conditioned(self, conditions)

    def at(self, sigma: float | Tensor) -> Energy:
        """Returns the energy at a noise level, for those that were trained at many: $E(x, \\sigma)$."""
        return self.given(sigma=sigma)

    def relative_to(self, base: Energy) -> Energy:
        r"""Returns the same density with evidence $E - \text{base}$, so that an expression counts the base once."""
        return _algebra().Relative(self, base)

    def sharpened(self, weight: float | Tensor) -> Energy:
        r"""Returns $\text{base} + w \cdot \text{evidence}$, known as guidance; 1 is the exact posterior."""
        return _algebra().Sharpened(self, weight)

    def pull_back(self, decoder: nn.Module, damping: float = 0.0) -> Energy:
        """Returns the energy $E(g(z))$ of points $z$ in the latent space of a decoder $g$; see `PulledBack` for noise and `damping`."""
        return _algebra().PulledBack(self, decoder, damping)

    def explain(self, x: Tensor, **conditions: Any) -> Explanation:
        """Returns the energy of each term at $x$ and, under `|`, the share of each branch."""
        from composable_energy.explain import explain

        return explain(self, x, **conditions)

    def infer(self, x: Tensor, over: Mapping[str, Sequence[Any] | Tensor], *, joint: bool = False) -> Inference:
        """Returns the distribution over conditions, given one or several $x$; see `composable_energy.inference.infer`."""
        from composable_energy.inference import infer

        return infer(self, x, over, joint=joint)

    def sample(self, shape: int | Sequence[int], **options: Any) -> Any:
        r"""Draws points from the density.

        Args:
            shape: $(n, *)$ with the shape of one point, or $n$ where the energy knows it.
            **options: `sampler`, `steps`, `seed`, `init`, `progress`, `trace`, `batch_size` and all others of
                `composable_energy.sampling.sample`, and those of the sampler.

        Returns:
            The points, with shape $(n, *)$; with `trace` the pair of points and `Trace`.
        """
        from composable_energy.sampling import sample

        return sample(self, shape, **options)

    def save(self, folder: str | Path) -> None:
        """Writes the expression and its weights to a folder that `composable_energy.load` reads."""
        from composable_energy.saving import save

        save(self, folder)

    def __str__(self) -> str:
        return self.name or type(self).__name__

    def __repr__(self) -> str:
        return _algebra().tree(self)


def _algebra() -> Any:
    from composable_energy import algebra

    return algebra
