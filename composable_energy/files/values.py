"""Values in files: their encoding as JSON data, with tags as in `{"$tensor": "mean"}`, and what a file may say to a plug-in."""

import contextlib
import copy
import inspect
import math
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.constraints import Constraint

from composable_energy.energies.identity import Origin
from composable_energy.errors import UNAVAILABLE, ExpressionError, OptionError
from composable_energy.files.record import digest_of
from composable_energy.options import Recommendation, plain_values
from composable_energy.registry import get
from composable_energy.registry.registry import find, load, registered
from composable_energy.supports import arguments_of, build_support
from composable_energy.supports.distributions import ARGUMENTS, argument, tensors_in

Store = Callable[[Any, str], Any]
"""Stores a tensor or module under a name for messages, and returns its tag and its name in the file."""
Resolve = Callable[[str, Any], Any]
"""Returns the tensor or module of a tag and a name in the file."""
_DEEPEST = 24
ELEMENTS = 2**26  # that an object of a file may allocate besides 4 times its saved tensors
_CHOICES = re.compile(r"Literal\[([^]]*)\]")
_TEXTS = frozenset({"str", "None", "Sequence", "list", "tuple", "typing", "Optional", "Union", "collections", "abc"})
_MOST, _MOST_PRODUCT, _MOST_STEPS = 10_000, 5 * 10**7, 100_000  # of whole numbers of a recommended sampler, and of its steps
# Transformed distributions are excluded: transforms are code.
_CLASSES: Mapping[str, type[Distribution]] = {cls.__name__: cls for cls in ARGUMENTS if cls is not TransformedDistribution}


def encode(value: Any, store: Store, hint: str) -> Any:
    """Returns a value as JSON data, with a tag where it is no number, text, list or dict."""
    match value:
        case None | bool() | str():
            return value
        case int():
            return int(value)
        case float() if math.isfinite(value):
            return float(value)
        case float():
            raise ExpressionError(f"{hint} is {value} and cannot be saved; numbers must be finite.")
        case Tensor() | nn.Module():
            return store(value, hint)
        case Distribution():
            return {"$distribution": encode(_parts_of(value), store, hint)}
        case Constraint():
            return {"$support": encode(list(arguments_of(value)), store, hint)}
        case list():
            return [encode(item, store, f"{hint}.{i}") for i, item in enumerate(value)]
        case tuple():
            return {"$tuple": encode(list(value), store, hint)}
        case slice():
            return {"$slice": encode([value.start, value.stop, value.step], store, hint)}
        case Mapping() if all(isinstance(key, str) and not key.startswith("$") for key in value):
            return {key: encode(item, store, f"{hint}.{key}") for key, item in value.items()}
    can = "numbers, texts, tensors, lists and dicts of them can, and so can modules that a plug-in built (`composable_energy.get`)"
    raise ExpressionError(f"{hint} is a {type(value).__name__} and cannot be saved; {can}.")


def decode(data: Any, resolve: Resolve, depth: int = 0) -> Any:
    """Returns the value of encoded data, or raises `ValueError` if they are malformed or nested too deeply."""
    if depth > _DEEPEST:
        raise ValueError("values are nested too deeply")
    if isinstance(data, list):
        return [decode(item, resolve, depth + 1) for item in data]
    if isinstance(data, float) and not math.isfinite(data):
        raise ValueError(f"{data} is no finite number")
    if not isinstance(data, dict):
        return data
    if not (tag := next((key for key in data if key.startswith("$")), "")):
        return {key: decode(item, resolve, depth + 1) for key, item in data.items()}
    if len(data) != 1:
        raise ValueError(f"{tag} is not the only key")
    if tag in ("$tensor", "$parameter", "$module"):
        return resolve(tag, data[tag])
    match tag, (content := decode(data[tag], resolve, depth + 1)):
        case "$distribution", [str(name), dict(arguments), dict(tensors)]:
            return _build_distribution(name, arguments, tensors)
        case "$support", [str(name), list(arguments)]:
            return build_support(name, arguments)
        case "$tuple", list():
            return tuple(content)
        case "$slice", [start, stop, step] if all(end is None or type(end) is int for end in content):
            return slice(start, stop, step)
    raise ValueError(f"{tag} has invalid content")


def modules_in(data: Any) -> Iterator[int]:
    """Yields the numbers of the nodes to which encoded data refer; malformed parts are ignored here."""
    match data:
        case {"$module": [int(index), _]}:
            yield index
    if isinstance(data, dict | list):
        for item in data.values() if isinstance(data, dict) else data:
            yield from modules_in(item)


def encode_recommendation(recommended: Recommendation | None, store: Store, hint: str) -> Any:
    """Returns a recommended sampler as JSON data."""
    if recommended is None:
        return None
    return {**vars(recommended), "options": encode(dict(recommended.options), store, f"{hint}.recommended")}


def decode_recommendation(data: Any, resolve: Resolve) -> Recommendation | None:
    """Returns the recommended sampler of encoded data, whose numbers are so small that a call ends; else raises `ValueError`."""
    if data is None:
        return None
    if not isinstance(data, dict) or data.keys() | {"precedence"} != {"sampler", "options", "threads", "precedence"}:
        raise ValueError("its recommended sampler is incomplete")
    recommended = Recommendation(**{**data, "options": decode(data["options"], resolve)})
    numbers = [number for number in plain_values(recommended.options) if type(number) is int and number > 1]
    if max(numbers, default=1) > _MOST or math.prod(numbers) > _MOST_PRODUCT:
        raise ValueError(f"its recommended sampler has numbers above {_MOST:,}, or with a product above {_MOST_PRODUCT:,}")
    with contextlib.suppress(*UNAVAILABLE):
        check_origin("sampler", Origin(recommended.sampler, options=recommended.options))
        if ((sampler := get("sampler", recommended.sampler)(**recommended.options)).total_steps or 0) > _MOST_STEPS:
            raise ValueError(f"its recommended sampler takes {sampler.total_steps:,} steps, and a file says at most {_MOST_STEPS:,}")
    return recommended


def _parts_of(distribution: Distribution) -> list[Any]:
    """Returns the class name of a distribution, its arguments, and the tensors that these do not reproduce, as after `.double()`."""
    if (cls := type(distribution)) not in _CLASSES.values():
        way = "Offer the energy as a plug-in that builds it, and get it from `composable_energy.get`."
        raise ExpressionError(f"A {cls.__name__} cannot be saved; known are {', '.join(sorted(_CLASSES))}. {way}")
    distribution = copy.copy(distribution)  # its lazy properties are then cached in the copy
    arguments = {name: argument(distribution, name) for name in ARGUMENTS[cls]}
    if (built := _build_distribution(cls.__name__, arguments, {})).batch_shape != distribution.batch_shape:
        shapes = f"of batch shape {tuple(distribution.batch_shape)} whose parameters give {tuple(built.batch_shape)}"
        raise ExpressionError(f"A {cls.__name__} {shapes} cannot be saved; build it from parameters of the whole shape.")
    own, again = ({path: tensor for path, (_, tensor) in tensors_in(some).items()} for some in (distribution, built))
    alike = [path for path, tensor in own.items() if path in again and tensor.shape == again[path].shape]
    return [cls.__name__, arguments, {path: own[path] for path in alike if digest_of({"": own[path]}) != digest_of({"": again[path]})}]


def _build_distribution(name: str, arguments: Mapping[str, Any], tensors: Mapping[str, Any]) -> Distribution:
    """Returns a distribution from the results of `_parts_of`, or raises `ValueError` if class, arguments or tensors do not fit."""
    if name not in _CLASSES:
        raise ValueError(f"the distribution {name!r} is not known")
    if not all(isinstance(value, Tensor | Distribution) or type(value) is int for value in arguments.values()):
        raise ValueError(f"the distribution {name} has an argument of another type than tensor, number or distribution")
    if any(isinstance(value, Tensor) and value.dtype == torch.bool for value in (*arguments.values(), *tensors.values())):
        raise ValueError(f"the distribution {name} has truth values as numbers")
    values: dict[str, Any] = {key: value.detach() if isinstance(value, Tensor) else value for key, value in arguments.items()}
    shapes = {key: tuple(value.shape) for key, value in values.items() if isinstance(value, Tensor)}
    most = ELEMENTS + 4 * sum(map(math.prod, shapes.values()))
    if rank := shapes.get("cov_factor", ())[-1:]:  # a matrix of rank times rank is computed; the vectors have a number for each row
        shapes = {key: (*shape, 1) for key, shape in shapes.items()} | {"cov_factor": shapes["cov_factor"], "": rank * 2}
    if math.prod(map(max, zip_longest(*map(reversed, shapes.values()), fillvalue=1))) > most:  # of the shape to which all are broadcast
        raise ValueError(f"the distribution {name} is much larger than its saved tensors")
    own = tensors_in(result := _CLASSES[name](**values, validate_args=False))
    for path, tensor in tensors.items():
        if path not in own or not isinstance(tensor, Tensor) or tensor.shape != own[path][1].shape:
            raise ValueError(f"the distribution {name} has no tensor {path!r} of this shape")
        vars(own[path][0])[path.rpartition(".")[2]] = tensor.detach()
    return result


def stored_options(builder: Callable[..., Any]) -> dict[str, frozenset[str] | None]:
    """Returns the options of a plug-in that a saved file may give, each with the texts that it may be; None stands for any text.

    A file may come from anybody, so it gives no paths and no addresses. Texts are the choices of an option with the annotation
    `Literal["a", "b"]`, a text that is the default, and any text for the options that the class or function names in its attribute
    `stored_texts`. A path, or an option that takes nothing but other texts, is left out; an entry that needs such an option has none.
    Numbers, truth values, tensors and other energies are data.
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
    """Returns the name of the entry that builds an object of a file again, after a check of its options."""
    as_named = origin.distribution is None or (kind, origin.entry) in registered
    name = origin.entry if as_named else f"{origin.distribution}:{origin.entry}"
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


def _parameters(builder: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    for evaluated in (True, False):
        try:
            return inspect.signature(builder, eval_str=evaluated).parameters
        except Exception:  # annotations of the type checker alone; no signature, or one that third-party code computes
            continue
    return {}
