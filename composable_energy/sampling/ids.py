"""Ids of chains: a range where they are consecutive, which takes no memory; else a tuple that keeps its tensor.

A million ids as Python's numbers take 36 MB and a twentieth of a second. So no step, and no call whose chains are all there, makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor


class ChainIds(tuple[int, ...]):
    """Ids of chains that are not consecutive."""

    @cached_property
    def tensor(self) -> Tensor:
        """The ids as a tensor, with shape $(B,)$."""
        return torch.tensor(self, dtype=torch.int64)

    def __reduce__(self) -> tuple[Callable[[Tensor], Ids], tuple[Tensor]]:
        return compact, (self.tensor,)


Ids = ChainIds | tuple[int, ...] | range


def compact(ids: Tensor) -> Ids:
    """Returns ids, as a range if they are consecutive.

    Args:
        ids: Whole numbers, with shape $(B,)$.
    """
    ids = ids.cpu()
    if len(ids) and bool((ids.diff() == 1).all()):
        return range(int(ids[0]), int(ids[-1]) + 1)
    found = ChainIds(ids.tolist())
    found.tensor = ids
    return found


def tensor_of(ids: Sequence[int] | Tensor) -> Tensor:
    """Returns ids as a tensor, with shape $(B,)$; it may be kept elsewhere, so it is not to be changed."""
    if isinstance(ids, Tensor):
        return ids
    if isinstance(ids, range):
        return torch.arange(ids.start, ids.stop, ids.step)
    return ids.tensor if isinstance(ids, ChainIds) else torch.tensor(ids, dtype=torch.int64)


def join_ids(parts: Iterable[Ids]) -> Tensor:
    """Returns the ids of several groups of chains one after another, as a tensor."""
    return torch.cat([torch.empty(0, dtype=torch.int64), *map(tensor_of, parts)])
