"""Edits of pictures in the latent space: what is asked changes, the rest stays."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from composable_energy import Energy
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_number
from composable_energy_latent.edits import Edits, EditStep
from composable_energy_latent.errors import EditError
from composable_energy_latent.kept import Keep, check_contradictions, kept_attributes
from composable_energy_latent.potential import EditWeights, Potential, follow


def edit(
    z: Tensor | Edits,
    expression: Energy,
    *,
    keep: Keep = (),
    base: Energy | None = None,
    weights: EditWeights | None = None,
    identity: Callable[[Tensor], Tensor] | None = None,
    tolerance: float = 1e-2,
) -> Edits:
    r"""Moves latent points until their pictures fulfil an expression, near where they were.

    It follows the flow $dz / d\tau = -\nabla U(z)$ over the time 5 of the paper, with

    $$U(z) = w_a\, \text{evidence}(z) + w_k \sum_k \text{evidence}_k(z) + w_l \sum_k (f_k(z) - f_k(z_0))^2
      + w_d \bigl( \lVert z - z_0 \rVert^2 + \lVert m(z) - m(z_0) \rVert^2 \bigr) .$$

    Evidence is averaged over random moves of $z$ nearby (`margin`), so that pictures are well inside of what is asked.

    What is kept is the label that each picture has now, or its value of a continuous attribute. If `keep` is a mapping, such as all
    `Attributes`, those that the expression speaks of are skipped; attributes of a list must not contradict the expression.

    Args:
        z: Latent points with shape $(B, *)$, or earlier edits, which are continued.
        expression: What is asked, such as `smiling & ~glasses`, `age(0.3)` or `graded(smiling)(1.0)`.
        keep: Attributes that stay as they are: `Attributes`, or a list of events and continuous attributes.
        base: The prior, if the expression has none.
        weights: The weights; those of `EditWeights` if None.
        identity: Features of pictures with shape $(B, F)$, in which the identity distance is measured; None for the pixels.
        tolerance: The error of a step of the flow.

    Returns:
        The edits, which can be continued, undone and saved.

    Raises:
        EditError: The expression contradicts what is kept or itself, or a latent point is outside the support of the prior.
        ShapeError: The latent points do not fit the prior.
        ExpressionError: The expression has no prior with a generator.

    References:
        Controllable and compositional generation with latent-space energy-based models (Nie et al., 2021), https://arxiv.org/abs/2110.10873
    """
    check_number("tolerance", tolerance, above=0)
    base = _base_of(expression, base)
    history = z if isinstance(z, Edits) else Edits(base, _checked(base, z))
    if expression.unsatisfiable:
        raise EditError(f"No picture fulfils {expression}, so no edit leads to it.")
    kept = kept_attributes(keep, expression)
    potential = Potential(expression, kept, base, history.latents, weights or EditWeights())
    check_contradictions(expression, kept, potential.labels)
    end, evaluations = follow(potential, tolerance)
    distance = _distance(base, history.original, end, identity)
    step = EditStep(str(expression), end, potential.reached(end), potential.stayed(end), distance, evaluations)
    return Edits(base, history.original, (*history.steps, step))


def _base_of(expression: Energy, base: Energy | None) -> Energy:
    if not isinstance(expression, Energy):
        raise OptionError(f"An edit asks for an expression, got {type(expression).__name__}.")
    bases = [part.energy for part in expression.bases]
    base = base or (bases[0] if len(bases) == 1 else None)
    if base is None or base.decoder is None or base.event_shape is None:
        raise ExpressionError(f"{expression} has no prior with a generator as its base: make attributes over one base, or give `base`.")
    return base


def _checked(base: Energy, z: Tensor) -> Tensor:
    shape = base.event_shape or ()
    if not isinstance(z, Tensor) or z.shape[1:] != torch.Size(shape) or not len(z):
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ShapeError(f"An edit takes latent points of shape (B, {', '.join(map(str, shape))}) of {base}, got {got}.")
    with torch.no_grad():
        outside = int((~base(z).isfinite()).sum()) if base.has_value else 0
    if outside:
        raise EditError(f"{outside} of {len(z)} latent points are outside the support of {base}.")
    return z.detach().clone()


@torch.no_grad()
def _distance(base: Energy, before: Tensor, after: Tensor, identity: Callable[[Tensor], Tensor] | None) -> Tensor:
    pictures = [base.decoder(z) for z in (before, after)]  # pyright: ignore[reportOptionalCall]
    first, second = pictures if identity is None else map(identity, pictures)
    return (first - second).flatten(1).square().mean(1).sqrt()
