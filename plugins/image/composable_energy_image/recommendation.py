"""How the papers draw images: by noisy steps down the energy."""

from __future__ import annotations

import composable_energy as ce

__all__ = ["recommend_langevin"]


def recommend_langevin(
    step: float, noise: float, *, clamp: tuple[float, float] | None = (0.0, 1.0), max_gradient: float | None = None
) -> ce.Recommendation:
    r"""Returns the sampler of a paper's steps $x' = \text{clamp}(x - \text{step}\, \nabla E(x) + \text{noise}\, \xi)$.

    Their noise is far below what their step needs at temperature 1: in terms of `langevin`, with $\lambda = 2\, \text{step}$, they draw at
    the temperature $\text{noise}^2 / \lambda$, close to descent.

    Args:
        step: In units of $x^2$.
        noise: Its standard deviation, in units of $x$.
        clamp: The lowest and highest value of a pixel; None leaves points alone.
        max_gradient: The largest size of the gradient of a pixel that is followed; None follows all.
    """
    options = {"step_size": 2 * step, "temperature": noise**2 / (2 * step), "clamp": clamp, "max_gradient": max_gradient}
    return ce.Recommendation("langevin", options)
