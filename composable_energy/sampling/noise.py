r"""Keyed noise: the noise of chain $i$ at step $t$ is a function of (seed, $i$, $t$, stream) only.

So the samples do not depend on the batch size, the number of processes, or on stopping and resuming. Numbers come from Philox, a
counter-based generator (Salmon et al., 2011): the seed is its key, and the counter names the place.

- On the CPU NumPy's Philox 4x64-10 gives the *words*, with the counter (place in the chains' numbers, step, stream, draw). `numbers_of`
  makes numbers of words by operations of torch, so that a compiled step takes words and makes its numbers itself.
- On other devices Philox 4x32-10 is written in operations of torch, with the counter (quad of numbers inside the event, step, chain,
  stream). It draws the same on every device up to rounding, as the Triton kernel does, with the precision of float32.

References:
    Parallel random numbers: as easy as 1, 2, 3 (Salmon et al., 2011), https://doi.org/10.1145/2063384.2063405
"""

import math
import struct
from collections.abc import Sequence
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
_FEW, _MOST_STEPS = 2**16, 64  # numbers and steps that are drawn together

Kind = Literal["numpy", "philox"]
Draw = Literal["normal", "uniform", "uniforms"]
_PURPOSE = {"normal": 0, "uniform": 1, "uniforms": 2}


@dataclass(frozen=True)
class Noise:
    r"""The noise of some chains at one step.

    Args:
        seed: The seed, taken modulo $2^{64}$.
        chains: The ids of the chains, one for each row, below $2^{32}$.
        step: The step, below $2^{32}$; 0 is the start.
        kind: `"numpy"`, or `"philox"` for the numbers of other devices on the CPU; points that are not on the CPU always get these.

    Raises:
        OptionError: The kind is unknown, or the step or an id is out of range.

    Example:
        >>> x = torch.zeros(5, 2)
        >>> noise = Noise(seed=0, chains=range(5))
        >>> torch.equal(noise.normal(x)[3:], noise.for_chains(range(3, 5)).normal(x[3:]))
        True
    """

    seed: int
    chains: range | tuple[int, ...]
    step: int = 0
    kind: Kind = "numpy"
    _memory: dict[Any, Any] = field(default_factory=dict, repr=False, compare=False)  # of all steps of these chains; not saved

    def __post_init__(self) -> None:
        if self.kind not in ("numpy", "philox"):
            raise OptionError(f"noise must be 'numpy' or 'philox', got {self.kind!r}.")
        _check_word("The step of a noise", self.step)
        chains = self.chains
        for chain in chains[:: max(1, len(chains) - 1)] if isinstance(chains, range) else chains:  # the ends of a range
            _check_word("The id of a chain", chain)

    def __reduce__(self) -> tuple[type["Noise"], tuple[Any, ...]]:
        return Noise, (self.seed, self.chains, self.step, self.kind)

    def at(self, step: int) -> "Noise":
        """Returns the noise of the same chains at another step, from 0 to $2^{32} - 1$; else raises `OptionError`."""
        if type(step) is not int or not 0 <= step <= _WORD:
            _check_word("The step of a noise", step)
        noise = object.__new__(Noise)  # with the other attributes of this noise, which were checked
        vars(noise).update(vars(self), step=step)
        return noise

    def for_chains(self, chains: Sequence[int]) -> "Noise":
        """Returns the noise of other chains, given by their ids."""
        return replace(self, chains=chains if isinstance(chains, range) else tuple(chains), _memory={})

    def child(self, label: str) -> "Noise":
        """Returns independent noise for another purpose, such as a pilot run; its seed is a hash of this seed and the label."""
        digest = blake2b(struct.pack("<Q", self.seed % 2**64) + label.encode(), digest_size=8).digest()
        noise = object.__new__(Noise)  # as in `at`
        vars(noise).update(vars(self), seed=int.from_bytes(digest, "little"), _memory={})
        return noise

    def normal(self, like: Tensor, stream: int = 0) -> Tensor:
        """Returns standard normal numbers with the shape, dtype and device of points.

        Args:
            like: The points, with shape $(B, *)$, one row for each chain.
            stream: The number of the draw at this step, such as 0 for a momentum and 1 for a proposal.

        Raises:
            OptionError: The stream is not a whole number from 0 to $2^{32} - 1$.
            ShapeError: There are not as many rows as chains.
        """
        return self._draw("normal", like, stream).to(like.dtype, copy=True)  # what is kept is nobody's to change

    def add_normal_(self, x: Tensor, scale: float = 1.0, stream: int = 0) -> Tensor:
        r"""Adds $s\, \xi$ to points in place and returns them, with the scale $s$ and the standard normal numbers $\xi$ of `normal`."""
        drawn = self._draw("normal", x, stream)
        return x.add_(drawn if drawn.dtype == x.dtype else drawn.to(x.dtype), alpha=scale)

    def uniform(self, like: Tensor, stream: int = 0) -> Tensor:
        """Returns one number in (0, 1) for each chain, with shape $(B,)$, in float32, or in float64 for points of that dtype.

        Arguments and errors are those of `normal`.
        """
        return self._draw("uniform", like, stream).to(torch.float64 if like.dtype == torch.float64 else torch.float32, copy=True)

    def uniforms(self, like: Tensor, stream: int = 0) -> Tensor:
        """Returns numbers in (0, 1) with the shape and device of points, and the dtype of `uniform`, as `normal` returns normal ones."""
        return self._draw("uniforms", like, stream).to(torch.float64 if like.dtype == torch.float64 else torch.float32, copy=True)

    def words(self, draw: Draw, like: Tensor, stream: int = 0, steps: int = 1) -> Tensor:
        r"""Returns the random words of NumPy of which `numbers_of` makes the numbers of this step and of those after it.

        Args:
            draw: `"normal"`, `"uniform"` or `"uniforms"`.
            like: The points, with shape $(B, *)$, one row for each chain.
            stream: The number of the draw at each step.
            steps: The number of steps $S$.

        Returns:
            Words of int32, of int64 for points of float64, with shape $(S, B, W)$. $W$ is the next even number from the size of a point on
            for one number of each coordinate, and 1 for one of each chain.
        """
        width = 1 if draw == "uniform" else like[:1].numel() + 1 & ~1
        runs = [(self.chains.start, len(self.chains))] if isinstance(self.chains, range) and self.chains.step == 1 else self._runs()
        kind, size = (np.int64, 8) if like.dtype == torch.float64 else (np.int32, 4)
        (generator, state), found = _generator_of(get_ident()), list[np.ndarray]()
        state["state"]["key"][:] = self.seed % 2**64, 0
        for step in range(self.step, self.step + steps):
            for first, count in runs:
                block, skipped = divmod(first * width, 32 // size)  # a count of the generator gives 32 bytes
                state["state"]["counter"][:] = block, step, stream, _PURPOSE[draw]
                generator.state, end = state, skipped + count * width
                found.append(generator.random_raw(-(-end * size // 8)).view(kind)[skipped:end])
        together = found[0] if len(found) == 1 else np.concatenate(found) if found else np.empty(0, kind)
        return torch.from_numpy(together).view(steps, len(self.chains), width)

    def _draw(self, draw: Draw, like: Tensor, stream: int) -> Tensor:
        """Returns the numbers of this step; on the CPU up to 64 steps are drawn together, several times as fast for few numbers."""
        if type(stream) is not int or stream:
            _check_word("The stream of a draw", stream)
        if like.shape[0] != len(self.chains):
            raise ShapeError(f"This is the noise of {len(self.chains)} chains, got {len(like)} points; use `noise.for_chains`.")
        if self.kind == "philox" or not like.is_cpu:
            ids = self.chains
            rows = torch.arange(ids.start, ids.stop, ids.step, device="cpu") if isinstance(ids, range) else torch.tensor(ids, device="cpu")
            return philox_numbers(draw, self.seed, self.step, rows.to(like.device), stream, like.shape[1:])
        if torch.compiler.is_dynamo_compiling():
            raise OptionError("NumPy draws this noise, which a graph can't: draw before it, or from Noise(..., kind='philox').")
        shape, step = like.shape[:1] if draw == "uniform" else like.shape, self.step
        place, purpose = (get_ident(), draw, stream), (shape, like.dtype == torch.float64, torch.is_inference_mode_enabled())
        known, steps, rows = self._memory.get(place, (None, range(0), ()))
        if known == purpose and step in steps:
            return rows[step - steps.start]
        count = min(2 * len(steps), _MOST_STEPS, _FEW // max(1, shape.numel()), _WORD + 1 - step)
        count = max(1, count) if known == purpose and step == steps.stop else 1
        rows = numbers_of(draw, self.words(draw, like, stream, count), shape[1:]).unbind()
        if shape.numel() <= _FEW:
            self._memory[place] = purpose, range(step, step + count), rows
        return rows[0]

    def _runs(self) -> list[tuple[int, int]]:
        """Returns the chains as runs of ids in succession: the first id of each, and how many there are."""
        if (found := self._memory.get("runs")) is None:
            ids = np.asarray(self.chains, np.int64)
            firsts = np.flatnonzero(np.diff(ids, prepend=-2) != 1)
            found = self._memory["runs"] = list(zip(ids[firsts].tolist(), np.diff(firsts, append=len(ids)).tolist(), strict=True))
        return found


def numbers_of(draw: Draw, words: Tensor, event: Sequence[int] = ()) -> Tensor:
    r"""Returns the numbers that words with shape $(*, W)$ stand for, float64 for int64, else float32; normal ones by Box and Muller."""
    dtype, bits = (torch.float64, 63) if words.dtype == torch.int64 else (torch.float32, 31)
    half = words.shape[-1] // 2 if draw == "normal" else words.shape[-1]
    unit = words[..., :half].to(dtype).mul_(2.0**-bits).abs_().clamp_(2.0 ** (-bits - 1), 1 - torch.finfo(dtype).eps / 2)
    if draw != "normal":
        return unit[..., 0] if draw == "uniform" else unit[..., : math.prod(event)].reshape(*words.shape[:-1], *event)
    radius, angle = unit.log_().mul_(-2).sqrt_(), words[..., half:].to(dtype).mul_(math.pi * 2.0**-bits)
    numbers = torch.cat([radius * angle.cos(), radius.mul_(angle.sin_())], -1)
    return (numbers if (size := math.prod(event)) == 2 * half else numbers[..., :size]).reshape(*words.shape[:-1], *event)


@lru_cache(maxsize=64)
def _generator_of(thread: int) -> tuple[np.random.Philox, Any]:
    """Returns the generator of a thread with its state, which is set before each use."""
    return (generator := np.random.Philox(0)), dict(generator.state)


def _check_word(what: str, value: Any) -> None:
    if type(value) is int and 0 <= value <= _WORD:  # the usual case, quickly
        return
    if type(value) is bool or not isinstance(value, Integral) or not 0 <= value <= _WORD:  # pyright: ignore[reportOperatorIssue]
        raise OptionError(f"{what} is a whole number from 0 to 2^32 - 1, got {value!r}.")


def philox(key: Sequence[int | Tensor], counter: Sequence[int | Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Returns four random words, of int64 in $[0, 2^{32})$, for a key of two and counters of four words; the first is a tensor."""
    (low, high), (a, b, c, d) = key, counter
    for _ in range(10):
        # Products wrap modulo 2^64 and shifts keep their bits, so signed numbers can be used.
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = ((right >> 32) & _WORD) ^ b ^ low, right & _WORD, ((left >> 32) & _WORD) ^ d ^ high, left & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return tuple(torch.broadcast_tensors(*(torch.as_tensor(word) for word in (a, b, c, d))))  # pyright: ignore[reportReturnType]


def key_of(seed: int) -> tuple[int, int]:
    """Returns the two words of the key of a seed."""
    return seed & _WORD, (seed >> 32) & _WORD


def philox_numbers(draw: Draw, seed: int, step: int, chains: Tensor, stream: int, event: torch.Size) -> Tensor:
    """Returns float32 numbers with shape $(B, *)$, or $(B,)$ for uniform ones; a counter gives four normal ones, or two if that is all."""
    if draw == "uniform":
        return _to_unit(philox(key_of(seed), (torch.zeros_like(chains), step, chains, stream))[0]).clamp_min_(2.0**-33)
    size, numbers = event.numel(), []
    words = philox(key_of(seed), (torch.arange(max(1, -(-size // 4)), device=chains.device), step, chains[:, None], stream))
    if draw == "uniforms":
        units = torch.stack([_to_unit(word) for word in words], -1).clamp_min_(2.0**-33)
        return units.flatten(-2)[..., :size].reshape(len(chains), *event).contiguous()
    for first, second in (words[:2],) if size <= 2 else (words[:2], words[2:]):
        radius, angle = _to_unit(first).clamp_min_(1e-7).log_().mul_(-2).sqrt_(), _to_unit(second).mul_(2 * math.pi)
        numbers += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(numbers, -1).flatten(-2)[..., :size].reshape(len(chains), *event).contiguous()


def _to_unit(word: Tensor) -> Tensor:
    """Returns random words as float32 in [0, 1), computed as Triton does, so that its kernels draw the same numbers."""
    return torch.where(word >= 2**31, _WORD - word, word).float().mul_(4.6566127342e-10)
