"""Philox 4x32-10, a counter-based generator of random numbers: the same on every device, in every version (Salmon et al., 2011)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["philox", "philox_normal", "to_unit"]

_WORD = 0xFFFFFFFF


def philox(seed: int, counter: Sequence[int | Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Returns four random words for each counter.

    Args:
        seed: The key, of 64 bits.
        counter: Four words, each a number or a tensor of int64 in $[0, 2^{32})$; they broadcast, and at least the first is a tensor.

    Returns:
        Four tensors of int64 in $[0, 2^{32})$.
    """
    a, b, c, d = counter
    low, high = seed & _WORD, (seed >> 32) & _WORD
    for _ in range(10):
        # Products wrap modulo 2^64 and shifts keep their bits, so signed numbers can be used.
        left, right = a * 0xD2511F53, c * 0xCD9E8D57
        a, b, c, d = _high(right) ^ b ^ low, right & _WORD, _high(left) ^ d ^ high, left & _WORD
        low, high = (low + 0x9E3779B9) & _WORD, (high + 0xBB67AE85) & _WORD
    return tuple(torch.broadcast_tensors(*(torch.as_tensor(word) for word in (a, b, c, d))))  # pyright: ignore[reportReturnType]


def philox_normal(seed: int, step: int, chains: Tensor, stream: int, event: torch.Size) -> Tensor:
    """Returns standard normal float32 numbers with shape $(B, *)$: four from each counter, by the Box-Muller transform.

    Args:
        seed: The key.
        step: The step.
        chains: The ids of the chains, with shape $(B,)$, on the device of the result.
        stream: The stream.
        event: The shape of one point.
    """
    quads = torch.arange(max(1, -(-event.numel() // 4)), device=chains.device)
    words = philox(seed, (quads[None, :], step, chains[:, None], stream))
    pairs = []
    for first, second in (words[:2], words[2:]):
        radius = to_unit(first).clamp_min_(1e-7).log_().mul_(-2).sqrt_()
        angle = to_unit(second).mul_(2 * math.pi)
        pairs += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(pairs, -1).flatten(1)[:, : event.numel()].reshape(len(chains), *event).contiguous()


def _high(product: int | Tensor) -> int | Tensor:
    return (product >> 32) & _WORD


def to_unit(word: Tensor) -> Tensor:
    """Returns random words as float32 in [0, 1), computed as Triton does, so that its kernels draw the same numbers."""
    return torch.where(word >= 2**31, _WORD - word, word).float().mul_(4.6566127342e-10)
