r"""Where samplers along noise levels start: the range of levels that an expression knows, and the Gaussian at the highest one.

At a noise level far above the spread of the data, $p_\sigma$ is nearly the Gaussian $N(m, \operatorname{diag}(V) + \sigma^2 I)$, and the
denoised point $D(x) = x - \sigma^2 \nabla E(x, \sigma)$ is $m + V (V + \sigma^2)^{-1} (x - m)$. Other levels are too low to start from.
"""

import math
from abc import ABC
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from composable_energy import Energy, SamplingWarning
from composable_energy.algebra import Conditioned
from composable_energy.errors import OptionError
from composable_energy.options import check_integer, check_number
from composable_energy.sampling import Noise, Sampler, Traits, energy_and_gradient, has_rows, plain_energy
from composable_energy_mcmc.level_gradient import level_gradient

_PILOTS, _COORDINATES = 64, 4096  # fewer pilots for points of many coordinates, as a batch of many pictures may be large
_PER_COORDINATE = 16  # pilots from which each coordinate has a variance of its own
_HIGHEST = 200.0  # some schedules end at thousands, where float32 has few digits left for the data; a wide density may need it
_DOUBLINGS = 24
_MISFIT, _WRONG, _SLOPE = 0.2, 0.35, 1.2  # misfits that a higher level cures, if there is one, and that warn
_NOTHING, _RESOLVED, _LOST = 0.1, 1e-3, 0.1
_FARTHER = 16.0, 256.0  # where data that a level does not show would appear
_REACH = 1.5  # of the secants along the direction in which denoised points differ, in noise levels
_NEAR, _UNIT = 0.02, 1 / 15
_THROWN = 3.0  # widths by which denoised points are off where steep terms, such as weighted classifiers, threw the fit away
_FEWEST, _SHARES, _INCONSISTENT = 16, (0.1, 0.3, 1.0, 3.0), 0.1  # draws; noise levels in units of their spread; right models have up to .06
_LEAST, _LARGEST = 1e-8, 1 - 1e-5


@dataclass(frozen=True)
class LevelStart:
    """The Gaussian of the points at a noise level."""

    sigma: float
    mean: Tensor  # m, with the shape of a point
    variance: Tensor  # V, the variance of the data, with the shape of a point
    misfit: float  # how far denoised points are from those of this Gaussian, in units of the noise level
    slope: float  # the gradient over that of N(m, (sigma^2 + 1) I)
    narrowest: float  # the least standard deviation of a coordinate of the data

    @property
    def fits(self) -> bool:
        """Whether points at this level may start from the Gaussian."""
        return self.misfit < _MISFIT

    @property
    def scale(self) -> Tensor:
        r"""$\sqrt{V + \sigma^2}$."""
        return (self.variance + self.sigma**2).sqrt()

    @property
    def is_standard(self) -> bool:
        r"""Whether $N(0, (\sigma^2 + 1) I)$ is as good, also where denoised points are off by more than the width of the Gaussian."""
        off, lost = (self.variance - 1).abs() / (self.variance + self.sigma**2), self.misfit * self.sigma > _THROWN * self.scale.median()
        return bool(lost or ((self.mean.abs() < _NEAR * self.sigma).all() and (off < _UNIT).all()))


def known_range(energy: Energy) -> tuple[float | None, float | None]:
    """Returns the noise levels that all models in an expression know, else those of a recommendation, else None."""
    known = [found for part in energy.modules() if (found := getattr(part, "sigma_range", None)) is not None]
    if not known:
        options: dict[str, Any] = {}
        for part in (part for part in energy.modules() if isinstance(part, Energy)):
            options = {**(part.recommended.options if part.recommended else {}), **options}
        return options.get("sigma_min"), options.get("sigma_max")
    low, high = max(low for low, _ in known), min(high for _, high in known)
    if not low < high:
        raise OptionError(f"The diffusion models of {energy} have no noise level in common: their ranges are {known}.")
    return low, high


@dataclass(frozen=True)
class NoiseLevels(Sampler, ABC):
    """Abstract sampler along falling noise levels, one at each step, geometric unless a subclass says others."""

    levels: int | None = None  # the number of levels, at least 2; None takes the usual one, or more for a wider range
    sigma_max: float | None = None  # the highest level; None finds it, see `find_start`
    sigma_min: float | None = None  # the lowest level; None finds it

    usual: ClassVar[tuple[int, float, float]]
    """The number of levels, the lowest and the highest, where nothing says others."""

    def __post_init__(self) -> None:
        check_integer("levels", self.levels, 2, optional=True)
        check_number("sigma_min", self.sigma_min, above=0, optional=True)
        check_number("sigma_max", self.sigma_max, above=0, optional=True)
        if self.sigma_min is not None and self.sigma_max is not None and not self.sigma_min < self.sigma_max:
            raise OptionError(f"sigma_min must be below sigma_max, got {self.sigma_min} and {self.sigma_max}.")

    @property
    def total_steps(self) -> int:
        return self.levels or self.usual[0]

    @property
    def sigma_range(self) -> tuple[float, float]:
        """The lowest and the highest level."""
        return self.sigma_min or self.usual[1], self.sigma_max or self.usual[2]

    def level(self, step: int) -> float:
        """Returns the noise level at a step, counted from 1."""
        low, high = self.sigma_range
        return high * (low / high) ** ((step - 1) / (self.total_steps - 1))

    def power_level(self, step: int, rho: float) -> float:
        r"""Returns the noise level at a step if the levels to the power $1 / \rho$ are equally spaced (Karras et al., 2022)."""
        low, high = (end ** (1 / rho) for end in self.sigma_range)
        return (high + (step - 1) / (self.total_steps - 1) * (low - high)) ** rho

    def find_start(self, energy: Energy, x: Tensor, noise: Noise) -> tuple[float, float, LevelStart]:
        """Returns the lowest and the highest level for an energy, and the Gaussian at the highest; see `find_start`."""
        return find_start(energy, x, noise, (self.sigma_min, self.sigma_max), self.usual[1:])

    def check_init(self, energy: Energy, x: Tensor) -> None:
        """Raises if points that a user gives as the start, with shape $(B, *)$, lack the noise of the highest level."""
        high, rms = self.sigma_max or known_range(energy)[1] or self.sigma_range[1], x.double().square().mean().sqrt().item()
        if "sigma" in energy.conditions and rms < high * (1 - 3 / math.sqrt(2 * x.numel())):  # three standard errors
            name = type(self).__name__
            raise OptionError(
                f"{name} starts at the noise level {high:g}, and the points of init have the root mean square {rms:.3g}: they lack its "
                "noise, and the first level would erase them. To vary given points x, choose a level s, and give "
                f"init=x + s * torch.randn_like(x) with sampler={name}(sigma_max=s)."
            )

    def count_between(self, low: float, high: float) -> int:
        """Returns the number of levels between two: that of the user, else as dense as the usual ones, and no fewer."""
        count, least, most = self.usual
        return self.levels or max(count, 1 + math.ceil((count - 1) * math.log(high / low) / math.log(most / least) - 1e-6))

    def levels_of(self, energy: Energy) -> tuple[float, float, float]:
        """Returns the last noise level for an energy, one in the middle, and the first; for `Traits.binds`."""
        known, own = known_range(energy), self.sigma_range
        low, high = self.sigma_min or known[0] or own[0], self.sigma_max or known[1] or own[1]
        return low, math.sqrt(math.prod((low, high))), high

    def check_draws(self, energy: Energy, x: Tensor) -> Sequence[SamplingWarning]:
        r"""Returns a warning if a model does not denoise its own draws, with shape $(B, *)$; for `Traits.check_draws`.

        With noise, $y = x + s \xi$, draws $x$ leave residuals $x - D(y)$ of mean zero that are uncorrelated with $y$. Expressions of
        several models are not checked: their scores need not be those of a density with noise.
        """
        model = plain_energy(energy)[0]
        while isinstance(model, Conditioned):
            model = model.terms[0]
        several = model is None or getattr(model, "terms", ()) or model.bases or getattr(self, "temperature", 1.0) != 1
        if several or _evaluated(energy) or "sigma" not in energy.conditions or len(x) < _FEWEST or not x.isfinite().all():
            return ()
        levels, spread = [self.level(i + 1) for i in range(self.total_steps)], _rms(x.double() - x.double().mean(0))
        alike = f"Draws of {energy} collapse to a point: they differ by {spread:.2g}, and the lowest noise level is {levels[-1]:.3g}."
        seen = alike if spread < levels[-1] / 10 else ""
        near = set[float]() if seen else {min(levels, key=lambda level: abs(math.log(level / share / spread))) for share in _SHARES}
        for s in near | {levels[len(levels) // 2]}:  # also where the draws are wider than all levels
            if off := _residual(energy, x, s):
                seen = f"The model {energy} does not denoise its own draws: at the level {s:.3g} they are off by {off:.2g} of it."
        advice = "Check its parametrisation, the scale and sign of its output, and its schedule; if they are right, take more `levels`, "
        advice += "a lower `sigma_min`, or train it longer. Guided scores, or a sum of several, are those of no density."
        return (SamplingWarning("scores", seen, advice),) if seen else ()

    traits: ClassVar[Traits] = Traits(values=False, binds={"sigma": levels_of}, check_init=check_init, check_draws=check_draws)


def _rms(values: Tensor) -> float:
    return values.square().mean().sqrt().item()


def _residual(energy: Energy, x: Tensor, sigma: float) -> float:
    """Returns by how much of a noise level the denoised points of draws with noise are off, in the mean or in proportion to the noisy
    points; 0 where it is little, or as large by chance."""
    y = (x + sigma * Noise(0, range(len(x))).normal(x)).to(x)
    left = x.double() - y.double() + sigma**2 * energy_and_gradient(energy, y, sigma=sigma)[1].double()
    gap = y.double() - y.double().mean(0)
    each = (left * gap).reshape(len(x), -1).mean(1) / (_rms(gap) * sigma)
    slope, slope_error = each.mean().abs().item(), each.std().item() / math.sqrt(len(x))
    shift, shift_error = _rms(left.mean(0)) / sigma, _rms(left - left.mean(0)) / sigma / math.sqrt(len(x))
    off = slope > math.hypot(_INCONSISTENT, 3 * slope_error) or shift > math.hypot(_INCONSISTENT, 3 * shift_error)
    return max(slope, shift) if off else 0.0


def find_start(
    energy: Energy, like: Tensor, noise: Noise, ends: tuple[float | None, float | None], default: tuple[float, float], *, warn: bool = True
) -> tuple[float, float, LevelStart]:
    """Returns the lowest and the highest level of a sampler, and the Gaussian at the highest; warns if points are not Gaussian there.

    A level that is not among the `ends` that the user gives is found by looking, from the `default`: the highest is doubled until points
    are nearly Gaussian, the lowest falls with the narrowest coordinate. Of the points `like` only the shape counts, and their number where
    chains have conditions of their own.
    """
    low, high = known_range(energy)
    count = len(like) if has_rows(energy) else max(2, min(_PILOTS, _COORDINATES // max(1, like[0].numel())))
    xi = noise.for_chains(range(count)).normal(like.new_zeros(count, *like.shape[1:]))

    def fit(sigma: float) -> LevelStart:
        return fit_start(lambda x: level_gradient(energy, x, sigma).grad, xi, sigma)

    top = ends[1] or min(high or default[1], max(_HIGHEST, default[1]))
    found = first = fit(top)
    limit = top if ends[1] or (high is not None and not _declared(energy)) else high or top * 2**_DOUBLINGS
    while not found.fits and found.sigma < limit and found.slope < _SLOPE * (1 + 1 / found.sigma**2):
        found = fit(min(2 * found.sigma, limit))
    if not found.fits and high is None:
        found = first
    if warn and found.misfit > _WRONG and not _evaluated(energy):
        _warn_of_start(energy, found)
    elif warn and high is None and ends[1] is None:
        _warn_of_distant_data(energy, found, fit)
    bottom = ends[0] or low or default[0] * (min(1.0, found.narrowest) if found.fits else 1.0)
    if not bottom < found.sigma:
        raise OptionError(f"sigma_min must be below sigma_max, got {bottom:g} and {found.sigma:g} for {energy}.")
    if warn and ends[0] is None:
        _warn_of_lost_spread(energy, bottom, found)
    return bottom, found.sigma, found


def _declared(energy: Energy) -> bool:
    return any(getattr(part, "sigma_range", None) is not None for part in energy.modules())


def _evaluated(energy: Energy) -> bool:
    """Returns whether the levels are those of one density, whose author recommends levels, and so has evaluated them. Nobody has
    evaluated the levels of several, as of `A & B` that are not relative to one base."""
    leaves = [part for part in energy.modules() if isinstance(part, Energy) and not getattr(part, "terms", ())]
    known = [leaf for leaf in leaves if leaf.recommended is not None and "sigma_max" in leaf.recommended.options]
    densities = [base.energy for leaf in known for base in leaf.bases] + [leaf for leaf in known if not leaf.bases]
    single = bool(densities) and all(densities[0].equals(other) for other in densities[1:])  # those that are loaded are copies
    return single and not _declared(energy)


def _warn_of_start(energy: Energy, found: LevelStart) -> None:
    seen = f"At the highest noise level, {found.sigma:g}, the gradient of {energy} is {found.slope:.2g} times that of the Gaussian of "
    seen += f"the start, and denoised points are off by {found.misfit:.2g} of the level."
    advice = (
        "So the draws do not follow its density. If its terms count a base more than once, express concepts relative to one base: "
        "`A.relative_to(base) & B.relative_to(base)`. If the data are wide, raise sigma_max, or scale them."
    )
    SamplingWarning("start", seen, advice).emit()


def _warn_of_lost_spread(energy: Energy, low: float, found: LevelStart) -> None:
    """Warns if the last step, to the expected points without noise, takes a part of the variance of a coordinate."""
    variance = found.variance.flatten()
    known = variance[variance > max(_NOTHING * low**2, _RESOLVED * found.sigma**2)]  # of a coordinate with less, nothing is known
    if len(known) and (least := known.min().item()) < low**2 / _LOST:
        seen = f"The data of {energy} have the standard deviation {math.sqrt(least):.3g} along a coordinate, and the lowest noise level is "
        seen += f"{low:.3g}: the last step takes away {1 - math.sqrt(least / (least + low**2)):.0%} of it."
        SamplingWarning("precise", seen, "Use models that know lower levels.").emit()


def _warn_of_distant_data(energy: Energy, found: LevelStart, fit: Callable[[float], LevelStart]) -> None:
    for factor in _FARTHER:
        try:
            wide = fit(factor * found.sigma)
        except Exception:  # a model of a user may refuse levels above its own
            return
        spread, seen = wide.variance.max().item(), found.variance.max().item()
        if wide.fits and spread > max(4 * seen, found.sigma**2 / 4):
            says = f"At the noise level {wide.sigma:g} the data of {energy} have the standard deviation {math.sqrt(spread):.3g}, at "
            says += f"{found.sigma:g}, where the chains start, {math.sqrt(seen):.3g}: parts of them are too far to be seen there."
            SamplingWarning("start", says, "Say the highest level that the model knows, by `sigma_max` or by its recommendation.").emit()
            return


def fit_start(gradient: Callable[[Tensor], Tensor], xi: Tensor, sigma: float) -> LevelStart:
    r"""Fits the Gaussian at a noise level to denoised points, coordinate by coordinate, and measures what it leaves out."""

    def denoise(x: Tensor) -> Tensor:
        return x.double() - sigma**2 * gradient(x).double()

    xi = xi - xi.mean(0)
    mean, scale, misfit = torch.zeros_like(xi[0]).double(), torch.full_like(xi[0], math.hypot(sigma, 1)).double(), xi.new_zeros(())
    share = error = raw = change = torch.zeros_like(mean)
    for _ in range(2):
        x = (mean + scale * xi).to(xi)
        denoised = denoise(x)
        gap, change = x.double() - x.double().mean(0), denoised - denoised.mean(0)
        share, error, raw = _regress(gap, change)
        misfit = torch.maximum(misfit, 2 * (change - share * gap).square().mean().sqrt() / sigma)
        mean = torch.where(raw < 1, (denoised.mean(0) - share * x.double().mean(0)) / (1 - share), denoised.mean(0))
        scale = sigma / (1 - share).sqrt()
    way = change.reshape(len(xi), -1)
    way = (way / way.norm(dim=1, keepdim=True).clamp_min(torch.finfo(way.dtype).tiny)).view(xi.shape)
    ahead, back = (denoise((mean + sign * _REACH * scale * way).to(xi)) for sign in (1, -1))
    off = (((ahead - back) / 2 - share * _REACH * scale * way) * way).reshape(len(xi), -1).sum(1).abs() / (_REACH * sigma)
    misfit = max(torch.maximum(misfit, off.mean()).item(), float((raw > _LARGEST).any()))  # and a spread that the level does not resolve
    if not math.isfinite(misfit):  # the driver reports it
        return LevelStart(sigma, torch.zeros_like(xi[0]), torch.ones_like(xi[0]), 0.0, 1.0, 1.0)
    variance, upper = (sigma**2 * part / (1 - part) for part in (share, (share + 2 * error).clamp(max=_LARGEST)))
    slope = (1 - raw.mean().item()) * (1 + 1 / sigma**2)
    return LevelStart(sigma, mean.to(xi), variance.to(xi), misfit, slope, upper.min().sqrt().item())


def _regress(gap: Tensor, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the slope of denoised points by coordinate, its standard error, and the slope before it is limited. A coordinate has a slope
    of its own where it differs from that of all by three standard errors."""
    squares = gap.square().sum(0)
    pooled = ((gap * change).sum() / squares.sum()).expand_as(squares)
    if len(gap) < _PER_COORDINATE:
        return pooled.clamp(_LEAST, _LARGEST), torch.zeros_like(pooled), pooled
    own = (gap * change).sum(0) / squares
    error = ((change - own * gap).square().sum(0) / squares / len(gap)).sqrt()
    raw = torch.where((own - pooled).abs() > 3 * error, own, pooled)
    return raw.clamp(_LEAST, _LARGEST), error, raw
