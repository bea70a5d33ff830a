"""Reading of expressions from a config and tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from composable_energy.algebra import (
    Conditioned,
    Conjunction,
    Decoded,
    Difference,
    Disjunction,
    Inside,
    Negation,
    PulledBack,
    Relative,
    Restricted,
    Sharpened,
    Weighted,
)
from composable_energy.energies.distributions import DistributionEnergy
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import Origin, equal, set_token
from composable_energy.errors import ExtraNotInstalled, FileFormatError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.events import ClassifierEnergy, DensityEnergy, IntervalEnergy
from composable_energy.files.values import FLOATING, INTEGERS, Source, decode, decode_recommendation, same_bits
from composable_energy.registry import get_factory
from composable_energy.registry.catalog import check_origin, rebuild_object

T = TypeVar("T")

CLASSES: Mapping[str, type[Energy]] = {
    cls.__name__: cls
    for cls in (
        Conditioned,
        Conjunction,
        Decoded,
        Difference,
        Disjunction,
        Inside,
        Negation,
        PulledBack,
        Relative,
        Restricted,
        Sharpened,
        Weighted,
        ClassifierEnergy,
        DensityEnergy,
        DistributionEnergy,
        IntervalEnergy,
    )
}
"""The classes that a file may name besides plug-ins; they are written and built by their `config()`."""

_NODE_KEYS = {"class", "terms", "config", "token", "recommended"}
_REFERENCE_KEYS = frozenset({"kind", "entry", "member", "options", "distribution", "version", "modes", "tensors", "tokens"})
_FAILURES = (ValueError, TypeError, RuntimeError, LookupError, AttributeError, ArithmeticError, MemoryError)
"""What building an object from options of a file may raise; errors of this library derive from them."""

_LARGEST = 100_000
"""The largest number of nodes of an expression; a node that occurs twice counts twice."""
_DEEPEST = 100  # what loads can also be evaluated, sampled and printed within the recursion limit of Python
_ELEMENTS = 2**26  # that an object may allocate besides 4 times its saved tensors
_OPERATIONS = 100_000  # of torch, besides 100 for each saved tensor; spectral norms of wide networks take 75,000
# What is checked before it allocates; results of other functions are counted after it.
_MAKERS = {"empty", "zeros", "ones", "full", "rand", "randn", "randint", "arange", "eye", "linspace", "repeat", "randperm"}


def read_expression(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, where: str) -> Energy:
    """Returns the expression of a config; the random state does not change."""
    if config.keys() != {"expression", "references", "nodes", "root"}:
        raise FileFormatError(f"{where}: the config has the keys {sorted(config)}.")
    nodes, references, root = config["nodes"], config["references"], config["root"]
    if not (isinstance(nodes, list) and isinstance(references, list) and 0 < len(nodes) <= _LARGEST and len(references) <= _LARGEST):
        raise FileFormatError(f"{where}: the config has no nodes, or more than {_LARGEST}.")
    try:
        check_size(nodes)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}.") from error
    with torch.random.fork_rng(devices=[]):
        reader = _Reader(tensors, where)
        groups: dict[Any, dict[int, Any]] = {}  # objects of one group share their parts
        for data in references:
            group = data.get("group") if isinstance(data, dict) else None
            if type(group) is not int:
                raise FileFormatError(f"{where}: a reference is malformed.")
            reader.references.append(_read_reference(data, reader, tensors, where, groups.setdefault(group, {})))
        for node in nodes:
            reader.nodes.append(reader.node(node))
    try:
        return reader.energy(root)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}.") from error


class _Reader:
    """Resolves the names of energies, modules and tensors in a config; a `Source`."""

    def __init__(self, tensors: Mapping[str, Tensor], where: str) -> None:
        self.tensors = tensors
        self.where = where
        self.references: list[nn.Module] = []
        self.nodes: list[Energy] = []
        self._learnable: dict[str, nn.Parameter] = {}

    def node(self, data: Any) -> Energy:
        index = len(self.nodes)
        try:
            if not isinstance(data, dict) or not {"class", "terms", "config"} <= data.keys() <= _NODE_KEYS:
                raise ValueError("it is not a node")
            name, config = data["class"], _check_type(data["config"], dict)
            if name == "reference":
                energy = self._resolve_reference(config)
            elif name == "made":
                energy = self._energy(_read_reference(config, self, self.tensors, self.where, {}))
            elif isinstance(name, str) and (name in CLASSES or name == "plugin"):
                cls = CLASSES[name] if name in CLASSES else _load_class(config)
                options = config if name in CLASSES else config["options"]
                terms = [self.energy(term) for term in _check_type(data["terms"], list)]
                options = _check_type(decode(options, self), dict)
                if name == "plugin":
                    check_origin("energy", Origin(config["entry"], options=options))
                with _limited(self.tensors):
                    energy = _build_node(cls, terms, options)
            else:
                raise ValueError(f"its class {name!r} is not known")
            if "token" in data:
                set_token(energy, _check_type(data["token"], str))
            if "recommended" in data:
                energy.recommended = decode_recommendation(data["recommended"], self)
            return energy
        except (PluginNotFound, ExtraNotInstalled, PluginLoadError, PluginConflictError):
            raise
        except _FAILURES as error:
            raise FileFormatError(f"{self.where}: node {index} cannot be built: {error}.") from error

    def energy(self, index: Any) -> Energy:
        if type(index) is not int or not 0 <= index < len(self.nodes):
            raise ValueError(f"there is no node {index!r} before it")
        return self.nodes[index]

    def module(self, reference: Any) -> nn.Module:
        match reference:
            case [int(index), str(path)] if 0 <= index < len(self.references):
                found = dict(self.references[index].named_modules(remove_duplicate=False)).get(path)
                if found is not None:
                    return found
        raise ValueError(f"there is no module {reference!r}")

    def tensor(self, name: Any, learnable: bool) -> Tensor:
        if name not in self.tensors:
            raise ValueError(f"there is no tensor {name!r}")
        if self.tensors[name].dtype not in FLOATING and (learnable or self.tensors[name].dtype not in INTEGERS):
            raise ValueError(f"the tensor {name!r} has {self.tensors[name].dtype}, in which nothing can be computed here")
        if not learnable:
            return self.tensors[name]
        return self._learnable.setdefault(name, nn.Parameter(self.tensors[name]))

    def _resolve_reference(self, parts: Mapping[str, Any]) -> Energy:
        if parts.keys() != {"of"}:
            raise ValueError(f"a reference has the parts {sorted(parts)}")
        return self._energy(self.module(parts["of"]))

    def _energy(self, module: nn.Module) -> Energy:
        if not isinstance(module, Energy):
            raise ValueError(f"it refers to a {type(module).__name__}, which is not an energy")
        return module


def _load_class(config: Mapping[str, Any]) -> type[Energy]:
    """Returns the class of a plug-in's node, from its entry point."""
    if config.keys() != {"entry", "options"}:
        raise ValueError(f"a node of a plug-in has the parts {sorted(config)}")
    cls = get_factory("energy", _check_type(config["entry"], str))
    if not (isinstance(cls, type) and issubclass(cls, Energy)):
        raise ValueError(f"the entry point {config['entry']!r} is not a class of energies")
    return cls


def _build_node(cls: type[Energy], terms: list[Energy], config: dict[str, Any]) -> Energy:
    """Builds a node and checks that its `config()` is that of the file, since constructors may convert arguments."""
    energy = cls(*terms, **config)
    if not equal(energy.config(), config):
        raise ValueError(f"a {cls.__name__} of this config has another config")
    return energy


def _check_type(data: Any, kind: type[T]) -> T:
    if not isinstance(data, kind):
        raise ValueError(f"expected a {kind.__name__}, got a {type(data).__name__}")
    return data


def _read_reference(data: Any, source: Source, tensors: Mapping[str, Tensor], where: str, copies: dict[int, Any]) -> nn.Module:
    """Returns an object of a plug-in, built again with its saved state; objects built with one memo `copies` share their parts."""
    if not isinstance(data, dict) or data.keys() - {"group", "recommended"} != _REFERENCE_KEYS or data["kind"] not in ("energy", "encoder"):
        raise FileFormatError(f"{where}: a reference is malformed.")
    origin = _origin(data, source, where)
    label = f"{origin} of {origin.distribution or 'this session'} {origin.version or ''}".rstrip()
    names, modes, tokens = data["tensors"], data["modes"], data["tokens"]
    if not isinstance(names, dict) or not all(isinstance(name, str) and name in tensors for name in names.values()):
        raise FileFormatError(f"{where}: tensors of {label} are missing.")
    if not _all_of(modes, bool) or not _all_of(tokens, str):
        raise FileFormatError(f"{where}: the reference to {label} is malformed.")
    try:
        own = {path: tensors[name] for path, name in names.items()}
        with _limited(own):
            module = rebuild_object(data["kind"], origin, copies)
        if "recommended" in data:
            module.recommended = decode_recommendation(data["recommended"], source)  # pyright: ignore[reportArgumentType]
        _restore(module, own, modes, tokens, label)
        return module
    except (PluginNotFound, ExtraNotInstalled, PluginLoadError, PluginConflictError):
        raise
    except _FAILURES as error:
        raise FileFormatError(f"{where}: {label} cannot be built: {error}.") from error


def _restore(module: nn.Module, tensors: Mapping[str, Tensor], modes: Mapping[str, bool], tokens: Mapping[str, str], label: str) -> None:
    """Loads saved tensors, train modes and tokens, by paths, into an object; a mode applies to the modules inside without one."""
    own = module.state_dict(keep_vars=True)
    for path, tensor in tensors.items():
        if path in own and own[path].dtype != tensor.dtype and not {own[path].dtype, tensor.dtype} <= FLOATING:
            raise ValueError(f"the tensor {path} of {label} has {own[path].dtype}, and the file has {tensor.dtype}")
        if path not in own or own[path].shape != tensor.shape:
            here = f"the shape {tuple(own[path].shape)}" if path in own else "no such tensor"
            raise ValueError(
                f"{label} was written with a tensor {path} of shape {tuple(tensor.shape)}; the installed version "
                f"({getattr(module.origin, 'version', None)}) has {here}. Install the version that wrote it"
            )
    for path, inner in module.named_modules():
        mode = inherited_mode(modes, path)
        inner.training = inner.training if mode is None else mode
        if path in tokens:
            set_token(inner, tokens[path])
    dtypes = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        module.to(dtype=dtypes.pop())
    own = module.state_dict(keep_vars=True)
    for path, tensor in tensors.items():
        if not same_bits(own[path], tensor):
            own[path].data = tensor.to(own[path].device, copy=True)


def _origin(data: Mapping[str, Any], source: Source, where: str) -> Origin:
    entry, member, distribution, version = (data[key] for key in ("entry", "member", "distribution", "version"))
    if not isinstance(entry, str) or not all(text is None or isinstance(text, str) for text in (member, distribution, version)):
        raise FileFormatError(f"{where}: the reference to {entry!r} is malformed.")
    try:
        options = decode(data["options"], source)
        if not isinstance(options, dict):
            raise ValueError("they are not a dict")
    except (ValueError, TypeError) as error:
        raise FileFormatError(f"{where}: the options of {entry!r} cannot be read: {error}.") from error
    return Origin(entry, member, options, distribution, version)


def inherited_mode(modes: Mapping[str, bool], path: str) -> bool | None:
    """Returns the train mode of a module in the result of a file: its own, or that of the nearest parent."""
    while path not in modes and path:
        path = path.rpartition(".")[0]
    return modes.get(path)


def _all_of(data: Any, kind: type) -> bool:
    return isinstance(data, dict) and all(type(value) is kind for value in data.values())


# Limits on what a file may build --------------------------------------------------------------------------------------------------------


def check_size(nodes: Sequence[Any]) -> None:
    """Raises if an expression is too large or too deep to be built or evaluated.

    Args:
        nodes: The nodes as JSON data, operands first. Malformed parts are ignored here.

    Raises:
        ValueError: It is.
    """
    sizes: list[int] = []
    depths: list[int] = []
    for node in nodes:
        inside = [i for i in _indices(node) if 0 <= i < len(sizes)]
        sizes.append(1 + sum(sizes[i] for i in inside))
        depths.append(1 + max((depths[i] for i in inside), default=0))
        if sizes[-1] > _LARGEST:
            raise ValueError(f"the expression has more than {_LARGEST} nodes, where one that occurs twice counts twice")
        if depths[-1] > _DEEPEST:
            raise ValueError(f"the expression is nested more than {_DEEPEST} times")


@contextmanager
def _limited(tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Limits what torch allocates and computes while an object is built, by the tensors of its saved state.

    Args:
        tensors: The saved tensors of the object, by path.

    Raises:
        ValueError: The object needs much more than its saved state.
    """
    with _Limit(_ELEMENTS + 4 * sum(tensor.numel() for tensor in tensors.values()), _OPERATIONS + 100 * len(tensors)):
        yield


class _Limit(TorchFunctionMode):
    def __init__(self, elements: int, operations: int) -> None:
        super().__init__()
        self.elements, self.operations = elements, operations

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        arguments = [*args, *kwargs.values()]
        makes = getattr(func, "__name__", "").removeprefix("new_") in _MAKERS
        self._spend(_size(arguments) if makes else 0, 1)
        result = func(*args, **kwargs)
        if not makes and _storage(result) not in {None, *map(_storage, arguments)}:
            self._spend(result.numel(), 0)
        return result

    def _spend(self, elements: int, operations: int) -> None:
        self.elements -= elements
        self.operations -= operations
        if self.elements < 0 or self.operations < 0:
            raise ValueError("its options build something much larger than its saved tensors")


def _storage(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) and value.layout == torch.strided else None


def _size(arguments: list[Any]) -> int:
    """Returns the largest number of elements that numbers or tuples of numbers may stand for."""
    numbers = [abs(value) for value in arguments if type(value) is int]
    shapes = [math.prod(value) for value in arguments if isinstance(value, (list, tuple)) and all(type(i) is int for i in value)]
    return max([math.prod(max(number, 1) for number in numbers), *shapes])


def _indices(node: Any) -> Iterator[int]:
    """Yields the nodes inside a node: its terms, and energies in its config."""
    if not isinstance(node, dict):
        return
    terms = node.get("terms")
    yield from (term for term in (terms if isinstance(terms, list) else ()) if type(term) is int)
    todo = [node.get("config")]
    while todo:
        data = todo.pop()
        if isinstance(data, dict):
            index = data.get("$energy")
            if type(index) is int:
                yield index
            todo += data.values()
        elif isinstance(data, list):
            todo += data
