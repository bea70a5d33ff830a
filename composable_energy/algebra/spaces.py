"""The common space of the terms of an expression: one shape of points and at most one decoder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError, ShapeError
from composable_energy.identity import same


def to_common_space(terms: Sequence[Energy]) -> tuple[Energy, ...]:
    """Returns terms in one space: if some are latent, energies of decoded points are pulled back.

    A term with the shape of decoded points is pulled back; a term with the shape of latent points, such as a prior, is not.

    Raises:
        ExpressionError: The terms have different decoders, or it is unclear from the shapes whether a term is latent.
        ShapeError: Their points have different shapes, or a term has neither the shape of latent nor that of decoded points.
    """
    latent = [term for term in terms if term.decoder is not None]
    for term in latent[1:]:
        if not same(term.decoder, latent[0].decoder):
            raise ExpressionError(
                f"{latent[0]} and {term} have different decoders, {type(latent[0].decoder).__name__} and "
                f"{type(term.decoder).__name__}; an expression has one. Combine energies of one decoder, or energies of decoded points."
            )
    if latent:
        terms = [_in_latent_space(term, latent) for term in terms]
    common_shape(terms)
    return tuple(terms)


def _in_latent_space(term: Energy, latent: Sequence[Energy]) -> Energy:
    if term.decoder is not None:
        return term
    decoder: Any = latent[0].decoder
    shape, below = term.event_shape, common_shape(latent)
    decoded = next((other.decoded_shape for other in latent if other.decoded_shape is not None), None)
    is_latent = None if shape is None or below == decoded else shape == below if below is not None else shape != decoded or None
    if is_latent is None:
        of = "of unknown shape" if shape is None else f"of shape {tuple(shape)}, the shape of both latent and decoded points,"
        raise ExpressionError(
            f"{term} takes points {of} and is combined with {latent[0]}, an energy of latent points of {type(decoder).__name__}. For "
            "decoded points write `.pull_back(decoder)`, or set its `event_shape`; for latent points set its `decoder`, as in "
            "`as_energy(..., decoder=decoder)`."
        )
    if not is_latent and shape is not None and decoded is not None and shape != decoded:
        raise ShapeError(
            f"{term} takes points of shape {tuple(shape)}. Latent points of {type(decoder).__name__} have shape {tuple(below or ())}, "
            f"decoded ones {tuple(decoded)}, so it is neither a prior nor an energy of decoded points."
        )
    return term if is_latent else term.pull_back(decoder)


def common_shape(terms: Sequence[Energy]) -> torch.Size | None:
    """Returns the shape of one point of the terms; None if it is unknown.

    Raises:
        ShapeError: The terms take points of different shapes.
    """
    known = [term for term in terms if term.event_shape is not None]
    for term in known[1:]:
        if term.event_shape != known[0].event_shape:
            raise ShapeError(
                f"{known[0]} takes points of shape {tuple(known[0].event_shape or ())} and {term} points of shape "
                f"{tuple(term.event_shape or ())}; all terms of an expression must take the same shape."
            )
    return known[0].event_shape if known else None
