"""What networks compute in while they are trained."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Literal

import torch

from composable_energy.errors import OptionError

__all__ = ["DTYPES", "Precision", "check_precision", "native_precision", "settled_precision"]

Precision = Literal["float32", "bfloat16", "float16", "auto"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_CPU_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_ONEDNN_LEVELS = ("BF16", "FP16", "AMX", "AVX10", "DEFAULT", "ALL")  # names of instruction sets that contain bfloat16
_CUDA_CAPABILITY = (8, 0)


def native_precision(device: torch.device, flags: Collection[str] | None = None) -> Precision:
    """Returns `"bfloat16"` where a device has instructions for it, else `"float32"`.

    Without such instructions bfloat16 is emulated: convolutions take twice the time of float32 with AVX-512, and 10 to 20 times with AVX2.
    A CPU counts as native if it is an x86 processor with `avx512_bf16` or `amx_bf16`, torch has oneDNN, and the environment variable
    `ONEDNN_MAX_CPU_ISA` does not exclude these instructions; a GPU if its CUDA capability is 8.0 or more. The choice depends on the machine
    alone, not on its load.

    Args:
        device: Where networks compute.
        flags: The instruction sets of the CPU, by their names in `/proc/cpuinfo`; None reads those of this machine.
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


def settled_precision(asked: Precision, device: torch.device, before: Precision | None) -> Precision:
    """Returns what a run computes in.

    Args:
        asked: What the user asked for; anything but `"auto"` is taken.
        device: Where networks compute.
        before: What the run computed in before, if it goes on.

    Raises:
        OptionError: The device has no such precision.
    """
    precision = asked if asked != "auto" else before or native_precision(device)
    check_precision(precision, device)
    return precision


def check_precision(precision: str, device: torch.device) -> None:
    """Raises if a precision is unknown, or not for a device."""
    if precision not in (*DTYPES, "auto"):
        raise OptionError(f"precision must be 'auto' or one of {', '.join(DTYPES)}, got {precision!r}.")
    if precision == "float16" and device.type != "cuda":
        raise OptionError(f"float16 needs a CUDA device, as its gradients are scaled; on {device.type} take bfloat16 or float32.")


def _cpu_flags() -> frozenset[str]:
    """Returns the instruction sets of this CPU: from the system on Linux, from torch (2.10 or later) elsewhere."""
    file = Path("/proc/cpuinfo")
    if file.is_file():
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
        return frozenset(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return frozenset(name for name, found in capabilities.items() if found is True)
