"""Generators in files: TorchScript, `torch.export` and ONNX. No pickle is read, so a file runs no code of its own."""

from __future__ import annotations

import io
import json
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import FileFormatError
from composable_energy.extras import import_extra

__all__ = ["load_generator"]

_PICKLED = "Reading a pickle can run any code, so it was not read"
_EXPORT = "export the generator anew with `torch.jit.trace(g, z).save(path)`, `torch.export.save(program, path)`, or to ONNX"


def load_generator(path: str | Path) -> nn.Module:
    """Returns the module in a file of TorchScript, of `torch.export`, or of ONNX; its parameters need no gradient.

    The readers of the first two are those of torch, of the third `onnx2torch` (the extra `onnx`), which makes a module of torch with
    gradients. Files with pickled objects are refused: checkpoints of `torch.save`, and exported programs whose constants or examples are
    pickled. `latent(load_generator(path), prior)` makes a base of it; `ce.get_encoder("generator", path=...)` gives the same module with
    its origin, so that expressions can be saved.

    Args:
        path: The file.

    Raises:
        FileFormatError: The file is missing, damaged, of another kind, or holds pickled objects.
        ExtraNotInstalled: `onnx2torch` is not installed.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error.strerror or error}.") from error
    try:
        module = _read(path, data)
    except (FileFormatError, ImportError):
        raise
    except Exception as error:
        raise FileFormatError(f"{path} is damaged, or of another version: {type(error).__name__}: {str(error)[:300]}") from error
    for parameter in module.parameters():  # `Module.requires_grad_` refuses TorchScript
        parameter.requires_grad_(False)
    return module


def _read(path: Path, data: bytes) -> nn.Module:
    if path.suffix == ".onnx":
        return _read_onnx(data)
    if not zipfile.is_zipfile(io.BytesIO(data)):
        raise FileFormatError(f"{path} is no TorchScript, no exported program, and has no name that ends in `.onnx`: {_EXPORT}.")
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = [name.partition("/")[2] for name in archive.namelist()]
        if any(name.startswith("models/") and name.endswith(".json") for name in names):
            _check_program(path, archive)
            return torch.export.load(io.BytesIO(data)).module()
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        with warnings.catch_warnings():  # newer versions of torch advise `torch.export`
            warnings.simplefilter("ignore", DeprecationWarning)
            module = torch.jit.load(io.BytesIO(data), map_location="cpu")
        return module if hasattr(module, "training") else _Frozen(module)
    raise FileFormatError(f"{path} is a checkpoint of `torch.save`, a pickle. {_PICKLED}: {_EXPORT}.")


def _check_program(path: Path, archive: zipfile.ZipFile) -> None:
    """Raises if torch would unpickle a part of an exported program.

    Raises:
        FileFormatError: It would.
    """
    for name in archive.namelist():
        inner = name.partition("/")[2]
        if inner.endswith("_config.json"):
            payloads: dict[str, Any] = json.loads(archive.read(name))["config"]
            pickled = [key for key, of in payloads.items() if of.get("use_pickle", True) or not _is_tensor(of["path_name"])]
            if pickled:
                raise FileFormatError(f"{path} has pickled weights or constants ({', '.join(pickled[:3])}). {_PICKLED}: {_EXPORT}.")
        if inner.startswith("data/sample_inputs/"):
            try:  # torch would read it as a pickle where this fails
                torch.load(io.BytesIO(archive.read(name)), weights_only=True)
            except Exception as error:
                raise FileFormatError(f"The example inputs in {path} are a pickle of other objects than tensors. {_PICKLED}.") from error


class _Frozen(nn.Module):
    """A frozen TorchScript module, which has constants in place of parameters and no mode."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.parts = (module,)  # not as a sub-module

    def forward(self, z: Tensor) -> Any:
        return self.parts[0](z)


def _is_tensor(name: str) -> bool:
    return name.startswith(("weight_", "tensor_"))


def _read_onnx(data: bytes) -> nn.Module:
    convert = import_extra("onnx2torch", "onnx").convert
    model = import_extra("onnx", "onnx").load_model_from_string(data)
    return convert(model).eval()
