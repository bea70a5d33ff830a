"""Orders: what the page asks for, checked against the limits."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import composable_energy as ce
from composable_energy.errors import OptionError
from composable_energy.options import check_choice, check_flag, check_integer, check_number
from composable_energy.registry import names
from composable_energy_cli.names import Names, read_condition
from composable_energy_cli.parsing import Name, parse, unknown_name


@dataclass(frozen=True)
class Limits:
    """What one order may ask for.

    Args:
        images: The most images or points.
        steps: The most steps of a sampler.
        length: The most characters of an expression.
        waiting: The most orders that wait at once.
        seconds: The longest time of one order.
        patience: Seconds that a user may take to send a request, or to read some of the answer.
    """

    images: int = 64
    steps: int = 2000
    length: int = 500
    waiting: int = 8
    seconds: float = 600.0
    patience: float = 60.0


LIMITS = Limits()


@dataclass(frozen=True)
class Edit:
    """The start from an image, a number from 0, of an earlier order, with noise of a level: small keeps the image, large forgets it."""

    job: str
    index: int
    strength: float = 1.0


@dataclass(frozen=True)
class Order:
    """One request for samples; its texts are as they were typed."""

    expression: str
    family: str | None = None  # of the names; None for the default
    weights: tuple[float, ...] = ()  # of the terms of the outermost `&`, in order; missing ones are 1
    temperature: float = 1.0  # what the whole energy is divided by
    sharpen: float = 1.0  # the weight of the evidence
    sampler: str | None = None  # None takes that of `sample`
    steps: int | None = None  # None takes that of the sampler
    n: int = 16
    seed: int = 0
    given: Mapping[str, str] = field(default_factory=dict)  # a number, or several with commas, for each condition
    untrained: bool = False  # whether networks with random weights are accepted
    edit: Edit | None = None

    @property
    def terms(self) -> tuple[str, ...]:
        """The terms that have a weight each."""
        return parse(self.expression).terms

    @property
    def leaves(self) -> tuple[Name, ...]:
        """The names in the expression, with their places."""
        return parse(self.expression).names

    @property
    def text(self) -> str:
        """The expression with the weights and the temperature written out."""
        terms, weights = self.terms, (*self.weights, *[1.0] * len(self.terms))
        if len(terms) == 1 and self.names != list(terms):
            terms = (f"({terms[0]})",)
        factors = ["" if weight == 1 else f"{repr(float(weight)).removesuffix('.0')} * " for weight in weights]
        text = " & ".join(factor + term for factor, term in zip(factors, terms, strict=False))
        return text if self.temperature == 1 else f"({text}) / {self.temperature:g}"

    @property
    def names(self) -> list[str]:
        return [leaf.name for leaf in self.leaves]

    @property
    def is_remote(self) -> bool:
        """Whether an energy comes from a location such as `hf:owner/name`."""
        return any(callable(source) for source in map(Names(self.family).locate, self.leaves))

    @property
    def conditions(self) -> dict[str, Any]:
        try:
            return dict(read_condition(f"{name}={text}") for name, text in self.given.items())
        except argparse.ArgumentTypeError as error:
            raise OptionError(f"Conditions take a number, or several as 0.2, 0.5: {error}.") from error

    def options(self, energy: ce.Energy) -> dict[str, Any]:
        """Returns the options of `energy.sample`; the recommended sampler along noise levels takes `levels` instead of `steps`."""
        options: dict[str, Any] = {} if self.sampler is None else {"sampler": self.sampler}
        if self.steps is not None:
            options["steps" if self.levels(energy) is None else "levels"] = self.steps
        if self.edit is not None and "sigma" in energy.conditions:
            options["sigma_max"] = self.edit.strength
        return options

    def levels(self, energy: ce.Energy) -> int | None:
        """Returns the noise levels, one for each step, of the recommended sampler; None for a sampler without them."""
        recommended = energy.recommended if self.sampler is None else None
        return None if recommended is None else recommended.options.get("levels")


def read_order(fields: Mapping[str, Any], family: str | None, local: bool, limits: Limits = LIMITS) -> Order:
    """Returns the order of a request of the page, the fields of `Order` as JSON, with every name located. The page may ask for another
    family than that of its tab, by name. Only users of this computer, `local`, name folders and locations."""
    try:
        values = {**fields, "weights": tuple(fields.get("weights", ())), "family": fields.get("family") or family}
        if values.get("edit") is not None:
            values["edit"] = Edit(**values["edit"])
        order = Order(**values)
    except TypeError as error:
        raise OptionError(f"The request is not one of this page: {error}.") from error
    _check(order, limits)
    known = find_names(order.family, family)
    for leaf in order.leaves:
        own, entry = leaf.name in known.members, leaf.name.partition("/")[0]
        source = known.locate(leaf) if local or own or entry in known.entries else None  # before any folder is looked at
        if not (local or own or isinstance(source, str)):
            reason = "folders and locations may only be named on the computer that runs the playground."
            raise unknown_name(leaf, [*known.members, *known.entries], reason)
    return order


def find_names(asked: str | None, own: str | None) -> Names:
    """Returns the names of a family: the playground's own, or a plug-in's; a request never says in which folder to look."""
    known = Names(own)
    if asked in (own, None):
        return known
    if asked not in known.entries:
        raise OptionError(f"No plug-in offers the family {asked!r:.100}: folders are named by `composable-energy ui --in FOLDER` alone.")
    return Names(asked)


def _check(order: Order, limits: Limits) -> None:
    if not isinstance(order.expression, str) or not isinstance(order.family, str | None):
        raise OptionError("The expression and the family are texts.")
    if len(order.expression) > limits.length:
        raise OptionError(f"The playground takes at most {limits.length} characters.")
    if not isinstance(order.given, dict) or not all(isinstance(text, str) for text in order.given.values()):
        raise OptionError("The values of conditions are texts.")
    _ = order.conditions  # a text that is no number is reported before the order waits
    check_flag("untrained", order.untrained)
    if order.sampler is not None:
        check_choice("sampler", order.sampler, names("sampler"))
    check_integer("seed", order.seed, 0)
    if check_integer("n", order.n, 1) > limits.images:
        raise OptionError(f"The playground draws at most {limits.images} at once, got {order.n}.")
    if order.steps is not None and check_integer("steps", order.steps, 1) > limits.steps:
        raise OptionError(f"The playground takes at most {limits.steps} steps, got {order.steps}.")
    for name, value in [("temperature", order.temperature), ("sharpen", order.sharpen), *(("weight", w) for w in order.weights)]:
        check_number(name, value, above=0)
    if order.edit is not None:
        if not isinstance(order.edit.job, str):
            raise OptionError(f"The job of an edit is a text, got {order.edit.job!r:.100}.")
        check_integer("index", order.edit.index, 0)
        check_number("strength", order.edit.strength, above=0)
