"""Rewards: densities that are tilted towards what a function prefers."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy import Energy, Recommendation
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.options import check_number


class RewardEnergy(Energy):
    r"""A reward as an energy, $-\beta\, r(x)$.

    `base & ce.reward(r, beta)` has the density $p(x)\, e^{\beta r(x)}$ up to a constant. It grounds nothing, and its maximum over points
    may be infinite: the density exists if the base falls faster.

    With a gradient every sampler follows it. Without one (`differentiable=False`) samplers that only follow gradients refuse the
    expression, and the default is `smc`, which weights and resamples its particles by the reward.

    Args:
        function: The reward $r$: a function of points of shape $(B, *)$ that returns shape $(B,)$.
        beta: $\beta$; a negative one avoids what $r$ prefers.
        differentiable: Whether $r$ has a gradient; None tries it at a random point if `event_shape` is given, else supposes one.
        event_shape: The shape of one point, if there is only one. A reward of pictures needs it beside energies of latent points.
        name: The name in expressions; that of the function if empty.

    Raises:
        LiftError: The reward is no function or module.
        OptionError: $\beta$ is no finite number.

    References:
        A general framework for inference-time scaling and steering of diffusion models (Singhal et al., 2025),
        https://arxiv.org/abs/2501.06848

    Example:
        >>> import torch, composable_energy as ce
        >>> base = ce.as_energy(torch.distributions.Normal(torch.zeros(1), 1.0))
        >>> (base & ce.reward(lambda x: x[:, 0], 2.0)).sample(1000, seed=0).mean().round()
        tensor(2.)
    """

    stored_texts: ClassVar[tuple[str, ...]] = ("name",)
    grounded = False

    def __init__(
        self,
        function: Callable[..., Tensor],
        beta: float = 1.0,
        *,
        differentiable: bool | None = None,
        event_shape: Sequence[int] | None = None,
        name: str = "",
    ) -> None:
        super().__init__()
        if differentiable not in (None, True, False):
            raise OptionError(f"differentiable must be True, False or None, got {differentiable!r}.")
        self.function, self.beta = function, check_number("beta", beta)
        lifted = ce.as_energy(function)  # knows the conditions and the name of a function
        self.conditions, self.required_conditions = lifted.conditions, lifted.required_conditions
        self.name = name or ("reward" if lifted.name == "energy" else f"reward({lifted.name})")
        self.event_shape = event_shape
        self.has_gradient = self._tried() if differentiable is None else differentiable
        if not self.has_gradient:
            self.recommended = Recommendation("smc", precedence=2)

    def config(self) -> dict[str, Any]:
        return {
            "function": self.function,
            "beta": self.beta,
            "differentiable": self.has_gradient,
            "event_shape": None if self.event_shape is None else tuple(self.event_shape),
            "name": self.name,
        }

    def forward(self, x: Tensor, **conditions: Any) -> Tensor:
        if not self.has_gradient:
            with torch.no_grad():
                reward: Any = self.function(x.detach(), **conditions)
            return -self.beta * (reward.to(x) if isinstance(reward, Tensor) else torch.as_tensor(reward).to(x))
        reward = self.function(x, **conditions)
        if x.requires_grad and torch.is_grad_enabled() and isinstance(reward, Tensor) and not reward.requires_grad:
            raise ExpressionError(
                f"{self} has no gradient: it detaches, compares or rounds its points. Say `ce.reward(r, beta, differentiable=False)`, "
                "which samples by weights."
            )
        return -self.beta * reward

    def _tried(self) -> bool:
        """Returns whether the reward has a gradient at a random point; True if the shape of points or a condition is unknown."""
        if self.event_shape is None or self.required_conditions:
            return True
        with torch.enable_grad():
            x = torch.rand(2, *self.event_shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
            reward: Any = self.function(x)
            if not isinstance(reward, Tensor) or not reward.requires_grad:
                return False
            gradient = torch.autograd.grad(reward.sum(), x, allow_unused=True)[0]
        return gradient is not None and bool(gradient.any())

    def extra_repr(self) -> str:
        return f"beta={self.beta:g}" + ("" if self.has_gradient else ", differentiable=False")
