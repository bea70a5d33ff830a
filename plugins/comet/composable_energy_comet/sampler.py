"""The inner descent as a sampler: `(part & other).sample(16)` decodes parts as training did."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.options import check_instance, check_integer, check_interval, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits
from composable_energy_comet.component import ComponentEnergy
from composable_energy_comet.conv import SPREAD


@dataclass(frozen=True)
class InnerDescent(Sampler):
    r"""Gradient descent $x' = x - \eta \nabla E(x)$ with a few clamped steps, which decodes components into pictures.

    It does not sample the density: it minimizes the energy from the start that training used. Without `init`, chains start at the start
    image of the expression's energies (the mean, if there are several models), plus a little noise.

    Args:
        iterations: Number of steps.
        step_size: Step size $\eta$; 1 is the trained step size.
        clamp: Lowest and highest value of a coordinate.
        start_image: The start, with the shape of one point; that of the energies if None.

    References:
        Unsupervised learning of compositional energy concepts (Du et al., 2021), https://arxiv.org/abs/2111.03042, algorithm 2.
    """

    iterations: int = 3
    step_size: float = 1.0
    clamp: tuple[float, float] = (0.0, 1.0)
    start_image: Tensor | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_integer("iterations", self.iterations)
        check_number("step_size", self.step_size, above=0)
        check_instance("start_image", self.start_image, Tensor)
        object.__setattr__(self, "clamp", check_interval("clamp", self.clamp))

    @property
    def total_steps(self) -> int:
        return self.iterations

    def tune(self, energy: ce.Energy, x: Tensor, noise: Noise) -> tuple[InnerDescent, Tensor]:
        """Returns the sampler with the start image of the energies; itself if one was given or there is none."""
        images = {id(part.image): part.image for part in energy.modules() if isinstance(part, ComponentEnergy) and part.start == "image"}
        if self.start_image is not None or not images:
            return self, x
        return replace(self, start_image=torch.stack([image.detach() for image in images.values()]).mean(0)), x

    def start(self, like: Tensor, noise: Noise) -> Tensor:
        low, high = self.clamp
        if self.start_image is None:
            return low + (high - low) * torch.special.ndtr(noise.normal(like))
        return self.start_image.to(like) + SPREAD * noise.normal(like)

    def step(self, energy: ce.Energy, state: State, noise: Noise) -> tuple[State, Info]:
        return self.init(energy, self.move(state, noise), noise), Info()

    def move(self, state: State, noise: Noise) -> Tensor:
        return torch.add(state.x, state.grad, alpha=-self.step_size).clamp_(*self.clamp)

    traits: ClassVar[Traits] = Traits(gradients=1, values=False, minimizes=True, start=start, move=move)
