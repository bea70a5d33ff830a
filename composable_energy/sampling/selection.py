"""Selection of a sampler: by name, class or instance, by the energy's recommendation, or by default; and whether it fits the energy."""

from collections.abc import Iterable, Mapping
from dataclasses import is_dataclass, replace
from inspect import Parameter, signature
from operator import attrgetter
from typing import Any

import torch

from composable_energy.algebra import Conjunction, Difference, weakens_evidence
from composable_energy.energies.checks import check_value, modules_of
from composable_energy.energies.conditions import CHAINS
from composable_energy.energies.energy import Energy
from composable_energy.errors import (
    ComposableEnergyError,
    ContradictionError,
    ExpressionError,
    OptionError,
    PluginNotFound,
    SamplingWarning,
    UngroundedError,
)
from composable_energy.options import Recommendation, nearest_names
from composable_energy.sampling.sampler import Sampler
from composable_energy.sampling.wrappers import has_rows
from composable_energy.supports import empty, format_support, integer_ends_of, is_discrete, parts_of

SamplerLike = str | type[Sampler] | Sampler


def resolve_sampler(energy: Energy, sampler: SamplerLike | None, options: Mapping[str, Any], arguments: Iterable[str] = ()) -> Sampler:
    """Returns a sampler with its options.

    Args:
        energy: The energy to sample.
        sampler: A name, a class or an instance; None takes the energy's recommendation, else `discrete` where numbers are discrete,
            `annealed` for an energy that needs a noise level, `langevin` for one without value, and `chees` for any other. Where evidence
            is weakened, `feynman-kac` takes the place of a recommended `annealed`, with the same options.
        options: The sampler's options; they take precedence over recommended ones.
        arguments: The names of the caller's own arguments, to suggest one for a misspelt option.

    Raises:
        OptionError: An option is unknown, missing or out of range; the terms recommend different settings, or one that does not fit.
        PluginNotFound: No plug-in offers the name, or no sampler is installed.
    """
    found: Any = sampler
    if sampler is None:
        name, found, options = _default(energy, options)
    elif isinstance(sampler, str):
        name, found = sampler, _sampler_class(sampler)
    else:
        name = (sampler if isinstance(sampler, type) else type(sampler)).__name__
    instance = found if isinstance(found, Sampler) else None
    if not (isinstance(kind := found if instance is None else type(instance), type) and issubclass(kind, Sampler)):
        raise OptionError(f"A sampler is a name, a subclass of Sampler or an instance of one, got {found!r}.")
    if instance is not None and not options:
        return instance
    if instance is not None and not is_dataclass(instance):
        raise OptionError(f"{name} is an instance with its options; give {', '.join(options)} to its constructor.")
    try:
        return kind(**options) if instance is None else replace(instance, **options)
    except ComposableEnergyError:
        raise
    except (TypeError, ValueError) as error:
        own = signature(kind).parameters.values()
        accepted = {p.name: p.default is Parameter.empty for p in own if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        for option in options.keys() & (kind.traits.refused.keys() - accepted.keys()):
            raise OptionError(f"{name} refuses {option}: {kind.traits.refused[option]}", [option]) from error
        for option in filter(lambda option: option not in accepted, options):
            near = nearest_names(option, [*accepted, *arguments], 1)
            hint = f" Did you mean {near[0]}?" if near else ""
            hint = f" It is a condition of {energy}: write `.given({option}=...)`." if option in energy.conditions else hint
            seen = f"{name} has no option {option}; it takes {', '.join(accepted) or 'no options'}.{hint}"
            raise OptionError(seen, [option, *accepted, *near]) from error
        if instance is None and (missing := [option for option, required in accepted.items() if required and option not in options]):
            raise OptionError(f"{name} needs {', '.join(missing)}: say `{missing[0]}=...`.", missing) from error
        given = ", ".join(f"{option}={value!r}" for option, value in options.items()) or "no options"
        raise OptionError(f"The sampler {name} does not accept {given}: {type(error).__name__}: {error}") from error


def check_density(energy: Energy, sampler: Sampler, allow_improper: bool) -> None:
    """Raises if the energy has no density, or no value where the sampler needs one."""
    traits, name, found = sampler.traits, f"The sampler {type(sampler).__name__.lower()}", "continuous"
    if energy.unsatisfiable:
        raise ContradictionError(f"No point fulfils {energy}: its probability is 0 for any output of the networks, so it has no density.")
    if energy.support is empty:
        raise ContradictionError(f"No point fulfils {energy}: the supports of its terms have none in common.")
    if energy.support is not None or "continuous" not in traits.states:
        parts = parts_of(energy.support)
        discrete = [part for part in parts if is_discrete(part)]
        if (found := "continuous" if not discrete else "discrete" if len(discrete) == len(parts) else "mixed") not in traits.states:
            use = "'chees'" if found == "continuous" else "'discrete', which chooses among those for such points"
            draws = f"{name} draws {' or '.join(traits.states)} points"
            raise OptionError(f"{draws}, and those of {energy} are {found}: use {use}, or leave `sampler` out.")
        for part in discrete:
            if (ends := integer_ends_of(part)) is not None and not torch.as_tensor(ends[1]).isfinite().all():
                raise OptionError(
                    f"The values of {energy} on {format_support(part)} have no end: give one, beyond which the probability is 0, as by "
                    "`E.on(constraints.integer_interval(0, 100))`."
                )
    if traits.values or (energy.needs_log_densities and not traits.log_densities):
        check_value(energy, name)
    if not (traits.values or traits.log_densities):
        for part in modules_of(energy):
            if isinstance(part, Energy) and not part.has_gradient:
                raise ExpressionError(
                    f"{name} follows gradients alone, and {part} has none, so it would not count: use sampler='smc', or another one that "
                    "accepts and rejects, such as 'chees'."
                )
    if missing := energy.required_conditions - traits.binds.keys() - {CHAINS}:
        ways = [f"`.at({one})` or the annealed sampler" if one == "sigma" else f"`.given({one}=...)`" for one in sorted(missing)]
        raise ExpressionError(f"{energy} depends on {', '.join(sorted(missing))}, which is not bound: bind with {' and '.join(ways)}.")
    if energy.grounded or allow_improper or found == "discrete":  # a sum over finitely many states
        return
    culprit = energy
    while (term := next((term for term in culprit.terms if not term.grounded), None)) is not None:
        culprit = term
    because = "" if culprit is energy else f", because nothing grounds {culprit}"
    pick = any if isinstance(energy, Conjunction) else all  # of a mixture, each branch has to ground its variables
    known = [getattr(term, "names", term.variables) if term.grounded else () for term in energy.terms]
    if free := [name for name in energy.variables if not pick(name in names for names in known)]:
        because += f", and leaves {', '.join(free)} free"
    simpler = "if terms cancel, write what is left, such as `E` for `2 * E - E`; " if isinstance(culprit, Difference) else ""
    raise UngroundedError(
        f"{energy} has no lower bound{because}: its chains would run away. Join it with `&` to a grounded energy, such as a base that all "
        "points obey; or make it relative to a base by `relative_to`, so that `~` is bounded (`negate(..., mode='complement')` or "
        f"`'contrast'`); {simpler}or insist with allow_improper=True."
    )


def warn_of_weak_evidence(energy: Energy, sampler: Sampler) -> None:
    """Warns if a sampler along noise levels has no weights, and so does not draw the density of an expression with powers below 1."""
    traits, name = sampler.traits, type(sampler).__name__.lower()
    if "sigma" in energy.conditions and not traits.log_densities and weakens_evidence(energy):
        seen = f"{energy} takes a power below 1 of a density, which {name} does not follow along noise levels: modes get wrong shares."
        advice = "Use `feynman-kac`, which weighs its chains; a call without `sampler=` takes it for trained energies."
        SamplingWarning("weak", seen, advice).emit()


def recommendations(energy: Energy, outranked: bool = False) -> list[tuple[Energy, Recommendation]]:
    """Returns the distinct recommendations of the highest precedence in an expression, each with its first energy. With `outranked` those
    without precedence alone, which others may outrank."""
    found: list[tuple[Energy, Recommendation]] = []
    todo, seen = [energy], {energy}  # a part that occurs again is visited once
    for node in todo:
        if (advice := node.recommended) is None or (outranked and advice.precedence):
            for part in (*node.terms, *map(attrgetter("energy"), node.bases)):
                if part not in seen:
                    seen.add(part)
                    todo.append(part)
        elif all(advice != other for _, other in found):
            found.append((node, advice))
    if len(found) < 2:
        return found
    return [(node, advice) for node, advice in found if advice.precedence == max(other.precedence for _, other in found)]


def _default(energy: Energy, options: Mapping[str, Any]) -> tuple[str, type[Sampler], dict[str, Any]]:
    """Returns the name, class and options of the recommended sampler, else of the default one; raises where two terms disagree."""
    if len(found := recommendations(energy)) > 1:
        listed = "; ".join(f"{leaf} recommends {_written(advice)}" for leaf, advice in found)
        raise OptionError(f"The terms of {energy} recommend different settings: {listed}. Say which with `sampler=` and its options.")
    advice = found[0][1] if found else None
    if advice is not None and advice.precedence and _sampler_class(advice.sampler).traits.values and not energy.has_value:
        advice = None  # it was made for energies with values
    if advice is None:
        name = "annealed" if "sigma" in energy.required_conditions else "chees" if energy.has_value else "langevin"
        if energy.support is not None and is_discrete(energy.support):
            name = "discrete"
        return name, _sampler_class(name), dict(options)
    name = advice.sampler
    if name in ("annealed", "mixture") and "sigma" in energy.conditions and energy.support is None and weakens_evidence(energy):
        name = name if has_rows(energy) else "feynman-kac"  # it weighs the chains, unless each has conditions of its own
    sampler = _sampler_class(name)
    bound = sampler.traits.binds.keys() - energy.conditions  # it was tested on the energy itself, where its conditions were free
    if bound and any(isinstance(part, Energy) and bound & part.conditions for part in modules_of(energy)):
        raise OptionError(
            f"{energy} recommends {_written(advice)}, which sets {', '.join(sorted(bound))} itself, and here that is bound: leave it "
            "unbound, or say another sampler, such as sampler='hmc'."
        )
    return name, sampler, {**advice.options, **options}


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
