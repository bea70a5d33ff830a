"""Gradients at noise levels of expressions that also have terms without noise levels: precise terms pull less there."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.algebra import noise_leaves
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.evaluation import evaluating
from composable_energy.sampling import energy_and_gradient, plain_energy

_STEPS, _TOLERANCE = 3, 0.1
_REACH, _FLAT, _RISING = 4.0, 0.1, 0.3
_STIFF = 30.0
_FARTHEST, _LEAST = 2.0, 1e-8


class Widened(NamedTuple):
    """The gradient of terms without noise levels, for data that vary around the denoised points."""

    slope: Tensor  # (I + v H)^-1 g, with shape (B, *)
    pull: Tensor  # C (I + v H)^-1 g, with the same shape
    rise: Tensor  # how much higher the log density is than at the denoised point, v g^T (I + v H)^-1 g / 2, with shape (B,)


def widen(
    z: Tensor, slope: Tensor, pulled: Tensor, sigma: float, slope_at: Callable[[Tensor], Tensor], *, together: bool = False
) -> Widened:
    r"""Widens terms by the variance of the data around denoised points along the gradient, $v = \sigma^2\, g^\top C g / g^\top g$.

    For a quadratic energy the result is the gradient of $-\log \mathbb E\, e^{-E(z + \sqrt v\, \xi)}$ with standard normal $\xi$, by at
    most three conjugate gradients. Products with its second derivative $H$ are differences over the length $\sqrt v$ downhill. So an
    energy with a kink or a plateau counts with its mean curvature where the data may be. A negative curvature counts as a positive one.

    An energy that levels off downhill, as the evidence of a classifier, is not widened. Such evidence chooses among modes of the data, and
    the choice follows it more than a Gaussian does. Widened are energies that rise again farther downhill, where data alone would
    not go, and those whose curvature is above thirty times that of the data alone; in between, in part. What is still too long, since an
    energy is far from quadratic, is cut: the mean of the data moves by two standard deviations of each coordinate at most. For chains that
    are weighed against each other, `together`, the points decide by their median how much is widened, and nothing is cut.

    `slope` is $g$ at the denoised points $z$, and `pulled` is $C g$, as `denoised_pull` returns it, each with shape $(B, *)$.
    """
    tiny = torch.finfo(z.dtype).tiny
    squares = _product(slope, slope).clamp_min(tiny)
    share = (_product(slope, pulled) / squares).clamp(min=0)
    variance, known = sigma**2 * share.clamp(max=1), (1 - share).clamp_min(0.01)
    near = slope_at(z - unsqueeze_to((variance / squares).sqrt(), z) * slope)
    found, kept = _downhill(slope, _solve(z, slope, near, variance, slope_at), squares)
    precision = (1 / kept - 1) / known  # in units of the variance of the data alone, v / known
    reach = _REACH * variance / known / (1 + precision)
    far = _product(slope, slope_at(z - unsqueeze_to(reach, z) * slope)) / squares
    kept = kept * _lengthen(_product(slope, near) / squares, far, variance, (variance / squares).sqrt(), reach)
    rising = (-far - _FLAT) / (_RISING - _FLAT)
    weight = torch.maximum(rising.nan_to_num(0.0).clamp(0, 1), 1 / (1 + (_STIFF / precision.clamp_min(tiny)) ** 4))
    weight = weight.median().expand_as(weight) if together else weight
    kept = 1 / (1 + weight * (1 / kept - 1))
    longest = _FARTHEST * (z[0].numel() / (variance * known.clamp_min(0.1)).clamp_min(tiny)).sqrt()  # the mean of the data moves v times it
    along = kept if together else torch.minimum(kept, longest / _product(found, found).sqrt().clamp_min(tiny))
    found = unsqueeze_to(along, z) * found
    pull = unsqueeze_to(along, z) * pulled + unsqueeze_to(share, z) * (found - unsqueeze_to(along, z) * slope)
    return Widened(found, pull, weight * along * variance * squares / 2)


def _downhill(slope: Tensor, found: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    r"""Returns a solution whose component along $g$ is $g$, and that component's share of $g$; $g$ itself if a solution points uphill."""
    kept = _product(slope, found) / squares
    good = kept > _LEAST
    kept = kept.clamp(_LEAST, 1)
    return torch.where(unsqueeze_to(good, slope), found / unsqueeze_to(kept, slope), slope), kept


def _solve(z: Tensor, slope: Tensor, near: Tensor, variance: Tensor, slope_at: Callable[[Tensor], Tensor]) -> Tensor:
    """Returns $(I + v H)^{-1} g$ by conjugate gradients; the second and third are taken only if one row leaves more than a tenth."""
    tiny = torch.finfo(z.dtype).tiny
    found, rest, direction = torch.zeros_like(slope), slope, slope
    squares = first = _product(slope, slope)
    for number in range(_STEPS):
        length = _product(direction, direction)
        scale = unsqueeze_to((variance / length.clamp_min(tiny)).sqrt(), z)
        change = (slope - (slope_at(z - scale * direction) if number else near)) / scale
        bent = unsqueeze_to(variance, z) * torch.where((scale > 0) & change.isfinite(), change, 0.0)
        curvature = _product(direction, bent)
        bent = bent * unsqueeze_to(curvature.sign(), z)
        step = unsqueeze_to(squares / (length + curvature.abs()).clamp_min(tiny), z)
        found, rest = found + step * direction, rest - step * (direction + bent)
        before, squares = squares, _product(rest, rest)
        if bool((squares <= _TOLERANCE**2 * first).all()):
            break
        direction = rest + unsqueeze_to(squares / before.clamp_min(tiny), z) * direction
    return found


def _lengthen(near: Tensor, far: Tensor, variance: Tensor, step: Tensor, reach: Tensor) -> Tensor:
    r"""Returns by how much the solution along the gradient is longer than that of the first difference, where it lies beyond its end. Along
    $z - t g$, with gradients $s(t)$ in units of $g$, the solution is $s(t) = t / v$. Between the two points it follows their chord."""
    chord = (near - far) / (reach - step)
    found = (near + chord * step) / (1 / variance + chord)
    straight = 1 / (1 / variance + (1 - near) / step)
    beyond = (near * variance > step) & (reach > step) & (chord > 0) & (straight > 0)
    return torch.where(beyond, found / straight, 1.0).nan_to_num(1.0).clamp(min=1)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Returns the inner product of each pair of points, with shape $(B,)$."""
    return (left * right).reshape(len(left), -1).sum(1)


_STEP = 0.01  # of a finite difference, in units of the noise level
_PRECISE, _AWAY = 0.85, 10.0


class LevelGradient(NamedTuple):
    """Energies and gradients at a noise level."""

    energy: Tensor  # the energies, with shape (B,)
    grad: Tensor  # the gradients, with shape (B, *)
    # The energies of terms without noise levels, with shape (B,); None if there are none, or if they do not add.
    plain: Tensor | None = None
    slope: Tensor | None = None  # their widened gradients at the denoised points, with shape (B, *); None as above


class _Mixed:
    """An expression with terms without noise levels beside others, its parts, and the chains of its points."""

    def __init__(self, expression: Energy, chains: dict[str, Tensor]) -> None:
        self.expression, self.chains, self.parts = expression, chains, noise_leaves(expression)

    def evaluate(
        self, x: Tensor, sigma: float, denoised: Tensor | None, *, leaves: bool = True, widened: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns energies, and gradients with respect to points with noise and to denoised points, where plain terms are evaluated."""
        with torch.inference_mode(False), torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            z = None if denoised is None else denoised.detach().clone().requires_grad_()
            left_out = self.parts.leaves if self.parts.additive and not leaves else ()
            given = {leaf: x.new_zeros(len(x), requires_grad=True) for leaf in left_out}
            with evaluating(root=self.expression, given=given, denoised=(point, z, sigma if widened else None)):
                energies = self.expression(point, sigma=sigma, **self.chains)
            found = torch.autograd.grad(energies.sum(), [point] if z is None else [point, z], allow_unused=True)
        direct, *rest = (torch.zeros_like(x) if gradient is None else gradient for gradient in found)
        return energies.detach(), direct, rest[0] if rest else torch.zeros_like(x)

    def slope(self, x: Tensor, sigma: float, denoised: Tensor) -> Tensor:
        """Returns the gradients of plain terms as they are with respect to denoised points."""
        return self.evaluate(x, sigma, denoised, leaves=False, widened=False)[2]


def _mixed(energy: Energy) -> _Mixed | None:
    """Returns an expression whose terms without noise levels stand beside others with them; None for any other energy."""
    if "sigma" not in energy.conditions:
        return None
    expression, chains = plain_energy(energy)
    if expression is None or not (expression.terms or expression.bases):
        return None
    mixed = _Mixed(expression, chains)
    return mixed if mixed.parts.leaves and mixed.parts.plain else None


def level_gradient(energy: Energy, x: Tensor, sigma: float, held: LevelGradient | None = None) -> LevelGradient:
    r"""Returns the energies and gradients of points with noise; terms without noise levels are evaluated at the denoised points.

    Let $E_n(x, \sigma)$ be the terms with noise levels and $E_p(x)$ those without, such as a network of pictures. The denoised point is
    Tweedie's mean of the data at a noisy point, $\hat x = x - \sigma^2 \nabla E_n(x, \sigma)$, and

    $$E(x, \sigma) = E_n(x, \sigma) + E_p(\hat x), \qquad
    \nabla E = \nabla E_n + C\, (I + v \nabla^2 E_p(\hat x))^{-1}\, \nabla E_p(\hat x), \quad C = I - \sigma^2 \nabla^2 E_n.$$

    The data vary around the denoised point with the covariance $\sigma^2 C$, and $v$ is their variance along $\nabla E_p$. So a precise
    term, such as a measurement, pulls no more than is known at this level. A term that levels off downhill is not widened by $I + v
    \nabla^2 E_p$; see `widen`. For Gaussian data with equal variances and quadratic $E_p$, or any Gaussian data and linear $E_p$, the
    result is the gradient of the density with noise. Products with $C$ are differences of two gradients, so that scores have them too.
    Inside of a mixture, terms are evaluated at the denoised point of the same expression without them.

    Args:
        held: The result at nearby points of this level, whose `slope` is kept where terms add: an expensive network then counts once.

    Raises:
        ExpressionError: The energies have no gradient.
    """
    if (mixed := _mixed(energy)) is None:
        return LevelGradient(*energy_and_gradient(energy, x, sigma=sigma))
    without = mixed.evaluate(x, sigma, None)

    def pull(slope: Tensor) -> Tensor:
        return denoised_pull(x, slope, without[1], sigma, lambda near: mixed.evaluate(near, sigma, None)[1])

    if held is not None and held.plain is not None and held.slope is not None:
        plain, slope = held.plain, held.slope
        energies, direct, pulled = without[0] + plain, without[1], pull(slope)
    else:
        denoised = torch.add(x, without[1], alpha=-(sigma**2))
        energies, direct, slope = mixed.evaluate(x, sigma, denoised, widened=mixed.parts.widened)
        plain = energies - without[0]
        pulled = pull(slope)
        if not mixed.parts.widened:
            slope, pulled, _ = widen(denoised, slope, pulled, sigma, lambda near: mixed.slope(x, sigma, near))
    return LevelGradient(energies, direct + pulled, *((plain, slope) if mixed.parts.additive else ()))


def check_precise_terms(energy: Energy, x: Tensor, sigma: float, scale: float, sampler: str) -> Tensor:
    """Returns draws, NaN for chains that ran away, and warns of terms that are more precise than the lowest noise level. A term without
    noise levels that is stiff and far from quadratic may drive a chain away from the data, where an energy may have values lower than at
    the data. NaN makes it a diverged chain. Other expressions are not checked."""
    if (mixed := _mixed(energy)) is None:
        return x
    x = torch.where(unsqueeze_to((x.square().reshape(len(x), -1).mean(1).sqrt() > _AWAY * scale), x), torch.nan, x)
    slope = mixed.slope(x, sigma, x)
    wide = widen(x, slope, slope, sigma, lambda near: mixed.slope(x, sigma, near)).slope
    kept = (slope * wide).flatten(1).sum(1) / slope.square().flatten(1).sum(1)
    kept = kept[kept.isfinite()]
    if len(kept) and kept.median() < _PRECISE:
        seen = f"A term of {energy} is more precise than the lowest noise level of {sampler}, {sigma:g}, so deviations along it are wrong."
        advice = "Take a lower `sigma_min`, a third of the deviation or less, and more levels; or `chees`, where all terms have values."
        SamplingWarning("precise", seen, advice).emit()
    return x


def denoised_pull(x: Tensor, slope: Tensor, gradient: Tensor, sigma: float, gradient_at: Callable[[Tensor], Tensor]) -> Tensor:
    r"""Returns $(I - \sigma^2 H)\, g$ for the symmetric matrix $H$ of second derivatives of an energy, by a difference of its gradients."""
    lengths = slope.flatten(1).norm(dim=1) if slope.ndim > 1 else slope.abs()
    step = _STEP * sigma / lengths.clamp_min(torch.finfo(x.dtype).tiny)
    step = unsqueeze_to(torch.where(lengths > 0, step, 0.0), x)
    return slope - sigma**2 * torch.where(step > 0, (gradient_at(x + step * slope) - gradient) / step, 0.0)
