r"""The class `Energy`: operators, derived energies and sampling of an energy.

Operators, `sample`, `explain`, `infer`, `save` and `push` belong to upper layers, which these methods import when they are called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from composable_energy.conditions import check_names
from composable_energy.energy_function import EnergyFunction
from composable_energy.errors import ExpressionError
from composable_energy.lazy import LazyMethod
from composable_energy.operator_methods import operator_pair, refuse_arithmetic, refuse_truth
from composable_energy.recommendation import Recommendation
from composable_energy.supports import Support

if TYPE_CHECKING:
    from composable_energy.explain import Explanation
    from composable_energy.inference import Inference
    from composable_energy.sampling import Latents

__all__ = ["Energy", "Recommendation"]


def _algebra() -> Any:
    from composable_energy import algebra

    return algebra


def _density() -> Any:
    from composable_energy import density

    return density


def _sample():
    from composable_energy.sampling import sample

    return sample


class Energy(EnergyFunction):
    r"""Abstract energy $E$ of the density $p(x) \propto e^{-E(x)}$.

    A subclass implements `forward(self, x)`, with further parameters such as `sigma` if it depends on conditions. It is final: to change
    an energy, wrap it. Its constructor may set:

    Attributes:
        name: The name in expressions; the class name if empty.
        event_shape: The shape of one point; None if it takes several shapes.
        support: Where the density lives, as a constraint of `torch.distributions`; None for all of $\mathbb{R}^n$.
        decoder: The decoder of an energy of latent points: `decoder(z)` has shape $(B, *)$; a method `encode` is the way back.
        recommended: The sampler to use.
        evidence_normalized: Whether the evidence is minus the logarithm of a probability or a density, without an unknown constant.
        no_complement: Why `~` is refused; None if it is not.
        has_value: Whether the energy has values. False for one with a gradient only, such as a score, which overrides `with_gradient`.
        has_gradient: Whether the gradient is that of the values. False for one that is constant for autograd, such as a reward that
            counts; samplers that follow gradients alone refuse an expression with it.
        widens_itself: Whether the energy allows for the spread of the data around denoised points, by
            `composable_energy.denoised.denoised_level`; samplers along noise levels do so for other energies.
        origin: How the registry built it; None if it did not.
        comes_trained: Of the class: whether what its plug-in builds is trained. False for a network with random weights; None if there is
            nothing to train.
        has_config: Whether the class has a `config()`.
        has_own_gradient: Whether the class overrides `with_gradient`.
    """

    __array_ufunc__ = None  # numpy scalars on the left use our operators

    def __setattr__(self, name: str, value: Any) -> None:
        if isinstance(value, nn.Module) and callable(getattr(Energy, name, None)):  # the method would hide the module
            raise ExpressionError(f"`{name}` is a method of energies, so a module of {type(self).__name__} needs another name.")
        super().__setattr__(name, value)

    # Operators ------------------------------------------------------------------------------------------------------------------------

    __and__, __rand__ = operator_pair(_algebra, "all_of")
    __or__, __ror__ = operator_pair(_algebra, "any_of")
    __xor__, __rxor__ = operator_pair(_algebra, "one_of")
    __sub__, __rsub__ = operator_pair(_algebra, "Difference")
    __rshift__, __rrshift__ = operator_pair(_algebra, "implies")
    __add__ = __radd__ = __neg__ = __pos__ = __pow__ = refuse_arithmetic
    __bool__ = refuse_truth

    def __invert__(self) -> Energy:
        return _algebra().negate(self)

    def __mul__(self, weight: object) -> Energy:
        return _algebra().scale_weight(self, weight)

    __rmul__ = __mul__

    def __truediv__(self, temperature: object) -> Energy:
        return _algebra().scale_temperature(self, temperature)

    # Derived energies, and methods of upper layers ------------------------------------------------------------------------------------

    def given(self, **conditions: Any) -> Energy:
        """Returns the energy with conditions bound, such as `given(y=3)`; terms that do not depend on a condition ignore it.

        Args:
            **conditions: Numbers or tensors, which are copied; a tensor has a first axis of 1, or one row for each point.

        Raises:
            ExpressionError: No term takes a condition of that name, or it is already bound.
        """
        return _algebra().bind_conditions(self, check_names(self, conditions, self.conditions))

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
        return _algebra().Sharpened(self, weight)

    def pull_back(self, decoder: nn.Module, damping: float = 0.0) -> Energy:
        """Returns the energy $E(g(z))$ of latent points $z$ of a decoder $g$; see `PulledBack` for noise levels and `damping`."""
        return _algebra().PulledBack(self, decoder, damping)

    def shown_by(self, decoder: nn.Module) -> Energy:
        """Returns the same energy as one of latent points of a decoder $g$, so that `sample` returns $g(z)$; see `Decoded`."""
        return _algebra().Decoded(self, decoder)

    @property
    def latents(self) -> Latents:
        """What samples latent points of the energy and does not decode them: `E.latents.sample(n)`."""
        from composable_energy.sampling import Latents  # late: sampling is above

        return Latents(self)

    def log_prob(self, x: Tensor, log_z: Any = None, **conditions: Any) -> Tensor:
        r"""Returns $\log p(x) = -E(x) - \log Z$, with shape $(B,)$.

        Args:
            x: Points, with shape $(B, *)$.
            log_z: A number or the result of `composable_energy.log_z`; None takes `log_normalizer`.
            **conditions: One value for all points, or one row for each.

        Raises:
            NormalizerError: $\log Z$ is not known.
        """
        return _density().log_prob(self, x, log_z, **conditions)

    def score(self, x: Tensor, *, create_graph: bool = False, **conditions: Any) -> Tensor:
        r"""Returns the score $\nabla_x \log p(x) = -\nabla E(x)$, with shape $(B, *)$; with `create_graph` it can be differentiated."""
        return _density().score(self, x, create_graph=create_graph, **conditions)

    def explain(self, x: Tensor, **conditions: Any) -> Explanation:
        """Returns the energy of each term at $x$, and the share of each branch of `|`."""
        from composable_energy.explain import explain

        return explain(self, x, **conditions)

    def infer(self, x: Tensor, over: Mapping[str, Sequence[Any] | Tensor], *, joint: bool = False) -> Inference:
        """Returns the distribution over conditions given $x$; see `composable_energy.inference.infer`."""
        from composable_energy.inference import infer

        return infer(self, x, over, joint=joint)

    sample = LazyMethod(_sample)
    r"""Draws points from the density: the function `composable_energy.sampling.sample` as a method.

    Its first argument is the shape of the points, $(n, *)$, or $n$ if the energy has an `event_shape`. The others are `sampler`, `steps`,
    `seed`, `init`, `trace`, ..., and the options of the sampler.
    """

    def save(self, folder: str | Path) -> None:
        """Writes the expression and its weights to a folder for `composable_energy.load`."""
        from composable_energy.files import save

        save(self, folder)

    def push(self, location: str, **options: Any) -> str:
        """Uploads the expression and its weights, such as to `owner/name` on a hub; see `composable_energy.files.push`."""
        from composable_energy.files import push

        return push(self, location, **options)

    def __repr__(self) -> str:
        return _algebra().tree(self)
