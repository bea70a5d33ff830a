"""Checks of options, which return the value or raise `OptionError`, and parts of messages: near names, safe text, tables, extras."""

import difflib
import importlib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from operator import index
from typing import Any

from composable_energy.errors import ExtraNotInstalled, OptionError

_MOST_THREADS = 1024
_LARGEST, _LEAST = 1e18, 1e-31  # squares are numbers of float32, and products with them do not vanish in float64


def check_integer(name: str, value: Any, least: int = 1, *, optional: bool = False) -> int:
    """Returns an integer of at least `least`; NumPy integers are accepted, and None where the option is `optional`."""
    if optional and value is None:
        return value  # pyright: ignore[reportReturnType]
    try:
        number = None if isinstance(value, bool) else index(value)
    except TypeError:
        number = None
    if number is None or number < least:
        raise OptionError(f"{name} must be a whole number of at least {least}, got {value!r}.", [name])
    return number


def check_number(
    name: str, value: Any, *, above: float | None = None, least: float | None = None, below: float = math.inf, optional: bool = False
) -> float:
    """Returns a number between open bounds `above` and `below`, or from `least` on, of size 1e-30 to 1e18 or 0; `optional` admits None."""
    if optional and value is None:
        return value  # pyright: ignore[reportReturnType]
    try:
        number = float(value) if isinstance(value, Real) and not isinstance(value, bool) else math.nan
    except OverflowError:  # a whole number of hundreds of digits
        number = math.nan
    if abs(number) <= _LARGEST and (above is None or number > (above or _LEAST)) and (least is None or number >= least) and number < below:
        return number
    if below < math.inf:
        wanted = f"a number between {above:g} and {below:g}" if above is not None else f"a number from {least:g} to below {below:g}"
    else:
        wanted = "a positive number" if above == 0 else "a number" if least is None else f"a number of at least {least:g}"
        wanted += f" up to {_LARGEST:g}" if math.isfinite(number) and abs(number) > _LARGEST else ""
    raise OptionError(f"{name} must be {wanted}, got {value!r}.", [name])


def check_interval(name: str, value: Any) -> tuple[float, float]:
    """Returns two numbers, the lowest and the highest."""
    if not isinstance(value, list | tuple) or [isinstance(end, Real) for end in value] != [True, True] or not value[0] < value[1]:
        raise OptionError(f"{name} must be (lowest, highest), got {value!r}.", [name])
    return float(value[0]), float(value[1])


def check_flag(name: str, value: Any) -> bool:
    """Returns a value that is True or False; texts such as 'no' are refused."""
    if not isinstance(value, bool):
        raise OptionError(f"{name} must be True or False, got {value!r}.", [name])
    return value


def check_instance(name: str, value: Any, kind: type) -> Any:
    """Returns a value that is None or of a class."""
    if value is not None and not isinstance(value, kind):
        raise OptionError(f"{name} must be a {kind.__name__}, got {value!r:.100}.", [name])
    return value


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Returns a value that is one of the choices."""
    if value not in (choices := tuple(choices)):
        raise OptionError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}.{nearest(str(value), choices)}", [name])
    return value


@dataclass(frozen=True)
class Recommendation:
    """The sampler that a trained energy was evaluated with.

    Args:
        sampler: Its name.
        options: Its options, by name.
        threads: Threads within an operation while sampling, at most 1024; None does not change them. Small networks are fastest with one.
        precedence: Of the recommendations in an expression, those with the highest number count. A term that changes what the others were
            evaluated for, such as a precise measurement, has a higher one.

    Raises:
        OptionError: One of them is out of range, or of another type.
    """

    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    threads: int | None = None
    precedence: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, str):
            raise OptionError(f"A recommended sampler is a name, got {self.sampler!r}.", ["sampler"])
        if not isinstance(self.options, Mapping) or not all(isinstance(name, str) for name in self.options):
            raise OptionError(f"Recommended options are a mapping from names, got {self.options!r}.", ["options"])
        if self.threads is not None and check_integer("threads", self.threads) > _MOST_THREADS:
            raise OptionError(f"threads must be at most {_MOST_THREADS}, got {self.threads}.", ["threads"])
        check_integer("precedence", self.precedence, -_MOST_THREADS)


def plain_values(value: Any) -> Iterator[Any]:
    """Yields the values in nested lists, tuples and mappings."""
    if isinstance(value, Mapping | list | tuple):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from plain_values(item)
    else:
        yield value


_SHOWN = 20
_ELSEWHERE = {  # names that other libraries and papers use, by the names here
    "descent": "adam descent gradient-descent map optimize",
    "smc": "ais annealed-importance-sampling particle-filter",
    "sde ode": "ddim ddpm dpm euler euler-maruyama heun",
    "mala chees": "gibbs metropolis metropolis-hastings mh random-walk rwm rwmh slice",
    "hmc chees": "hamiltonian hamiltonian-monte-carlo hybrid-monte-carlo",
    "underdamped": "kinetic-langevin sghmc",
    "chees": "no-u-turn no-u-turn-sampler nuts",
    "tempering": "parallel-tempering pt replica-exchange",
    "langevin": "langevin-dynamics sgld ula unadjusted-langevin",
    "step_size": "epsilon eta learning-rate lr",
    "steps": "max-iter n-iter n-steps num-iterations num-steps",
    "shape": "chains n-chains n-samples num-chains num-samples size",
    "burn_in": "num-warmup tune warmup-steps",
    "leapfrogs": "leapfrog-steps n-leapfrog num-leapfrog num-leapfrog-steps",
    "init": "initial-state start x0",
    "seed": "generator key random-seed random-state rng",
    "trace": "thin thinning",
}
_INSTEAD_OF_NUTS = (
    " It does the work of NUTS: on the four targets of benchmarks.md an effective draw takes 7.7, 114, 6.3 and 11.1 gradients, "
    "with the NUTS of BlackJAX 56.2, 4,727, 19.3 and 54.1."
)


def nearest_names(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns up to `count` names near to one, as `plane/ring` to `ring`; a name that others use stands for the one here."""
    forms, wanted = {_form(one): one for one in known}, _form(name)
    here = [one for names, others in _ELSEWHERE.items() if wanted in others.split() for one in names.split()]
    if wanted in forms or here:
        return [forms[one] for one in (wanted, *map(_form, here)) if one in forms][:count]
    if not (close := difflib.get_close_matches(wanted, forms, n=count, cutoff=0.6)):
        words = {word: form for form in forms for word in re.split(r"[-/:=]", form)}
        close = dict.fromkeys(words[word] for word in difflib.get_close_matches(wanted, words, n=count, cutoff=0.8))
    return [forms[form] for form in close]


def _form(name: str) -> str:
    return str(name).casefold().replace("_", "-")


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns the sentence " Did you mean ...?" with the nearest names; empty if no name is near."""
    close = nearest_names(name, known)
    figures = _INSTEAD_OF_NUTS if close == ["chees"] and _form(name) in _ELSEWHERE["chees"].split() else ""
    return f" Did you mean {' or '.join(map(repr, close))}?{figures}" if close else ""


def listed(known: Iterable[str]) -> str:
    """Returns a sentence that lists the known names."""
    known = list(known)
    shown = ", ".join(known[:_SHOWN]) + (", ..." if len(known) > _SHOWN else "")
    return f" Known: {shown}." if known else " None is installed."


_FULL = ("can't allocate memory", "Cannot allocate memory", "not enough memory", "out of memory", "bad_alloc")
_UNITS = ("bytes", "kB", "MB", "GB", "TB")


def printable(text: object) -> str:
    """Returns text with escapes for control characters but newlines and tabs, for marks of direction and surrogates. `str` may raise."""
    try:
        found = str.__str__(str(text))
    except Exception as error:
        found = f"(an object of type {type(text).__name__}, whose text raises {type(error).__name__})"
    harmless = (one in "\n\t" or one.isprintable() or unicodedata.category(one) == "Zs" for one in found)
    return "".join(one if fine else one.encode("unicode_escape").decode() for one, fine in zip(found, harmless, strict=True))


def describe_error(error: BaseException) -> str:
    """Returns the type and the text of an error of third-party code, whose `str` may raise."""
    return f"{type(error).__name__}: {printable(error)}"


def text_table(header: Sequence[str], rows: Sequence[Sequence[object]], right: Sequence[int] = ()) -> str:
    """Returns a table with aligned columns, those of `right` to the right, and escapes for control characters; a cell of None is empty."""
    text = [["" if cell is None else printable(cell).replace("\n", "\\n").replace("\t", "\\t") for cell in row] for row in rows]
    cells = [list(header), *text]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    aligned = ([f"{cell:{'>' if i in right else '<'}{widths[i]}}" for i, cell in enumerate(row)] for row in cells)
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def ran_out(error: BaseException) -> bool:
    """Returns whether memory ran out, of the machine or of a GPU; torch has no class of its own for the first."""
    return isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL))


def written_bytes(number: float) -> str:
    """Returns a number of bytes as people write it, such as 1.5 GB."""
    unit = min(int(math.log10(max(1, number)) / 3), len(_UNITS) - 1)
    return f"{number / 1000**unit:.3g} {_UNITS[unit]}"


def import_extra(module: str, extra: str) -> Any:
    """Imports a module of an extra, such as `metrics` of `pip install 'composable-energy[metrics]'`, or raises `ExtraNotInstalled`."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ExtraNotInstalled(f"This needs {name}, which is not installed: pip install 'composable-energy[{extra}]'.") from error
