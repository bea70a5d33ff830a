"""Before the loop: draws of the branches of a mixture, pilot chains that tune the sampler, and the start points of chains."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import chain, product, starmap
from operator import attrgetter, itemgetter, methodcaller
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily, StudentT, Uniform

from composable_energy.algebra import Conjunction, Decoded, Difference, Disjunction, Factor, Negation, Relative, Restricted, Weighted
from composable_energy.algebra.disjunction import Branch
from composable_energy.algebra.node import as_float
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies import DistributionEnergy, Energy
from composable_energy.energies.checks import modules_of
from composable_energy.errors import ComposableEnergyError, SamplingWarning
from composable_energy.sampling.checks import values_of
from composable_energy.sampling.noise import Noise
from composable_energy.sampling.problem import BranchDraws, Call, PilotResult, PointSpec, Problem
from composable_energy.sampling.sampler import Sampler, State, start_points
from composable_energy.sampling.selection import recommendations
from composable_energy.sampling.wrappers import EnergyWrapper, GuardedEnergy, explain_failure, select_rows
from composable_energy.supports import circle, contains, ends_of, join, plain, split
from composable_energy.supports.distributions import seeded_draws

_PILOTS = 64
_NEARLY_ALL = 0.97
_DRAWS, _NUMBERS, _LEAST = 4096, 2**22, 64  # of the branches of a mixture together; numbers in them; and draws of each branch
_ROUNDS, _FEW, _SCALES = 8, 3, (1.0, 10.0)  # of weighted draws, if one gives few; coordinates in which any draws do; and of wide ones


class _Reported(EnergyWrapper):
    """An energy whose evaluations, by a sampler that is tuned, are reported to observers."""

    def __init__(self, energy: Energy, sampler: Sampler, observers: Sequence[Any]) -> None:
        super().__init__(energy)
        self.sampler, self.observers, self.count = sampler, observers, 0

    def evaluate(self, method: str, x: Tensor, conditions: Mapping[str, Any]) -> Any:
        self.count += 1
        for observer in self.observers:
            observer.on_tuning(self.sampler, self.count)
        return super().evaluate(method, x, conditions)


def tune_sampler(problem: Problem) -> Problem:
    """Returns the problem with all options of its sampler set, and where the pilot chains arrived, if any were run. The noise of the pilots
    has a fixed seed. So the options follow from the sampler, the energy and the start points alone: not from the seed of the draws, their
    number or batches. The sampler of a resumed trace is tuned already. Observers hear of each evaluation."""
    sampler, points, energy = problem.sampler, problem.points, problem.energy
    if type(sampler).tune is Sampler.tune or sampler.tuned or problem.call.resume is not None:
        return problem
    noise, rows = Noise(0, range(_PILOTS), kind=problem.noise.kind).child("pilot"), torch.arange(_PILOTS, device="cpu") % points.n
    if problem.drawn is not None:
        places, drawn = torch.arange(_PILOTS, device="cpu"), problem.drawn.points  # as many in each branch, so that a step suits all
        x = drawn[places % len(drawn), places // len(drawn) % drawn.shape[1]]
    elif problem.init is not None:
        x = problem.init[rows]
    else:
        zeros = points.zeros()
        x = start_points(sampler, zeros.expand(_PILOTS, *zeros.shape).contiguous(), noise.child("start"), problem.plain.sites)
    if problem.call.observers:
        energy = _Reported(energy, sampler, problem.call.observers)
    try:
        tuned, arrived = sampler.tune(select_rows(energy, rows, points.n) if problem.own_conditions else energy, x, noise)
    except Exception as error:
        explain_failure(error, f"{type(sampler).__name__.lower()} was being tuned, by 64 pilot chains of shape {(64, *points.event)}.")
        raise
    problem = replace(problem, sampler=tuned)
    if arrived is x or type(tuned).approach is Sampler.approach:
        return problem
    arrived = arrived.to(x.dtype)
    energies = values_of(problem, rows, arrived).energies[:, 0]
    if not (finite := energies.isfinite() & arrived.reshape(len(arrived), -1).isfinite().all(1)).any():
        return problem
    # Draws of the density should not count as starts in a tail, nor should few pilots that are still in a tail raise the level. So it is
    # above the energies of nearly all pilots, by their distance from the median.
    energies = energies[finite].double()
    level = 2 * energies.quantile(_NEARLY_ALL) - energies.median()
    return replace(problem, pilots=PilotResult(arrived[finite], None if problem.own_conditions else level.item()))


def start_chains(problem: Problem, ids: range) -> tuple[State, int]:
    """Returns the state of chains at their start, and how many of them the sampler could not bring from `init` to the bulk. Without `init`
    they start at draws of the branches of a mixture, else at points of the sampler, or where pilot chains arrived. The sampler moves points
    in a tail; a chain that it cannot bring to the bulk starts where a pilot chain arrived. No chain depends on others."""
    sampler, pilots, drawn, zeros = problem.sampler, problem.pilots, problem.drawn, problem.points.zeros()
    energy, noise, like, relocated = problem.energy_of(ids), problem.noise_of(ids), zeros.expand(len(ids), *zeros.shape), 0
    level, approach = None if pilots is None else pilots.level, noise.child("approach")
    arrived = None if pilots is None else pilots.points[(torch.arange(len(ids), device="cpu") + noise.chains[0]) % len(pilots.points)]
    if problem.init is not None:
        x = problem.init[ids.start : ids.stop].clone()
    elif drawn is not None:
        branch = noise.child("branch")
        branches = torch.searchsorted(drawn.shares.cumsum(0)[:-1].to(like.device), branch.uniform(like).double(), right=True)
        x = drawn.points[branches, (branch.uniform(like, stream=1).double() * drawn.points.shape[1]).long()]
        if not drawn.exact and level is not None:
            x, _ = sampler.approach(energy, x, approach, math.inf)
    elif arrived is None or level is None or not sampler.traits.from_pilots:
        x = start_points(sampler, like.contiguous(), noise.child("start"), problem.plain.sites)
    else:
        x = arrived
    if arrived is not None and drawn is None:
        x, good = sampler.approach(energy, x, approach, level)
        if level is not None and not good.all():
            x, relocated = torch.where(unsqueeze_to(good, x), x, arrived), int((~good).sum())
    return sampler.init(energy, x, noise), relocated


def draw_branches(problem: Problem, sample: Callable[[Call], Tensor]) -> BranchDraws | None:
    """Returns draws of an expression with mixtures; None for another one, without draws, or if the call or sampler has start points.

    Of known branches, a distribution is drawn. Where shares are not known, as in `mixture & A` and `A ^ B`, and where `~` or a function on
    a small bounded support may leave several modes, draws of the distributions of the expression, or uniform ones, are weighed and
    resampled. Any other branch, and an observation of a trained prior, is drawn by chains of its own. All seeds are fixed, as of tuning.
    """
    points, branches, found, shares, all_exact = problem.points, problem.branches, list[Tensor](), list[float](), True
    if problem.density is None or problem.init is not None or problem.call.resume is not None or problem.sampler.traits.start is not None:
        return None
    most = min(_DRAWS, _NUMBERS // max(1, points.event.numel())) // max(1, len(branches))
    for number, (energy, _, share, _) in enumerate(branches or (Branch(problem.density, 0.0, 1.0, 0.0),)):
        x, exact = _draw_distribution(energy, points, max(_LEAST, most), number) if branches else None, True
        if x is None:
            x, exact = _resample(energy, points, math.ceil(share * points.n))
        if x is None:
            usual = others = recommendations(energy)
            if problem.call.sampler is None and not branches and problem.sampler.traits.from_pilots:
                others = recommendations(energy, outranked=True) or usual  # as of a trained prior under an observation: good start points
            if others != usual or (branches and not usual):  # else chains need not arrive, as of networks
                how = {"sampler": others[0][1].sampler, "options": others[0][1].options} if others != usual else {}
                call = Call(energy, (_LEAST, *points.event), seed=0, dtype=points.dtype, device=points.device, latents=True, **how)
                with suppress(ComposableEnergyError):  # these are no draws for the caller
                    x, exact = SamplingWarning.muted(sample, call), False
        if x is None:
            return None
        u = x
        if points.coordinates is not None:
            good = contains(energy.support, x)
            u = points.coordinates.inverse(x[good]) if good.any() else x[:0]
        if not len(u := u[u.reshape(len(u), -1).isfinite().all(1)]):
            return None
        found.append(u[torch.arange(len(x), device=u.device) % len(u)])  # another point stands for one that is rounded to the boundary
        shares.append(share)
        all_exact = all_exact and exact
    stacked = torch.stack([*map(itemgetter(slice(min(map(len, found)))), found)])  # as many of each
    return BranchDraws(stacked, torch.tensor(shares, dtype=torch.float64, device="cpu"), all_exact)


def _resample(energy: Energy, points: PointSpec, chains: int) -> tuple[Tensor | None, bool]:
    """Returns draws of the distributions of an expression, resampled with its density over theirs as weights; None if few count. They are
    exact if they are worth as many independent draws as there are chains. More are drawn where that helps."""
    if not (sources := _proposals(energy, points)):
        return None, False
    count = max(_LEAST, min(4 * _DRAWS, _NUMBERS // max(1, points.event.numel())) // len(sources))
    guarded, found, logs, weights, effective = GuardedEnergy(energy), [], [], torch.empty(0, device="cpu"), 0.0
    for number in range(_ROUNDS):
        for i, source in enumerate(sources):
            if (drawn := _draw_distribution(source, points, count, number * len(sources) + i)) is None:
                return None, False
            found.append(drawn)
        try:
            for some in torch.cat(found[-len(sources) :]).split(_DRAWS):
                log_proposal = (-torch.stack(list(map(methodcaller("__call__", some), sources)))).double().logsumexp(0)
                logs.append(-guarded.evaluate("__call__", some, {}).double() - log_proposal)
        except Exception:  # at all points, which the chains report
            return None, False
        weights = torch.softmax(torch.cat(logs).nan_to_num(-math.inf, posinf=-math.inf), 0)
        if (effective := 1 / weights.square().sum().item()) >= chains or not effective * _ROUNDS >= chains * (number + 1):
            break
    if not effective >= _LEAST:
        return None, False
    rows = torch.multinomial(weights.cpu(), len(weights), replacement=True, generator=torch.Generator().manual_seed(0))
    return torch.cat(found)[rows.to(weights.device)], effective >= chains


def _proposals(energy: Energy, points: PointSpec) -> Sequence[Energy]:
    """Returns distributions whose draws cover all modes that an expression may have; none where it has one, or where none are known. They
    are those of an expression with modes; else, for few coordinates, uniform ones on a bounded support, on which a function may have any
    modes, and wide ones on all of R^n for an expression that may have several."""
    while isinstance(energy, Disjunction) and len(energy.satisfiable_terms) == 1:  # branches without density hold no modes
        energy = energy.satisfiable_terms[0]
    modes = False
    for part in modules_of(energy):
        law = part.distribution if isinstance(part, DistributionEnergy) else None
        while isinstance(law, Independent):
            law = law.base_dist
        modes |= isinstance(law, MixtureSameFamily) or isinstance(part, Negation)
        modes |= isinstance(part, Disjunction) and part.formula is None
    sources = _find_sources(energy, {}) if modes else ()
    if sources or points.event.numel() > _FEW or isinstance(energy, DistributionEnergy) or recommendations(energy):
        return sources
    if (ends := (-math.pi, math.pi) if isinstance(support := plain(energy.support), type(circle)) else ends_of(support)) is None:
        return ()
    low, high = map(torch.zeros(points.event, dtype=points.dtype, device=points.device).add, ends)
    if (high - low).isfinite().all():
        laws = [Uniform(low, high, validate_args=False)]
    elif modes and (low == -math.inf).all() and (high == math.inf).all():
        laws = [StudentT(3.0, torch.zeros_like(low), scale, validate_args=False) for scale in _SCALES]
    else:
        return ()
    return [DistributionEnergy(Independent(law, len(points.event))) for law in laws]


def _find_sources(energy: Energy, known: dict[Energy, Sequence[Energy]]) -> Sequence[Energy]:
    """Returns distributions whose draws cover all of a density; none if none are known to. `known` has what was found."""
    if energy in known:
        return known[energy]
    own, terms = (), energy.terms
    match energy:
        case Factor() if not energy.values and (len(energy.names) == 1 or energy.terms[0].variables):
            own, terms = tuple(map(energy.around, _find_sources(energy.terms[0], known))), ()
        case DistributionEnergy():
            own, terms = (energy,), ()
        case Relative() | Difference() | Decoded() | Restricted():
            terms = energy.terms[:1]
        case Weighted() if as_float(energy.weight) > 0 and not energy.of_evidence:
            pass
        case Conjunction():
            own, terms = (_cover(terms, energy, known), ()) if energy.variables else ((), terms)
        case Disjunction() if energy.formula is None:
            terms = energy.satisfiable_terms if energy.grounded else ()  # not where a branch leaves a variable free
        case _:  # evidence is bounded
            bases = map(attrgetter("energy"), energy.bases)
            own, terms = (_cover(bases, energy, known), ()) if energy.variables else ((), bases)
    inside = list(map(partial(_find_sources, known=known), terms))
    known[energy] = () if isinstance(energy, Disjunction) and not all(inside) else tuple(dict.fromkeys([*own, *chain(*inside)]))
    return known[energy]


def _cover(terms: Iterable[Energy], whole: Energy, known: dict[Energy, Sequence[Energy]]) -> Sequence[Energy]:
    """Returns products of the draws of terms, those over most variables first, that have each variable of the whole once, if any do."""
    found = [({*getattr(some[0], "names", whole.variables)}, some) for term in terms if (some := _find_sources(term, known))]
    each, taken = list[Sequence[Energy]](), set[str]()
    for names, some in sorted(found, key=lambda pair: -len(pair[0])):
        if taken.isdisjoint(names):
            each.append(some)
            taken |= names
    return tuple(starmap(Conjunction, product(*each))) if taken == {*whole.variables} and math.prod(map(len, each)) <= _PILOTS else ()


def _draw_distribution(energy: Energy, points: PointSpec, count: int, seed: int) -> Tensor | None:
    """Returns exact draws of a distribution, or of a product over named variables; None for another energy, or without a seed."""
    while isinstance(energy, Relative | Decoded):
        energy = energy.terms[0]
    if isinstance(energy, DistributionEnergy):
        law, device = energy.distribution, points.device
        one, two = seeded_draws(law, count, device, seed), seeded_draws(law, count, device, seed)
        if one is None or two is None or one.shape != (count, *points.event) or not torch.equal(one, two):
            return None
        return one.to(device, points.dtype)
    parts, factors = dict[str, Tensor](), energy.terms if isinstance(energy, Conjunction) else (energy,)
    for number, factor in enumerate(factors):
        if not isinstance(factor, Factor) or factor.values or not parts.keys().isdisjoint(factor.names):
            return None
        if not (law := factor.terms[0]).variables and len(factor.names) > 1:
            return None
        if (drawn := _draw_distribution(law, replace(points, event=law.event_shape), count, seed + number * _ROUNDS * _DRAWS)) is None:
            return None
        parts |= split(drawn.reshape(count, -1), {name: energy.variables[name] for name in factor.names})
    return join(parts, energy.variables) if parts.keys() == energy.variables.keys() else None
