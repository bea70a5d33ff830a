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

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from numbers import Integral
from threading import get_ident
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError

__all__ = ["Noise", "philox"]

_WORD = 0xFFFFFFFF
_BLOCK = 4096  # numbers, a power of two: large enough that seeding a generator costs little beside drawing
_MOST_CHAINS = 2048
_FEW = 2**16
_STATE = 624  # words of 32 bits in the state of torch's generator, a Mersenne twister
_SEEDED_BY_5489 = [5489, 1301868182, 2938499221]  # its first words, known from its definition

Kind = Literal["blocks", "philox"]


class _Place:
    """Where the numbers of chains stand, and which parts of it are blocks.

    Attributes:
        whole: All numbers, with shape $(B, *)$.
        parts: The blocks that are drawn straight into it, one after another.
        first: The number of the first of them.
        rest: The first row that is in none of them.
    """

    __slots__ = ("first", "parts", "rest", "whole")

    def __init__(self, chains: Sequence[int], event: torch.Size, dtype: torch.dtype) -> None:
        self.whole = torch.empty((len(chains), *event), dtype=dtype)
        self.parts, self.first, self.rest = [], 0, 0
        size = _size(event)
        if isinstance(chains, range) and chains.step == 1 and chains.start % size == 0:
            numbers = event.numel()
            # torch fills a tensor by groups of 16 numbers, in order, so the first rows of a block may be drawn alone.
            alone = len(chains) * numbers % 16 == 0 and size * numbers % 16 == 0
            self.rest = len(chains) if alone else len(chains) // size * size
            self.parts, self.first = list(self.whole[: self.rest].split(size)) if self.rest else [], chains.start // size


class _Seeder:
    """Gives a generator the state of a block.

    `torch.Generator.manual_seed` uses 32 bits of a seed, so that two of some ten thousand steps would have the same noise. Here the state
    itself is set, by `set_state`: the form of `get_state` is not documented by torch, so it is checked here, and pinned by a test.

    Raises:
        OptionError: This version of torch keeps the state in another form.
    """

    __slots__ = ("_bits", "_place", "_state", "_words", "generator")

    def __init__(self) -> None:
        self.generator, self._bits = torch.Generator(), np.random.Philox(0)
        self._place, self._state = self._bits.state, self.generator.manual_seed(5489).get_state()
        whole = self._state.numpy()
        self._words = whole[24 : 24 + 8 * _STATE].view(np.uint64)  # each holds 32 bits, and all are used up: the next draw makes new ones
        if len(whole) != 5056 or whole[8:24].view(np.uint32).tolist() != [1, 1, 0, 0] or self._words[:3].tolist() != _SEEDED_BY_5489:
            raise OptionError(f"torch {torch.__version__} keeps the state of a generator in an unknown form: draw with noise='philox'.")

    def go_to(self, key: bytes, block: int) -> None:
        """Goes to a block of the draw with this key, of 16 bytes; `following` then gives its generator."""
        state = self._place["state"]
        state["key"], state["counter"][0] = np.frombuffer(key, np.uint64), block * (_STATE // 8)  # a count makes 8 words
        self._bits.state = self._place

    def following(self) -> torch.Generator:
        """Returns the generator of this block, and goes to the next."""
        self._words[:] = self._bits.random_raw(_STATE // 2).view(np.uint32)
        self.generator.set_state(self._state)
        return self.generator


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
        shared = {key: value for key, value in self._memory.items() if isinstance(value, _Seeder)}
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
            return _unit(word).clamp_min_(2.0**-33).to(dtype)
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
        chains, key, seeder = self.chains, _key(self.seed, self.step, stream), self._seeder()
        place = self._place(chains, event, dtype) if again and isinstance(chains, range) else _Place(chains, event, dtype)
        out, following = place.whole, seeder.following
        if place.parts:
            seeder.go_to(key, place.first)
        for part in place.parts:
            fill(part, generator=following())
        if place.rest == len(chains):
            return out
        size, known = _size(event), self._memory
        for block, rows, inside in _blocks_of(chains, size, place.rest):
            use, what = (fill, stream), (self.seed, self.step, block, event, dtype)  # several chunks of chains may share a block
            found = known.get(use)
            if found is None or found[0] != what:
                seeder.go_to(key, block)
                drawn = torch.empty((size, *event), dtype=dtype)
                found = known[use] = (what, fill(drawn, generator=following()))
            out[rows] = found[1][inside]
        return out

    def _seeder(self) -> _Seeder:
        """Returns the seeder of this thread."""
        thread = ("seeder", get_ident())
        return self._memory.get(thread) or self._memory.setdefault(thread, _Seeder())

    def _place(self, chains: range, event: torch.Size, dtype: torch.dtype) -> _Place:
        """Returns the last place of this thread, if it fits."""
        what, thread = (chains, event, dtype, torch.is_inference_mode_enabled()), get_ident()
        known = self._memory.get(thread)
        if known is None or known[0] != what:
            known = self._memory[thread] = (what, _Place(chains, event, dtype))
        return known[1]


def _size(event: torch.Size) -> int:
    """How many chains are in a block."""
    return max(1, min(_MOST_CHAINS, _BLOCK // (1 << (max(1, event.numel()) - 1).bit_length())))


def _blocks_of(chains: range | tuple[int, ...], size: int, row: int) -> Iterator[tuple[int, Any, Any]]:
    """Yields each block, from some row on, with the rows that it fills and where they are inside it."""
    if isinstance(chains, range) and chains.step == 1:
        chain = chains.start + row
        while chain < chains.stop:
            block, first = divmod(chain, size)
            count = min(size - first, chains.stop - chain)
            yield block, slice(row, row + count), slice(first, first + count)
            row, chain = row + count, chain + count
        return
    groups: dict[int, tuple[list[int], list[int]]] = {}
    for row, chain in enumerate(chains):
        rows, inside = groups.setdefault(chain // size, ([], []))
        rows.append(row)
        inside.append(chain % size)
    for block, (rows, inside) in groups.items():
        yield block, rows, inside


def _ends(chains: range | tuple[int, ...]) -> Sequence[int]:
    """Returns ids among which are the least and the greatest."""
    return (chains[0], chains[-1]) if isinstance(chains, range) and chains else chains


def _is_word(value: object) -> bool:
    return (type(value) is int or (isinstance(value, Integral) and not isinstance(value, bool))) and 0 <= value <= _WORD  # pyright: ignore[reportOperatorIssue]


def _key(seed: int, step: int, stream: int) -> bytes:
    return blake2b(struct.pack("<QII", seed % 2**64, step, stream), digest_size=16).digest()


def philox(seed: int, counter: Sequence[int | Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Philox 4x32-10: four random words for each counter.

    Args:
        seed: The key, of 64 bits.
        counter: Four words, each a number or a tensor of int64 in $[0, 2^{32})$; they broadcast, and at least the first is a tensor.

    Returns:
        Four tensors of int64 in $[0, 2^{32})$.
    """
    a, b, c, d = counter
    low, high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # Products wrap modulo 2^64 and an arithmetic shift keeps their bits, so signed numbers will do.
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = _high(right) ^ b ^ low, right & _WORD, _high(left) ^ d ^ high, left & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return tuple(torch.broadcast_tensors(*(torch.as_tensor(word) for word in (a, b, c, d))))  # pyright: ignore[reportReturnType]


def philox_normal(seed: int, step: int, chains: Tensor, stream: int, event: torch.Size) -> Tensor:
    """Returns standard normal numbers in float32 with shape $(B, *)$: four from each counter, by the transform of Box and Muller.

    Args:
        seed: The key.
        step: The step.
        chains: The ids, with shape $(B,)$; the result is on their device.
        stream: The stream.
        event: The shape of one point.
    """
    quads = torch.arange(max(1, -(-event.numel() // 4)), device=chains.device)
    words = philox(seed, (quads[None, :], step, chains[:, None], stream))
    pairs = []
    for first, second in (words[:2], words[2:]):
        radius = _unit(first).clamp_min_(1e-7).log_().mul_(-2).sqrt_()
        angle = _unit(second).mul_(2 * math.pi)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, -1).flatten(1)[:, : event.numel()].reshape(len(chains), *event).contiguous()


def _high(product: int | Tensor) -> int | Tensor:
    return (product >> 32) & _WORD


def _unit(word: Tensor) -> Tensor:
    """Maps words to float32 in [0, 1) as Triton does, so that its kernels draw the same."""
    return torch.where(word >= 2**31, _WORD - word, word).float().mul_(4.6566127342e-10)
