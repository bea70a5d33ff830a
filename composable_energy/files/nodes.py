"""Expressions as JSON data and tensors, and back.

An expression is a list of nodes, operands first. A node of a class of the library has `class`, `terms` and `config`; that of a class of a
plug-in also the entry point. An object that a plug-in built, an energy or encoder, has its entry point, options and state. Values refer to
a module by `{"$module": [number of the node, path inside]}`.
"""

import contextlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from composable_energy import algebra, events
from composable_energy.algebra.node import common_recommendation
from composable_energy.energies import CallableEnergy, DistributionEnergy, Energy
from composable_energy.energies.identity import PART, TOKEN, Origin, equal, token_of
from composable_energy.errors import UNAVAILABLE, ExpressionError, FileFormatError, OptionError, PluginLoadError, PluginNotFound
from composable_energy.files.record import digest_of
from composable_energy.files.values import ELEMENTS, check_origin, decode, decode_recommendation, encode, encode_recommendation, modules_in
from composable_energy.options import plain_values
from composable_energy.registry import PluginRecord, get_factory
from composable_energy.registry.catalog import build_module
from composable_energy.registry.registry import find, rows_of

T = TypeVar("T")

_NODES = "Conditioned Conjunction Decoded Difference Disjunction Factor Inside Negation OverTime PulledBack Relative Restricted Weighted"
CLASSES: Mapping[str, type[Energy]] = {
    **{name: getattr(algebra, name) for name in _NODES.split()},
    **{name: getattr(events, name) for name in ("ClassifierEnergy", "DensityEnergy", "IntervalEnergy")},
    "DistributionEnergy": DistributionEnergy,
}
"""The classes that a file may name besides plug-ins; they are written and built by their `config()`."""
_BUILT = {"class", "kind", "entry", "member", "distribution", "version", "options", "group", "training", "tensors", "tokens"}
_OPTIONAL = {"token", "recommended"}
_FLOATING = {torch.float16, torch.bfloat16, torch.float32, torch.float64}
_INTEGERS = {torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64}  # of nodes; plug-ins may have others
_FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, MemoryError)
"""What building an object from options of a file may raise; errors of this library derive from them."""

_LARGEST = 100_000  # nodes of an expression; one that occurs twice counts twice
_DEEPEST = 100  # what loads can also be evaluated, sampled and printed within the recursion limit of Python
_OPERATIONS = 100_000  # of torch, besides 100 for each saved tensor; spectral norms of wide networks take 75,000
# What is checked before it allocates; results of other functions are counted after it.
_MAKERS = {"empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "eye", "linspace", "repeat", "randperm"}


def write_expression(energy: Energy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns an expression as JSON data, with distinct nodes, operands first, and its tensors by name."""
    writer = _Writer()
    root = writer.store(energy, str(energy))
    _check_size(writer.nodes)
    groups: dict[int, int] = {}  # the lowest number of the nodes with which a module or tensor shares others, directly or not
    for index, modules in writer.held.items():
        parts = {id(part) for module in modules for part in (*module.modules(), *module.parameters(), *module.buffers())}
        if len(joined := {groups[part] for part in parts & groups.keys()}) > 1:
            groups = {part: min(joined) if group in joined else group for part, group in groups.items()}
        groups |= dict.fromkeys(parts, min(joined, default=index))
    for index, modules in writer.held.items():
        writer.nodes[index]["group"] = groups[id(modules[0])]
    return {"expression": str(energy), "nodes": writer.nodes, "root": root}, writer.tensors


class _Writer:
    """Collects distinct nodes and tensors."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.held: dict[int, list[nn.Module]] = {}  # the modules of built objects whose state is written
        self.tensors: dict[str, Tensor] = {}
        self._index: dict[int, int] = {}  # of nodes, by the id of an energy or an origin
        self._names: dict[object, str] = {}  # of tensors, by id or digest
        self._alive: list[object] = []  # so that no id is reused

    def store(self, value: Tensor | nn.Module, hint: str) -> dict[str, Any]:
        if isinstance(value, Tensor):
            return {"$parameter" if isinstance(value, nn.Parameter) else "$tensor": self._name(value, id(value), hint)}
        if part := vars(value).get(PART):
            return {"$module": [self._built(part.kind, part.origin, value, part.path), part.path]}
        if not isinstance(value, Energy):
            raise ExpressionError(
                f"{hint} is a {type(value).__name__} that no plug-in built, so it cannot be saved: code is not data. {_named('encoder')}"
            )
        if id(value) not in self._index:
            self._index[id(value)] = self._node(value)
        return {"$module": [self._index[id(value)], ""]}

    def _add(self, node: dict[str, Any], key: object) -> int:
        self._alive.append(key)
        self._index[id(key)] = len(self.nodes)
        self.nodes.append(node)
        return self._index[id(key)]

    def _name(self, tensor: Tensor, key: object, hint: str) -> str:
        if key not in self._names:
            name = f"{hint}#{len(self.tensors)}" if hint in self.tensors else hint
            self.tensors[name], self._names[key] = tensor, name
        return self._names[key]

    def _node(self, energy: Energy) -> int:
        if isinstance(energy, CallableEnergy):
            raise ExpressionError(
                f"{energy} is a bare {type(energy.function).__name__} and cannot be saved: code is not data. {_named('energy')}"
            )
        name, config = type(energy).__name__, energy.config()
        hint, entry = energy.name or name, None if CLASSES.get(name) is type(energy) else _entry_of(energy)
        if entry is not None and (not energy.terms or any(isinstance(value, nn.Module) for value in plain_values(config))):
            return self._built("energy", Origin(entry.name, None, config, entry.distribution, entry.version), energy, "")
        terms, values = (encode(part, self.store, hint) for part in (list(energy.terms), config))
        node: dict[str, Any] = {"class": name, "terms": terms, "config": values}
        if entry is not None:
            known = {id(tensor) for term in energy.terms for tensor in (*term.parameters(), *term.buffers())}
            known |= {id(value) for value in config.values()}
            for part, tensor in (*energy.named_parameters(), *energy.named_buffers()):
                if id(tensor) not in known:
                    raise ExpressionError(f"{energy} cannot be saved: `config()` lacks its tensor {part}. Return the tensor itself.")
            _check_stored("energy", Origin(entry.qualified, options=config))
            node |= {"class": "plugin", "entry": entry.qualified}
        if not energy.terms:
            node["token"] = token_of(energy)
        if energy.recommended is not None and energy.recommended != common_recommendation(energy.terms):
            node["recommended"] = encode_recommendation(energy.recommended, self.store, hint)
        return self._add(node, energy)

    def _built(self, kind: str, origin: Origin, module: nn.Module, path: str) -> int:
        """Returns the number of the node of an object that a plug-in built, and writes the state of a module inside."""
        if id(origin) not in self._index:
            _check_stored(kind, origin)
            options = encode(dict(origin.options), self.store, f"{origin}.options")
            state = {"training": [], "tensors": {}, "tokens": {}}
            self._add({"class": "built", "kind": kind, **vars(origin), "options": options, **state}, origin)
        index, prefix = self._index[id(origin)], f"{path}." if path else ""
        node, held = self.nodes[index], self.held.setdefault(index, [])
        if module in held:
            return index
        held.append(module)
        if isinstance(module, Energy) and not path:
            node["recommended"] = encode_recommendation(module.recommended, self.store, str(origin))
            with contextlib.suppress(*UNAVAILABLE):
                if module.has_config and get_factory(kind, check_origin(kind, origin)) is type(module):  # its numbers may have changed
                    node["options"] |= {name: n for name, n in module.config().items() if isinstance(n, int | float) and abs(n) < math.inf}
        node["training"] += [f"{prefix}{inner}".rstrip(".") for inner, part in module.named_modules() if part.training]
        node["tokens"] |= {f"{prefix}{inner}".rstrip("."): vars(p)[TOKEN] for inner, p in module.named_modules() if TOKEN in vars(p)}
        for name, tensor in module.state_dict(keep_vars=True).items():
            if not isinstance(tensor, Tensor):
                raise ExpressionError(f"{origin} cannot be saved: its state {name} is a {type(tensor).__name__}, not a tensor.")
            key = digest_of({"": tensor}) if tensor.layout == torch.strided else id(tensor)  # equal ones, as of two copies, are stored once
            node["tensors"][prefix + name] = self._name(tensor, key, f"{origin}.{prefix}{name}")
        return index


def _check_stored(kind: str, origin: Origin) -> None:
    """Raises if the options may be a path, which no reader takes from a file; what is not installed here is checked by the reader."""
    try:
        with contextlib.suppress(*UNAVAILABLE):
            check_origin(kind, origin)
    except OptionError as error:
        raise ExpressionError(f"{origin} cannot be saved: {error}.") from error


def _named(kind: str) -> str:
    """Returns the two lines after which a network or function can be saved; its weights are in the file."""
    built = "network" if kind == "encoder" else "composable_energy.as_energy(network)"
    return (
        "Give it a name, also in the program that loads it, and use what the name stands for:\n"
        f"    composable_energy.register('{kind}', 'mine', lambda: {built})\n"
        f"    {'network' if kind == 'encoder' else 'E'} = composable_energy.get('{kind}', 'mine')\n"
        "An entry point of a package does the first for all programs."
    )


def _entry_of(energy: Energy) -> PluginRecord:
    """Returns the entry point that offers the class of an energy; imports only those of the top-level package of the class."""
    package = type(energy).__module__.partition(".")[0]
    for row in rows_of("energy"):
        if re.split("[.:]", row.value)[0] == package:
            with contextlib.suppress(PluginLoadError):
                if get_factory("energy", row.name) is type(energy):
                    return find("energy", row.name)
    way = "Offer it with an entry point or `composable_energy.register`."
    raise ExpressionError(f"{energy} cannot be saved: no plug-in offers its class {type(energy).__qualname__}. {way}")


def read_expression(header: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str) -> Energy:
    """Returns the expression of a header, with the errors of `load`; the random state does not change."""
    reader, index = _Reader(tensors), -1
    try:
        if header.keys() != {"expression", "nodes", "root"} or not isinstance(header["nodes"], list):
            raise ValueError(f"the header has the keys {sorted(header)}")
        _check_size(header["nodes"])
        with torch.random.fork_rng(devices=[]):
            for index, data in enumerate(header["nodes"]):  # noqa: B007
                reader.nodes.append(reader.node(data))
        index = -1
        return _checked(decode(header["root"], reader.resolve), Energy)
    except UNAVAILABLE:
        raise
    except _FAILURES as error:
        raise FileFormatError(f"{where}: {f'node {index} cannot be built: ' * (index >= 0)}{error}.") from error


class _Reader:
    """Builds nodes, and finds modules and tensors by their names in a file."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.nodes: list[nn.Module] = []
        self._tensors = tensors
        self._parameters: dict[str, nn.Parameter] = {}
        self._copies: dict[int, dict[int, Any]] = {}  # by group, whose objects share their parts
        self._new: dict[int, list[str]] = {}  # by node, the tensors of the installed version that the file lacks

    def resolve(self, tag: str, name: Any) -> Any:
        if tag == "$module":
            match name:
                case [int(index), str(path)] if 0 <= index < len(self.nodes) and index is not True:
                    if new := [own for own in self._new.get(index, ()) if own.startswith(f"{path}." * bool(path))]:
                        raise ValueError(f"node {index} lacks the tensor {new[0]} of the installed version; install the one that wrote it")
                    for inside, module in self.nodes[index].named_modules(remove_duplicate=False):
                        if inside == path:
                            return module
            raise ValueError(f"there is no module {name!r} before it")
        if (tensor := self._tensors.get(_checked(name, str))) is None:
            raise ValueError(f"there is no tensor {name!r}")
        if tensor.dtype not in _FLOATING and (tag == "$parameter" or tensor.dtype not in _INTEGERS):
            raise ValueError(f"the tensor {name!r} has {tensor.dtype}, in which nothing can be computed here")
        return tensor if tag == "$tensor" else self._parameters.setdefault(name, nn.Parameter(tensor))

    def node(self, data: Any) -> nn.Module:
        if (kind := _checked(_checked(data, dict).get("class"), str)) == "built":
            return self._built(data)
        if kind not in CLASSES and kind != "plugin":
            raise ValueError(f"its class {kind!r} is not known")
        if data.keys() - _OPTIONAL != {"class", "terms", "config", *(["entry"] if kind == "plugin" else [])}:
            raise ValueError(f"it has the parts {sorted(data)}")
        terms, config = (decode(data[part], self.resolve) for part in ("terms", "config"))
        if kind == "plugin":
            if not (isinstance(cls := get_factory("energy", _checked(data["entry"], str)), type) and issubclass(cls, Energy)):
                raise ValueError(f"the entry point {data['entry']!r} is not a class of energies")
            check_origin("energy", Origin(data["entry"], options=_checked(config, dict)))
        else:
            cls = CLASSES[kind]
        with _Limit(self._tensors):
            energy: Any = cls(*(_checked(term, Energy) for term in _checked(terms, list)), **_checked(config, dict))
        if not equal(energy.config(), config):  # constructors may convert arguments
            raise ValueError(f"a {cls.__name__} of this config has another config")
        if "token" in data:
            vars(energy)[TOKEN] = _checked(data["token"], str)
        if "recommended" in data:
            energy.recommended = decode_recommendation(data["recommended"], self.resolve)
        return energy

    def _built(self, data: Mapping[str, Any]) -> nn.Module:
        """Returns an object of a plug-in, built again with its saved state; objects of one group share their parts."""
        if data.keys() - {"recommended"} != _BUILT or data["kind"] not in ("energy", "encoder") or type(data["group"]) is not int:
            raise ValueError(f"it has the parts {sorted(data)}")
        kind, names, tokens = data["kind"], _checked(data["tensors"], dict), _checked(data["tokens"], dict)
        texts = {key: data[key] for key in ("member", "distribution", "version") if data[key] is not None}
        for text in (data["entry"], *texts.values(), *names.values(), *tokens.values()):
            _checked(text, str)
        origin = Origin(data["entry"], options=_checked(decode(data["options"], self.resolve), dict), **texts)
        if missing := set(names.values()) - self._tensors.keys():
            raise ValueError(f"{origin} has no tensors {sorted(missing)}")
        tensors, training = {path: self._tensors[name] for path, name in names.items()}, set(_checked(data["training"], list))
        try:
            name = check_origin(kind, origin)
        except PluginNotFound as error:
            way = f"It is from {origin.distribution} {origin.version or '(unknown version)'}; install that"
            if origin.distribution is None:
                way = f"The session that wrote it registered it; use composable_energy.register({kind!r}, {origin.entry!r}, ...) here too"
            raise PluginNotFound(f"The {kind} {str(origin)!r} cannot be built here. {way}. ({error})") from error
        name = name if origin.member is None else f"{name}/{origin.member}"
        with _Limit(tensors):
            module = build_module(kind, name, dict(origin.options), self._copies.setdefault(data["group"], {}))
        if "recommended" in data:
            module.recommended = decode_recommendation(data["recommended"], self.resolve)  # pyright: ignore[reportArgumentType]
        for path, inner in module.named_modules():
            inner.training = path in training
            if path in tokens:
                vars(inner)[TOKEN] = tokens[path]
        _restore(module, tensors, origin)
        self._new[len(self.nodes)] = [path for path in module.state_dict() if path not in tensors]
        return module


def _restore(module: nn.Module, tensors: Mapping[str, Tensor], origin: Origin) -> None:
    """Loads saved tensors, by paths, into an object, which gets their dtype if that is one."""
    own, label = module.state_dict(keep_vars=True), f"{origin} of {origin.distribution or 'this session'} {origin.version or ''}".rstrip()
    for path, tensor in tensors.items():
        if (here := own.get(path)) is None or here.shape != tensor.shape:
            found = "no such tensor" if here is None else f"the shape {tuple(here.shape)}"
            raise ValueError(
                f"{label} was written with a tensor {path} of shape {tuple(tensor.shape)}; the installed version "
                f"({getattr(module.origin, 'version', None)}) has {found}. Install the version that wrote it"
            )
        if here.dtype != tensor.dtype and not {here.dtype, tensor.dtype} <= _FLOATING:
            raise ValueError(f"the tensor {path} of {label} has {here.dtype}, and the file has {tensor.dtype}")
    if len(dtypes := {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}) == 1:
        module.to(dtype=dtypes.pop())
    own = module.state_dict(keep_vars=True)
    for path, tensor in tensors.items():
        own[path].data = tensor.to(own[path].device, copy=True)


def _checked(data: Any, kind: type[T]) -> T:
    if not isinstance(data, kind):
        raise ValueError(f"expected {kind.__name__}, got {type(data).__name__}")
    return data


def _check_size(nodes: Sequence[Any]) -> None:
    """Raises `ValueError` if an expression is too large or too deep to be built or evaluated."""
    sizes, depths = list[int](), list[int]()
    for node in nodes:
        inside = [i for i in modules_in(node) if 0 <= i < len(sizes)]
        sizes.append(1 + sum(sizes[i] for i in inside))
        depths.append(1 + max((depths[i] for i in inside), default=0))
        if max(sizes[-1], len(sizes)) > _LARGEST:
            raise ValueError(f"the expression has more than {_LARGEST} nodes, where one that occurs twice counts twice")
        if depths[-1] > _DEEPEST:
            raise ValueError(f"the expression is nested more than {_DEEPEST} times")


class _Limit(TorchFunctionMode):
    """A context that limits what torch allocates and computes while an object is built, by the tensors of its saved state."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._elements = ELEMENTS + 4 * sum(tensor.numel() for tensor in tensors.values())
        self._operations = _OPERATIONS + 100 * len(tensors)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        arguments = [*args, *(kwargs or {}).values()]
        makes = getattr(func, "__name__", "").removeprefix("new_") in _MAKERS
        copied = args[0].numel() if func is Tensor.repeat else 1
        # The largest number of elements that numbers or tuples of numbers may stand for.
        numbers = [max(abs(value), 1) for value in arguments if type(value) is int]
        shapes = [math.prod(value) for value in arguments if isinstance(value, (list, tuple)) and all(type(i) is int for i in value)]
        self._spend(copied * max([math.prod(numbers), *shapes]) if makes else 0, 1)
        result = func(*args, **(kwargs or {}))
        if not makes and isinstance(result, Tensor) and _storage(result) not in {None, *map(_storage, arguments)}:
            self._spend(result.numel(), 0)
        return result

    def _spend(self, elements: int, operations: int) -> None:
        self._elements -= elements
        self._operations -= operations
        if self._elements < 0 or self._operations < 0:
            raise ValueError("its options build something much larger than its saved tensors")


def _storage(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) and value.layout == torch.strided else None
