"""The trained concepts of `one-object`: a base, evidence for each concept over it, two conditional energies, and their names."""

import math
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

import composable_energy as ce
from composable_energy.errors import OptionError, PluginNotFound
from composable_energy_image import CodeEnergy, CodeHeads
from composable_energy_scenes import weights
from composable_energy_scenes.conditional import ConditionalEnergy
from composable_energy_scenes.judge import Judge
from composable_energy_scenes.one_object import COLORS, SIZES
from composable_energy_scenes.renderer import KINDS

CODE = 48
"""Numbers in a code."""

HEADS_WIDTH = 192
"""Hidden units of a head."""

SIGMAS = (0.05, 4.0)
"""The lowest and the highest noise level of the energies."""

_OPTIONS = {"levels": 160, "sigma_max": SIGMAS[1], "sigma_min": SIGMAS[0], "corrector_steps": 2, "delta": 0.3, "max_gradient": 3.0}
SAMPLING = ce.Recommendation("annealed", _OPTIONS, threads=1)
"""The recommended sampler: 480 gradients. With 160 gradients (40 levels) many objects fade, because chains do not mix at each level."""


class Concepts:
    """Energies of pictures of one object. Each concept was trained on pictures of its own; weights are loaded on first use.

    `position`, `size` and `light` are numbers: `position((0.2, 0.5))` is the density at a point, `position.near((0.2, 0.5), 0.2)` an event,
    which has a complement. `color` and `shape` are events of classes. All are evidence over `base`, so an expression counts it once.

    Example:
        >>> from composable_energy_scenes import load_concepts
        >>> scenes = load_concepts()
        >>> images = (scenes.position.near((0.5, 0.5), 0.2) & ~scenes.color("red")).sample(4, seed=0)
    """

    def __init__(self, folder: Path = weights.FOLDER) -> None:
        self.folder = Path(folder)
        self._head, self._conditional = cache(self._load_head), cache(self._load_conditional)  # expressions share networks

    @cached_property
    def base(self) -> CodeEnergy:
        """The energy of any picture."""
        options = {"size": 64, "code": CODE, "sigma_min": SIGMAS[0], "sigma_max": SIGMAS[1]}
        base = cast(CodeEnergy, ce.get("energy", "code-base", **options))
        weights.read(base.autoencoder, "autoencoder", self.folder)
        weights.read(base.net, "base", self.folder)
        base.name, base.recommended = "scenes", SAMPLING
        return base.eval()

    @cached_property
    def position(self) -> ce.GaussianHead:
        """The position of the object: two numbers in [-1, 1]."""
        return ce.GaussianHead(self._head("position", 4), self.base, dims=2, name="position")

    @cached_property
    def size(self) -> ce.GaussianHead:
        """The size of the object: a number in [.3, .7]."""
        return ce.GaussianHead(self._head("size", 2), self.base, dims=1, name="size")

    @cached_property
    def light(self) -> ce.GaussianHead:
        """The direction of the lamp: cosine and sine of its azimuth."""
        return ce.GaussianHead(self._head("light", 4), self.base, dims=2, name="light")

    def color(self, *values: int | str) -> ce.ClassifierEnergy:
        """Returns the event that the color is one of some, by names or indices; without any, the color is the condition `y`."""
        return self._event("color", COLORS, values)

    def shape(self, *values: int | str) -> ce.ClassifierEnergy:
        """Returns the event that the shape is one of some, by names or indices; without any, the shape is the condition `y`."""
        return self._event("shape", KINDS, values)

    def of_position(self, c: Sequence[float] | Tensor | None = None) -> ce.Energy:
        """Returns the conditional energy given the position: (2,) for all chains, (n, 2) for each. None leaves the condition `y` free."""
        energy = self._conditional("of_position", dims=2)
        if c is None:
            return energy
        if not (points := torch.as_tensor(c, dtype=torch.float32)).isfinite().all():
            raise OptionError(f"A position is two finite numbers, got {c}.")
        return energy.given(y=points if points.ndim == 2 else points[None])

    def of_color(self, value: int | str | Tensor | None = None) -> ce.Energy:
        """Returns the conditional energy given the color, or a tensor of one color per chain. None leaves the condition `y` free."""
        energy = self._conditional("of_color", classes=len(COLORS))
        return energy if value is None else energy.given(y=value if isinstance(value, Tensor) else _class_index("color", COLORS, value))

    def _load_conditional(self, name: str, **options: int) -> ConditionalEnergy:
        energy = cast(ConditionalEnergy, ce.get("energy", "code-conditional", base=self.base, **options))
        energy.name = name
        weights.read(energy.net, name, self.folder)
        return energy.eval()

    def _load_head(self, name: str, outputs: int) -> CodeHeads:
        head = ce.get("encoder", "code-heads", outputs=outputs, code=CODE, width=HEADS_WIDTH, sigma_min=SIGMAS[0])
        return weights.read(cast(CodeHeads, head), name, self.folder)

    def _event(self, name: str, known: Sequence[str], values: tuple[int | str, ...]) -> ce.ClassifierEnergy:
        label = [_class_index(name, known, value) for value in values] or None
        text = f"{name}={'|'.join(known[i] for i in label)}" if label else name
        return ce.ClassifierEnergy(self._head(name, len(known)), label, self.base, labels=len(known), name=text)


def load_concepts(folder: Path = weights.FOLDER) -> Concepts:
    """Returns the trained concepts. Calls with one folder return the same object, so that expressions share a base."""
    return _concepts(folder)


@cache
def load_judge(folder: Path = weights.FOLDER) -> Judge:
    """Returns the trained judge."""
    return weights.read(Judge(), "judge", folder)


_concepts = cache(Concepts)


def _class_index(name: str, known: Sequence[str], value: int | str) -> int:
    if isinstance(value, str) and value in known:
        return known.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(known):
        return value
    raise OptionError(f"There is no {name} {value!r}; known are {', '.join(known)}, or 0 to {len(known) - 1}.")


_MIDDLE = sum(SIZES) / 2
_PLACES = {"left": (0, -1), "right": (0, 1), "front": (1, -1), "back": (1, 1)}
_SIZES = {"small": -1, "large": 1}


class SceneFamily(ce.EnergyFamily):
    """Rendered scenes of objects and their attributes; weights are loaded once, on first use.

    `scenes` is the base. Members are events over it: `scenes/color=red`, `scenes/shape=box`, `scenes/left` (half of the floor),
    `scenes/large` (half of the sizes) and so on. For events at any position or size use `composable_energy_scenes.load_concepts`.

    Args:
        folder: The folder of the weights; None for those of the package.

    Example:
        >>> import composable_energy as ce
        >>> images = (ce.get("energy", "scenes/left") & ~ce.get("energy", "scenes/color=red")).sample(4, seed=0)
    """

    comes_trained = True

    def __init__(self, folder: str | None = None) -> None:
        self._folder = weights.FOLDER if folder is None else Path(folder)

    def members(self) -> tuple[str, ...]:
        return (*(f"color={color}" for color in COLORS), *(f"shape={kind}" for kind in KINDS), *_PLACES, *_SIZES)

    def load(self, member: str | None) -> ce.Energy:
        concepts = load_concepts(self._folder)
        if member is None:
            return concepts.base
        if member not in self.members():
            raise PluginNotFound(f"The family scenes has no event {member!r}; known are {', '.join(self.members())}.")
        name, _, value = member.partition("=")
        if value:
            return concepts.color(value) if name == "color" else concepts.shape(value)
        return _half_space(concepts, member)


def _half_space(concepts: Concepts, name: str) -> ce.Energy:
    if name in _SIZES:
        low, high = (-math.inf, _MIDDLE) if _SIZES[name] < 0 else (_MIDDLE, math.inf)
        event = concepts.size.between(low, high)
    else:
        axis, sign = _PLACES[name]
        low, high = [-math.inf, -math.inf], [math.inf, math.inf]
        (high if sign < 0 else low)[axis] = 0.0
        event = concepts.position.between(low, high)
    event.name = name
    return event
