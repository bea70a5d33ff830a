"""Attributes of generated pictures, over the prior of a generator: events, graded events and continuous values."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

import composable_energy as ce
from composable_energy import ClassifierEnergy, Energy, GaussianHead
from composable_energy.errors import OptionError
from composable_energy.options import check_number, nearest
from composable_energy_latent.networks import FixedWidth, LogOdds, Space, network_on

_LOG_ODDS_UNIT = 4.0
_WIDTH = 0.1  # of the paper


def attribute(
    base: Energy,
    logits: Callable[[Tensor], Tensor],
    name: str,
    *,
    on: Space = "z",
    label: int = 1,
    columns: slice | int | None = None,
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
    return ClassifierEnergy(network_on(on, logits, base.decoder), label, base, columns=columns, name=name)


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
    return GaussianHead(FixedWidth(network_on(on, network, base.decoder), width, column), base, dims=1, name=name)


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
    unit = _LOG_ODDS_UNIT if event.label == {1} else -_LOG_ODDS_UNIT
    network = LogOdds(event.logits, event.columns, unit)
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
