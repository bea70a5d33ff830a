"""Reading of expressions from a config and tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

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
from composable_energy.catalog import check_origin
from composable_energy.distributions import DistributionEnergy
from composable_energy.energy import Energy
from composable_energy.errors import ExtraNotInstalled, FileFormatError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.events import ClassifierEnergy, DensityEnergy, IntervalEnergy
from composable_energy.identity import Origin, equal, set_token
from composable_energy.registry import get_factory
from composable_energy.saving.budget import FAILURES, LARGEST, check_size, limited
from composable_energy.saving.references import Reference, read_reference, read_references
from composable_energy.saving.values import FLOATING, INTEGERS, decode, decode_recommendation

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

_KEYS = {"class", "terms", "config", "token", "recommended"}


def read_expression(config: Mapping[str, Any], tensors: Mapping[str, Tensor], *, where: str) -> Energy:
    """Returns the expression of a config; the random state does not change.

    Args:
        config: JSON data, which is checked.
        tensors: The tensors by name.
        where: The folder, for messages.

    Raises:
        FileFormatError: The config is malformed.
        PluginNotFound: A plug-in is not installed.
        PluginLoadError: A plug-in fails to load.
    """
    if config.keys() != {"expression", "references", "nodes", "root"}:
        raise FileFormatError(f"{where}: the config has the keys {sorted(config)}.")
    nodes, references, root = config["nodes"], config["references"], config["root"]
    if not (isinstance(nodes, list) and isinstance(references, list) and 0 < len(nodes) <= LARGEST and len(references) <= LARGEST):
        raise FileFormatError(f"{where}: the config has no nodes, or more than {LARGEST}.")
    try:
        check_size(nodes)
    except ValueError as error:
        raise FileFormatError(f"{where}: {error}.") from error
    with torch.random.fork_rng(devices=[]):
        reader = _Reader(tensors, where)
        reader.references = read_references(references, reader, tensors, where)
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
        self.references: list[Reference] = []
        self.nodes: list[Energy] = []
        self._learnable: dict[str, nn.Parameter] = {}

    def node(self, data: Any) -> Energy:
        index = len(self.nodes)
        try:
            if not isinstance(data, dict) or not {"class", "terms", "config"} <= data.keys() <= _KEYS:
                raise ValueError("it is not a node")
            name, config = data["class"], _check_type(data["config"], dict)
            if name == "reference":
                energy = self._resolve_reference(config)
            elif name == "made":
                energy = self._energy(read_reference(config, self, self.tensors, self.where, {}).module)
            elif isinstance(name, str) and (name in CLASSES or name == "plugin"):
                cls = CLASSES[name] if name in CLASSES else _load_class(config)
                options = config if name in CLASSES else config["options"]
                terms = [self.energy(term) for term in _check_type(data["terms"], list)]
                options = _check_type(decode(options, self), dict)
                if "estimate" in options and cls is CLASSES["Negation"]:  # of version 0.1, before levels were numbers
                    found = options.pop("estimate") or {}
                    options["level_error"] = float(found["standard_error"]) if found else None
                    options["level"] = float(found["value"]) if found else options["level"]
                if name == "plugin":
                    check_origin("energy", Origin(config["entry"], options=options))
                with limited(self.tensors):
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
        except FAILURES as error:
            raise FileFormatError(f"{self.where}: node {index} cannot be built: {error}.") from error

    def energy(self, index: Any) -> Energy:
        if type(index) is not int or not 0 <= index < len(self.nodes):
            raise ValueError(f"there is no node {index!r} before it")
        return self.nodes[index]

    def module(self, reference: Any) -> nn.Module:
        match reference:
            case [int(index), str(path)] if 0 <= index < len(self.references):
                return self.references[index].part(path)
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
