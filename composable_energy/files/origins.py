"""Objects of plug-ins in files: which options a file may give, and how an object is built again."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from composable_energy.energies.identity import Origin
from composable_energy.errors import OptionError, PluginNotFound
from composable_energy.options import plain_values
from composable_energy.registry.catalog import build_module
from composable_energy.registry.registry import find, load, registered

_CHOICES = re.compile(r"Literal\[([^]]*)\]")
_TEXTS = frozenset({"str", "None", "Sequence", "list", "tuple", "typing", "Optional", "Union", "collections", "abc"})


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


def check_origin(kind: str, origin: Origin) -> str:
    """Returns the name of the entry that builds an object of a file again, after a check of its options.

    Raises:
        PluginNotFound: The distribution that built it does not offer it here, and nothing is registered under the name.
        OptionError: An option may be a path or an address, which no saved file may give.
    """
    name = origin.entry
    if origin.distribution is not None and (kind, name) not in registered:
        name = f"{origin.distribution}:{name}"
    builder = load(kind, find(kind, name))
    stored, known = stored_options(builder), _parameters(builder)
    others = next((texts for option, texts in stored.items() if option.startswith("**")), frozenset())
    for option, value in origin.options.items():
        texts = stored.get(option, frozenset() if option in known else others)
        if value is None or texts is None or (isinstance(value, str) and option in known and value == known[option].default):
            continue
        if (option in known and option not in stored) or not texts.issuperset(v for v in plain_values(value) if isinstance(v, str)):
            raise OptionError(
                f"{option}={value!r:.60} of {origin.entry!r} may be a path or an address, which no saved file may give. Register what it "
                "makes, as in `composable_energy.register('energy', 'mine', function)`, and build the expression with that name; an author "
                "of a plug-in lists safe texts as `Literal[...]`, or the option in `stored_texts`"
            )
    return name


def rebuild(kind: str, origin: Origin, copies: dict[int, Any]) -> nn.Module:
    """Returns an energy or encoder built again from its origin; objects built with one memo `copies` share their parts.

    Raises:
        PluginNotFound: The distribution that built it does not offer it here; the message names it.
        OptionError: The plug-in does not take an option, or it may be a path.
    """
    try:
        name = check_origin(kind, origin)
    except PluginNotFound as error:
        way = f"It is from {origin.distribution} {origin.version or '(unknown version)'}; install that"
        if origin.distribution is None:
            way = f"The session that wrote it registered it; use composable_energy.register({kind!r}, {origin.entry!r}, ...) here too"
        raise PluginNotFound(f"The {kind} {str(origin)!r} cannot be built here. {way}. ({error})") from error
    return build_module(kind, name if origin.member is None else f"{name}/{origin.member}", dict(origin.options), copies)


def _parameters(builder: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    for evaluated in (True, False):
        try:
            return inspect.signature(builder, eval_str=evaluated).parameters
        except Exception:  # annotations of the type checker alone; no signature, or one that third-party code computes
            continue
    return {}
