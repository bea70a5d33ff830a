"""Choosing a sampler: by name, class or instance, or by what the energy recommends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

from composable_energy.energy import Energy, Recommendation
from composable_energy.errors import OptionError
from composable_energy.sampling.sampler import Sampler

__all__ = ["choose", "recommendations", "recommended_threads"]

SamplerLike = str | type[Sampler] | Sampler


def choose(energy: Energy, sampler: SamplerLike | None, options: Mapping[str, Any], own: Iterable[str]) -> Sampler:
    """Returns a sampler with its options.

    Args:
        energy: The energy to sample.
        sampler: A name, a class or an instance; None takes what the energy recommends, else `annealed` for an energy that needs a noise
            level, `langevin` for one without value and `chees` for any other.
        options: The sampler's options; they come before recommended ones.
        own: Names that `sample` takes itself, for the nearest name of a typo.

    Raises:
        OptionError: An option is unknown, missing or out of range; the terms recommend different settings, or one that does not fit.
        PluginNotFound: No plug-in offers the name.
    """
    advice = None
    if sampler is None:
        advice = _advice(energy)
        default = "annealed" if "sigma" in energy.required_conditions else "chees" if energy.has_value else "langevin"
        sampler = advice.sampler if advice else default
        if sampler == "langevin" and not energy.has_value and "step_size" not in {**(advice.options if advice else {}), **options}:
            raise OptionError(
                f"{energy} has a gradient and no value, so no step size can be tuned for it: say `step_size=...` of the sampler langevin, "
                "which follows gradients alone."
            )
        options = {**(advice.options if advice else {}), **options}
    if isinstance(sampler, str):
        from composable_energy.registry import get_sampler

        name, sampler = sampler, get_sampler(sampler)
        if advice is not None:
            _check_advice(energy, advice, sampler)
    else:
        name = (sampler if isinstance(sampler, type) else type(sampler)).__name__
    if isinstance(sampler, Sampler):
        if not options:
            return sampler
        if not is_dataclass(sampler):
            raise OptionError(f"{name} is an instance with its options; give {', '.join(options)} to its constructor.")
        _check(name, type(sampler), options, own, complete=False)
        return replace(sampler, **options)
    if not (isinstance(sampler, type) and issubclass(sampler, Sampler)):
        raise OptionError(f"A sampler is a name, a subclass of Sampler or an instance of one, got {sampler!r}.")
    _check(name, sampler, options, own, complete=True)
    return sampler(**options)


def recommended_threads(energy: Energy) -> int | None:
    """Returns the fewest threads that a part of an expression recommends; None if none does."""
    return min((advice.threads for _, advice in recommendations(energy) if advice.threads is not None), default=None)


def recommendations(energy: Energy) -> list[tuple[Energy, Recommendation]]:
    """Returns the distinct recommendations in an expression, each with the first energy that gives it."""
    found: list[tuple[Energy, Recommendation]] = []
    todo, seen = [energy], {energy}  # a part that occurs again is asked once
    for node in todo:
        if node.recommended is None:
            parts = dict.fromkeys((*node.terms, *(base.energy for base in node.bases)))
            todo += [part for part in parts if part not in seen]
            seen.update(parts)
        elif all(node.recommended != other for _, other in found):
            found.append((node, node.recommended))
    return found


def _advice(energy: Energy) -> Recommendation | None:
    found = recommendations(energy)
    if len(found) > 1:
        told = "; ".join(f"{leaf} was judged with {_written(advice)}" for leaf, advice in found)
        raise OptionError(f"The terms of {energy} recommend different settings: {told}. Say which with `sampler=` and its options.")
    return found[0][1] if found else None


def _check_advice(energy: Energy, advice: Recommendation, sampler: type[Sampler]) -> None:
    """Raises if a recommended sampler would bind what is bound already: it was judged on other energies than this one."""
    bound = sampler.binds - energy.conditions
    if bound and any(bound & part.conditions for part in energy.modules() if isinstance(part, Energy)):
        raise OptionError(
            f"{energy} was judged with {_written(advice)}, which sets {', '.join(sorted(bound))} itself, and here that is bound: leave it "
            "unbound, or say another sampler, such as sampler='hmc'."
        )


def _written(advice: Recommendation) -> str:
    return f"{advice.sampler}({', '.join(f'{name}={value}' for name, value in advice.options.items())})"


def _check(name: str, sampler: type[Sampler], options: Mapping[str, Any], own: Iterable[str], *, complete: bool) -> None:
    accepted = _options(sampler)
    for option in options:
        if option in accepted:
            continue
        if option in sampler.refused:
            raise OptionError(f"{name} refuses {option}: {sampler.refused[option]}")
        near = get_close_matches(option, [*accepted, *own], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        listed = ", ".join(accepted) if accepted else "no options"
        raise OptionError(f"{name} has no option {option}; it takes {listed}.{hint}")
    missing = [option for option, required in accepted.items() if required and option not in options]
    if complete and missing:
        raise OptionError(f"{name} needs {', '.join(missing)}: say `{missing[0]}=...`.")


def _options(sampler: type[Sampler]) -> dict[str, bool]:
    """The names of a sampler's options, and whether each is required."""
    if is_dataclass(sampler):
        return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(sampler) if f.init}
    own = list(signature(sampler).parameters.values())
    return {p.name: p.default is Parameter.empty for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
