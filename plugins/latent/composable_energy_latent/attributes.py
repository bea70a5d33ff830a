"""Attributes of generated pictures, over the prior of a generator: events, graded events and continuous values, and their networks."""

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy import ClassifierEnergy, Energy, GaussianHead
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_choice, check_instance, check_integer, check_number, nearest
from composable_energy_latent.generator import Generator

Space = Literal["z", "w", "x"]

WIDTHS = math.exp(-5), math.exp(1)
"""The least and the greatest width of a Gaussian head."""


class LatentHeads(nn.Module):
    r"""Outputs of all attributes of a latent point: logits and values, from one network.

    Args:
        inputs: Numbers in a point.
        outputs: Numbers returned.
        width: Hidden units.
        layers: Hidden layers.
        mean: The mean of each input, a number.
        scale: The standard deviation of each input, a number.
    """

    temperature: Tensor

    def __init__(self, inputs: int, outputs: int, *, width: int = 256, layers: int = 2, mean: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        sizes = [check_integer("inputs", inputs), *[check_integer("width", width)] * check_integer("layers", layers, 0)]
        parts: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            parts += [nn.Linear(before, after), nn.SiLU()]
        self.body = nn.Sequential(nn.Flatten(), *parts, nn.Linear(sizes[-1], check_integer("outputs", outputs)))
        self.mean, self.scale = check_number("mean", mean), check_number("scale", scale, above=0)
        self.register_buffer("temperature", torch.ones(outputs))

    def forward(self, points: Tensor) -> Tensor:
        """Returns outputs with shape $(B, outputs)$ of points with shape $(B, *)$; logits are divided by their temperature."""
        return self.body((points - self.mean) / self.scale) / self.temperature


class OnSpace(nn.Module):
    """A network of $w = m(z)$ or of pictures $g(z)$ as one of latent points $z$; these are evaluated once for all attributes."""

    def __init__(self, network: Callable[[Tensor], Any], generator: Generator, space: str) -> None:
        super().__init__()
        self.network, self.generator, self.space = network, generator, space

    def forward(self, z: Tensor) -> Any:
        return self.network(self.generator.map(z) if self.space == "w" else self.generator.pictures(z))


class FixedWidth(nn.Module):
    """A column of a network, times `scale` plus `centre`, as a Gaussian head of one width: values of shape $(B, 1)$ and log widths."""

    def __init__(self, network: Any, width: float, column: int = 0, centre: float = 0.0, scale: float = 1.0) -> None:
        super().__init__()
        self.centre, self.scale = centre, scale
        self.network, self.column = network, column
        self.log_width = math.log(check_number("width", width, above=0))
        if not WIDTHS[0] <= width <= WIDTHS[1]:
            raise OptionError(f"width must be between {WIDTHS[0]:.2g} and {WIDTHS[1]:.3g}, got {width}; scale values to about unit spread.")

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        output = ce.shared(self.network)(z)
        value = output.unsqueeze(1) if output.ndim == 1 else output[:, self.column : self.column + 1]
        value = value * self.scale + self.centre
        return value, torch.full_like(value, self.log_width)


class LogOdds(nn.Module):
    """The log odds of a binary attribute, from logits of one column or of two, in units of `unit`."""

    def __init__(self, network: Any, columns: slice | None, unit: float) -> None:
        super().__init__()
        self.network, self.columns, self.unit = network, columns, unit

    def forward(self, z: Tensor) -> Tensor:
        logits = ce.shared(self.network)(z)
        logits = logits.unsqueeze(1) if logits.ndim == 1 else logits if self.columns is None else logits[:, self.columns]
        if logits.shape[1] > 2:
            raise ShapeError(f"A grade is that of two labels; the network returned logits of {logits.shape[1]}.")
        return (logits[:, :1] if logits.shape[1] == 1 else logits[:, 1:2] - logits[:, :1]) / self.unit


def network_on(space: str, network: Callable[[Tensor], Any], generator: nn.Module | None) -> Callable[[Tensor], Any]:
    """Returns a network of points of a space as one of latent points."""
    check_choice("on", space, ("z", "w", "x"))
    if not callable(network):
        raise OptionError(f"A network of latent points must be a module or a function, got {network!r}.")
    if space == "z":
        return network
    if not isinstance(generator, Generator):
        raise OptionError(f"A network on {space} needs a base whose decoder is a Generator: `composable_energy_latent.latent` makes one.")
    return OnSpace(network, generator, space)


_LOG_ODDS_UNIT = 4.0
_WIDTH = 0.1  # of the paper


def attribute(
    base: Energy, logits: Callable[[Tensor], Tensor], name: str, *, on: Space = "z", label: int = 1, columns: slice | int | None = None
) -> ClassifierEnergy:
    r"""Returns the event that a picture has an attribute: $p(z)\, p(\text{label} \mid z)$, with an exact complement.

    Args:
        base: The prior, of `latent`.
        logits: A classifier; one column is the log odds of label 1, $K$ columns are the logits of $K$ labels.
        name: The name in expressions.
        on: What the classifier takes: latent points `z`, mapped ones `w`, or pictures `x`.
        label: The label.
        columns: The columns of the classifier's output that are the logits.

    Raises:
        OptionError: `on` is unknown, or the base has no generator.
    """
    return ClassifierEnergy(network_on(on, logits, getattr(base, "decoder", None)), label, base, columns=columns, name=name)


def continuous(
    base: Energy, network: Callable[[Tensor], Tensor], name: str, *, width: float = _WIDTH, on: Space = "z", column: int = 0
) -> GaussianHead:
    r"""Returns a continuous attribute: `age(c)` has the energy $(f - c)^2 / 2 w^2$; `age.near(c, r)` and `age.between(a, b)` are events.

    Args:
        base: The prior, of `latent`.
        network: Returns values with shape $(B,)$ or $(B, K)$.
        name: The name in expressions.
        width: $w$, the width of the Gaussian around the value.
        on: What the network takes: `z`, `w` or `x`.
        column: The column of the network's output.

    Raises:
        OptionError: The width is out of range, `on` is unknown, or the base has no generator.
    """
    decoder = getattr(check_instance("base", base, Energy), "decoder", None)
    return GaussianHead(FixedWidth(network_on(on, network, decoder), width, column), base, dims=1, name=name)


def graded(event: ClassifierEnergy, width: float = 2.0) -> GaussianHead:
    r"""Returns how much of a binary attribute a picture has, as a continuous one: $\log \tfrac{p}{1 - p}$ in units of 4.

    So `graded(smiling)(0)` is on the border, `(1)` is sure, and `(2)` is very sure.

    Args:
        event: An event of a classifier with two labels.
        width: The width of the Gaussian around the grade, in log odds; narrow ones make edits slow.

    Raises:
        OptionError: The event has other labels, or no base.
    """
    if not isinstance(event, ClassifierEnergy) or event.labels not in (2, None) or event.label not in ({0}, {1}) or event.base is None:
        raise OptionError(f"graded takes an event of a classifier with two labels and a base, got {event}.")
    check_number("width", width, above=0)
    network = LogOdds(event.logits, event.columns, _LOG_ODDS_UNIT if event.label == {1} else -_LOG_ODDS_UNIT)
    return GaussianHead(FixedWidth(network, width / _LOG_ODDS_UNIT), event.base, dims=1, name=f"graded({event})")


class Attributes(dict[str, Any]):
    """Attributes by name: an event for each binary one and for each label of others (`hair=red`), a `GaussianHead` for each continuous one.

    An unknown name raises `OptionError`.

    Args:
        base: The prior.
        found: The attributes.
        report: What is known of their quality; None for attributes that were not fitted here.
    """

    def __init__(self, base: Energy, found: Mapping[str, ce.Energy | GaussianHead], report: Any = None) -> None:
        super().__init__(found)
        self.base, self.report = base, report

    def __missing__(self, name: str) -> Any:
        raise OptionError(f"There is no attribute {name!r}; known are {', '.join(self)}.{nearest(str(name), self)}")
