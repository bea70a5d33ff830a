"""Building of objects: calls what an entry point names with the options of the caller."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from composable_energy.errors import ComposableEnergyError, OptionError
from composable_energy.notes import add_note
from composable_energy.options import describe_error
from composable_energy.registry.contract import plugin_error
from composable_energy.registry.entries import PluginRecord

_LONGEST = 60
_CHOICES = re.compile(r"Literal\[([^]]*)\]")
_TEXTS = frozenset({"str", "None", "Sequence", "list", "tuple", "typing", "Optional", "Union", "collections", "abc"})


def build(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Calls a class or function of a plug-in with options, and returns the object.

    Args:
        entry: The entry point, for messages.
        builder: The class or function.
        options: Its arguments.

    Raises:
        OptionError: It does not take an option, or not its value.
        PluginLoadError: It fails without options.
    """
    check_options(entry, builder, options)
    return guarded(entry, options, lambda: builder(**options))


def check_options(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises unless a class or function of a plug-in takes the options.

    Raises:
        OptionError: It does not take an option.
    """
    try:
        signature = inspect.signature(builder)
    except Exception:  # it has none, or third-party code computes it
        return
    try:
        signature.bind(**options)
    except TypeError as error:
        accepted = ", ".join(str(p) for p in signature.parameters.values()) or "no options"
        raise OptionError(f"{entry.name!r} takes ({accepted}), got ({', '.join(options)}): {error}.") from error


def stored_options(builder: Callable[..., Any]) -> dict[str, frozenset[str] | None]:
    """Returns the options of a plug-in that a saved file may give, each with the texts that it may be; None stands for any text.

    A file may come from anybody, so it gives no paths and no addresses. Texts are the choices of an option with the annotation
    `Literal["a", "b"]`, a text that is the default, and any text for the options that the class or function names in its attribute
    `stored_texts`. A path, or an option that takes nothing but other texts, is left out; an entry that needs such an option has none.
    Numbers, truth values, tensors and other energies are data.

    Args:
        builder: The class or function.
    """
    declared, found = set(getattr(builder, "stored_texts", ())), {}
    for option in _parameters(builder).values():
        annotation = "" if option.annotation is option.empty else inspect.formatannotation(option.annotation)
        words = set(re.findall(r"[A-Za-z_]\w*", _CHOICES.sub("Literal", annotation)))
        if option.name in declared:
            found[option.name] = None
        elif not words & {"Path", "PathLike"} and not ("str" in words and words <= _TEXTS):
            texts = (text for choices in _CHOICES.findall(annotation) for text in re.findall(r"['\"]([^'\"]*)['\"]", choices))
            found[("**" if option.kind is option.VAR_KEYWORD else "") + option.name] = frozenset(texts)
        elif option.default is option.empty:
            return {}
    return found


def check_stored(entry: PluginRecord, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raises unless a saved file may give the options to a plug-in; see `stored_options`.

    Raises:
        OptionError: It may not.
    """
    stored = stored_options(builder)
    others = next((texts for name, texts in stored.items() if name.startswith("**")), frozenset())
    known = {name: option.default for name, option in _parameters(builder).items()}
    for name, value in options.items():
        texts = stored.get(name, frozenset() if name in known else others)
        if value is None or texts is None or (isinstance(value, str) and value == known.get(name)):
            continue
        if (name in stored or name not in known) and texts.issuperset(_texts_in(value)):
            continue
        raise OptionError(
            f"{name}={value!r:.{_LONGEST}} of {entry.name!r} may be a path or an address, which no saved file may give. Register what it "
            f"makes, as in `composable_energy.register('energy', 'mine', function)`, and build the expression with that name; an author of "
            "a plug-in lists safe texts as `Literal[...]`, or the option in `stored_texts`"
        )


def _parameters(builder: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    for evaluated in (True, False):
        try:
            return inspect.signature(builder, eval_str=evaluated).parameters
        except Exception:  # annotations of the type checker alone; no signature, or one that third-party code computes
            continue
    return {}


def _texts_in(value: Any) -> Iterator[str]:
    """Yields the texts among values of a file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(item)


def guarded(entry: PluginRecord, options: Mapping[str, Any], function: Callable[[], Any]) -> Any:
    """Calls a function of a plug-in. With options, a `TypeError` or `ValueError` is taken for a mistake in one of them.

    Raises:
        OptionError: It does not accept the options; the message names the plug-in. Other errors with options get a note that does.
        PluginLoadError: It fails without options.
    """
    import torch

    try:
        with torch.inference_mode(False):  # tensors created in inference mode can never require gradients
            return function()
    except ComposableEnergyError:
        raise
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # such as SystemExit, which would end the program without a word
        if not options or not isinstance(error, Exception):
            raise plugin_error(entry, f"making it raised {describe_error(error)}") from error
        given = describe_options(options)
        if isinstance(error, TypeError | ValueError):
            raise OptionError(f"Plug-in {entry} does not accept {given}: {describe_error(error)}") from error
        add_note(error, f"This happened while plug-in {entry} was built with {given}.")
        raise


def describe_options(options: Mapping[str, Any]) -> str:
    """Returns options as text, `radius=2.0, width='x'`; of long values the names alone."""
    shown = {name: f"={value!r}" for name, value in options.items()}
    return ", ".join(name + (text if len(text) <= _LONGEST and "\n" not in text else "") for name, text in shown.items())
