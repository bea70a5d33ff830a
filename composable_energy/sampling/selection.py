"""Selection of a sampler: by name, class or instance, by the energy's recommendation, or by default; and whether it fits the energy."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from inspect import Parameter, signature
from operator import attrgetter
from typing import Any

from composable_energy.algebra import weakens_evidence
from composable_energy.energies.checks import check_value
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.errors import (
    ComposableEnergyError,
    ContradictionError,
    ExpressionError,
    OptionError,
    PluginNotFound,
    UngroundedError,
)
from composable_energy.options import Recommendation, nearest_names
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.wrappers import has_rows
from composable_energy.supports import empty

SamplerLike = str | type[Sampler] | Sampler


def resolve_sampler(energy: Energy, sampler: SamplerLike | None, options: Mapping[str, Any], arguments: Iterable[str] = ()) -> Sampler:
    """Returns a sampler with its options.

    Args:
        energy: The energy to sample.
        sampler: A name, a class or an instance; None takes the energy's recommendation, else `annealed` for an energy that needs a noise
            level, `langevin` for one without value and `chees` for any other. Where evidence is weakened, `feynman-kac` takes the place of
            a recommended `annealed`, with the same options.
        options: The sampler's options; they take precedence over recommended ones.
        arguments: The names of the caller's own arguments, to suggest one for a misspelt option.

    Raises:
        OptionError: An option is unknown, missing or out of range; the terms recommend different settings, or one that does not fit.
        PluginNotFound: No plug-in offers the name, or no sampler is installed.
    """
    if sampler is None:
        name, found, options = _default(energy, options)
    elif isinstance(sampler, str):
        name, found = sampler, _sampler_class(sampler)
    else:
        name, found = (sampler if isinstance(sampler, type) else type(sampler)).__name__, sampler
    instance = isinstance(found, Sampler)
    if instance and not options:
        return found
    if instance and not is_dataclass(found):
        raise OptionError(f"{name} is an instance with its options; give {', '.join(options)} to its constructor.")
    if not instance and not (isinstance(found, type) and issubclass(found, Sampler)):
        raise OptionError(f"A sampler is a name, a subclass of Sampler or an instance of one, got {found!r}.")
    try:
        return replace(found, **options) if isinstance(found, Sampler) else found(**options)
    except ComposableEnergyError:
        raise
    except (TypeError, ValueError) as error:
        _check_options(name, type(found) if isinstance(found, Sampler) else found, options, arguments, complete=not instance)
        given = ", ".join(f"{option}={value!r}" for option, value in options.items()) or "no options"
        raise OptionError(f"The sampler {name} does not accept {given}: {type(error).__name__}: {error}") from error


def check_density(energy: Energy, sampler: Sampler, allow_improper: bool) -> None:
    """Raises if the energy has no density, or no value where the sampler needs one.

    Raises:
        ContradictionError: The structure or the supports shows that no point fulfils it.
        ExpressionError: A condition is not bound, or the sampler needs values that the energy does not have.
        UngroundedError: The structure shows no lower bound.
    """
    if energy.unsatisfiable:
        raise ContradictionError(f"No point fulfils {energy}: its probability is 0 for any output of the networks, so it has no density.")
    if energy.support is empty:
        raise ContradictionError(f"No point fulfils {energy}: the supports of its terms have none in common.")
    if sampler.traits.values:
        check_value(energy, f"The sampler {type(sampler).__name__.lower()}")
    elif not sampler.traits.log_densities:
        _check_gradient(energy, sampler)
    if energy.needs_log_densities and not sampler.traits.log_densities:
        check_value(energy, f"The sampler {type(sampler).__name__.lower()}")
    missing = energy.required_conditions - sampler.traits.binds.keys() - {CHAINS}
    if missing:
        ways = [f"`.at({name})` or the annealed sampler" if name == "sigma" else f"`.given({name}=...)`" for name in sorted(missing)]
        raise ExpressionError(f"{energy} depends on {', '.join(sorted(missing))}, which is not bound: bind with {' and '.join(ways)}.")
    if not (energy.grounded or allow_improper):
        culprit = _ungrounded_part(energy)
        whole = f"{energy} has no lower bound" + ("" if culprit is energy else f", because nothing grounds {culprit}")
        raise UngroundedError(
            f"{whole}: its chains would run away. Join it with `&` to a grounded energy, such as a base that all points obey; or make it "
            "relative to a base by `relative_to`, so that `~` is bounded (`negate(..., mode='complement')` or `'contrast'`); or insist "
            "with allow_improper=True."
        )


def _check_gradient(energy: Energy, sampler: Sampler) -> None:
    """Raises if a term has no gradient, for a sampler that follows gradients alone and so would ignore it."""
    for part in energy.modules():
        if isinstance(part, Energy) and not part.has_gradient:
            raise ExpressionError(
                f"The sampler {type(sampler).__name__.lower()} follows gradients alone, and {part} has none, so it would not count: use "
                "sampler='smc', or another one that accepts and rejects, such as 'chees'."
            )


def _ungrounded_part(energy: Energy) -> Energy:
    """Returns the deepest term that grounds nothing, reached through ungrounded terms alone."""
    term = next((term for term in energy.terms if not term.grounded), None)
    return energy if term is None else _ungrounded_part(term)


def recommendations(energy: Energy) -> list[tuple[Energy, Recommendation]]:
    """Returns the distinct recommendations of the highest precedence in an expression, each with the first energy that gives it."""
    givers: list[Energy] = []
    found: list[Recommendation] = []
    todo, seen = [energy], {energy}  # a part that occurs again is visited once
    for node in todo:
        if node.recommended is None:
            for part in (*node.terms, *map(attrgetter("energy"), node.bases)):
                if part not in seen:
                    seen.add(part)
                    todo.append(part)
        elif node.recommended not in found:
            givers.append(node)
            found.append(node.recommended)
    if len(found) < 2:
        return list(zip(givers, found, strict=True))
    highest = max(advice.precedence for advice in found)
    return [(node, advice) for node, advice in zip(givers, found, strict=True) if advice.precedence == highest]


def _default(energy: Energy, options: Mapping[str, Any]) -> tuple[str, type[Sampler], dict[str, Any]]:
    """Returns the name, class and options of the recommended sampler, else of the default one.

    Raises:
        OptionError: Two terms recommend different settings, or the recommendation does not fit the expression.
    """
    found = recommendations(energy)
    if len(found) > 1:
        listed = "; ".join(f"{leaf} recommends {_written(advice)}" for leaf, advice in found)
        raise OptionError(f"The terms of {energy} recommend different settings: {listed}. Say which with `sampler=` and its options.")
    advice = found[0][1] if found else None
    if advice is not None and advice.precedence and _sampler_class(advice.sampler).traits.values and not energy.has_value:
        advice = None  # it was made for energies with values
    if advice is not None:
        name, options = _weighing(energy, advice.sampler), {**advice.options, **options}
    else:
        name = "annealed" if "sigma" in energy.required_conditions else "chees" if energy.has_value else "langevin"
    sampler = _sampler_class(name)
    if advice is not None:  # it was tested on the energy itself, where its conditions were free
        bound = sampler.traits.binds.keys() - energy.conditions
        if bound and any(bound & part.conditions for part in energy.modules() if isinstance(part, Energy)):
            raise OptionError(
                f"{energy} recommends {_written(advice)}, which sets {', '.join(sorted(bound))} itself, and here that is bound: leave it "
                "unbound, or say another sampler, such as sampler='hmc'."
            )
    return name, sampler, dict(options)


def _weighing(energy: Energy, name: str) -> str:
    """Returns the sampler with weights in place of `annealed` for evidence that is weakened, unless chains have conditions of their own."""
    weak = name == "annealed" and "sigma" in energy.conditions and energy.support is None and weakens_evidence(energy)
    return "feynman-kac" if weak and not has_rows(energy) else name


def _sampler_class(name: str) -> type[Sampler]:
    """Returns a sampler by name."""
    from composable_energy.registry import get, names  # late: the registry checks what it loads by the class Sampler

    try:
        return get("sampler", name)
    except PluginNotFound as error:
        if names("sampler"):
            raise
        raise PluginNotFound(
            f"No sampler is installed, and the sampler {name!r} is needed: install composable-energy-mcmc, or pass an instance of a "
            "`Sampler` as `sampler=`."
        ) from error


def _written(advice: Recommendation) -> str:
    return f"{advice.sampler}({', '.join(f'{name}={value}' for name, value in advice.options.items())})"


def _check_options(name: str, sampler: type[Sampler], options: Mapping[str, Any], arguments: Iterable[str], *, complete: bool) -> None:
    accepted = _accepted_options(sampler)
    for option in options:
        if option in accepted:
            continue
        if option in sampler.traits.refused:
            raise OptionError(f"{name} refuses {option}: {sampler.traits.refused[option]}", [option])
        near = nearest_names(option, [*accepted, *arguments], 1)
        hint = f" Did you mean {near[0]}?" if near else ""
        listed = ", ".join(accepted) if accepted else "no options"
        raise OptionError(f"{name} has no option {option}; it takes {listed}.{hint}", [option, *accepted, *near])
    missing = [option for option, required in accepted.items() if required and option not in options]
    if complete and missing:
        raise OptionError(f"{name} needs {', '.join(missing)}: say `{missing[0]}=...`.", missing)


def _accepted_options(sampler: type[Sampler]) -> dict[str, bool]:
    """Returns the names of a sampler's options, and whether each is required."""
    if is_dataclass(sampler):
        return {f.name: f.default is MISSING and f.default_factory is MISSING for f in fields(sampler) if f.init}
    own = list(signature(sampler).parameters.values())
    return {p.name: p.default is Parameter.empty for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
