"""Blocks of noise: about 4,096 numbers from torch's generator, with a state from NumPy's Philox 4x64-10."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import OptionError

Array: TypeAlias = np.ndarray[Any, Any]

_BLOCK = 4096  # numbers, a power of two: large enough that seeding the generator costs little
_MOST_CHAINS = 2048
_STATE = 624  # words of 32 bits in the state of torch's generator, a Mersenne twister
_TOGETHER = 64  # states that are drawn at once
_SEEDED_BY_5489 = [5489, 1301868182, 2938499221]  # its first words, from its definition


class BlockBuffer:
    """A tensor for the noise of chains, and its parts that are whole blocks.

    Args:
        chains: The ids of the chains.
        whole: The tensor, with shape $(B, *)$.

    Attributes:
        whole: All numbers, with shape $(B, *)$.
        parts: The blocks that are drawn directly into it, in order.
        first: The number of the first of these blocks.
        rest: The first row after them.
    """

    __slots__ = ("first", "parts", "rest", "whole")

    def __init__(self, chains: Sequence[int], whole: Tensor) -> None:
        self.whole, event = whole, whole.shape[1:]
        self.parts, self.first, self.rest = [], 0, 0
        size = block_size(event)
        if isinstance(chains, range) and chains.step == 1 and chains.start % size == 0:
            numbers = event.numel()
            # torch fills a tensor in order by groups of 16 numbers, so the first rows of a block can be drawn alone.
            alone = len(chains) * numbers % 16 == 0 and size * numbers % 16 == 0
            self.rest = len(chains) if alone else len(chains) // size * size
            self.first = chains.start // size
            if self.rest:
                self.parts = [whole] if self.rest == len(chains) <= size else list(whole[: self.rest].split(size))


class BlockGenerator:
    """A torch generator that is set to the state of a block.

    `torch.Generator.manual_seed` uses 32 bits of a seed, so two of some ten thousand steps would have the same noise. So the whole state is
    set with `set_state`. Its format is not documented by torch; it is checked here and pinned by a test.

    Raises:
        OptionError: This version of torch has another format.
    """

    __slots__ = ("_bits", "_philox_state", "_state", "_words", "generator")

    def __init__(self) -> None:
        self.generator, self._bits = torch.Generator(), np.random.Philox(0)
        self._philox_state, self._state = self._bits.state, self.generator.manual_seed(5489).get_state()
        whole = self._state.numpy()
        self._words = whole[24 : 24 + 8 * _STATE].view(np.uint64)  # 32 bits each; the index says that the next draw needs new words
        if len(whole) != 5056 or whole[8:24].view(np.uint32).tolist() != [1, 1, 0, 0] or self._words[:3].tolist() != _SEEDED_BY_5489:
            raise OptionError(f"torch {torch.__version__} has an unknown format of generator states: use noise='philox'.")

    def block(self, key: bytes, number: int) -> torch.Generator:
        """Returns the generator at the start of a block of the draw with a key of 16 bytes; it is always the same object."""
        self._seek(key, number)
        np.copyto(self._words, self._bits.random_raw(_STATE // 2).view(np.uint32))
        self.generator.set_state(self._state)
        return self.generator

    def blocks(self, key: bytes, number: int, count: int) -> Iterator[torch.Generator]:
        """Yields the generator at the start of blocks in succession, as `block` for each."""
        self._seek(key, number)
        generator, state, words = self.generator, self._state, self._words
        for first in range(0, count, _TOGETHER):
            drawn = self._bits.random_raw(min(_TOGETHER, count - first) * _STATE // 2)
            for row in drawn.view(np.uint32).reshape(-1, _STATE):
                words[:] = row
                generator.set_state(state)
                yield generator

    def _seek(self, key: bytes, block: int) -> None:
        state = self._philox_state["state"]
        state["key"], state["counter"][0] = np.frombuffer(key, np.uint64), block * (_STATE // 8)  # each count gives 8 words
        self._bits.state = self._philox_state


def block_size(event: torch.Size) -> int:
    """Returns the number of chains in a block."""
    return max(1, min(_MOST_CHAINS, _BLOCK // (1 << (max(1, event.numel()) - 1).bit_length())))


def blocks_of(chains: range, size: int, row: int) -> Iterator[tuple[int, slice, slice]]:
    """Yields each block of consecutive chains from a row on, with its rows in the batch and their places in the block."""
    chain = chains.start + row
    while chain < chains.stop:
        block, first = divmod(chain, size)
        count = min(size - first, chains.stop - chain)
        yield block, slice(row, row + count), slice(first, first + count)
        row, chain = row + count, chain + count


class BlockPlaces:
    """The blocks of chains that are not consecutive, with the rows of each in the batch and their places in the block.

    They are found once, because for many chains that takes longer than the numbers of a step.

    Args:
        chains: The ids of the chains.
        size: The number of chains in a block.
    """

    __slots__ = ("_blocks", "_inside", "_rows")

    def __init__(self, chains: Sequence[int], size: int) -> None:
        blocks, inside = np.divmod(np.asarray(chains, dtype=np.int64), size)
        order = np.argsort(blocks, kind="stable")
        starts = np.flatnonzero(np.diff(blocks[order], prepend=-1))
        ends = np.append(starts[1:], len(order))
        self._blocks = blocks[order][starts]
        self._rows, self._inside = (_Parts(places, starts, ends) for places in (order, inside[order]))

    def __iter__(self) -> Iterator[tuple[int, slice | Tensor, slice | Tensor]]:
        return zip(self._blocks.tolist(), self._rows, self._inside, strict=True)


class _Parts:
    """Parts of an array of places: a slice, whose rows are copied faster, if the places are consecutive, else a tensor."""

    __slots__ = ("_bounds", "_places")

    def __init__(self, places: Array, starts: Array, ends: Array) -> None:
        jumps = np.cumsum(np.diff(places, prepend=places[:1]) != 1)
        self._places, self._bounds = torch.from_numpy(places), np.stack([starts, ends, jumps[ends - 1] == jumps[starts]], 1)

    def __iter__(self) -> Iterator[slice | Tensor]:
        for start, end, consecutive in self._bounds.tolist():
            first = int(self._places[start])
            yield slice(first, first + end - start) if consecutive else self._places[start:end]
