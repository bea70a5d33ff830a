"""What a call returns and warns about: the check of convergence of every call, the points and the trace, and chains that diverged."""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from composable_energy.algebra import Conjunction, Disjunction, Weighted, value_of
from composable_energy.algebra.node import as_float, join_events
from composable_energy.diagnostics.warnings import (
    LARGEST_BIAS,
    advise,
    chance,
    find_branch_warnings,
    find_point_warnings,
    largest_r_hat,
    warn_of_bias,
    warn_of_still_chains,
)
from composable_energy.energies.checks import check_tails
from composable_energy.energies.energy import Energy
from composable_energy.errors import SamplingDiverged, SamplingWarning, SupportWarning, warn_caller
from composable_energy.events import Categorical, Formula, conjoin
from composable_energy.sampling.chains import Chains, Diverged, Observer, compare_pieces
from composable_energy.sampling.checks import find_mode, finds_states
from composable_energy.sampling.observers import TraceRecorder
from composable_energy.sampling.problem import Problem
from composable_energy.sampling.sampler import bound_conditions
from composable_energy.sampling.trace import Trace
from composable_energy.sampling.wrappers import explain_border, near_border
from composable_energy.supports import format_support

_LEAST_STEPS = 20  # of a piece of the steps
_LEAST_MOVES = 20  # steps without a move, of one chain or of all chains together
_STILL = 0.01  # of the chains, which change a mean by less than its standard error for a few thousand
_PIECES, _PIECES_OF_ONE = 2, 8  # of the later half of the steps: of several chains, and of one
_OBSERVED_STEPS = 16  # of each piece, at least: more change nothing where it counts, as steps of slow chains are alike
_R_HAT = 1.1  # of the points that a trace keeps
_SLOW, _RELAXED = 1.25, 1.7  # of final points: all steps are about 14 and 4 relaxation times, with and without rejection
_LONGEST, _NEARER = 8, 0.9  # times the sampler's own number of steps; the ratio of R-hat to that before, where more steps help
_ERROR = 0.1  # standard deviations: a mean of draws with this standard error is worth 100 independent ones
_BORDER = 2e-3  # the share of points that may be too close to the boundary of a support
_READ, _READABLE, _LOST = 64, 8, 0.15  # decoded points that are read, the fewest that say something, and the fall in probability
_STARTS, _RARE, _SELDOM = 256, 5e-3, 0.2  # points, the probability of a formula, and its ratio to that of its terms apart


class Convergence(Observer):
    r"""Finds chains that stand still, that drift, or that do not agree.

    The later half of the steps is divided into two quarters, that of a single chain into eight pieces. From 16 to 31 steps of each piece it
    keeps the energy and up to 16 coordinates or sums of coordinates, for up to 512 chains. They give a drift with its standard error over
    the chains, the split R-hat, and the standard error of the means of the points that a trace keeps. R-hat counts from 1.1 on, where it is
    beyond chance. Where final points alone are returned, it counts from 1.25 on, and from 1.7 on for a sampler without rejection. Without
    `judge`, and with fewer than 80 steps, or 320 of a single chain, only chains that never move are found. Chains with conditions of their
    own are not compared. It `extends` calls that give no steps; a trace keeps points `kept_after` a step.
    """

    def __init__(self, judge: bool, extends: bool, kept_after: int | None) -> None:
        self.judge, self.extends, self.kept_after = judge, extends, kept_after
        self.own_steps = 0  # before any were added
        self.figures: tuple[Tensor, Tensor] | None = None  # of each number: R-hat, and the mean variance within a piece

    def on_start(self, chains: Chains) -> None:
        self.first, last = chains.step, chains.last_step
        self.own_steps, self.kept = self.own_steps or last, 0 if self.kept_after is None else max(0, last - self.kept_after)
        self.seen: list[Tensor] = []  # as many of each piece
        half = min(last // 2, last - self.first)  # of all steps, those of a resumed call included
        self.pieces = _PIECES if chains.count > 1 else _PIECES_OF_ONE
        self.every = max(1, half // self.pieces // _OBSERVED_STEPS)
        piece = max(self.every, half // self.pieces - half // self.pieces % self.every)
        self.middle = last - min(self.pieces * piece, half)
        self.start = self.halfway = chains.state.x
        self.rests = self.sites = chains.energy.sites  # until a discrete number of a chain moves
        self.judge = self.judge and piece >= _LEAST_STEPS and chains.sampler.stationary

    def on_step(self, chains: Chains, info: object) -> None:
        if (after := chains.step - self.middle) == 0:
            self.halfway, self.rests = chains.state.x, self.sites
        if self.rests and not torch.equal(*(self.rests.index(x) for x in (self.halfway, chains.state.x))):
            self.rests = None
        if after <= 0 or after % self.every or not self.judge:
            return
        self.seen.append(chains.numbers())
        if not (self.extends and chains.step == chains.last_step < _LONGEST * self.own_steps):
            return
        # Where R-hat stays as it was and chains spread no further than before, as in modes that are apart, more steps do not help.
        before, found = self.figures, self.warning(chains)
        kind = "" if found is None else found.kind
        helps = kind in ("drift", "r_hat", "ess")
        if kind == "r_hat" and before and self.figures:
            worst = self.figures[0].argmax()
            r_hat, spread = (float(now[worst] / earlier[worst]) for now, earlier in zip(self.figures, before, strict=True))
            helps = r_hat < _NEARER or spread > 1 / _NEARER
        if helps:
            chains.last_step *= 2
            self.on_start(chains)

    def warning(self, chains: Chains, trace: Trace | None = None) -> SamplingWarning | None:
        """Returns the warning about chains that have not converged; None of a sampler without a stationary density."""
        sampler, x = chains.sampler, chains.state.x
        if not (sampler.stationary and chains.active):
            return None
        active, before, moved = chains.diverged_at < 0, self.halfway, chains.step - self.middle
        if not (each := moved >= _LEAST_MOVES):  # all chains together
            before, moved = self.start, chains.step - self.first
        still = (before == x).reshape(len(x), -1).all(1).cpu()
        if self.rests and finds_states(chains.problem, x):
            still |= True
        elif self.sites:  # such points come back: of those, only chains above all others stand still
            energies = chains.state.energy.cpu()
            above = energies > (energies.min() if still.all() else energies[~still].max())
            still &= above & (not chains.problem.own_conditions)
        if (each or (still.all() and len(still) * moved >= _LEAST_MOVES)) and (still & active).sum() > _STILL * len(still):
            return warn_of_still_chains(sampler, (still & active).nonzero().flatten().tolist(), len(still), moved)
        if not (self.judge and chains.step == chains.last_step and active.all()):
            return None
        found = self._compare(chains, trace)
        bias = None if found or sampler.traits.bias is None else sampler.traits.bias(sampler, chains.state)
        excess = 0.0 if bias is None else bias.mean().item()
        return warn_of_bias(sampler, excess) if excess > max(LARGEST_BIAS, 3 * (2 / chains.count) ** 0.5) else found

    def _compare(self, chains: Chains, trace: Trace | None) -> SamplingWarning | None:
        """Returns the warning about chains of one branch that drift or differ, or about means that are not precise enough."""
        pieces = torch.stack(self.seen).cpu().double().unflatten(0, (self.pieces, -1))
        groups = None if trace is None or trace.branch_of is None else trace.branch_of[:: chains.apart]
        drift, r_hat, least, draws = compare_pieces(pieces, groups)
        steps, sampler = f"the steps {self.middle} to {chains.step}", chains.sampler
        self.figures = r_hat, pieces.var(1).mean((0, 1))
        if drift.max() > 1:
            seen = f"The mean of {chains.name(drift)} over all chains still changed between the halves of {steps}: "
            return SamplingWarning("drift", seen + "the chains have not converged.", advise("drift", sampler))
        if chains.problem.own_conditions or (trace is not None and trace.exact):
            return None
        parts, numbers = pieces.shape[2] * len(pieces), len(r_hat)
        usual = _R_HAT if self.kept else _SLOW if sampler.traits.values else _RELAXED
        usual = max(usual, largest_r_hat(_R_HAT, pieces.shape[1], parts, numbers)) if (r_hat > usual).any() else usual
        if (beyond := (least > _R_HAT) & (r_hat > usual) | (r_hat > _RELAXED)).any():
            worst = torch.where(beyond, r_hat, 0.0)
            seen = f"The chains do not agree: R-hat is {worst.max():.2f} for {chains.name(worst)} over {steps}, "
            return SamplingWarning("r_hat", seen + "so each still depends on where it started.", advise("r_hat", sampler))
        if trace is not None and groups is None and not chains.problem.call.latents:
            missed = ""
            with suppress(Exception):  # the energy may raise at points where no chain was, and the draws count
                missed = find_mode(chains.problem, chains.state, self.halfway)
            if missed:
                return SamplingWarning("mode", missed, advise("r_hat", sampler))
        draws = draws * (self.kept / (chains.step - self.middle))
        if self.kept and draws.min() * _ERROR**2 * chance(parts, numbers) < 1:
            name, worth = chains.name(-draws), draws.min().item()
            seen = f"The points of the trace are worth about {worth:.0f} independent draws of {name}: the standard error of its mean is "
            return SamplingWarning("ess", f"{seen}{worth**-0.5:.2f} standard deviations.", advise("ess", sampler))
        return None


def finish(chains: Chains, recorder: TraceRecorder, keep_values: bool) -> tuple[Tensor, Trace]:
    """Returns the points, decoded where they are latent, and the trace, with the values by which a resumed call knows the energy again."""
    problem, trace, faults = chains.problem, recorder.trace(chains), chains.problem.energy.faults
    undefined, drawn, sampler = int(faults.undefined), chains.state.x.clone(), problem.sampler  # the trace keeps its own points
    trace.errors, trace.first_error = faults.points + undefined, faults.first or ("an energy of NaN" if undefined else "")
    trace.points = None if trace.points is None else problem.points.constrain(trace.points)
    trace.exact = problem.call.resume.exact if problem.call.resume else problem.drawn is not None and problem.drawn.exact
    if (formulas := _stated_formulas(problem.whole)) or problem.branches or isinstance(problem.whole, Disjunction):
        _describe(problem, problem.points.constrain(drawn), formulas, trace)
    decoded = problem.points.decode(drawn)
    if formulas and hasattr(problem.points.decoder, "encode"):
        _read_decoded(problem, problem.points.constrain(drawn[:_READ]), decoded[:_READ], formulas, trace)
        _find_rare(problem, drawn, formulas, trace)
    if chains.active and sampler.traits.warn is not None:
        trace.observed = (*sampler.traits.warn(sampler, chains.active_state(), trace.exact), *trace.observed)
    own = problem.init is None and problem.call.resume is None and chains.step == (sampler.total_steps or chains.last_step)
    if chains.active and own and sampler.traits.check_draws is not None:
        rows = chains.rows[: min(problem.batch_size, _STARTS)]
        with suppress(Exception):  # a model may refuse batches of another size, and the draws count
            trace.observed += (*sampler.traits.check_draws(sampler, problem.energy_of(rows), chains.active_state().x[: len(rows)]),)
    if faults.varies and sampler.traits.values:
        seen = f"The energy differs between two evaluations at the same points: {faults.varies}."
        trace.observed += (SamplingWarning("varies", seen, advise("varies", sampler)),)
    if trace.errors or formulas or chains.active < chains.count:
        trace.observed = (*find_point_warnings(trace), *trace.observed)
    if keep_values:
        trace.reference = (chains.values(),)
    bounded, whole = problem.points.coordinates is not None, problem.whole
    share = near_border(problem.plain, drawn).double().mean().item() if bounded else 0.0
    if share > _BORDER:  # as of points close to 1 in float32
        warn_caller(
            f"{share:.2%} of the points of {whole} are so close to the boundary of its support, {format_support(whole.support)}, that "
            f"{drawn.dtype} cannot tell them from it, and their share is too small: sample in dtype=torch.float64, with parameters in it. "
            "Where that does not help, the density has an infinite integral there, as 1 / s from 0 to infinity: it lacks a proper prior.",
            SupportWarning,
        )
    return decoded, trace


def _read_decoded(problem: Problem, latent: Tensor, decoded: Tensor, formulas: Sequence[Formula], trace: Trace) -> None:
    r"""Compares $P(\text{formula} \mid z)$ at latent points with that at the codes of what they decode to, and reports what is lost."""
    bound = problem.conditions_at(latent, torch.arange(len(latent), device="cpu"))
    try:
        again = cast(Any, problem.points.decoder).encode(decoded)
        claimed, shown = (_probability(formulas, z, bound) for z in (latent, again))
    except Exception:  # `encode` may be something else, and networks may raise at its points: the draws must not be lost
        return
    if again.shape != latent.shape:
        return
    trace.decoded_probability, lost = shown.mean().item(), claimed - shown
    if len(lost) < _READABLE or lost.mean() < _LOST + 2 * lost.std() / len(lost) ** 0.5:
        return
    atoms = [one for formula in formulas for one in formula.atoms()]
    parts = [[_probability([atom], z, bound).mean().item() for z in (latent, again)] for atom in atoms]
    name, (before, after) = max(zip(map(str, atoms), parts, strict=True), key=lambda pair: abs(pair[1][0] - pair[1][1]))
    seen = (
        f"Decoded points lose the formula: the classifiers give it a mean probability of {claimed.mean():.2g} at the latent points, and of "
        f"{shown.mean():.2g} at the codes of what they decode to. Most is lost of {name}: {before:.2g} and {after:.2g}."
    )
    trace.observed += (SamplingWarning("decoded", seen, advise("decoded", trace.sampler)),)


def _find_rare(problem: Problem, drawn: Tensor, formulas: Sequence[Formula], trace: Trace) -> None:
    """Reports formulas that hardly any code of the base fulfils, and far fewer than if their statements were independent."""
    # The mean probability of a formula over noisy codes is the same at all levels; at the highest one they are nearly normal.
    if "sigma" not in (highest := bound_conditions(problem.sampler, problem.whole, 2)):
        return
    like, noise = drawn.new_empty(_STARTS, *drawn.shape[1:]), problem.noise_of(range(_STARTS)).child("rare")
    z = noise.normal(like) * (1 + highest["sigma"] ** 2) ** 0.5
    bound = {**problem.conditions_at(z, torch.zeros(_STARTS, dtype=torch.int64, device="cpu")), **highest}
    if (shares := _probability(formulas, z, bound)).mean() + 2 * shares.std() / _STARTS**0.5 >= _RARE:
        return
    apart = math.prod(one.probability_apart(_probability([atom], z, bound).mean().item() for atom in one.atoms()) for one in formulas)
    if shares.mean() < _SELDOM * apart:
        seen = f"About {shares.mean():.1g} of what the base draws fulfils the formula, by its classifiers; {apart:.1g} by its terms apart."
        trace.observed += (SamplingWarning("rare", seen, advise("rare", trace.sampler)),)


def _probability(formulas: Sequence[Formula], x: Tensor, bound: dict[str, Any]) -> Tensor:
    return (-torch.stack([one.energy(x, **bound) for one in formulas]).sum(0)).exp()


def _describe(problem: Problem, points: Tensor, formulas: Sequence[Formula], trace: Trace) -> None:
    r"""Adds to a trace the shares of branches of a mixture and $P(\text{formula} \mid x)$ of events, at the points that are returned."""
    whole, known, shares = problem.whole, problem.branches, None

    def collect(function: Callable[[Tensor, dict[str, Any]], Tensor]) -> Tensor:
        parts = zip(torch.arange(len(points), device="cpu").split(problem.batch_size), points.split(problem.batch_size), strict=True)
        return torch.cat([function(x, problem.conditions_at(x, ids)) for ids, x in parts], -1)

    if formulas:
        trace.formula_probability = collect(lambda x, bound: _probability(formulas, x, bound)).mean().item()
        some = points[: min(_READ, problem.batch_size)]
        bound = problem.conditions_at(some, torch.arange(len(some), device="cpu"))
        heads = [head for formula in formulas for head in formula.variables if isinstance(head, Categorical)]
        if (wrong := next((head for head in heads if len(some) >= _READABLE and head.has_probabilities(some, bound)), None)) is not None:
            seen = f"A classifier takes logits, and {wrong.source} gives numbers from 0 to 1 at all draws, as probabilities are."
            trace.observed += (SamplingWarning("probabilities", seen, advise("probabilities", trace.sampler)),)
    if isinstance(whole, Disjunction):
        trace.shares = whole.shares
        if not whole.needs_log_densities:
            trace.branch_shares = collect(lambda x, bound: torch.softmax(-whole.branches(x, **bound), 0)).mean(1)
            some = zip(whole.terms, trace.branch_shares.tolist(), strict=True)  # unsatisfiable branches have no points
            shares = None if trace.shares == "exact" else [math.nan if term.unsatisfiable else share for term, share in some]
    if known:
        shifts = points.new_tensor([branch.shift for branch in known])[:, None]
        found = collect(lambda x, bound: torch.softmax(-torch.stack([value_of(one.energy, x, bound) for one in known]) - shifts, 0))
        trace.branch_of, shares = found.argmax(0).cpu(), found.mean(1).tolist()
    if shares is not None:
        trace.observed += tuple(find_branch_warnings(problem.sampler, shares, known, len(points)))


def _stated_formulas(energy: Energy) -> tuple[Formula, ...]:
    """Returns the formulas that hold together at all points, one for each base; weights of evidence do not change them."""
    found, seen, todo = list[Energy](), set[Energy](), [energy]  # a shared part states its formula once
    while todo:
        if (part := todo.pop()) in seen:
            continue
        seen.add(part)
        if (formula := part.formula) is None:
            if isinstance(part, Conjunction) or (isinstance(part, Weighted) and as_float(part.weight) > 0):
                todo += reversed(part.terms)
        elif not formula.constant:
            found.append(part)
    return join_events(found, conjoin)[0]


_FAR, _VERY_FAR = 10.0, 100.0  # of chains that start at standard normal points; multiples of that
_LATER = (
    "take a smaller step, or keep such chains at their last finite points by on_divergence='keep'; if the density is 0 there, return "
    "`torch.where(inside, energy, torch.inf)`, and use a sampler with a Metropolis test"
)


def check_far_chains(chains: Chains, stop: Diverged | None, convergence: Convergence) -> None:
    """Raises if chains have run far away, were stopped, or may not have converged, as the energy grows too slowly for a density."""
    problem, zeros, ends = chains.problem, chains.problem.points.zeros(), chains.sampler.total_steps is not None
    if not (chains.sampler.traits.stationary and problem.plain.has_value) or problem.plain.sites is not None:
        return
    x = chains.state.x if chains.active or not chains.step else zeros.new_full((16, *zeros.shape), torch.inf)
    if (reach := x.reshape(len(x), -1).abs().amax(1).median().item() / _FAR) <= 1 and stop is None:
        return
    bound = bound_conditions(problem.sampler, problem.plain)  # energies along noise levels may be flat where no chain comes
    start = convergence.start if bound and chains.step else problem.init
    reach = reach if start is None else reach / max(1.0, start.abs().max().item())
    if reach > _VERY_FAR or (stop.step > 0 if stop is not None else reach > 1 and (ends or convergence.warning(chains))):
        check_tails(problem.plain, x, bound)


def diverged_error(chains: Chains, stop: Diverged) -> SamplingDiverged:
    """Returns the error about chains that diverged under the policy "raise"."""
    problem, points, diverged = chains.problem, chains.state.x, chains.diverged_at >= 0
    energy, faults = problem.plain, problem.energy.faults
    term = "" if stop.step else _find_term(problem, points[diverged.to(points.device)], diverged)
    advice = None if chains.broken is None else explain_border(energy, chains.broken)
    where = "other points in `init`" if problem.init is not None else "points in `init`, where it is finite"
    advice = advice or (_LATER if stop.step else f"check the energy there, or give {where}")
    return SamplingDiverged(
        f"{int(diverged.sum())} of {len(diverged)} chains reached a non-finite point, energy or gradient of {energy} {stop.reason}: "
        f"{term}{advice}. The error's `samples` are the last finite points."
        + (f" At {faults.points} points the energy raised an exception, first {faults.first}" if faults.points else ""),
        samples=problem.points.decode(points),
        diverged=diverged,
        step=stop.step,
    )


def _find_term(problem: Problem, points: Tensor, diverged: Tensor) -> str:
    """Returns which term is not finite where chains start, and in which quantity."""
    energy, points = problem.whole, problem.points.constrain(points)
    if not points.isfinite().all():
        return "the start points are not finite themselves; "
    chains, found, todo = diverged.nonzero()[: problem.batch_size, 0], "", [energy]
    bound = problem.conditions_at(points[: len(chains)], chains)
    while todo and len(chains):
        term = todo.pop()
        try:
            own = {name: value for name, value in bound.items() if name in term.conditions}
            values, grads = term.with_gradient(points[: len(chains)], **own)
        except Exception:  # as of a term of other points or conditions; the node above it is named
            continue
        for name, numbers in (("energy", values[:, None]), ("gradient", grads.flatten(1))):
            if (bad := ~numbers.isfinite().all(1)).any():
                kind = "NaN" if numbers.isnan().any() else "infinite"
                found, todo = f"the {name} of {term} is {kind} at {int(bad.sum())} of {len(chains)}: ", list(reversed(term.terms))
                break
    return found
