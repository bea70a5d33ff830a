r"""The class `Energy`: values, gradients and structure of an energy, and how it is combined and sampled.

An energy $E(x)$ represents the density $p(x) \propto e^{-E(x)}$. A batch of $B$ points has shape $(B, *)$; their energies have shape
$(B,)$. Operators, `sample`, `save` and others belong to upper layers, which are found by their paths: nothing here imports what is above.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence, Set
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import torch
from torch import Tensor, nn
from typing_extensions import Self

from composable_energy.arithmetic import Estimate
from composable_energy.energies.checks import as_points, check_energies, check_points, check_value, note_evaluation
from composable_energy.energies.conditions import check_conditions, check_names, method_parameters
from composable_energy.energies.evaluation import THREAD, evaluate, note_detached, value_and_gradient
from composable_energy.energies.identity import Origin, same, token_of
from composable_energy.errors import CalibrationError, ExpressionError, OperatorError, OptionError, ShapeError
from composable_energy.lazy import LazyMethod
from composable_energy.options import Recommendation, check_instance
from composable_energy.supports import Support, Variables, check_support, map_support

if TYPE_CHECKING:
    import composable_energy as ce

# The hooks of a module, which `forward` alone does not call; torch has no public way to ask for them (`test_twins.py` pins the names).
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _algebra() -> Any:
    return import_module("composable_energy.algebra")


def _operator(sign: str) -> tuple[Callable[[Any, object], Any], Callable[[Any, object], Any]]:
    """Returns the methods of a binary operator, for an energy on the left and on the right."""
    return lambda self, other: self._operate(sign, other), lambda self, other: self._operate(sign, other, reflected=True)


class Energy(nn.Module, ABC):
    r"""Abstract energy $E$ of the density $p(x) \propto e^{-E(x)}$.

    A subclass implements `forward(self, x)`, with further parameters such as `sigma` if it depends on conditions. It is final: to change
    an energy, wrap it. Its constructor may set:

    Attributes:
        name: The name in expressions; the class name if empty.
        event_shape: The shape of one point; None if it takes several shapes.
        support: Where the density lives, as a constraint of `torch.distributions`; None for all of $\mathbb{R}^n$. The energy is infinite
            outside. An expression whose terms have supports without a known intersection or union raises.
        variables: The named variables whose numbers make up a point, with their shapes; none for other points.
        decoder: The decoder of an energy of latent points: `decoder(z)` has shape $(B, *)$; a method `encode` is the way back.
        recommended: The sampler to use.
        evidence_normalized: Whether the evidence is minus the logarithm of a probability or a density, without an unknown constant.
        no_complement: Why `~` is refused; None if it is not.
        has_value: Whether the energy has values. False for one with a gradient only, such as a score, which overrides `with_gradient`.
        has_gradient: Whether the gradient is that of the values. False for one that is constant for autograd, such as a reward that
            counts; samplers that follow gradients alone refuse an expression with it.
        widens_itself: Whether the energy allows for the spread of the data around denoised points, by
            `composable_energy.energies.evaluation.denoised_level`; samplers along noise levels do so for other energies.
        grounded: Whether $e^{-E}$ can be normalised, as far as the structure shows.
        conditions: The names of the conditions that the energy depends on: those of `forward`, for a class that does not say others.
        required_conditions: The names of those without a default.
        log_normalizer: The logarithm of $Z = \int e^{-E(x)}\, dx$ with its standard error, an `Estimate`; None if it is not known.
        unsatisfiable: Whether no point can fulfil it, as far as the structure shows; alone it raises `ContradictionError`.
        sites: Which numbers of a point are discrete, in the energy that a sampler gets; None if none are.
        terms: The sub-expressions; none for a leaf.
        bases: The energies that this one is relative to, as `WeightedBase`; none for an absolute energy.
        formula: The Boolean `Formula` of an event; None for any other energy.
        needs_log_densities: Whether its gradient depends on values that its terms lack; only samplers that carry those along draw it.
        origin: How the registry built it; None if it did not.
        comes_trained: Of the class: whether what its plug-in builds is trained; None if there is nothing to train.
        has_config: Whether the class has a `config()`.
        has_own_gradient: Whether the class overrides `with_gradient`.
    """

    name: str = ""
    recommended: Recommendation | None = None
    evidence_normalized: bool = False
    no_complement: str | None = None
    has_value: bool = True
    has_gradient: bool = True
    widens_itself: bool = False
    support: Support = None
    variables: Variables = MappingProxyType({})
    grounded: bool = True
    conditions: frozenset[str] = frozenset()
    required_conditions: frozenset[str] = frozenset()
    log_normalizer: Estimate | None = None
    unsatisfiable: bool = False
    sites: Any = None
    terms: tuple[Energy, ...] = ()
    bases: tuple[Any, ...] = ()
    formula: Any = None
    needs_log_densities: bool = False
    origin: Origin | None = None
    comes_trained: ClassVar[bool | None] = None
    infinite_outside: ClassVar[bool] = False  # whether `forward` itself is infinite outside of the support
    has_config: ClassVar[bool] = False
    has_own_gradient: ClassVar[bool] = False
    _signed: bool = False  # whether energies may be minus infinity: a negative weight, a difference
    _fitting: set[Any] | None = None  # shapes, dtypes and devices of points that fit; only in a twin, which does not change
    _direct: Set[Any] = frozenset()  # those of points whose energies `forward` alone gives: the same, or none
    __array_ufunc__ = None  # numpy scalars on the left use our operators
    if TYPE_CHECKING:  # `__setattr__` converts it

        @property
        def event_shape(self) -> torch.Size | None: ...
        @event_shape.setter
        def event_shape(self, shape: Sequence[int] | None) -> None: ...
    else:
        event_shape = None

    def __init__(self) -> None:
        super().__init__()
        token_of(self)  # before any copy, so that copies have the same token

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.has_config = cls.has_config or "config" in vars(cls)
        cls.has_own_gradient = cls.with_gradient is not Energy.with_gradient
        if "forward" in vars(cls) and not isinstance(cls.conditions, property):
            cls.conditions, cls.required_conditions, _ = method_parameters(cls.forward)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "event_shape" and value is not None:
            try:
                torch.empty(value := torch.Size(value), device="meta")  # raises for negative numbers
            except (TypeError, RuntimeError):
                raise OptionError(f"event_shape is the shape of one point, such as (2,), got {value!r}.", ["event_shape"]) from None
        elif name == "support" and value is not None:
            value = check_support(value)  # pyright: ignore[reportArgumentType]
        elif name == "name":
            check_instance(name, value, str)
        elif isinstance(value, nn.Module) and callable(getattr(Energy, name, None)):  # the method would hide the module
            raise ExpressionError(f"`{name}` is a method of energies, so a module of {type(self).__name__} needs another name.")
        super().__setattr__(name, value)  # pyright: ignore[reportArgumentType]

    @abstractmethod
    def forward(self, x: Tensor, *args: Any, **conditions: Any) -> Tensor:
        """Returns the energies, with shape $(B,)$, of points with shape $(B, *)$."""

    def __call__(self, x: Any = None, **conditions: Any) -> Tensor:
        """Evaluates `forward` and checks points, conditions and energies.

        Args:
            x: Points, with shape $(B, *)$, or a mapping of named variables, which may also be keywords; the energies have shape $(B,)$.
            **conditions: One value for all points, or one row for each.

        Raises:
            ShapeError: The points do not fit `event_shape`, or the energies do not have shape $(B,)$.
            DtypeError: The points are integers, or have another dtype than the weights.
            DeviceError: The points are on another device than the weights.
            ExpressionError: A condition is missing or unknown, or the energy has no value.
        """
        direct = self._direct if not conditions and type(x) is Tensor else None
        evaluation = THREAD.evaluation if direct and (x.shape, x.dtype, x.device) in direct else None
        # `evaluate` takes longer than the arithmetic of small energies.
        if evaluation is not None and evaluation.memo is not None and evaluation.given is None and evaluation.denoised[0] is None:
            try:
                if type(energies := self.forward(x)) is not Tensor or energies.dtype is not x.dtype or energies.shape != x.shape[:1]:
                    check_energies(self, energies, x)
            except Exception as error:
                note_evaluation(error, self, x)
                raise
            if x.requires_grad and not energies.requires_grad:
                note_detached(self, x, conditions)
            return energies
        if self.variables and conditions and any(name in conditions for name in self.variables):
            x = {} if x is None else {"x": x}  # it may be a variable, too
            x |= {name: conditions.pop(name) for name in self.variables if name in conditions}
        x = x if isinstance(x, Tensor) else as_points(self, x)
        return evaluate(self, x, self._check_input(x, conditions), super().__call__)

    def evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        """Returns the energies minus those of the bases, with shape $(B,)$; for an absolute energy the energies."""
        return self(x, **conditions)

    with_gradient = value_and_gradient

    def log_prob(self, x: Any = None, log_z: Any = None, **conditions: Any) -> Tensor:
        r"""Returns $\log p(x) = -E(x) - \log Z$, with shape $(B,)$.

        Args:
            x: Points or variables, as of the energy.
            log_z: A number or the result of `composable_energy.log_z`; None takes `log_normalizer`.
            **conditions: One value for all points, or one row for each.

        Raises:
            CalibrationError: $\log Z$ is not known.
            ShapeError: `log_z` is a tensor of other shape than `()` or $(B,)$.
        """
        check_value(self, "`log_prob`")
        if (known := self.log_normalizer if log_z is None else log_z) is None:
            raise CalibrationError(
                f"log Z of {self} is not known, so its energies are log densities up to a constant only. Estimate it: "
                "`E.log_prob(x, log_z=composable_energy.log_z(E))`; for a mixture `composable_energy.calibrate(E).log_prob(x)`."
            )
        energies, known = self(x, **conditions), known if isinstance(known, Tensor) else float(known)
        if isinstance(known, Tensor) and known.shape not in ((), energies.shape):
            raise ShapeError(f"log_z is one number, or one for each of {len(energies)} points, got shape {tuple(known.shape)}.")
        return -energies - known

    def score(self, x: Tensor, *, create_graph: bool = False, **conditions: Any) -> Tensor:
        r"""Returns the score $\nabla_x \log p(x) = -\nabla E(x)$, with shape $(B, *)$; with `create_graph` it can be differentiated."""
        if not create_graph:
            return -self.with_gradient(x, **conditions)[1]
        if not self.has_value:
            raise ExpressionError(
                f"{self} has a gradient and no value, so its score has no graph. Train the score models in it one by one, by "
                "`score(x, create_graph=True)` of each."
            )
        with torch.enable_grad():
            x = as_points(self, x)
            point = x if x.requires_grad else x.detach().requires_grad_()
            values = self(point, **conditions)
            found = torch.autograd.grad(values.sum(), point, create_graph=True, allow_unused=True) if values.requires_grad else (None,)
        if found[0] is None:
            raise ExpressionError(f"{self} has no gradient at its points: it is constant, or detaches them (`detach`, `no_grad`, NumPy).")
        return -found[0]

    @property
    def evidence_has_value(self) -> bool:
        """Whether the evidence has values; for events it has, even if the base has none."""
        return self.has_value

    @property
    def decoder(self) -> nn.Module | None:
        """The decoder of latent points; None for an energy of decoded points."""
        return self._modules.get("decoder")

    @decoder.setter
    def decoder(self, module: nn.Module | None) -> None:
        self._modules["decoder"] = check_instance("decoder", module, nn.Module)  # torch sets a module itself

    @property
    def decoded_shape(self) -> torch.Size | None:
        """The shape of one decoded point, if the decoder has an `event_shape`."""
        return None if (shape := getattr(self.decoder, "event_shape", None)) is None else torch.Size(shape)

    def known_level(self, quantile: float) -> float | None:
        """Returns the energy below which a share of the draws lies, if it is known without draws; `~` then needs none."""
        return None

    def config(self) -> dict[str, Any]:
        """Returns the constructor's arguments other than `terms`, by name; used to compare, save and rebuild the energy.

        Saving takes plain data, tensors, energies, and modules that the registry built.

        Raises:
            ExpressionError: The class has no `config()`; then only an energy that the registry built can be saved.
        """
        raise ExpressionError(
            f"{self} cannot be described: {type(self).__name__} has no `config()`. Give it one that returns its constructor's "
            "arguments. To save it, also offer the class as a plug-in, or build the energy with `composable_energy.get`."
        )

    def rebuild(self, *terms: Energy, **changes: Any) -> Self:
        """Returns an energy of the same class with other terms or constructor arguments.

        Args:
            *terms: The new terms, as many as now; none keeps them.
            **changes: Arguments that replace those of `config()`, such as `base`; an unknown one raises `ExpressionError`.
        """
        rebuilt = type(self)(*(terms or self.terms), **{**self.config(), **check_names(self, changes, self.config())})
        rebuilt.name, rebuilt.recommended, rebuilt.training = self.name, self.recommended, self.training
        return rebuilt

    def summands(self) -> list[tuple[Energy, Any]]:
        """Returns the terms of a conjunction with their weights, also through nested ones; of any other energy itself, with weight 1."""
        return [(self, 1.0)]

    def equals(self, other: Energy) -> bool:
        """Returns whether class, `config()`, terms and numbers are equal, as those of a copy, also a pickled, saved or converted one."""
        return same(self, other)

    def __str__(self) -> str:
        return self.name or type(self).__name__

    __repr__: Any = LazyMethod("composable_energy.algebra:tree")
    __and__, __rand__ = _operator("&")
    __or__, __ror__ = _operator("|")
    __xor__, __rxor__ = _operator("^")
    __sub__, __rsub__ = _operator("-")
    __rshift__, __rrshift__ = _operator(">>")
    _operate = LazyMethod("composable_energy.algebra:operate")

    def _refuse_arithmetic(self, other: object = None) -> NoReturn:
        raise OperatorError(
            f"{self} cannot be combined like this. Write `A & B` for the product of densities, `composable_energy.all_of(*terms)` for that "
            "of many, `A - B` for a ratio, `~A` for the opposite, `2 * A`, with a number or a 0-d tensor, for a power; leave out constants."
        )

    __add__ = __radd__ = __neg__ = __pos__ = __pow__ = __rpow__ = __rtruediv__ = __floordiv__ = __mod__ = __matmul__ = _refuse_arithmetic

    def __bool__(self) -> NoReturn:
        raise OperatorError("An energy has no truth value: write `A & B`, `A | B` and `~A`, not `A and B`, `A or B` and `not A`.")

    def __mul__(self, weight: object) -> Energy:
        return _algebra().scale(self, weight)

    __rmul__ = __mul__

    def __truediv__(self, temperature: object) -> Energy:
        return _algebra().scale(self, temperature, inverse=True)

    def given(self, /, **conditions: Any) -> Energy:
        """Returns the energy with conditions bound, such as `given(y=3)`, or at values of named variables, over the others.

        Args:
            **conditions: Numbers or tensors, which are copied: of a condition with a first axis of 1, or one row for each point; of a
                variable with its shape. A name that no term takes, or that is already bound, raises `ExpressionError`.
        """
        return _algebra().bind_names(self, check_names(self, conditions, {*self.conditions, *self.variables}))

    def bind(self, conditions: Mapping[str, Any]) -> Energy:
        """Returns a leaf with conditions bound; `given` calls it for each leaf that depends on them."""
        return _algebra().Conditioned(self, conditions)

    def at(self, sigma: float | Tensor) -> Energy:
        r"""Returns the energy $E(x, \sigma)$ at a noise level."""
        return self.given(sigma=sigma)

    def on(self, support: Support) -> Energy:
        r"""Returns the energy on a support, such as `constraints.positive`; it is $\infty$ outside."""
        return _algebra().Restricted(self, support)

    def relative_to(self, base: Energy) -> Energy:
        r"""Returns the same density with evidence $E - \text{base}$, so that an expression counts the base once."""
        return _algebra().Relative(self, base)

    def sharpened(self, weight: float | Tensor) -> Energy:
        r"""Returns $\text{base} + w \cdot \text{evidence}$ (guidance); 1 is the exact posterior."""
        return _algebra().sharpen(self, weight)

    def pull_back(self, decoder: nn.Module, damping: float = 0.0) -> Energy:
        """Returns the energy $E(g(z))$ of latent points $z$ of a decoder $g$; see `PulledBack` for noise levels and `damping`."""
        return _algebra().PulledBack(self, decoder, damping)

    def shown_by(self, decoder: nn.Module) -> Energy:
        """Returns the same energy as one of latent points of a decoder $g$, so that `sample` returns $g(z)$; see `Decoded`."""
        return _algebra().Decoded(self, decoder)

    @property
    def latents(self) -> ce.sampling.Latents:
        """What samples latent points of the energy and does not decode them: `E.latents.sample(n)`."""
        return import_module("composable_energy.sampling").Latents(self)

    if not TYPE_CHECKING:
        __invert__ = LazyMethod("composable_energy.algebra:negate")
        sample = LazyMethod("composable_energy.sampling:sample")
        r"""Draws points from the density: the function `composable_energy.sampling.sample` as a method.

        Its first argument is the shape of the points, $(n, *)$, or $n$ if the energy has an `event_shape`. The others are `sampler`,
        `steps`, `seed`, `init`, `trace`, ..., and the options of the sampler.
        """
        save = LazyMethod("composable_energy.files:save")
        """Writes the expression and its weights to a folder for `composable_energy.load`: `E.save(folder)`."""
    else:  # their signatures, for type checkers and editors
        __invert__, sample, save = ce.negate, ce.sampling.sample, ce.save
    over = LazyMethod("composable_energy.algebra:place")
    """Returns the energy over named variables, so that `&` joins it with others by name: `E.over("theta")`."""
    explain = LazyMethod("composable_energy.algebra.explain:explain")
    """Returns the energy of each term at points, and the share of each branch of `|`: `E.explain(x, **conditions)`."""
    infer = LazyMethod("composable_energy.registry:infer")
    """Returns the `Inference` of conditions given points, over lists of candidates: `E.infer(x, over={"y": range(10)})`."""
    push = LazyMethod("composable_energy.files:push")
    """Uploads the expression and its weights, such as to a hub: `E.push("owner/name")`; see `composable_energy.files.push`."""

    def became_twin(self) -> None:
        """Keeps which points fit, so that those of each step need no check; `twin` calls it."""
        kind, within = type(self), type(self).infinite_outside or self.terms or self.bases or self.support is None
        usual = within and kind.has_value is not False and not kind.has_own_gradient and not any(map(vars(self).get, _HOOKS))
        self._fitting = set()
        self._direct = self._fitting if usual else frozenset()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        if self._fitting is not None:
            self._fitting.clear()
        if vars(self).get("support") is not None:  # its ends may be tensors
            vars(self)["support"] = map_support(self.support, fn)
        self._place = fn(torch.empty(0, dtype=torch.int64, device="cpu"))  # tells where points are, if there is no other tensor
        return super()._apply(fn, recurse)

    def _check_input(self, x: Tensor, conditions: dict[str, Any]) -> dict[str, Any]:
        """Checks the points and returns the conditions that the energy depends on."""
        fitting = None if conditions or type(x) is not Tensor else self._fitting
        kind = None if fitting is None else (x.shape, x.dtype, x.device)
        if fitting is None or kind not in fitting:
            check_points(self, x)
            conditions = check_conditions(self, conditions, x)
            if fitting is not None:
                fitting.add(kind)
        return conditions
