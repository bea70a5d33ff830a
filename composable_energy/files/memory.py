"""How much memory a machine or a GPU has, so that a request that cannot fit is refused at once."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_FULL = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))  # of a container
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def memory_of(device: torch.device) -> int | None:
    """Returns the memory of a device in bytes, used or free; of the CPU that of the container, if it has less. None if it is unknown."""
    if device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[1]
    if device.type != "cpu":
        return None
    found = []
    with suppress(AttributeError, OSError, ValueError):  # no such number here
        found.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for path in _LIMITS:
        with suppress(OSError, ValueError):  # no container, or no limit
            found.append(int(path.read_text()))
    return min(found, default=None)


def ran_out(error: BaseException) -> bool:
    """Returns whether memory ran out, of the machine or of a GPU; torch has no class of its own for the first."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL))


def written_bytes(number: float) -> str:
    """Returns a number of bytes as people write it, such as 1.5 GB."""
    unit = 0
    while number >= 1000 and unit < len(_UNITS) - 1:
        number, unit = number / 1000, unit + 1
    return f"{number:.3g} {_UNITS[unit]}"
