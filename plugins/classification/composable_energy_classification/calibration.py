"""Calibration of class probabilities on held-out points: temperature, offsets, and the expected calibration error."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from composable_energy.errors import DtypeError, ExpressionError, OptionError, ShapeError
from composable_energy.options import check_integer

_LEAST, _GREATEST = 1e-3, 1e3


class CalibrationWarning(UserWarning):
    """Probabilities are not calibrated: held-out points do not determine the temperature, or the normalisers of classes are unknown."""


def calibration_error(probabilities: Tensor, y: Tensor, bins: int = 15) -> float:
    r"""Returns the expected calibration error, $\sum_b \tfrac{n_b}{n} \lvert \text{accuracy}_b - \text{confidence}_b \rvert$.

    The bins have equal width in the probability of the predicted class. With $n$ points right probabilities give about $1 / \sqrt n$.

    Raises:
        OptionError: Rows are no probabilities, or a class is out of range.

    References:
        On calibration of modern neural networks (Guo et al., 2017), https://arxiv.org/abs/1706.04599

    Example:
        >>> import torch
        >>> from composable_energy_classification import calibration_error
        >>> round(calibration_error(torch.tensor([[0.75, 0.25]]).repeat(4, 1), torch.tensor([0, 0, 0, 1])), 6)
        0.0
    """
    bins = check_integer("bins", bins)
    if (p := torch.as_tensor(probabilities).detach().double()).ndim != 2:
        raise ShapeError(f"Probabilities of classes have shape (B, K), got {tuple(p.shape)}.")
    if not bool(((p >= 0) & (p <= 1 + 1e-6)).all()) or not bool(((p.sum(1) - 1).abs() < 1e-2).all()):
        raise OptionError("Each row of the probabilities must be at least 0 and sum to 1; log probabilities need `.exp()`.")
    y = check_labels(y, *p.shape)
    confidence, predicted = p.max(1)
    place = (confidence * bins).long().clamp(0, bins - 1)
    gaps = torch.zeros(bins, dtype=torch.float64, device=p.device).index_add_(0, place, (predicted == y).double() - confidence)
    return float(gaps.abs().sum() / len(y))


def fit_probabilities(energies: Tensor, y: Tensor, *, offsets: bool = False) -> tuple[float, Tensor | None]:
    r"""Fits $T$, and with `offsets` $o_k$, of $p(k \mid x) \propto e^{(o_k - E_k(x)) / T}$ by maximum likelihood.

    Args:
        energies: The energies of the classes at held-out points, with shape $(B, K)$.
        y: The true classes, with shape $(B,)$.
        offsets: Whether to fit one offset for each class; their mean is 0.

    Returns:
        The temperature, between .001 and 1,000, and the offsets in float64; None without `offsets`.

    Raises:
        ExpressionError: The true class of a point has infinite energy, or an energy is not a number.
        OptionError: A class is out of range, or with `offsets` has no held-out point.
    """
    if energies.ndim != 2:
        raise ShapeError(f"The energies of classes have shape (B, K), got {tuple(energies.shape)}.")
    y = check_labels(y, *energies.shape)
    if wrong := int((~(energies > -torch.inf)).any(1).sum()):
        raise ExpressionError(f"{wrong} of {len(y)} held-out points have an energy that is not a number, or minus infinity.")
    logits = -energies.detach().double()
    if wrong := int((logits.gather(1, y[:, None]) == -torch.inf).sum()):
        raise ExpressionError(f"The true class is impossible, its energy infinite, at {wrong} of {len(y)} held-out points.")
    if offsets and (absent := sorted(set(range(logits.shape[1])) - set(y.unique().tolist()))):
        raise OptionError(f"Offsets need held-out points of each class; there is none of class {', '.join(map(str, absent))}.")
    possible = logits != -torch.inf
    logits = logits - logits.amax(1, keepdim=True)  # what all classes of a point share says nothing
    unit = -gaps.median() if len(gaps := logits[possible & (logits < 0)]) else logits.new_ones(())
    scaled = logits.masked_fill(~possible, 0.0) / unit  # an infinite number times the scale would have the gradient NaN
    log_scale = torch.zeros((), dtype=torch.float64, device=logits.device, requires_grad=True)  # of 1 / T, in units of the energies
    shifts = torch.zeros(logits.shape[1], dtype=torch.float64, device=logits.device, requires_grad=offsets)
    options: dict[str, Any] = {"tolerance_grad": 1e-10, "tolerance_change": 1e-14, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([log_scale, shifts] if offsets else [log_scale], max_iter=500, **options)

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy((scaled * log_scale.exp() + shifts).masked_fill(~possible, -torch.inf), y)
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    scale, shifts = log_scale.detach().exp(), shifts.detach()
    temperature = float(unit / scale)
    separable = bool(((logits / unit * scale + shifts).argmax(1) == y).all())
    if separable or not _LEAST < temperature < _GREATEST:
        why = "all of them are classified right" if separable else "no class is more probable than by chance"
        temperature = min(max(temperature, _LEAST), _GREATEST) if offsets else 1.0
        seen = f"{len(y)} held-out points do not determine the temperature, as {why}; it is {temperature:.2g}. Take more points."
        warnings.warn(seen, CalibrationWarning, stacklevel=3)
    return temperature, (shifts - shifts.mean()) * temperature if offsets else None


def check_points(x: Tensor) -> Tensor:
    """Returns points; raises if they are no floating batch."""
    if not isinstance(x, Tensor) or not x.is_floating_point():
        got = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise DtypeError(f"Points are a floating tensor, got {got}: use `torch.as_tensor`, and for images `x.float() / 255`.")
    if x.ndim < 1 or not len(x):
        raise ShapeError(f"Points have shape (B, *), got {tuple(x.shape)}; for one point write `x.unsqueeze(0)`.")
    return x


def check_labels(y: Tensor, count: int, classes: int) -> Tensor:
    """Returns classes as int64; raises if they are not one whole number in range for each point."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
        raise DtypeError(f"Classes are a tensor of whole numbers, got {y.dtype if isinstance(y, Tensor) else type(y).__name__}.")
    if y.shape != (count,) or not count:
        raise ShapeError(f"There must be one class for each point, with shape ({max(count, 1)},), got {tuple(y.shape)}.")
    if bool((((y := y.long()) < 0) | (y >= classes)).any()):
        raise OptionError(f"Classes are numbers from 0 to {classes - 1}, got {int(y.min())} to {int(y.max())}.")
    return y
