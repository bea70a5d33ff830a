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

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import blake2b
from numbers import Integral
from threading import get_ident
from typing import Any, Literal

import torch
from torch import Tensor

from composable_energy.errors import OptionError, ShapeError
from composable_energy.noise_blocks import BlockBuffer, BlockGenerator, BlockPlaces, block_size, blocks_of
from composable_energy.philox import PHILOX_LEAST, philox_normal, philox_uniform

_WORD = 0xFFFFFFFF
_FEW = 2**16
_DRAWN = (torch.float32, torch.float64)  # dtypes of blocks
_MOST_STEPS = 64
_LEAST = 2.0**-25  # of a uniform number: its logarithm is finite

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
        self._check(like, stream)
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
        self._check(x, stream)
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
        self._check(like, stream)
        drawn = self._draw("uniform", like, stream).to(torch.float64 if like.dtype == torch.float64 else torch.float32)
        return drawn.clamp_min(_LEAST if self._draws_blocks(like) else PHILOX_LEAST)

    def _check(self, like: Tensor, stream: int) -> None:
        if type(stream) is not int or stream:
            _check_word("The stream of a draw", stream)
        if like.shape[0] != len(self.chains):
            raise ShapeError(f"This is the noise of {len(self.chains)} chains, got {len(like)} points; use `noise.for_chains`.")

    def _draws_blocks(self, like: Tensor) -> bool:
        return self.kind == "blocks" and like.is_cpu

    def _ids(self, device: torch.device) -> Tensor:
        if isinstance(self.chains, range):
            return torch.arange(self.chains.start, self.chains.stop, self.chains.step, device=device)
        found = self._places.get(device)
        if found is None:
            found = self._places[device] = torch.tensor(self.chains, dtype=torch.int64, device=device)
        return found

    def _draw(self, draw: Draw, like: Tensor, stream: int, *, reuse: bool = True) -> Tensor:
        """Returns the numbers of this step; with `reuse`, a later draw of this thread may overwrite them.

        On the CPU steps in succession are drawn together, up to 64 of them: alone, a draw of few numbers takes three times as long or more,
        because of its calls, and because the processor has executed other code meanwhile.
        """
        event, step, numbers = (like.shape[1:], self.step, like.numel()) if draw == "normal" else (torch.Size(), self.step, len(like))
        blocks = self._draws_blocks(like)
        dtype = like.dtype if blocks and like.dtype in _DRAWN else torch.float32
        if torch.compiler.is_dynamo_compiling() and blocks:  # then this function runs outside of the graph, or there is no graph
            raise OptionError("Blocks of noise are not drawn in a compiled graph: use noise='philox'.")
        if not (blocks and reuse) and (numbers > _FEW or not like.is_cpu or torch.compiler.is_compiling()):
            return self._draw_steps(draw, range(step, step + 1), stream, event, dtype, like.device, [])[0]
        place, purpose = (get_ident(), draw, stream), (self.seed, blocks, self.chains, event, dtype, torch.is_inference_mode_enabled())
        found = self._memory.get(place)
        if found is None or found[0] != purpose:
            steps, buffers = range(step, step + 1), []
        elif step in found[1]:
            return found[2][step - found[1].start]
        else:
            _, steps, _, buffers = found
            count = max(1, min(2 * len(steps), _MOST_STEPS, _FEW // max(1, numbers), _WORD + 1 - step)) if step == steps.stop else 1
            steps = range(step, step + count)
        rows = self._draw_steps(draw, steps, stream, event, dtype, like.device, buffers)
        self._memory[place] = purpose, steps, rows, buffers
        return rows[0]

    def _draw_steps(
        self, draw: Draw, steps: range, stream: int, event: torch.Size, dtype: torch.dtype, device: torch.device, buffers: list[BlockBuffer]
    ) -> Sequence[Tensor]:
        """Returns the numbers of steps; blocks are drawn into buffers, which are made where they are missing."""
        if self.kind == "philox" or device.type != "cpu":
            if draw == "normal":
                return philox_normal(self.seed, steps, self._ids(device), stream, event).unbind()
            return philox_uniform(self.seed, steps, self._ids(device), stream).unbind()
        if len(buffers) < len(steps):
            buffers[:] = [BlockBuffer(self.chains, row) for row in torch.empty((len(steps), len(self.chains), *event), dtype=dtype)]
        fill = Tensor.normal_ if draw == "normal" else Tensor.uniform_
        return [self._fill(buffer, step, stream, fill) for step, buffer in zip(steps, buffers, strict=False)]

    def _fill(self, buffer: BlockBuffer, step: int, stream: int, fill: Callable[..., Tensor]) -> Tensor:
        """Draws the numbers of a step into a buffer."""
        chains, key, generator, out = self.chains, _key(self.seed, step, stream), _generator_of(get_ident()), buffer.whole
        _fill_blocks(buffer.parts, generator, key, buffer.first, fill)
        if buffer.rest == len(chains):
            return out
        event, dtype, memory = out.shape[1:], out.dtype, self._memory
        size = block_size(event)
        for block, rows, inside in self._blocks(size, buffer.rest):
            use, key_of_block = (fill, stream), (self.seed, step, block, event, dtype)  # several chunks of chains may share a block
            found = memory.get(use)
            if found is None or found[0] != key_of_block:
                drawn = torch.empty((size, *event), dtype=dtype)
                found = memory[use] = (key_of_block, fill(drawn, generator=generator.block(key, block)))
            out[rows] = found[1][inside]
        return out

    def _blocks(self, size: int, row: int) -> Iterable[tuple[int, slice | Tensor, slice | Tensor]]:
        """Returns the blocks of the chains from a row on, with the rows of each and their places in it."""
        chains = self.chains
        if isinstance(chains, range) and chains.step == 1:
            return blocks_of(chains, size, row)
        return self._places.get(size) or self._places.setdefault(size, BlockPlaces(chains, size))


@lru_cache(maxsize=64)
def _generator_of(thread: int) -> BlockGenerator:
    """Returns the generator of a thread; it is set to the state of a block before each use."""
    return BlockGenerator()


def _fill_blocks(parts: Sequence[Tensor], generator: BlockGenerator, key: bytes, first: int, fill: Callable[..., Tensor]) -> None:
    """Draws whole blocks in succession."""
    if len(parts) == 1:
        fill(parts[0], generator=generator.block(key, first))
    elif parts:
        for part, own in zip(parts, generator.blocks(key, first, len(parts)), strict=True):
            fill(part, generator=own)


def _ends(chains: range | tuple[int, ...]) -> Sequence[int]:
    """Returns ids that include the least and the greatest, and those that may be no whole numbers."""
    if isinstance(chains, range):
        return (chains[0], chains[-1]) if chains else ()
    return (min(chains), max(chains)) if set(map(type, chains)) == {int} else chains


def _check_word(what: str, value: Any) -> None:
    if type(value) is bool or not isinstance(value, int | Integral) or not 0 <= value <= _WORD:  # pyright: ignore[reportOperatorIssue]
        raise OptionError(f"{what} is a whole number from 0 to 2^32 - 1, got {value!r}.")


def _key(seed: int, step: int, stream: int) -> bytes:
    return blake2b(struct.pack("<QII", seed % 2**64, step, stream), digest_size=16).digest()
