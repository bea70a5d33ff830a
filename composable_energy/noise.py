r"""Keyed noise: what chain $i$ gets at step $t$ is a function of (seed, $i$, $t$, stream) and of nothing else.

A stream of random numbers depends on who drew before; a key does not. So the same chains come out whatever the number of chains drawn
together, the number of ranks, a stop and a resume. There are two kinds.

*Blocks*, the default on the CPU: chains are cut into blocks of about 4,096 numbers (one chain, or up to 2,048 small ones). Each block is
drawn by a `torch.Generator` whose whole state comes from NumPy's Philox 4x64-10, with 128 bits of a hash of (seed, step, stream) as its
key and the number of the block as its counter. A block is drawn whole, or as far as it is needed where that makes no difference. This
costs 1.2 to 1.9 of one `torch.randn`, and more for less than 4,096 numbers; they may change with the version of torch.

*Philox*, always used on other devices: Philox 4x32-10 (Salmon et al., 2011), a counter-based generator with the counter
(quad of numbers inside the event, step, chain, stream) and the seed as key. The same on every device, in every version; 6 to 15 times
the cost of `torch.randn` on a CPU.

References:
    Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., 2011), https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from numbers import Integral
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.noise_blocks import BlockBuffer, BlockGenerator, block_size, blocks_of
from composable_energy.philox import philox, philox_normal, to_unit

__all__ = ["Kind", "Noise"]

_WORD = 0xFFFFFFFF
_FEW = 2**16

Kind = Literal["blocks", "philox"]


@dataclass(frozen=True)
class Noise:
    r"""The noise of some chains at one step.

    Args:
        seed: One for a call; taken modulo $2^{64}$.
        chains: The ids of the chains, one for each row, below $2^{32}$.
        step: The step, below $2^{32}$. By convention 0 is the start.
        kind: `"blocks"` or `"philox"`; points that are not on the CPU get Philox noise.

    Raises:
        OptionError: The kind is unknown, or the step or an id is out of range.

    Example:
        >>> import torch
        >>> x = torch.zeros(5, 2)
        >>> noise = Noise(seed=0, chains=range(5))
        >>> torch.equal(noise.normal(x)[3:], noise.for_chains(range(3, 5)).normal(x[3:]))
        True
    """

    seed: int
    chains: range | tuple[int, ...]
    step: int = 0
    kind: Kind = "blocks"
    _memory: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # shared by what `at` returns; never saved

    def __post_init__(self) -> None:
        if self.kind not in ("blocks", "philox"):
            raise OptionError(f"noise must be 'blocks' or 'philox', got {self.kind!r}.")
        if not _is_word(self.step):
            raise OptionError(f"The step of a noise is a whole number from 0 to 2^32 - 1, got {self.step!r}.")
        wrong = [i for i in _ends(self.chains) if not _is_word(i)]
        if wrong:
            raise OptionError(f"The ids of chains are whole numbers from 0 to 2^32 - 1, got {wrong[0]!r}.")

    def __reduce__(self) -> tuple[type[Noise], tuple[Any, ...]]:
        return Noise, (self.seed, self.chains, self.step, self.kind)

    def at(self, step: int) -> Noise:
        """Returns the noise of the same chains at another step.

        Args:
            step: The step, from 0 to $2^{32} - 1$.

        Raises:
            OptionError: It is not.
        """
        return Noise(self.seed, self.chains, step, self.kind, self._memory)

    def for_chains(self, chains: Sequence[int]) -> Noise:
        """Returns the noise of other chains, given by their ids."""
        return replace(self, chains=chains if isinstance(chains, range) else tuple(chains))

    def child(self, label: str) -> Noise:
        """Returns independent noise for another purpose, such as a pilot run, with a seed made of this one's and a label."""
        digest = blake2b(struct.pack("<Q", self.seed % 2**64) + label.encode(), digest_size=8).digest()
        shared = {key: value for key, value in self._memory.items() if isinstance(value, BlockGenerator)}
        return replace(self, seed=int.from_bytes(digest, "little"), _memory=shared)

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Returns standard normal numbers with the shape, dtype and device of some points.

        Args:
            like: The points, with shape $(B, *)$, one row for each chain.
            stream: Tells apart several draws at one step, such as a momentum and a proposal.

        Raises:
            OptionError: The stream is not a whole number from 0 to $2^{32} - 1$.
            ShapeError: There are not as many rows as chains.
        """
        self._check(like, stream)
        if self._counted(like):
            return philox_normal(self.seed, self.step, self._ids(like), stream, like.shape[1:]).to(like.dtype)
        dtype = like.dtype if like.dtype in (torch.float32, torch.float64) else torch.float32
        few = like.numel() <= _FEW  # then copying costs less than to find a place
        drawn = self._blocks(like.shape[1:], dtype, stream, Tensor.normal_, again=few)
        return drawn.to(like.dtype, copy=few)

    def add_normal_(self, x: Tensor, scale: float = 1.0, stream: int = 0) -> Tensor:
        r"""Adds $s\, \xi$ to points in place, with the standard normal numbers $\xi$ of `normal`; cheaper than to get them first.

        Args:
            x: The points, with shape $(B, *)$, one row for each chain.
            scale: $s$.
            stream: As for `normal`.

        Returns:
            The points.

        Raises:
            OptionError: The stream is not a whole number from 0 to $2^{32} - 1$.
            ShapeError: There are not as many rows as chains.
        """
        if self._counted(x) or x.dtype not in (torch.float32, torch.float64):
            return x.add_(self.normal(x, stream), alpha=scale)
        self._check(x, stream)
        return x.add_(self._blocks(x.shape[1:], x.dtype, stream, Tensor.normal_, again=True), alpha=scale)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Returns one number in (0, 1) for each chain, with shape $(B,)$, in float32, or in float64 for points of that dtype.

        Args:
            like: The points, with shape $(B, *)$, one row for each chain.
            stream: Tells apart several draws at one step; shared with `normal`, so take another number than there.

        Raises:
            OptionError: The stream is not a whole number from 0 to $2^{32} - 1$.
            ShapeError: There are not as many rows as chains.
        """
        self._check(like, stream)
        dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
        if self._counted(like):
            ids = self._ids(like)
            word = philox(self.seed, (torch.zeros_like(ids), self.step, ids, stream))[0]
            return to_unit(word).clamp_min_(2.0**-33).to(dtype)
        return self._blocks(torch.Size(), dtype, stream, Tensor.uniform_).clamp_min_(2.0**-25)

    def _check(self, like: Tensor, stream: int) -> None:
        if not _is_word(stream):
            raise OptionError(f"The stream of a draw is a whole number from 0 to 2^32 - 1, got {stream!r}.")
        if len(like) != len(self.chains):
            raise ShapeError(f"This is the noise of {len(self.chains)} chains, got {len(like)} points; use `noise.for_chains`.")

    def _counted(self, like: Tensor) -> bool:
        return self.kind == "philox" or like.device.type != "cpu"

    def _ids(self, like: Tensor) -> Tensor:
        if isinstance(self.chains, range):
            return torch.arange(self.chains.start, self.chains.stop, self.chains.step, device=like.device)
        return torch.tensor(self.chains, dtype=torch.int64, device=like.device)

    def _blocks(self, event: torch.Size, dtype: torch.dtype, stream: int, fill: Callable[..., Tensor], again: bool = False) -> Tensor:
        """Draws by blocks; `again` says that the numbers are used up before the next draw."""
        chains, key, generator = self.chains, _key(self.seed, self.step, stream), self._generator()
        buffer = self._buffer(chains, event, dtype) if again and isinstance(chains, range) else BlockBuffer(chains, event, dtype)
        out, next_block = buffer.whole, generator.next_block
        if buffer.parts:
            generator.seek(key, buffer.first)
        for part in buffer.parts:
            fill(part, generator=next_block())
        if buffer.rest == len(chains):
            return out
        size, known = block_size(event), self._memory
        for block, rows, inside in blocks_of(chains, size, buffer.rest):
            use, what = (fill, stream), (self.seed, self.step, block, event, dtype)  # several chunks of chains may share a block
            found = known.get(use)
            if found is None or found[0] != what:
                generator.seek(key, block)
                drawn = torch.empty((size, *event), dtype=dtype)
                found = known[use] = (what, fill(drawn, generator=next_block()))
            out[rows] = found[1][inside]
        return out

    def _generator(self) -> BlockGenerator:
        """Returns the generator of this thread."""
        thread = ("generator", get_ident())
        return self._memory.get(thread) or self._memory.setdefault(thread, BlockGenerator())

    def _buffer(self, chains: range, event: torch.Size, dtype: torch.dtype) -> BlockBuffer:
        """Returns the last buffer of this thread, if it fits. A new one would make a draw of few numbers 1.6 times as slow."""
        what, thread = (chains, event, dtype, torch.is_inference_mode_enabled()), get_ident()
        known = self._memory.get(thread)
        if known is None or known[0] != what:
            known = self._memory[thread] = (what, BlockBuffer(chains, event, dtype))
        return known[1]


def _ends(chains: range | tuple[int, ...]) -> Sequence[int]:
    """Returns ids among which are the least and the greatest."""
    return (chains[0], chains[-1]) if isinstance(chains, range) and chains else chains


def _is_word(value: object) -> bool:
    return (type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))) and 0 <= value <= _WORD  # pyright: ignore[reportOperatorIssue]


def _key(seed: int, step: int, stream: int) -> bytes:
    return blake2b(struct.pack("<QII", seed % 2**64, step, stream), digest_size=16).digest()
