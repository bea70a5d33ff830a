"""What a call checks of its energy: that it is the same as before, that each point counts alone, and that gradients fit values."""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from composable_energy.algebra import Negation, Node, Weighted
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.checks import modules_of
from composable_energy.energies.energy import Energy
from composable_energy.energies.evaluation import Use, evaluating
from composable_energy.errors import ExpressionError, OptionError, SamplingWarning
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import State, bound_conditions
from composable_energy.sampling.trace import Values
from composable_energy.sampling.wrappers import EnergyWrapper

_GAP_TOLERANCE, _SLOPE_TOLERANCE = 0.01, 0.1  # relative; finite differences in float32 are off by a few per cent where energies bend
_LINES = 8  # chains whose gradients are compared with energies
_WIDTHS, _DESCENT = (2.0, 4.0, 8.0, 16.0), 60  # standard deviations and steps of a search for modes
_MOST_CHAINS, _MOST_COORDINATES = 2048, 50
_BARRIER, _RISE, _ENDS = 5.0, 4.0, 8  # the least barrier, the highest minimum above the lowest chain, and the chains to which lines lead
_STATES, _TRIED, _LIKELY = 512, 8, 0.05  # states beside a chain of each kind, chains, and the odds of such states that count
_COARSE = 1 / 8  # the distance of neighbouring numbers: rounded energies change a density by half of it, up and down


def values_of(problem: Problem, chains: Tensor, x: Tensor) -> Values:
    """Returns energies and gradients at points of chains, counted from 0, which identify the energy."""
    first = bound_conditions(problem.sampler, problem.energy)
    levels = [first, bound_conditions(problem.sampler, problem.energy, 1)] if first else [first]  # two values of what the sampler binds
    found, slopes = x.new_empty(len(levels), len(x)), x.new_empty(len(levels), *x.shape)
    for first in range(0, len(x), problem.batch_size):
        rows = slice(first, first + problem.batch_size)
        energy, some = problem.energy_of(chains[rows], plain=True), x[rows]
        for level, conditions in enumerate(levels):
            bound = {name: some.new_full((), value).expand(len(some)) for name, value in conditions.items()} if conditions else {}
            try:  # values of scores count as 0, which identifies them too
                with evaluating(given={}) if energy.needs_log_densities else nullcontext():
                    energies, grads = energy.with_gradient(some, **bound)
            except ExpressionError:  # the energy has no gradient, and some samplers need none
                energies, grads = energy(some, **bound), torch.full_like(some, torch.nan)
            found = found.to(energies.dtype)
            found[level, rows], slopes[level, rows] = energies, grads
    return Values(chains, x, found.transpose(0, 1), slopes.transpose(0, 1))


def check_same_energy(problem: Problem, reference: Iterable[Values], owner: str, advice: str) -> None:
    """Raises if the energy has other values than those of before, of an owner that the message names with the advice."""
    for before in reference:
        if len(before.x) and (found := _difference(problem, before, values_of(problem, before.chains.cpu(), before.x))) is not None:
            raise OptionError(f"{owner} of another energy than {problem.energy}: {found}. {advice}")


def _difference(problem: Problem, before: Values, now: Values) -> str | None:
    r"""Describes the first energy or gradient that differs by more than rounding, as of another batch size; None if there is none. Both may
    differ relative to $1 + |E| + \sum_i |x_i \partial_i E|$, which covers terms that cancel, and to the largest $|\partial_i E|$ of the
    point. A gradient may also differ by what changes no energy over the width of the points, and by the rounding of ones that cancel."""
    if now.energies.shape != before.energies.shape:
        return f"{before.energies.shape[1]} energies of each point were kept, and the sampler compares {now.energies.shape[1]}"
    eps = max(torch.finfo(tensor.dtype).eps for tensor in (before.x, before.energies, before.grads))
    rounding = min(eps ** (2 / 3) * max(1, before.x[0].numel()) ** 0.5, eps**0.5)
    slopes, new_slopes = (tensor.reshape(*tensor.shape[:2], -1) for tensor in (before.grads, now.grads))
    x, sizes = before.x.reshape(len(before.x), 1, -1).nan_to_num(0, 0, 0).abs(), slopes.nan_to_num(0, 0, 0).abs()
    near = rounding * (1 + before.energies.abs() + (x * sizes).sum(2))
    close = rounding * (sizes.amax(2) + 1 / x.amax().clamp_min(1)) + min(64 * eps, rounding) * sizes.amax((0, 2))
    for name, old, new, tolerance in (("energy", before.energies, now.energies, near), ("gradient", slopes, new_slopes, close[..., None])):
        unknown = old.isnan() if name == "gradient" else old.isnan() & new.isnan()
        if (same := torch.where(old.isfinite() & new.isfinite(), (new - old).abs() <= tolerance, (old == new) | unknown)).all():
            continue
        row, level, *_ = place = tuple((~same).nonzero()[0].tolist())
        bound = bound_conditions(problem.sampler, problem.energy, level)
        under = "".join(f" at {condition}={value:.4g}" for condition, value in bound.items())
        a, b = old[place].item(), new[place].item()
        digits = next((digits for digits in (6, 9) if f"{a:.{digits}g}" != f"{b:.{digits}g}"), 17)
        return f"where chain {int(before.chains[row])} was, the {name}{under} was {a:.{digits}g} and is {b:.{digits}g} now"
    return None


def check_rows(problem: Problem, ids: Tensor, x: Tensor) -> None:
    """Raises if the energy of a point of chains depends on the other points of its batch, or on its place among them. A point is evaluated
    beside others, and beside as many and a few copies of itself; a single point beside another one and alone. An energy that differs
    without that, as one that draws random numbers, is noted among the faults; so are gradients that do not fit it, if they alone count."""
    if not (problem.sampler.traits.values or problem.sampler.traits.minimizes):
        problem.energy.faults.slopes = _find_slopes(problem, ids, x)
    row = int(x.reshape(len(x), -1).norm(dim=1).argsort()[len(x) // 2])
    others = x
    if not (x != x[:1]).any():
        ids = ids.repeat(2) if len(x) == 1 else ids
        others = x + (1 + x.abs()) * unsqueeze_to(torch.linspace(0, 0.1, len(ids)).to(x), x)
    copies, problem = others[row].expand_as(x).contiguous(), replace(problem, batch_size=len(ids))
    try:
        beside = values_of(problem, ids, others)
        near, energies, grads = torch.finfo(beside.energies.dtype).eps ** (2 / 3), beside.energies[row], beside.grads[row]
        for count, close in ((len(x), near), (min(2, len(x) - 1) or 1, 0.1)):  # kernels for another size round differently
            again = values_of(problem, ids[row].repeat(count), copies := copies[:count])
            if not (torch.allclose(again.energies, energies, close, close) and torch.allclose(again.grads, grads, close, close)):
                break
        else:
            return  # the usual case, quickly
        expected = Values(again.chains, copies, energies.expand_as(again.energies), grads.expand_as(again.grads))
        found = _difference(problem, expected, again)
        problem.energy.faults.varies = None if found is None else _difference(problem, beside, values_of(problem, ids, others))
        if found is None or problem.energy.faults.varies:
            return
        shifts = 1 + torch.finfo(x.dtype).eps * torch.linspace(-4, 4, len(copies), dtype=x.dtype, device=x.device)
        moved = values_of(problem, again.chains, copies * unsqueeze_to(shifts, x))
        pairs = ((energies, again.energies, moved.energies), (grads, again.grads, moved.grads))
        if all(torch.allclose(now, once, near, near + float((now - near_by).abs().max())) for once, now, near_by in pairs):
            return  # rounding, which an ill-conditioned function amplifies
    except Exception:  # where an energy raises is found by the chains
        return
    raise ExpressionError(
        f"The energy of a point by {problem.plain} depends on the other points of its batch, or on its place. Of one point beside others "
        f"and beside copies of itself: {found}. Data as long as the batch are broadcast along it, as in `x[:, 0] - y`: give them an axis "
        "of their own, `(x - y).square().sum(1)`. Means over the batch, softmax over `dim=0` and BatchNorm in training mode need others."
    )


def check_gradients(energy: Energy, x: Tensor, conditions: Mapping[str, float]) -> None:
    """Raises if a part of an expression overrides `with_gradient` by energies or gradients that do not fit its values. A sampler that
    accepts and rejects by values would draw from another density than one that follows gradients. The values are compared at the points
    where the expression evaluates that energy, by a central difference along the gradient."""
    for part in modules_of(energy):
        if isinstance(part, Energy) and part.has_own_gradient and not isinstance(part, EnergyWrapper):
            break
    else:
        return
    with evaluating(uses=[]) as check:
        Weighted(energy, 1.0).with_gradient(x, **{name: x.new_full((), value).expand(len(x)) for name, value in conditions.items()})
    for use in check.uses or ():
        eps, gradient = torch.finfo(use.x.dtype).eps, use.gradient
        if gradient is None or use.energies is None or not use.energy.has_value or isinstance(use.energy, EnergyWrapper):
            continue
        values, expected = use.energy(use.x, **use.conditions), gradient.reshape(len(use.x), -1).norm(dim=1)
        gap = (use.energies - values).abs() / (1 + values.abs())
        if 2 * int((gap > max(_GAP_TOLERANCE, 10 * eps)).sum()) > int(gap.isfinite().sum()):
            row = int(gap.nan_to_num().argmax())
            found = f"it returns {use.energies[row]:.4g} where `forward` returns {values[row]:.4g}: correct one of them"
            raise ExpressionError(f"The values of {use.energy} do not fit its `with_gradient`: {found}.")
        step = eps ** (1 / 3) * (1 + use.x.abs().max())
        move = step * gradient / unsqueeze_to(expected.clamp_min(torch.finfo(use.x.dtype).tiny), use.x)
        up, down = use.energy(use.x + move, **use.conditions), use.energy(use.x - move, **use.conditions)
        slope, rounding = (up - down) / (2 * step), 100 * eps * (1 + up.abs()) / step
        measurable = slope.isfinite() & expected.isfinite() & (expected > rounding / _SLOPE_TOLERANCE)
        off = measurable & ~((slope - expected).abs() <= _SLOPE_TOLERANCE * torch.maximum(slope.abs(), expected))
        if 2 * int(off.sum()) > int(measurable.sum()):
            row = int(off.nonzero()[0])
            raise ExpressionError(
                f"The values of {use.energy} do not fit its `with_gradient`: along the gradient they change by {slope[row]:.4g}, it says "
                f"{expected[row]:.4g}. Correct one of them; if `forward` has no meaning, set `has_value = False` in "
                f"{type(use.energy).__name__} and take a sampler that follows gradients alone, such as `langevin`."
            )


def _find_slopes(problem: Problem, ids: Tensor, x: Tensor) -> str | None:
    """Describes where energies change by other than their gradients, as by a wrong `backward` or a hook, at most of up to 8 points where a
    straight line fits the energies beside a point, along its gradient and a random direction; None where they fit or cannot be compared."""
    ids, x = ids[:_LINES], x[:_LINES]
    if not problem.plain.has_value or problem.plain.sites or bound_conditions(problem.sampler, problem.plain):
        return None
    with suppress(Exception):  # where an energy raises is found by the chains
        at, eps = values_of(problem, ids, x), torch.finfo(x.dtype).eps
        energies, slopes = at.energies[:, 0], at.grads[:, 0].reshape(len(x), -1)
        random = torch.randn(slopes.shape, generator=torch.Generator().manual_seed(0), device="cpu").to(x)
        way, step = normalize(normalize(slopes) + normalize(random)), eps ** (1 / 3) * (1 + x.abs().max())
        move = step * way.reshape(x.shape)
        up, down = values_of(problem, ids.repeat(2), torch.cat([x + move, x - move])).energies[:, 0].split(len(x))
        slope, expected, bend = (up - down) / (2 * step), (slopes * way).sum(1), (up - 2 * energies + down).abs() / step
        rounding = 100 * eps * (1 + energies.abs().max()) / step
        known = expected.isfinite() & (bend <= _SLOPE_TOLERANCE * slope.abs()) & (_SLOPE_TOLERANCE * slope.abs() > rounding)
        off = known & ((slope - expected).abs() > 2 * _SLOPE_TOLERANCE * torch.maximum(slope.abs(), expected.abs()))
        if 2 * int(off.sum()) > int(known.sum()):
            row = int(off.nonzero()[0])
            return f"Near a start point the energy changes by {slope[row]:.4g} along a line, and by {expected[row]:.4g} by its gradient."
    return None


def check_detached(uses: Sequence[Use], alone: bool) -> None:
    """Raises if what autograd finds constant, in these uses, changes with its points: its gradient would lack without a word. Walls are
    right, and so are energies that declare to have no gradient. A sampler that follows gradients `alone` misses steps, which are constant
    nearly everywhere, and decoders and networks of events without a gradient as well; others do not."""
    seen = set[Any]()
    for use in reversed(uses):
        of, network = use.energy, not isinstance(use.energy, Energy)
        if use.gradient is not None or of in seen or (not alone if network else not of.has_gradient):
            continue
        seen.add(of)
        x, eps = use.x, torch.finfo(use.x.dtype).eps
        way = torch.arange(x[0].numel()).cos().to(x).reshape(x.shape[1:]) * (eps ** (1 / 3) * (1 + x.abs().max()))
        with torch.no_grad():
            found = torch.stack([of(x + far * way, **use.conditions) for far in (-3, -1, 1, 3)]).reshape(4, len(x), -1)
        values = found @ torch.arange(found.shape[2]).cos().to(found)
        known = values.isfinite().all(0)
        before, after = ((values[i] - values[i + 1]).abs() > 100 * eps * (1 + values[i].abs()) for i in (0, 2))
        cut, finite = 2 * int((known & before & after).sum()) > int(known.sum()), values[:, known]  # a step at the point is between them
        if cut or (alone and finite.numel() and finite.amax() - finite.amin() > 100 * eps * (1 + finite.abs().amax())):
            owner = getattr(of, "__self__", of)
            name = getattr(owner, "__name__", type(owner).__name__) if network else of
            raise ExpressionError(
                f"{name} changes with its points, but its result has no gradient: it is computed under `torch.no_grad`, detached, or "
                "made a new tensor of numbers. Compute it with torch operations on the points throughout"
                + (", or take a sampler that accepts and rejects, such as `mala`." if network or not cut else ".")
            )


def mixes_values(energy: Energy) -> bool:
    """Returns whether the gradient of an expression depends on values of its terms, as that of a mixture does."""
    for part in modules_of(energy):
        if isinstance(part, Node) and not part.sums and (not isinstance(part, Negation) or part.mode == "contrast"):
            return True
    return False


def warn_of_spacing(energies: Tensor, dtype: torch.dtype, use: str) -> list[SamplingWarning]:
    """Returns the warning about energies in the density so large that numbers of their dtype are too coarse for what they decide, `use`."""
    energies = energies[energies.isfinite()]
    if (typical := energies.abs().median().item() if len(energies) else 0.0) * torch.finfo(dtype).eps <= _COARSE:
        return []
    spacing = torch.finfo(dtype).eps * 2 ** math.floor(math.log2(typical))
    seen = f"Energies are about {typical:.2g}, where numbers of {dtype} are {spacing:.2g} apart: too coarse for what they decide, {use}."
    advice = "Take dtype=torch.float64, with parameters in it, or leave a constant as large as the energies out of the function."
    return [SamplingWarning("rounding", seen, advice)]


def finds_states(problem: Problem, x: Tensor) -> bool:
    """Returns whether states are likely beside those of chains that never moved: then no change that the sampler makes leads there. Up to 8
    chains are compared with the others, and with states where some sites have other values, or two exchange theirs."""
    sites, generator = problem.plain.sites, torch.Generator().manual_seed(0)
    index, counts = sites.index(x).cpu(), sites.counts.cpu()
    numbers, chosen, many = (torch.rand(_STATES, some, generator=generator, device="cpu") for some in (len(counts), len(counts), 1))
    redrawn, pairs = (numbers * counts).long(), numbers.argsort(1)[:, :2]
    for chain in range(0, len(x), -(-len(x) // _TRIED)):
        here = index[chain].expand_as(redrawn)
        swapped = here.scatter(1, pairs, here.gather(1, pairs.flip(1)))
        states = torch.cat([torch.where(chosen < many**2, redrawn, here), swapped.minimum(counts - 1), index[:_STATES]]).unique(dim=0)
        states = torch.cat([index[chain, None], states[(states != index[chain]).any(1)]]).to(x.device)
        points = sites.place(x[chain].expand(len(states), *x.shape[1:]), states)
        with suppress(Exception):  # the energy may raise at states where no chain was, and the draws count
            energies = values_of(problem, torch.full((len(states),), chain, device="cpu"), points).energies[:, 0].double()
            if (energies[0] - energies[1:]).exp().sum() > _LIKELY:
                return True
    return False


def find_mode(problem: Problem, state: State, before: Tensor) -> str:
    """Returns what is seen of a mode that chains miss, or hardly leave, by their points now and many steps before; else an empty text. From
    64 points, up to 16 standard deviations away from up to 2048 chains, it descends to minima of the energy, by Adam. One is in a mode of
    its own if the energy rises by more than 5 along each straight line to the 8 lowest chains. Chains miss it if it does along those to the
    8 nearest ones too, which are as low above it as chains are above the lowest one, or if most that are in it were in it before."""
    points, apart = problem.points, -(-len(state.x) // _MOST_CHAINS)
    x, energies, then = (some[::apart] for some in (state.x, state.energy, before))
    turns = points.coordinates is not None and not torch.equal(points.coordinates.features(x), x)  # equal points may be far apart
    if turns or not problem.energy.has_value or problem.plain.sites or len(x) < _ENDS or x[0].numel() > _MOST_COORDINATES:
        return ""
    flat, chains = x.reshape(len(x), -1), torch.zeros(1, dtype=torch.int64, device="cpu")
    middle, width = flat.median(0).values, flat.std(0).clamp_min(torch.finfo(x.dtype).tiny)
    z = torch.randn(16, len(_WIDTHS), len(middle), generator=torch.Generator().manual_seed(0), device="cpu").to(x)
    z = (z * x.new_tensor(_WIDTHS)[:, None]).flatten(0, 1) / max(1.0, len(middle) / 4) ** 0.5
    first, second, tiny = torch.zeros_like(z), torch.zeros_like(z), torch.finfo(x.dtype).tiny
    for step in range(_DESCENT):  # `torch.optim` takes a second to import
        slopes = values_of(problem, chains.expand(len(z)), (middle + width * z).reshape(-1, *x.shape[1:])).grads.reshape(z.shape) * width
        first, second = first.lerp(slopes.nan_to_num(0, 0, 0), 0.2), second.lerp(slopes.nan_to_num(0, 0, 0).square(), 0.1)
        pace = (second / (1 - 0.9 ** (step + 1))).sqrt() * (1 - 0.8 ** (step + 1)) + tiny
        z = z - 0.7 * (1 - step / _DESCENT) * first / pace
    lows = values_of(problem, chains.expand(len(z)), (middle + width * z).reshape(-1, *x.shape[1:])).energies[:, 0]
    own, places = (flat - middle) / width, torch.linspace(0, 1, 17).to(x)[1:-1, None, None]
    usual = energies - lows[:, None] < (energies - energies.min()).quantile(0.9)
    nearest = torch.cdist(z, own).masked_fill(~usual, math.inf).argsort(1)[:, :_ENDS]
    others, missed, k = z.new_empty(0), (lows < energies.min() + _RISE).nonzero().flatten(), 0
    for k, end in enumerate((*energies.argsort()[:_ENDS].expand(len(z), -1).T, *nearest.T)):
        others = missed if k <= _ENDS else others
        between = middle + width * torch.lerp(z[missed], own[end[missed]], places)
        found = values_of(problem, chains.expand(len(places) * len(missed)), between.reshape(-1, *x.shape[1:]))
        rises = found.energies.nan_to_num(math.inf).view(len(places), -1).amax(0) - torch.maximum(lows[missed], energies[end[missed]])
        if not len(missed := missed[(rises > _BARRIER) | (~usual[missed, end[missed]] & (k >= _ENDS))]):
            break
    if not len(others) or (not len(missed) and k < _ENDS):
        return ""
    mode = z[(kept := missed if len(missed) else others)[lows[kept].argmin()]]
    places = own, (then.reshape(len(x), -1) - middle) / width
    here, stayed = ((some - mode).norm(dim=1) < (some - own[energies.argmin()]).norm(dim=1) for some in places)
    inside = 0 if len(missed) else int(here.sum())
    if not len(missed) and (here & stayed).sum() - inside * stayed.sum() / len(x) <= inside / 2:
        return ""
    where = ", ".join(f"{value:.3g}" for value in points.constrain((middle + width * mode).reshape(1, *x.shape[1:])).flatten()[:4].tolist())
    return f"{inside or 'None'} of {len(x)} chains are in a mode of the density at {where}, so its share is wrong."
