"""Checks of worlds and encoders, for first-party and third-party plug-ins; see `composable_energy.testing`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from composable_energy.errors import ExtraNotInstalled, OptionError
from composable_energy.registry import get
from composable_energy.testing import Check, SkipCheck, build_subject, named_checks, run_checks
from composable_energy_image.data import Field, Scenes, World
from composable_energy_image.encoder_checks import check_encoder, encoder_checks

__all__ = ["check_encoder", "check_world", "encoder_checks", "world_checks"]

WorldLike = str | World | Callable[[], World]
_DTYPES = ("float32", "int64", "bool")
_N = 6


def check_world(world: WorldLike, *, seed: int = 0, expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs the checks of a world; see `world_checks` for the arguments, and `run_checks` for `expected_failures`."""
    run_checks(world_checks(world, seed=seed), expected_failures)


def world_checks(world: WorldLike, *, seed: int = 0) -> list[Check]:
    """Returns the checks of a world.

    | name | what is checked |
    |---|---|
    | `build` | it can be built, is a `World`, has a name, and each label is declared with a dtype and a description |
    | `labels` | drawn labels are those declared, with their shapes and dtypes; classes are in range |
    | `shape` | images are bytes with shape $(N, C, S, S)$, masks with shape $(N, S, S)$; no picture at all is allowed |
    | `seed` | picture `i` of a seed does not depend on the batch, another seed gives others; no global random state changes |
    | `rows` | rendering labels in another order gives the same pictures in that order; the labels are not changed |
    | `masks` | pictures with and without masks are the same, and masks are only made on request |
    | `errors` | a missing label and an unknown one are refused with `OptionError` |
    | `options` | a world built with its `options` draws the same pictures, so that a rendered folder can be resumed |

    A world that needs a renderer which is not installed is skipped after `labels`.

    Args:
        world: The world, its name, or a function without arguments that builds it.
        seed: The seed of the six pictures that are drawn.
    """
    return named_checks(_CHECKS, _Subject(world, seed), run=_check)


@dataclass(frozen=True)
class _Subject:
    source: WorldLike
    seed: int

    @cached_property
    def world(self) -> World:
        return build_subject(self.source, World, partial(get, "world"))

    @cached_property
    def scenes(self) -> Scenes:
        return self.world.draw(_N, self.seed, masks=True)


def _check(function: Callable[[_Subject], None], subject: _Subject) -> None:
    try:
        function(subject)
    except ExtraNotInstalled as error:
        raise SkipCheck(str(error)) from None


def _build(subject: _Subject) -> None:
    world = subject.world
    assert isinstance(getattr(world, "name", None), str), "it has no `name`"
    assert world.fields, "it declares no labels in `fields`"
    for name, field in world.fields.items():
        assert isinstance(field, Field), f"the label {name} is declared by a {type(field).__name__} in place of a `Field`"
        assert field.dtype in _DTYPES, f"the label {name} has the dtype {field.dtype!r}; use one of {', '.join(_DTYPES)}"
        assert field.description, f"the label {name} has no description"


def _labels(subject: _Subject) -> None:
    world = subject.world
    one = world.sample_labels(np.random.default_rng(subject.seed))
    differing = sorted(set(one) ^ set(world.fields))
    assert not differing, f"`sample_labels` and `fields` differ in {', '.join(differing)}"
    for name, field in world.fields.items():
        value = np.asarray(one[name])
        assert value.shape == field.shape, f"the label {name} has shape {value.shape}, its field {field.shape}"
        same = field.dtype == "float32" or np.array_equal(value, value.astype(field.dtype))
        assert same, f"the label {name} is {value.tolist()}, which its field rounds to {field.dtype}"
    for name, values in world.labels(_N, subject.seed).items():
        field = world.fields[name]
        assert field.dtype != "float32" or np.isfinite(values).all(), f"the label {name} is not finite"
        inside = not field.values or 0 <= values.min() <= values.max() < len(field.values)
        assert inside, f"the label {name} has classes from {values.min()} to {values.max()}, its field names {len(field.values)}"


def _shape(subject: _Subject) -> None:
    world, scenes = subject.world, subject.scenes
    for n, some in ((_N, scenes), (0, world.draw(0, subject.seed))):
        expected = (n, world.channels, world.size, world.size)
        assert some.images.shape == expected, f"images of {n} labels have shape {some.images.shape}, expected {expected}"
        assert some.images.dtype == np.uint8, f"images are {some.images.dtype}, expected uint8"
    if scenes.masks is not None:
        expected = (_N, world.size, world.size)
        assert scenes.masks.shape == expected, f"masks have shape {scenes.masks.shape}, expected {expected}"
        assert scenes.masks.dtype == np.uint8, f"masks are {scenes.masks.dtype}, expected uint8"


def _seed(subject: _Subject) -> None:
    world, scenes = subject.world, subject.scenes
    before = np.random.get_state(legacy=False)
    some = world.draw(2, subject.seed, start=3)
    after = np.random.get_state(legacy=False)
    assert str(before) == str(after), "it draws from numpy's global random state; use the generator that `sample_labels` gets"
    for name, values in some.labels.items():
        assert np.array_equal(values, scenes.labels[name][3:5]), f"the label {name} of a picture depends on the batch, or on earlier calls"
    assert np.array_equal(some.images, scenes.images[3:5]), "a picture depends on the batch, or on earlier calls"
    assert not np.array_equal(world.draw(_N, subject.seed + 1).images, scenes.images), "two seeds give the same pictures"


def _rows(subject: _Subject) -> None:
    world, scenes = subject.world, subject.scenes
    order = np.array([4, 1, 5, 0, 3, 2])
    labels = {name: values[order] for name, values in scenes.labels.items()}
    before = {name: values.copy() for name, values in labels.items()}
    again = world.render(labels)
    changed = [name for name in before if not np.array_equal(labels[name], before[name])]
    assert not changed, f"`render` changes the labels {', '.join(changed)} in place"
    assert np.array_equal(again.images, scenes.images[order]), "the picture of some labels depends on the other rows, or on earlier calls"


def _masks(subject: _Subject) -> None:
    world, scenes = subject.world, subject.scenes
    plain = world.render(scenes.labels)
    assert plain.masks is None, "masks are made without a request"
    assert np.array_equal(plain.images, scenes.images), "pictures change when masks are requested"


def _errors(subject: _Subject) -> None:
    world, labels = subject.world, dict(subject.scenes.labels)
    first = next(iter(labels))
    for what, wrong in (
        (f"the label {first} is missing", {name: values for name, values in labels.items() if name != first}),
        ("there is an unknown label", {**labels, "no-such-label": np.zeros(_N)}),
    ):
        try:
            world.render(wrong)
        except OptionError:
            continue
        raise AssertionError(f"`render` accepts labels although {what}; call `self.check_labels(labels)`")


def _options(subject: _Subject) -> None:
    again = type(subject.world)(**subject.world.options)
    assert np.array_equal(again.draw(_N, subject.seed).images, subject.scenes.images), (
        f"a world built with its options {subject.world.options} draws other pictures; keep each argument as an attribute of that name"
    )


_CHECKS = (_build, _labels, _shape, _seed, _rows, _masks, _errors, _options)
