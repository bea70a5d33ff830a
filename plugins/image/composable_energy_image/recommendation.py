"""The papers' sampler for images: gradient descent with a little noise."""

from __future__ import annotations

import composable_energy as ce


def recommend_langevin(
    step: float, noise: float, *, clamp: tuple[float, float] | None = (0.0, 1.0), max_gradient: float | None = None
) -> ce.Recommendation:
    r"""Returns `langevin` with a paper's steps $x' = \text{clamp}(x - \text{step}\, \nabla E(x) + \text{noise}\, \xi)$.

    In terms of `langevin`, the step size is $\lambda = 2\, \text{step}$ and the temperature $\text{noise}^2 / \lambda$, far below 1, so the
    chains nearly descend.

    Args:
        step: The factor of the gradient, in units of $x^2$.
        noise: Standard deviation of the noise, in units of $x$.
        clamp: The lowest and highest value of a pixel; None does not clamp.
        max_gradient: Bound of the absolute gradient of a pixel; None for no bound.
    """
    options = {"step_size": 2 * step, "temperature": noise**2 / (2 * step), "clamp": clamp, "max_gradient": max_gradient}
    return ce.Recommendation("langevin", options)
