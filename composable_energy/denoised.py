r"""Where terms without noise levels are evaluated: at denoised points, beside terms that are evaluated at points with noise.

At a noise level $\sigma$ the points of an expression have noise. A term that was made for data, such as a network of pictures, has no
meaning there. A sampler says by `denoising` at which other points such terms count; energies and nodes ask `seen` for them.
"""

from __future__ import annotations

from contextvars import ContextVar, Token

import torch
from torch import Tensor

DENOISED: ContextVar[tuple[Tensor, Tensor | None, float | None] | None] = ContextVar("denoised", default=None)


class denoising:  # noqa: N801
    """A context in which terms without noise levels are evaluated at denoised points instead of the points themselves.

    Args:
        points: The points with noise, with shape $(B, *)$, compared by identity.
        denoised: The denoised points, with the same shape. None leaves the terms out: their energy counts as 0 or as a constant.
        sigma: The noise level, for terms that allow for the spread of the data around a denoised point; None lets none do so.
    """

    __slots__ = ("_current", "_token")

    def __init__(self, points: Tensor, denoised: Tensor | None, sigma: float | None = None) -> None:
        self._current = points, denoised, sigma

    def __enter__(self) -> None:
        self._token: Token[tuple[Tensor, Tensor | None, float | None] | None] = DENOISED.set(self._current)

    def __exit__(self, *_: object) -> None:
        DENOISED.reset(self._token)


def _current() -> tuple[Tensor, Tensor | None, float | None] | None:
    return None if torch.compiler.is_dynamo_compiling() else DENOISED.get()  # `torch.compile` cannot trace a context variable


def seen(x: Tensor) -> Tensor:
    """Returns the points where a term without noise levels is evaluated; without gradient where such terms are left out."""
    current = _current()
    if current is None or current[0] is not x:
        return x
    return x.detach() if current[1] is None else current[1]


def is_left_out(x: Tensor) -> bool:
    """Returns whether terms without noise levels count as 0 at these points."""
    current = _current()
    return current is not None and current[0] is x and current[1] is None


def is_denoised(x: Tensor) -> bool:
    """Returns whether terms without noise levels have points of their own, or are left out."""
    current = _current()
    return current is not None and current[0] is x


def denoised_level() -> tuple[Tensor, float] | None:
    """Returns the denoised points where terms without noise levels are evaluated now, and the noise level; None if there is none."""
    current = _current()
    return None if current is None or current[1] is None or current[2] is None else (current[1], current[2])
