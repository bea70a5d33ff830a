"""Recombines parts of pictures: components of one energy are evaluated together, everything else is joined by `&`.

The inner descent is a sampler too: `(part & other).sample(16)` decodes parts as training did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.algebra import Conditioned
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_instance, check_integer, check_interval, check_number
from composable_energy.sampling import Info, Noise, Sampler, State, Traits, twin
from composable_energy_comet.component import ComponentEnergy, TargetEnergy, joint_minimum
from composable_energy_comet.conv import SPREAD, ConvEnergy, descend


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


_BATCH = 64


def join_parts(parts: Sequence[ce.Energy]) -> ce.Energy:
    """Returns the conjunction of parts, with the parts of one model as a single term; its value is the same, its cost lower.

    Raises:
        OptionError: The sequence is empty.
        ShapeError: The parts belong to different numbers of pictures.
    """
    if not parts:
        raise OptionError("There are no parts to join.")
    rows = _count_pictures(parts)
    by_energy: dict[int, list[ce.Energy]] = {}
    others = []
    for part in parts:
        (by_energy.setdefault(id(part.terms[0]), []) if _is_component(part) else others).append(part)
    terms = [some[0].terms[0].given(z=torch.cat([_latents(part, rows) for part in some], 1)) for some in by_energy.values()]
    return ce.all_of(*terms, *others)


def decode_latents(energy: ComponentEnergy, z: Tensor, seed: int = 0) -> Tensor:
    """Returns the pictures of latents with shape $(B, K, D)$: the minimum if it has a closed form, else the end of the descent."""
    noise, found, energy = Noise(seed, range(len(z))).child("start"), [], twin(energy)
    with torch.no_grad():
        for rows in torch.arange(len(z)).split(_BATCH):
            some = z[rows]
            if isinstance(energy, TargetEnergy):
                found.append(energy.minimum(some).clamp(0, 1))
            elif isinstance(energy, ConvEnergy):
                start = energy.draw_start(some.new_zeros(len(some), *energy.image.shape), noise.for_chains(rows.tolist()), SPREAD)
                found.append(descend(energy, some, start, energy.iterations))
    return torch.cat(found)


def recombine_parts(parts: Sequence[ce.Energy], seed: int = 0) -> Tensor:
    """Returns the pictures of parts, with shape $(B, C, S, S)$.

    Parts of one model are decoded as by `decode_latents`. Parts of several quadratic energies have a joint minimum in closed form. Parts of
    several convolutional energies descend together by `inner-descent`; any other mixture is minimized by `descent`.

    Raises:
        OptionError: There are no parts, or none of a model.
        ShapeError: The parts belong to different sizes, or different numbers of pictures.
    """
    joint = join_parts(parts)
    if not (models := [part for part in joint.modules() if isinstance(part, ComponentEnergy)]):
        raise OptionError("None of the parts is a component of a model: sample their conjunction, `ce.all_of(*parts).sample(...)`.")
    if _is_component(joint):
        return decode_latents(models[0], _latents(joint, _count_pictures(parts)), seed)
    if all(_is_component(part) and isinstance(part.terms[0], TargetEnergy) for part in parts):
        with torch.no_grad():
            rows = _count_pictures(parts)
            targets = [twin(cast(TargetEnergy, part.terms[0])).decode_targets(_latents(part, rows)) for part in parts]
        return joint_minimum(*(torch.cat(some, 1) for some in zip(*targets, strict=True))).clamp(0, 1)
    iterations = [model.iterations for model in models if isinstance(model, ConvEnergy)]
    descent = InnerDescent(max(iterations)) if len(iterations) == len(models) else "descent"
    return joint.sample(_count_pictures(parts), sampler=descent, seed=seed).clamp(0, 1)


def _is_component(part: nn.Module) -> bool:
    return isinstance(part, Conditioned) and isinstance(part.terms[0], ComponentEnergy) and part.values.keys() == {"z"}


def _latents(part: ce.Energy, rows: int) -> Tensor:
    z: Tensor = vars(part)["values"]["z"]
    return (z if z.ndim == 3 else z[:, None]).expand(rows, -1, -1)


def _count_pictures(parts: Sequence[ce.Energy]) -> int:
    models = [one for part in parts if isinstance(part, nn.Module) for one in part.modules()]
    if len(rows := {len(vars(one)["values"]["z"]) for one in models if _is_component(one)} - {1}) > 1:
        raise ShapeError(f"Parts are of {' and '.join(map(str, sorted(rows)))} pictures: join parts of equally many pictures.")
    return rows.pop() if rows else 1
