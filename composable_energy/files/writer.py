"""Writing of expressions as a config and tensors."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.algebra.terms import common_recommendation
from composable_energy.energies.energy import Energy
from composable_energy.energies.identity import Origin, part_of, token_of, tokens_in
from composable_energy.energies.lift import CallableEnergy
from composable_energy.errors import ExpressionError, OptionError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.files.reader import CLASSES, check_size, inherited_mode
from composable_energy.files.record import digest_of
from composable_energy.files.values import encode, encode_recommendation, has_references
from composable_energy.registry import PluginRecord
from composable_energy.registry.catalog import check_origin, entry_of


def write_expression(energy: Energy) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Returns an expression as JSON data, with distinct nodes, operands first, and its tensors by name."""
    writer = _Writer()
    root = writer.energy(energy)
    try:
        check_size(writer.nodes)
    except ValueError as error:
        raise ExpressionError(f"It cannot be saved: {error}.") from error
    groups = _groups(writer.holds)
    references = [{**reference, "group": group} for reference, group in zip(writer.references, groups, strict=True)]
    return {"expression": str(energy), "references": references, "nodes": writer.nodes, "root": root}, writer.tensors


def _reference(kind: str, origin: Origin, options: Any) -> dict[str, Any]:
    """Returns an object of the registry as JSON data, without its state."""
    origin_data = {"entry": origin.entry, "member": origin.member, "distribution": origin.distribution, "version": origin.version}
    return {"kind": kind, **origin_data, "options": options, "modes": {}, "tensors": {}, "tokens": {}}


class _Writer:
    """Collects distinct nodes, references and tensors; a `Sink`."""

    def __init__(self) -> None:
        self.nodes: list[dict[str, Any]] = []
        self.references: list[dict[str, Any]] = []
        self.holds: list[list[nn.Module]] = []  # the modules of each reference whose state is written
        self.tensors: dict[str, Tensor] = {}
        self._node_of: dict[Energy, int] = {}
        self._reference_of: dict[int, int] = {}
        self._name_of: dict[int, str] = {}
        self._name_of_state: dict[str, str] = {}
        self._held: list[object] = []  # kept alive, so that no id is reused

    def energy(self, energy: Energy) -> int:
        if energy not in self._node_of:
            node = self._node(energy)
            self.nodes.append(node)
            self._node_of[energy] = len(self.nodes) - 1
        return self._node_of[energy]

    def module(self, module: nn.Module, hint: str) -> list[Any]:
        part = part_of(module)
        if part is None:
            raise ExpressionError(
                f"{hint} is a {type(module).__name__} that no plug-in built, so it cannot be saved: code is not data. {_named('encoder')}"
            )
        _check_stored(part.kind, part.origin)
        options = encode(dict(part.origin.options), self, f"{part.origin}.options")
        if has_references(options):
            raise ExpressionError(
                f"{hint} is a part of {part.origin}, which has other energies or modules as options, and cannot be saved alone."
            )
        index = self._reference(part.kind, part.origin, options)
        self._hold(index, module, f"{part.path}." if part.path else "", str(part.origin))
        return [index, part.path]

    def tensor(self, tensor: Tensor, hint: str) -> str:
        if id(tensor) not in self._name_of:
            name, count = hint, 1
            while name in self.tensors:
                count += 1
                name = f"{hint}#{count}"
            self._name_of[id(tensor)] = name
            self._held.append(tensor)
            self.tensors[name] = tensor
        return self._name_of[id(tensor)]

    def _state(self, tensor: Tensor, hint: str) -> str:
        """Stores a tensor of the state of a module; equal ones, such as those of two copies of a base, are stored once."""
        if tensor.layout != torch.strided:
            return self.tensor(tensor, hint)
        key = digest_of({"": tensor})
        if key not in self._name_of_state:
            self._name_of_state[key] = self.tensor(tensor, hint)
        return self._name_of_state[key]

    def _node(self, energy: Energy) -> dict[str, Any]:
        name = type(energy).__name__
        own = CLASSES.get(name) is type(energy)
        if part_of(energy) is not None or not (own or energy.terms):
            return self._encode_built(energy)
        hint = energy.name or name
        config = {part: encode(value, self, f"{hint}.{part}") for part, value in energy.config().items()}
        if not own and has_references(config):
            return self._encode_built(energy)
        terms = [self.energy(term) for term in energy.terms]
        node = {"class": name, "terms": terms, "config": config}
        if not own:
            node |= {"class": "plugin", "config": {"entry": _entry_of_node(energy), "options": config}}
            _check_stored("energy", Origin(node["config"]["entry"], options=energy.config()))
        if not terms:
            node["token"] = token_of(energy)
        if energy.recommended is not None and energy.recommended != common_recommendation(energy.terms):
            node["recommended"] = encode_recommendation(energy.recommended, self, hint)
        return node

    def _encode_built(self, energy: Energy) -> dict[str, Any]:
        """Returns the node of an object of a plug-in: a reference, or its own node if its options contain energies or modules."""
        part = part_of(energy)
        if part is not None and part.path:
            return {"class": "reference", "terms": [], "config": {"of": self.module(energy, str(energy))}}
        origin = _origin_by_class(energy) if part is None else part.origin
        _check_stored("energy", origin)
        options = encode(dict(origin.options), self, f"{origin}.options")
        if has_references(options):
            reference = _reference("energy", origin, options)
            self._write_state(reference, energy, "", str(origin))
            return {"class": "made", "terms": [], "config": reference}
        index = self._reference("energy", origin, options)
        self._hold(index, energy, "", str(origin))
        return {"class": "reference", "terms": [], "config": {"of": [index, ""]}}

    def _reference(self, kind: str, origin: Origin, options: Any) -> int:
        if id(origin) not in self._reference_of:
            self._reference_of[id(origin)] = len(self.references)
            self.references.append(_reference(kind, origin, options))
            self.holds.append([])
            self._held.append(origin)
        return self._reference_of[id(origin)]

    def _hold(self, index: int, module: nn.Module, prefix: str, label: str) -> None:
        if not any(module is held for held in self.holds[index]):
            self.holds[index].append(module)
            self._write_state(self.references[index], module, prefix, label)

    def _write_state(self, reference: dict[str, Any], module: nn.Module, prefix: str, label: str) -> None:
        if isinstance(module, Energy) and not prefix:
            reference["recommended"] = encode_recommendation(module.recommended, self, label)
        reference["modes"] |= _modes_of(module, prefix)
        reference["tokens"] |= {f"{prefix}{path}".rstrip("."): token for path, token in tokens_in(module).items()}
        for path, tensor in _tensors_of(module, label).items():
            reference["tensors"][prefix + path] = self._state(tensor, f"{label}.{prefix}{path}")


def _check_stored(kind: str, origin: Origin) -> None:
    """Raises if the options may be a path, which no reader takes from a file; what is not installed here is checked by the reader."""
    try:
        with contextlib.suppress(PluginNotFound, PluginConflictError, PluginLoadError):
            check_origin(kind, origin)
    except OptionError as error:
        raise ExpressionError(f"{origin} cannot be saved: {error}.") from error


def _origin_by_class(energy: Energy) -> Origin:
    """Returns the origin of an energy that was not built by name, from the entry point that offers its class."""
    if isinstance(energy, CallableEnergy):
        raise ExpressionError(
            f"{energy} is a bare {type(energy.function).__name__} and cannot be saved: code is not data. {_named('energy')}"
        )
    config, entry = energy.config(), _entry_by_class(energy)
    return Origin(entry.name, None, config, entry.distribution, entry.version)


def _named(kind: str) -> str:
    """Returns the two lines after which a network or function can be saved; its weights are in the file."""
    built = "network" if kind == "encoder" else "composable_energy.as_energy(network)"
    return (
        "Give it a name, also in the program that loads it, and use what the name stands for:\n"
        f"    composable_energy.register('{kind}', 'mine', lambda: {built})\n"
        f"    {'network' if kind == 'encoder' else 'E'} = composable_energy.get('{kind}', 'mine')\n"
        "An entry point of a package does the first for all programs."
    )


def _entry_by_class(energy: Energy) -> PluginRecord:
    entry = entry_of(type(energy))
    if entry is None:
        raise ExpressionError(
            f"{energy} cannot be saved: no plug-in offers its class {type(energy).__qualname__}. Offer it with an entry point or "
            "`composable_energy.register`."
        )
    return entry


def _entry_of_node(energy: Energy) -> str:
    """Returns the entry point of a plug-in's node, whose tensors are those of its terms and of its `config()`."""
    parts = (*energy.terms, *(value for value in energy.config().values() if isinstance(value, nn.Module)))
    known = {id(tensor) for part in parts for tensor in (*part.parameters(), *part.buffers())}
    known |= {id(value) for value in energy.config().values()}
    for name, tensor in (*energy.named_parameters(), *energy.named_buffers()):
        if id(tensor) not in known:
            raise ExpressionError(f"{energy} cannot be saved: `config()` lacks its tensor {name}. Return the tensor itself.")
    return _entry_by_class(energy).qualified


def _groups(holds: list[list[nn.Module]]) -> list[int]:
    """Returns for each reference the first one with which it shares modules or tensors, directly or indirectly."""
    parent = list(range(len(holds)))
    first: dict[int, int] = {}

    def top(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    for index, modules in enumerate(holds):
        for module in modules:
            for shared in (*module.modules(), *module.parameters(), *module.buffers()):
                a, b = top(index), top(first.setdefault(id(shared), index))
                parent[max(a, b)] = min(a, b)
    return [top(index) for index in range(len(holds))]


def _tensors_of(module: nn.Module, label: str) -> dict[str, Tensor]:
    """Returns the tensors in the state of a module, by path."""
    state = module.state_dict(keep_vars=True)
    for path, value in state.items():
        if not isinstance(value, Tensor):
            raise ExpressionError(f"{label} cannot be saved: its state {path} is a {type(value).__name__}, not a tensor.")
    return state


def _modes_of(module: nn.Module, prefix: str = "") -> dict[str, bool]:
    """Returns the train mode of a module, and of the modules inside that differ from their parents."""
    result = {prefix.rstrip("."): module.training}
    for path, inner in module.named_modules():
        if path and inherited_mode(result, prefix + path) != inner.training:
            result[prefix + path] = inner.training
    return result
