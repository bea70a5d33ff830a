"""References to objects of the registry, which are rebuilt from their origin and get their saved state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from composable_energy.catalog import rebuild_object
from composable_energy.errors import ExtraNotInstalled, FileFormatError, PluginConflictError, PluginLoadError, PluginNotFound
from composable_energy.identity import Origin, set_token
from composable_energy.saving.budget import FAILURES, limited
from composable_energy.saving.modules import inherited_mode, same_bits
from composable_energy.saving.values import FLOATING, Source, decode, decode_recommendation

_KEYS = frozenset({"kind", "entry", "member", "options", "distribution", "version", "modes", "tensors", "tokens"})


@dataclass
class Reference:
    """A rebuilt object with its saved state.

    Args:
        module: The object.
        tensors: The saved tensors, by path in the object.
        modes: The train mode of modules by path; it applies to the modules inside unless they have their own.
        tokens: The tokens of the object and of modules inside, by path.
        label: The name, for messages.
        attributes: Other saved attributes of the object.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor]
    modes: Mapping[str, bool]
    tokens: Mapping[str, str]
    label: str
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def part(self, path: str) -> nn.Module:
        """Returns a module inside the object.

        Raises:
            ValueError: There is no module at the path.
        """
        found = dict(self.module.named_modules(remove_duplicate=False)).get(path)
        if found is None:
            raise ValueError(f"{self.label} has no part {path!r}")
        return found

    def restore(self) -> None:
        """Loads the saved state into the object.

        Raises:
            ValueError: The object lacks a saved tensor, or has it in another shape.
        """
        own = self.module.state_dict(keep_vars=True)
        for path, tensor in self.tensors.items():
            if path in own and own[path].dtype != tensor.dtype and not {own[path].dtype, tensor.dtype} <= FLOATING:
                raise ValueError(f"the tensor {path} of {self.label} has {own[path].dtype}, and the file has {tensor.dtype}")
            if path not in own or own[path].shape != tensor.shape:
                here = f"the shape {tuple(own[path].shape)}" if path in own else "no such tensor"
                raise ValueError(
                    f"{self.label} was written with a tensor {path} of shape {tuple(tensor.shape)}; the installed version "
                    f"({getattr(self.module.origin, 'version', None)}) has {here}. Install the version that wrote it"
                )
        for name, value in self.attributes.items():
            setattr(self.module, name, value)
        for path, module in self.module.named_modules():
            mode = inherited_mode(self.modes, path)
            module.training = module.training if mode is None else mode
            if path in self.tokens:
                set_token(module, self.tokens[path])
        dtypes = {tensor.dtype for tensor in self.tensors.values() if tensor.is_floating_point()}
        if len(dtypes) == 1:
            self.module.to(dtype=dtypes.pop())
        own = self.module.state_dict(keep_vars=True)
        for path, tensor in self.tensors.items():
            if not same_bits(own[path], tensor):
                own[path].data = tensor.to(own[path].device, copy=True)


def read_references(data: Sequence[Any], source: Source, tensors: Mapping[str, Tensor], where: str) -> list[Reference]:
    """Returns the references of a config; those of one group share their parts.

    Raises:
        FileFormatError: A reference is malformed, or its tensors do not fit the object of the plug-in.
        PluginNotFound: A plug-in is not installed.
        PluginLoadError: A plug-in fails to load.
    """
    groups: dict[int, dict[int, Any]] = {}
    result = []
    for item in data:
        group = item.get("group") if isinstance(item, dict) else None
        if type(group) is not int:
            raise FileFormatError(f"{where}: a reference is malformed.")
        result.append(read_reference(item, source, tensors, where, groups.setdefault(group, {})))
    return result


def read_reference(data: Any, source: Source, tensors: Mapping[str, Tensor], where: str, copies: dict[int, Any]) -> Reference:
    """Returns one reference with its saved state.

    Args:
        data: The JSON data of the reference.
        source: Resolves tensors, energies and modules in its options.
        tensors: The tensors of the file, by name.
        where: The folder, for messages.
        copies: The memo of copies of its group.

    Raises:
        FileFormatError: The reference is malformed, or its tensors do not fit the object of the plug-in.
        PluginNotFound: A plug-in is not installed.
        PluginLoadError: A plug-in fails to load.
    """
    if not isinstance(data, dict) or data.keys() - {"group", "recommended"} != _KEYS or data["kind"] not in ("energy", "encoder"):
        raise FileFormatError(f"{where}: a reference is malformed.")
    origin = _origin(data, source, where)
    label = f"{origin} of {origin.distribution or 'this session'} {origin.version or ''}".rstrip()
    names, modes, tokens = data["tensors"], data["modes"], data["tokens"]
    if not isinstance(names, dict) or not all(isinstance(name, str) and name in tensors for name in names.values()):
        raise FileFormatError(f"{where}: tensors of {label} are missing.")
    if not _all_of(modes, bool) or not _all_of(tokens, str):
        raise FileFormatError(f"{where}: the reference to {label} is malformed.")
    try:
        more = {"recommended": decode_recommendation(data["recommended"], source)} if "recommended" in data else {}
        own = {path: tensors[name] for path, name in names.items()}
        with limited(own):
            module = rebuild_object(data["kind"], origin, copies)
        reference = Reference(module, own, modes, tokens, label, more)
        reference.restore()
    except (PluginNotFound, ExtraNotInstalled, PluginLoadError, PluginConflictError):
        raise
    except FAILURES as error:
        raise FileFormatError(f"{where}: {label} cannot be built: {error}.") from error
    return reference


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


def _all_of(data: Any, kind: type) -> bool:
    return isinstance(data, dict) and all(type(value) is kind for value in data.values())
