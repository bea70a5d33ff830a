r"""Attacks on classifiers: projected gradient descent, also through the random steps of a refinement."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from composable_energy.arithmetic import unsqueeze_to
from composable_energy.errors import ExpressionError, OptionError, ShapeError
from composable_energy.options import check_choice, check_integer, check_interval, check_number
from composable_energy.sampling import Noise, twin
from composable_energy_classification.calibration import check_labels, check_points
from composable_energy_classification.classifier import Classifier


def pgd(
    model: Classifier | Callable[[Tensor], Tensor],
    x: Tensor,
    y: Tensor,
    radius: float,
    *,
    norm: str = "linf",
    steps: int = 40,
    step_size: float | None = None,
    restarts: int = 1,
    loss: str = "margin",
    draws: int = 1,
    bounds: tuple[float, float] | None = (0.0, 1.0),
    seed: int = 0,
) -> Tensor:
    r"""Returns points within a radius of the given ones that the model classifies as wrongly as projected gradient descent finds.

    It ascends the loss by steps along the sign of the gradient (`"linf"`) or the gradient (`"l2"`), from random points of the ball, and
    returns the points with the largest margin $\max_{k \ne y} l_k - l_y$ of the logits over all steps and restarts.

    For a classifier with a random refinement it is the adaptive attack: gradients go through all Langevin steps, and gradients and
    margins are means over `draws` seeds that are new at each step (expectation over transformations). These seeds are not those of the
    classifier, so classify the result by the classifier itself. An attack that does not see the refinement is that of `model.plain`.

    Args:
        model: A classifier, or a module or function of points that returns logits with shape $(B, K)$; a module is evaluated in eval mode.
        norm: `"linf"`, the largest change of a coordinate, or `"l2"`, the Euclidean length of the change.
        steps: Steps of each start.
        step_size: The length of a step; None takes 2.5 times the radius over the steps (Madry et al., 2018).
        loss: `"margin"`, which does not vanish where the model is certain, or `"cross-entropy"`.
        draws: Seeds for each gradient of a random classifier.
        bounds: The lowest and the highest value of a coordinate; None for no bounds.
        seed: The seed of the starts, and of the refinement under attack.

    Raises:
        OptionError: An option is out of range, or a point is not within the bounds.
        ExpressionError: The model has no gradient, or one that is not finite.

    References:
        Towards deep learning models resistant to adversarial attacks (Madry et al., 2018), https://arxiv.org/abs/1706.06083
        Obfuscated gradients give a false sense of security (Athalye et al., 2018), https://arxiv.org/abs/1802.00420

    Example:
        >>> import torch
        >>> from composable_energy_classification import pgd
        >>> line = lambda x: torch.cat([x, -x], 1)
        >>> pgd(line, torch.tensor([[0.3]]), torch.tensor([0]), 0.5, bounds=None)
        tensor([[-0.2000]])
    """
    radius, norm = check_number("radius", radius, least=0), check_choice("norm", norm, ("linf", "l2"))
    steps, restarts, draws = check_integer("steps", steps), check_integer("restarts", restarts), check_integer("draws", draws)
    size = 2.5 * radius / steps if step_size is None else check_number("step_size", step_size, above=0)
    check_choice("loss", loss, ("margin", "cross-entropy"))
    check_points(x)
    if (bounds := None if bounds is None else check_interval("bounds", bounds)) and not bool(((x >= bounds[0]) & (x <= bounds[1])).all()):
        raise OptionError(f"Points are not within bounds={bounds}: they reach from {float(x.min()):g} to {float(x.max()):g}.")
    model = twin(model) if isinstance(model, nn.Module) and not isinstance(model, Classifier) else model
    noise = Noise(seed, range(len(x))).child("pgd")
    best, most = x.detach().clone(), torch.full((len(x),), -torch.inf, device=x.device, dtype=x.dtype)
    for restart in range(restarts):
        point = _project(x, x + _start(x, radius, norm, noise.at(restart)), radius, norm, bounds)
        for step in range(steps + 1):
            random = isinstance(model, Classifier) and model.random
            seeds = [noise.child(f"{restart} {step} {draw}").seed for draw in range(draws)] if random else [None]
            margins, gradient = _ascent(model, point, y, loss, seeds)
            better = margins > most
            best, most = torch.where(unsqueeze_to(better, x), point, best), torch.where(better, margins, most)
            if step < steps:
                point = _project(x, point + size * _direction(gradient, norm), radius, norm, bounds)
    return best


def _ascent(model: Any, point: Tensor, y: Tensor, loss: str, seeds: Sequence[int | None]) -> tuple[Tensor, Tensor]:
    """Returns the mean margins over the seeds, with shape $(B,)$, and the mean gradients of the loss."""
    margins, gradient = point.new_zeros(len(point)), torch.zeros_like(point)
    for seed in seeds:
        with torch.enable_grad():
            at = point.detach().requires_grad_()
            logits = model(at) if seed is None else model(at, seed=seed)
            if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(point):
                got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
                raise ShapeError(f"The model must return logits of shape ({len(point)}, K), got {got}.")
            y = check_labels(y, *logits.shape)
            own = F.one_hot(y, logits.shape[1]).bool()
            margin = logits.masked_fill(own, -torch.inf).amax(1) - logits.gather(1, y[:, None]).squeeze(1)
            value = margin.sum() if loss == "margin" else F.cross_entropy(logits, y, reduction="sum")
            found = torch.autograd.grad(value, at, allow_unused=True)[0] if value.requires_grad else None
        if found is None:
            raise ExpressionError("The model has no gradient with respect to its points: it detaches them (`detach`, `no_grad`, NumPy).")
        if not bool(found.isfinite().all()):
            raise ExpressionError("The gradient of the model is not finite, so an attack by gradients would show nothing.")
        margins, gradient = margins + margin.detach() / len(seeds), gradient + found / len(seeds)
    return margins, gradient


def _start(x: Tensor, radius: float, norm: str, noise: Noise) -> Tensor:
    """Returns uniform random changes of the ball."""
    normal = noise.normal(x)
    if norm == "linf":
        return radius * torch.erf(normal / 2**0.5)
    return radius * unsqueeze_to(noise.uniform(x, 1).to(x) ** (1 / max(1, x[0].numel())), x) * _direction(normal, norm)


def _direction(gradient: Tensor, norm: str) -> Tensor:
    if norm == "linf":
        return gradient.sign()
    return gradient / unsqueeze_to(_lengths(gradient).clamp_min(torch.finfo(gradient.dtype).tiny), gradient)


def _project(x: Tensor, point: Tensor, radius: float, norm: str, bounds: tuple[float, float] | None) -> Tensor:
    """Returns the points moved into the ball around `x`, then into the bounds, which keeps them in the ball."""
    if norm == "linf":
        point = torch.minimum(torch.maximum(point, x - radius), x + radius)
    else:
        change = point - x
        point = x + change * unsqueeze_to((radius / _lengths(change).clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1.0), x)
    return point if bounds is None else point.clamp(*bounds)


def _lengths(points: Tensor) -> Tensor:
    return points.flatten(1).norm(dim=1)
