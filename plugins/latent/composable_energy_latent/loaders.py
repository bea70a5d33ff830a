"""Generators in files: TorchScript, `torch.export` and ONNX, which run what their authors wrote."""

import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import read_bytes
from composable_energy.options import check_flag, import_extra

_WAYS = (
    "weights and code are safe: in Python, `g = Generator()` from your own code, then "
    "`g.load_state_dict(safetensors.torch.load_file(path))`, with a file that `safetensors.torch.save_file(g.state_dict(), path)` wrote"
)


def load_generator(path: str | Path, *, trust: bool = False) -> nn.Module:
    """Returns the module in a file of TorchScript, of `torch.export`, or of ONNX; its parameters need no gradient.

    **Such a file can run any code**: torch evaluates texts of an exported program and runs methods of TorchScript, and `onnx2torch` (the
    extra `onnx`) writes Python with names of the graph. Read only what you or somebody you trust exported; else take weights as
    safetensors and a module of your own code. `latent(load_generator(path, trust=True), prior)` makes a base of it. No saved expression
    names a path: register the module, `ce.register("encoder", "mine", lambda: load_generator(path, trust=True))`, take it by
    `ce.get("encoder", "mine")`, and do the same where the expression is loaded.

    Args:
        path: The file.
        trust: Whether the file may run code.

    Raises:
        OptionError: The file may run code, and `trust` is False.
        FileFormatError: The file is missing, damaged, or of another kind, such as a checkpoint of `torch.save`.
    """
    check_flag("trust", trust)
    path = Path(path)
    data = read_bytes(path)
    read = _reader(path, data)
    if not trust:
        raise OptionError(f"{path} can run any code when it is read: say trust=True if you know its author. Else {_WAYS}.", ["trust"])
    try:
        module = read(data)
    except (FileFormatError, ImportError):
        raise
    except Exception as error:
        raise FileFormatError(f"{path} is damaged, or of another version: {type(error).__name__}: {str(error)[:300]}") from error
    for parameter in module.parameters():  # `Module.requires_grad_` refuses TorchScript
        parameter.requires_grad_(False)
    return module


def _reader(path: Path, data: bytes) -> Callable[[bytes], nn.Module]:
    """Returns the function that reads the content of a file, by its kind; nothing is run."""
    if path.suffix == ".onnx":
        return _read_onnx
    if data[8:9] == b"{" and int.from_bytes(data[:8], "little") < len(data):
        raise FileFormatError(f"{path} is a file of weights alone (safetensors): {_WAYS}.")
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = [name.partition("/")[2] for name in archive.namelist()]
    except Exception as error:
        raise FileFormatError(f"{path} is no TorchScript, no exported program, and has no name that ends in `.onnx`.") from error
    if any(name.startswith("models/") and name.endswith(".json") for name in names):
        return lambda data: torch.export.load(io.BytesIO(data)).module()
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return _read_script
    raise FileFormatError(f"{path} is a checkpoint of `torch.save`, a pickle without the network: {_WAYS}.")


def _read_script(data: bytes) -> nn.Module:
    with warnings.catch_warnings():  # newer versions of torch advise `torch.export`
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.jit.load(io.BytesIO(data), map_location="cpu")
    return module if hasattr(module, "training") else _Frozen(module)


class _Frozen(nn.Module):
    """A frozen TorchScript module, which has constants in place of parameters and no mode."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.parts = (module,)  # not as a sub-module

    def forward(self, z: Tensor) -> Any:
        return self.parts[0](z)


def _read_onnx(data: bytes) -> nn.Module:
    convert = import_extra("onnx2torch", "onnx").convert
    model = import_extra("onnx", "onnx").load_model_from_string(data)
    return convert(model).eval()
