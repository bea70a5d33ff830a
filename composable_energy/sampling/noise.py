r"""Keyed noise: the noise of chain $i$ at step $t$ is a function of (seed, $i$, $t$, stream) only.

So the samples do not depend on the batch size, the number of ranks, or on stopping and resuming. There are two kinds.

*Blocks*, the default on the CPU: chains are divided into blocks of about 4,096 numbers (one chain, or up to 2,048 small ones). Each block
is drawn by a `torch.Generator` whose whole state comes from NumPy's Philox 4x64-10, with 128 bits of a hash of (seed, step, stream) as its
key and the number of the block as its counter. This costs 1.2 to 1.9 times as much as `torch.randn`, more for less than 4,096 numbers;
the numbers may change with the version of torch.

*Philox*, always used on other devices and by compiled steps: Philox 4x32-10 (Salmon et al., 2011), a counter-based generator with the
counter (quad of numbers inside the event, step, chain, stream) and the seed as key. It is the same on every device and in every version up
to rounding, and its numbers have the precision of float32. In a compiled graph on a CPU it costs less than `torch.randn`; by torch's
operations 2 to 8 times as much.

References:
    Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., 2011), https://doi.org/10.1145/2063384.2063405
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from numbers import Integral
from threading import get_ident
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError

_WORD = 0xFFFFFFFF
_BLOCK = 4096  # numbers, a power of two: large enough that seeding the generator costs little
_MOST_CHAINS = 2048  # of a block
_STATE = 624  # words of 32 bits in the state of torch's generator, a Mersenne twister
_SEEDED_BY_5489 = [5489, 1301868182, 2938499221]  # its first words, from its definition
_FEW = 2**16
_DRAWN = (torch.float32, torch.float64)  # dtypes of blocks
_MOST_STEPS = 64
_LEAST, _LEAST_PHILOX = 2.0**-25, 2.0**-33  # of a uniform number: its logarithm is finite

Kind = Literal["blocks", "philox"]
Draw = Literal["normal", "uniform"]


@dataclass(frozen=True)
class Noise:
    r"""The noise of some chains at one step.

    Args:
        seed: The seed, taken modulo $2^{64}$.
        chains: The ids of the chains, one for each row, below $2^{32}$.
        step: The step, below $2^{32}$; 0 is the start.
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
    _memory: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # shared by all steps; not saved
    _places: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # of the chains; shared by all steps and children

    def __post_init__(self) -> None:
        if self.kind not in ("blocks", "philox"):
            raise OptionError(f"noise must be 'blocks' or 'philox', got {self.kind!r}.")
        _check_word("The step of a noise", self.step)
        for chain in _ends(self.chains):
            _check_word("The id of a chain", chain)

    def __reduce__(self) -> tuple[type[Noise], tuple[Any, ...]]:
        return Noise, (self.seed, self.chains, self.step, self.kind)

    def at(self, step: int) -> Noise:
        """Returns the noise of the same chains at another step.

        Args:
            step: The step, from 0 to $2^{32} - 1$.

        Raises:
            OptionError: The step is out of range.
        """
        if type(step) is not int or not 0 <= step <= _WORD:
            _check_word("The step of a noise", step)
        noise = object.__new__(Noise)  # with the other attributes of this noise, which were checked
        vars(noise).update(vars(self), step=step)
        return noise

    def for_chains(self, chains: Sequence[int]) -> Noise:
        """Returns the noise of other chains, given by their ids."""
        return replace(self, chains=chains if isinstance(chains, range) else tuple(chains), _places={})

    def child(self, label: str) -> Noise:
        """Returns independent noise for another purpose, such as a pilot run; its seed is a hash of this seed and the label."""
        digest = blake2b(struct.pack("<Q", self.seed % 2**64) + label.encode(), digest_size=8).digest()
        return replace(self, seed=int.from_bytes(digest, "little"), _memory={})

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Returns standard normal numbers with the shape, dtype and device of points.

        Args:
            like: The points, with shape $(B, *)$, one row for each chain.
            stream: The number of the draw at this step, such as 0 for a momentum and 1 for a proposal.

        Raises:
            OptionError: The stream is not a whole number from 0 to $2^{32} - 1$.
            ShapeError: There are not as many rows as chains.
        """
        few = like.numel() <= _FEW  # copying costs less than a new tensor
        return self._draw("normal", like, stream, reuse=few).to(like.dtype, copy=few)

    def add_normal_(self, x: Tensor, scale: float = 1.0, stream: int = 0) -> Tensor:
        r"""Adds $s\, \xi$ to points in place, with the standard normal numbers $\xi$ of `normal`; cheaper than two operations.

        Args:
            x: The points, with shape $(B, *)$, one row for each chain.
            scale: $s$.
            stream: The number of the draw at this step.

        Returns:
            The points.

        Raises:
            OptionError: The stream is not a whole number from 0 to $2^{32} - 1$.
            ShapeError: There are not as many rows as chains.
        """
        drawn = self._draw("normal", x, stream)
        return x.add_(drawn if drawn.dtype == x.dtype else drawn.to(x.dtype), alpha=scale)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Returns one number in (0, 1) for each chain, with shape $(B,)$, in float32, or in float64 for points of that dtype.

        Args:
            like: The points, with shape $(B, *)$, one row for each chain.
            stream: The number of the draw at this step; other than those of `normal`.

        Raises:
            OptionError: The stream is not a whole number from 0 to $2^{32} - 1$.
            ShapeError: There are not as many rows as chains.
        """
        drawn = self._draw("uniform", like, stream).to(torch.float64 if like.dtype == torch.float64 else torch.float32)
        return drawn.clamp_min(_LEAST if self.kind == "blocks" and like.is_cpu else _LEAST_PHILOX)

    def _draw(self, draw: Draw, like: Tensor, stream: int, *, reuse: bool = True) -> Tensor:
        """Returns the numbers of this step; with `reuse`, a later draw of this thread may overwrite them.

        On the CPU steps in succession are drawn together, up to 64 of them: alone, a draw of few numbers takes three times as long or more,
        because of its calls, and because the processor has executed other code meanwhile.
        """
        if type(stream) is not int or stream:
            _check_word("The stream of a draw", stream)
        if like.shape[0] != len(self.chains):
            raise ShapeError(f"This is the noise of {len(self.chains)} chains, got {len(like)} points; use `noise.for_chains`.")
        blocks, step, event = self.kind == "blocks" and like.is_cpu, self.step, like.shape[1:] if draw == "normal" else torch.Size()
        dtype = like.dtype if blocks and like.dtype in _DRAWN else torch.float32
        if not blocks and (not like.is_cpu or torch.compiler.is_compiling()):  # a graph knows no threads
            return self._draw_steps(draw, range(step, step + 1), stream, event, dtype, like.device, [])[0]
        place, purpose = (get_ident(), draw, stream), (self.seed, blocks, self.chains, event, dtype, torch.is_inference_mode_enabled())
        found = self._memory.get(place)
        if reuse and found is not None and step in found[1] and found[0] == purpose:
            return found[2][step - found[1].start]
        if torch.compiler.is_dynamo_compiling() and blocks:  # then this function runs outside of the graph, or there is no graph
            raise OptionError("Blocks of noise are not drawn in a graph: draw before it, or from Noise(..., kind='philox').")
        numbers = len(like) * event.numel()
        if not (blocks and reuse) and numbers > _FEW:
            return self._draw_steps(draw, range(step, step + 1), stream, event, dtype, like.device, [])[0]
        steps, buffers = range(step, step + 1), list[Tensor]()
        if found is not None and found[0] == purpose:
            _, last, _, buffers = found
            count = min(2 * len(last), _MOST_STEPS, _FEW // max(1, numbers), _WORD + 1 - step) if step == last.stop else 1
            steps = range(step, step + max(1, count))
        rows = self._draw_steps(draw, steps, stream, event, dtype, like.device, buffers)
        self._memory[place] = purpose, steps, rows, buffers
        return rows[0]

    def _draw_steps(
        self, draw: Draw, steps: range, stream: int, event: torch.Size, dtype: torch.dtype, device: torch.device, buffers: list[Tensor]
    ) -> Sequence[Tensor]:
        """Returns the numbers of steps; blocks are drawn into buffers, which are made where they are missing."""
        if self.kind == "philox" or device.type != "cpu":
            if draw == "normal":
                return philox_normal(self.seed, steps, self._ids(device), stream, event).unbind()
            return philox_uniform(self.seed, steps, self._ids(device), stream).unbind()
        if len(buffers) < len(steps):
            buffers[:] = torch.empty((len(steps), len(self.chains), *event), dtype=dtype).unbind()
        self._fill(buffers, steps, stream, Tensor.normal_ if draw == "normal" else Tensor.uniform_)
        return buffers[: len(steps)]

    def _fill(self, buffers: Sequence[Tensor], steps: range, stream: int, fill: Callable[..., Tensor]) -> None:
        """Draws the numbers of steps, each into a buffer."""
        chains, event, dtype, first = self.chains, buffers[0].shape[1:], buffers[0].dtype, 0
        numbers = max(1, event.numel())
        size = max(1, min(_MOST_CHAINS, _BLOCK // (1 << (numbers - 1).bit_length())))
        if isinstance(chains, range) and chains.step == 1 and chains.start % size == 0:
            # torch fills a tensor in order by groups of 16 numbers, so the first rows of a block can be drawn alone.
            alone = len(chains) * numbers % 16 == 0 and size * numbers % 16 == 0
            first = len(chains) if alone else len(chains) // size * size
        blocks, generator = self._blocks(size, first) if first < len(chains) else (), _generator_of(get_ident())
        for step, out in zip(steps, buffers, strict=False):
            key = blake2b(struct.pack("<QII", self.seed % 2**64, step, stream), digest_size=16).digest()
            if first:
                parts = (out,) if first == len(chains) <= size else out[:first].split(size)
                generator.fill(parts, key, chains[0] // size, fill)
            for block, rows, inside in blocks:
                use, key_of_block = (fill, stream), (self.seed, step, block, event, dtype)  # several batches of chains may share a block
                found = self._memory.get(use)
                if found is None or found[0] != key_of_block:
                    drawn = torch.empty((size, *event), dtype=dtype)
                    generator.fill((drawn,), key, block, fill)
                    found = self._memory[use] = (key_of_block, drawn)
                out[rows] = found[1][inside]

    def _blocks(self, size: int, row: int) -> list[tuple[int, slice | Tensor, slice | Tensor]]:
        """Returns the blocks of the chains from a row on, with the rows of each and their places in it; found once for these chains."""
        found = self._places.get((size, row))
        if found is None:
            ids = self._ids(torch.device("cpu"))[row:]
            blocks, order = (ids // size).sort(stable=True)
            numbers, counts = blocks.unique_consecutive(return_counts=True)
            parts = order.split(counts.tolist())
            places = [(number, rows + row, ids[rows] % size) for number, rows in zip(numbers.tolist(), parts, strict=True)]
            found = self._places[size, row] = [(number, _as_slice(rows), _as_slice(inside)) for number, rows, inside in places]
        return found

    def _ids(self, device: torch.device) -> Tensor:
        if isinstance(self.chains, range):
            return torch.arange(self.chains.start, self.chains.stop, self.chains.step, device=device)
        found = self._places.get(device)
        if found is None:
            found = self._places[device] = torch.tensor(self.chains, dtype=torch.int64, device=device)
        return found


def _as_slice(places: Tensor) -> slice | Tensor:
    """Returns places as a slice, whose rows are copied faster, if they are consecutive."""
    first, last = int(places[0]), int(places[-1])
    return slice(first, last + 1) if last - first + 1 == len(places) and bool((places.diff() == 1).all()) else places


class _BlockGenerator:
    """A torch generator that is set to the state of a block.

    `torch.Generator.manual_seed` uses 32 bits of a seed, so two of some ten thousand steps would have the same noise. So the whole state is
    set with `set_state`. Its format is not documented by torch; it is checked here and pinned by a test.

    Raises:
        OptionError: This version of torch has another format.
    """

    def __init__(self) -> None:
        self.generator, self._bits = torch.Generator(), np.random.Philox(0)
        self._philox_state, self._state = self._bits.state, self.generator.manual_seed(5489).get_state()
        whole = self._state.numpy()
        self._words = whole[24 : 24 + 8 * _STATE].view(np.uint64)  # 32 bits each; the index says that the next draw needs new words
        if len(whole) != 5056 or whole[8:24].view(np.uint32).tolist() != [1, 1, 0, 0] or self._words[:3].tolist() != _SEEDED_BY_5489:
            raise OptionError(f"torch {torch.__version__} has an unknown format of generator states: install an earlier one.")

    def fill(self, parts: Sequence[Tensor], key: bytes, block: int, draw: Callable[..., Tensor]) -> None:
        """Draws blocks in succession, from one on, into tensors; a key of 16 bytes is that of the draw."""
        state, generator, words = self._philox_state["state"], self.generator, self._words
        state["key"], state["counter"][0] = np.frombuffer(key, np.uint64), block * (_STATE // 8)  # each count gives 8 words
        self._bits.state = self._philox_state
        for part in parts:
            words[:] = self._bits.random_raw(_STATE // 2).view(np.uint32)
            generator.set_state(self._state)
            draw(part, generator=generator)


@lru_cache(maxsize=64)
def _generator_of(thread: int) -> _BlockGenerator:
    """Returns the generator of a thread; it is set to the state of a block before each use."""
    return _BlockGenerator()


def _ends(chains: range | tuple[int, ...]) -> Sequence[int]:
    """Returns ids that include the least and the greatest, and those that may be no whole numbers."""
    if isinstance(chains, range):
        return (chains[0], chains[-1]) if chains else ()
    return (min(chains), max(chains)) if set(map(type, chains)) == {int} else chains


def _check_word(what: str, value: Any) -> None:
    if type(value) is bool or not isinstance(value, int | Integral) or not 0 <= value <= _WORD:  # pyright: ignore[reportOperatorIssue]
        raise OptionError(f"{what} is a whole number from 0 to 2^32 - 1, got {value!r}.")


# Philox 4x32-10 --------------------------------------------------------------------------------------------------------------------------


def philox(key: Sequence[int | Tensor], counter: Sequence[int | Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Returns four random words for each counter.

    Args:
        key: Two words.
        counter: Four words, each a number or a tensor of int64 in $[0, 2^{32})$; they broadcast, and at least the first is a tensor.

    Returns:
        Four tensors of int64 in $[0, 2^{32})$.
    """
    (low, high), (a, b, c, d) = key, counter
    for _ in range(10):
        # Products wrap modulo 2^64 and shifts keep their bits, so signed numbers can be used.
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = _high(right) ^ b ^ low, right & _WORD, _high(left) ^ d ^ high, left & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return tuple(torch.broadcast_tensors(*(torch.as_tensor(word) for word in (a, b, c, d))))  # pyright: ignore[reportReturnType]


def key_of(seed: int) -> tuple[int, int]:
    """Returns the two words of the key of a seed."""
    return seed & _WORD, (seed >> 32) & _WORD


def box_muller(words: Sequence[Tensor]) -> Tensor:
    """Returns standard normal float32 numbers with shape $(*, k)$ from $k$ words, two from each pair."""
    numbers = []
    for first, second in zip(words[::2], words[1::2], strict=True):
        radius = to_unit(first).clamp_min_(1e-7).log_().mul_(-2).sqrt_()
        angle = to_unit(second).mul_(2 * math.pi)
        numbers += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(numbers, -1)


def philox_normal(seed: int, steps: range, chains: Tensor, stream: int, event: torch.Size) -> Tensor:
    """Returns standard normal float32 numbers with shape $(S, B, *)$: four from each counter, or two if that is all.

    Args:
        seed: The key.
        steps: The $S$ steps.
        chains: The ids of the chains, with shape $(B,)$, on the device of the result.
        stream: The stream.
        event: The shape of one point.
    """
    size = event.numel()
    quads = torch.arange(max(1, -(-size // 4)), device=chains.device)
    step = steps.start if len(steps) == 1 else torch.arange(steps.start, steps.stop, device=chains.device)[:, None, None]
    words = philox(key_of(seed), (quads, step, chains[:, None], stream))
    numbers = box_muller(words[: 2 if size <= 2 else 4])
    return numbers.flatten(-2)[..., :size].reshape(len(steps), len(chains), *event).contiguous()


def philox_uniform(seed: int, steps: range, chains: Tensor, stream: int) -> Tensor:
    """Returns float32 numbers in (0, 1) with shape $(S, B)$, one for each chain at each step; see `philox_normal`."""
    step = torch.arange(steps.start, steps.stop, device=chains.device)[:, None]
    word = philox(key_of(seed), (torch.zeros_like(chains), step, chains, stream))[0]
    return to_unit(word).clamp_min_(_LEAST_PHILOX)


def _high(product: int | Tensor) -> int | Tensor:
    return (product >> 32) & _WORD


def to_unit(word: Tensor) -> Tensor:
    """Returns random words as float32 in [0, 1), computed as Triton does, so that its kernels draw the same numbers."""
    return torch.where(word >= 2**31, _WORD - word, word).float().mul_(4.6566127342e-10)
