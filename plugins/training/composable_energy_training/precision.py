"""Numeric precision and memory format of networks during training."""

import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError

Precision = Literal["float32", "bfloat16", "float16", "auto"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_ONEDNN_LEVELS = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")  # instruction sets that include bfloat16
_CUDA_CAPABILITY = (8, 0)


def native_precision(device: torch.device, flags: Collection[str] | None = None) -> Precision:
    """Returns `"bfloat16"` if a device has instructions for it, else `"float32"`.

    Without such instructions bfloat16 is emulated: convolutions take twice the time of float32 with AVX-512, 10 to 20 times with AVX2. A
    CPU is native if it is x86 with `avx512_bf16` or `amx_bf16`, torch has oneDNN, and the environment variable `ONEDNN_MAX_CPU_ISA` does
    not exclude these instructions; a GPU if its CUDA capability is 8.0 or more. The choice depends on the machine alone, not on its load.
    """
    if device.type == "cuda":
        native = torch.cuda.get_device_capability(device) >= _CUDA_CAPABILITY
    elif device.type == "cpu" and torch.backends.mkldnn.is_available():
        limit = os.environ.get("ONEDNN_MAX_CPU_ISA", "DEFAULT").upper()
        allowed = any(level in limit for level in _ONEDNN_LEVELS)
        native = allowed and not _CPU_FLAGS.isdisjoint(_cpu_flags() if flags is None else flags)
    else:
        native = False
    return "bfloat16" if native else "float32"


def resolve_precision(requested: Precision, device: torch.device, previous: Precision | None) -> Precision:
    """Returns the precision of a run; `"auto"` is the previous one, before a resumption, or else the native one."""
    precision = requested if requested != "auto" else previous if previous and previous in [*DTYPES] else native_precision(device)
    check_precision(precision, device)
    return precision


def check_precision(precision: str, device: torch.device | None = None) -> None:
    """Raises OptionError if a precision is unknown, or a device does not support it."""
    if precision not in (*DTYPES, "auto"):
        raise OptionError(f"precision must be 'auto' or one of {', '.join(DTYPES)}, got {precision!r}.")
    if precision == "float16" and device is not None and device.type != "cuda":
        raise OptionError(f"float16 needs a CUDA device, since its gradients are scaled; on {device.type} use bfloat16 or float32.")


@contextmanager
def channels_last(model: nn.Module) -> Iterator[None]:
    """A context in which the weights of a model's convolutions on a CPU are in the channels-last memory format; restores it on exit.

    CPUs multiply such weights faster, by a fifth or more. Each tensor returns to its own storage, with its new values. A tensor that shares
    its storage with others is left alone.
    """
    tensors = [*model.parameters(), *model.buffers()]
    users = Counter(tensor.untyped_storage().data_ptr() for tensor in tensors)
    before: list[tuple[Tensor, Tensor]] = []
    for tensor in tensors:
        storage = tensor.untyped_storage()
        alone = users[storage.data_ptr()] == 1 and storage.nbytes() == tensor.numel() * tensor.element_size()
        if tensor.ndim == 4 and tensor.is_floating_point() and tensor.device.type == "cpu" and alone:
            before.append((tensor, tensor.data))
    try:
        for tensor, data in before:
            tensor.data = data.contiguous(memory_format=torch.channels_last)
        yield
    finally:
        for tensor, data in before:
            if tensor.data.data_ptr() != data.data_ptr():
                data.copy_(tensor.data)
                tensor.data = data


def _cpu_flags() -> frozenset[str]:
    """Detects the instruction sets of this CPU: from the system on Linux, from torch (2.10 or later) elsewhere."""
    if (file := Path("/proc/cpuinfo")).is_file():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
    return frozenset(name for name, found in getattr(torch.cpu, "get_capabilities", dict)().items() if found is True)
