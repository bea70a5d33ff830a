"""Philox 4x32-10, a counter-based generator of random numbers: the same on every device, in every version (Salmon et al., 2011)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF

PHILOX_LEAST = 2.0**-33
"""The least uniform number for a Metropolis test: its logarithm is finite."""


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
    return to_unit(word).clamp_min_(PHILOX_LEAST)


def _high(product: int | Tensor) -> int | Tensor:
    return (product >> 32) & _WORD


def to_unit(word: Tensor) -> Tensor:
    """Returns random words as float32 in [0, 1), computed as Triton does, so that its kernels draw the same numbers."""
    return torch.where(word >= 2**31, _WORD - word, word).float().mul_(4.6566127342e-10)
