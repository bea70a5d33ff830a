"""Identity: whether two objects are the same energy, network or decoder; and the twin of an energy, the copy that is sampled.

A leaf has a *token*, which survives `deepcopy`, pickling, `.to()`, saving and loading. Two leaves are *the same* if their tokens and
values are equal; a copy that was trained since is another energy. Two nodes are the same if class, `config()` and terms are.
"""

import contextlib
import copy
import gc
import sys
import uuid
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import lru_cache, partial
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType, TracebackType
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from composable_energy.energies.evaluation import memoize
from composable_energy.errors import ExpressionError
from composable_energy.supports.distributions import ARGUMENTS, argument

_BIRTH: ContextVar[str | None] = ContextVar("birth", default=None)
TOKEN, PART = "_identity_token", "_identity_part"
"""The attributes of a module with its token, and with the `Part` that it is of an object which the registry built."""
_NUMBERS = {int: torch.int64, float: torch.float64}
_BY_IDENTITY = (type, FunctionType, BuiltinFunctionType, ModuleType)
_NO_VALUES = {*vars(nn.Module()), TOKEN, PART, "origin", "name", "recommended", "_fitting", "_direct", "_place"}
_NO_VALUES -= {"_parameters", "_buffers"}


@dataclass(frozen=True)
class Origin:
    """The entry and options from which the registry built an energy or encoder, and can rebuild it.

    Attributes:
        entry: The name of the entry point.
        member: The member of a family; None for the energy of the family, or without a family.
        options: The options.
        distribution: The distribution of the entry; None for a registered object.
        version: The version of the distribution.
    """

    entry: str
    member: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    distribution: str | None = None
    version: str | None = None

    @property
    def token(self) -> str:
        """The token of all objects of an entry point; they differ by values."""
        return f"{self.distribution or ''}:{self.entry}"

    def __str__(self) -> str:
        return self.entry if self.member is None else f"{self.entry}/{self.member}"


class Part(NamedTuple):
    """A module inside an object of a kind that the registry built, with its dotted path in it."""

    kind: str
    origin: Origin
    path: str


def token_of(module: nn.Module) -> str:
    """Returns the token of a module; a module without one gets a new one."""
    if TOKEN not in (attributes := vars(module)):
        part = attributes.get(PART)
        attributes.setdefault(TOKEN, (None if part is None else part.origin.token) or _BIRTH.get() or uuid.uuid4().hex)
    return attributes[TOKEN]


@contextmanager
def inherit_token(origin: Origin) -> Iterator[None]:
    """A context in which new objects get the token of their origin, so that they have the same token in every process."""
    before = _BIRTH.set(origin.token)
    try:
        yield
    finally:
        _BIRTH.reset(before)


def same(a: object, b: object) -> bool:
    """Returns whether two energies, networks or decoders are the same, by token and value at the lower of two precisions."""
    return _equal(a, b, set(), tokens=True)


def equal(a: object, b: object) -> bool:
    """Returns whether two objects, such as containers and modules, have equal values; a function is equal only to itself."""
    return _equal(a, b, set())


def _equal(a: Any, b: Any, seen: set[tuple[int, int]], tokens: bool = False) -> bool:
    """Compares two objects; `seen` has the pairs under comparison, both alive until its end, so that repeated parts are compared once."""
    if a is b or (id(a), id(b)) in seen:
        return True
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        a, b = (torch.tensor(v, dtype=_NUMBERS[type(v)]) if type(v) in _NUMBERS else v for v in (a, b))  # 0.5 is tensor(0.5)
        return isinstance(a, Tensor) and isinstance(b, Tensor) and _equal_tensors(a, b)
    if type(a) is not type(b) or isinstance(a, _BY_IDENTITY):
        return False
    one, other = _parts_of(a), _parts_of(b)
    if one is None or other is None:
        return bool(a == b) or (a != a and b != b)
    seen.add((id(a), id(b)))
    if isinstance(a, nn.Module) and tokens:
        terms, others = getattr(a, "terms", ()), getattr(b, "terms", ())
        if not terms:
            return token_of(a) == token_of(b) and equal(a, b)
        pairs = zip(terms, others, strict=False)
        return len(terms) == len(others) and all(_equal(x, y, seen, True) for x, y in pairs) and equal(_own_values(a), _own_values(b))
    return list(one) == list(other) and all(_equal(one[key], other[key], seen, tokens) for key in one)


def _parts_of(value: Any) -> Mapping[Any, Any] | None:
    """Returns the parts by which an object is compared; None if it has none."""
    match value:
        case nn.Module():
            return {**_own_values(value), "_modules": value._modules}
        case MethodType():
            return {"function": value.__func__, "self": value.__self__}
        case partial():
            return {"function": value.func, "arguments": value.args, "keywords": value.keywords}
        case Mapping():
            return value
        case list() | tuple():
            return dict(enumerate(value))
    if type(value) in ARGUMENTS:
        return {name: argument(value, name) for name in ARGUMENTS[type(value)]}
    return getattr(value, "__dict__", None)


def _own_values(module: nn.Module) -> dict[str, Any]:
    """Returns the tensors of a module, and its `config()` or else its attributes."""
    if getattr(type(module), "has_config", False):
        return {"config": module.config(), "_parameters": module._parameters, "_buffers": module._buffers}  # pyright: ignore[reportCallIssue]
    return {name: value for name, value in vars(module).items() if name not in _NO_VALUES}


def _equal_tensors(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.layout != b.layout or a.is_floating_point() != b.is_floating_point() or a.is_complex() != b.is_complex():
        return False
    a, b = a.detach(), b.detach().to(a.device)
    if a.layout is not torch.strided:  # `torch.equal` compares dense tensors alone
        a, b = (tensor.to_sparse_coo().coalesce() for tensor in (a, b))
        return _equal_tensors(a.indices(), b.indices()) and _equal_tensors(a.values(), b.values())
    return any(
        torch.equal(one, other) or (bool((one != one).any()) and bool(((one == other) | ((one != one) & (other != other))).all()))
        for one, other in ([(a, b)] if a.dtype == b.dtype else [(a.to(b.dtype), b), (a, b.to(a.dtype))])
    )


class Copies:
    """Pairs of copies of the same module in an expression, which counts them once; none is the usual case.

    Numbers are compared at each evaluation, as writes through `p.data`, NumPy or `vector_to_parameters` leave no trace; in a twin, which
    replaces no tensor, at its first one, and then where a tensor was written to.
    """

    def __init__(self, root: nn.Module) -> None:
        self.pairs: list[tuple[nn.Module, nn.Module]] = []
        self._tensors: list[Tensor] = []  # of a twin
        self._versions: list[int] = []
        groups: dict[tuple[type, str], list[nn.Module]] = {}
        seen, todo = set[nn.Module](), [root]
        while todo:
            if (module := todo.pop()) in seen:
                continue
            seen.add(module)
            leaf = TOKEN in vars(module) and not getattr(module, "terms", ())
            others = groups.setdefault((type(module), token_of(module)), []) if leaf else []
            for other in others:
                if equal(other, module):
                    self.pairs.append((other, module))
                    break  # the modules inside are equal, too
            else:
                others.append(module)
                todo.extend(reversed(list(module.children())))

    def differ(self) -> tuple[nn.Module, nn.Module] | None:
        """Returns a pair that is no longer equal; None if all are equal."""
        # `_version` is torch's only counter of writes; it is not public, and `test_identity.py` pins its meaning.
        if (now := [tensor._version for tensor in self._tensors]) and now == self._versions:
            return None
        self._versions = now
        return next((pair for pair in self.pairs if not memoize(("copies", *map(id, pair)), pair, lambda pair=pair: equal(*pair))), None)

    def watch(self, twin: bool) -> None:
        """Compares the numbers of a twin where they were written to alone; else at each evaluation."""
        self._tensors = [tensor for tensor in self.tensors() if not tensor.is_inference()] if twin else []  # others cannot be written to

    def tensors(self) -> list[Tensor]:
        """Returns the tensors of all copies."""
        return [tensor for pair in self.pairs for module in pair for tensor in (*module.parameters(), *module.buffers())]


T = TypeVar("T")

_PLAIN = {str, bytes, bool, int, float, complex, type(None), torch.dtype, torch.device, torch.Size, ModuleType, BuiltinFunctionType}
_PLAIN |= {TracebackType, FrameType, CodeType}  # an exception knows who called, which is no part of it
_LIBRARIES = {*sys.stdlib_module_names, "torch", "numpy", "composable_energy"}  # their functions use no module of a user
_DICTS, _EMPTY = (dict, OrderedDict), (dict, OrderedDict, set, frozenset)  # a module has many empty ones
_MANY = 1000  # a container with more items is data


def twin(energy: T) -> T:
    """Returns a copy of an energy or module in eval mode that shares the storage of all tensors; its parameters require no gradient.

    Later writes to the tensors reach the copy, other changes do not. It takes milliseconds for weights of any size. Attributes
    or globals that an energy changes while it is evaluated change in its twin.

    Raises:
        ExpressionError: A part cannot be copied, has parameters without values, or a function uses a module in training mode.

    Example:
        >>> from composable_energy.sampling import twin
        >>> energy = ce.as_energy(torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Dropout(), torch.nn.Flatten(0)))
        >>> energy.training, twin(energy).training
        (True, False)
    """
    memo: dict[int, Any] = {}
    parts: list[Any] = []  # modules, and distributions of torch
    functions: dict[FunctionType, object] = {}  # with the modules whose `forward` they are
    for item in contents(energy, captured=False):
        owner: object = None
        if isinstance(item, Tensor | torch.jit.ScriptFunction):  # functions of TorchScript cannot be copied
            memo.setdefault(id(item), _share_storage(item) if isinstance(item, Tensor) else item)
        elif isinstance(item, Copies) and item.pairs:
            memo |= {id(tensor): _share_storage(tensor, watched=True) for tensor in item.tensors()}
        elif isinstance(item, nn.Module):
            parts.append(item)
            owner, item = item, getattr(type(item), "forward", None)
        elif type(item) in ARGUMENTS:
            parts.append(item)
        if isinstance(item, FunctionType):
            functions[item] = owner
    try:
        for part in reversed(parts):  # inner ones first, so that deep expressions need no deep recursion
            _copy(part, memo)
        copied = copy.deepcopy(energy, memo)
    except Exception as error:
        raise ExpressionError(
            f"Sampling runs on a copy, and {energy} cannot be copied ({type(error).__name__}: {error}). Remove parts that "
            "`copy.deepcopy` cannot copy, or give their class a `__deepcopy__`."
        ) from error
    for part in parts:
        if isinstance(new := memo.get(id(part)), nn.Module):  # else its class says that it is its own copy
            new.training = False
            if (became_twin := getattr(new, "became_twin", None)) is not None:
                became_twin()
    for function, owner in functions.items():
        for item in contents(_captured(function, owner)):
            # Lists and the library's own nodes are the same in both modes; the networks in them are items, too.
            same = isinstance(item, nn.ModuleList | nn.ModuleDict) or type(item).__module__.startswith("composable_energy.")
            if isinstance(item, nn.Module) and item.training and not same:
                raise ExpressionError(
                    f"{function.__qualname__} uses a {type(item).__name__} in training mode, and a copy of the energy does not contain it. "
                    "Call its `.eval()`, make it an attribute of the energy, or hand it over: `ce.as_energy(f, modules=[net])` calls "
                    "f(x, net, **conditions)."
                )
    return copied


def contents(root: object, *, captured: bool = True) -> list[object]:
    """Returns an object and the objects inside, each once and in a fixed order: attributes, items, and what functions capture."""
    seen: dict[int, object] = {}
    todo = [root]
    while todo:
        if (kind := type(item := todo.pop())) in _PLAIN or (kind in _DICTS and not item) or id(item) in seen or isinstance(item, type):
            continue
        seen[id(item)] = item
        if isinstance(item, FunctionType):
            todo += _captured(item)[::-1] if captured else ()
        elif not isinstance(item, Tensor) and not (isinstance(item, dict | list | tuple | set | frozenset) and len(item) > _MANY):
            todo += gc.get_referents(item)[::-1]
    return list(seen.values())


def tensors_of(energy: object) -> Iterator[Tensor]:
    """Yields the tensors that an energy contains or that its functions capture, each once."""
    for item in contents(energy):
        if isinstance(item, Tensor):
            yield item


def _captured(function: FunctionType, owner: object = None) -> list[Any]:
    """Returns what a function of a user captures: closure, defaults, globals that it names, unless its `owner` has such an attribute."""
    if _is_of_library(function):
        return []
    codes, named, space = [function.__code__], dict[str, Any](), function.__globals__
    for code in codes:  # also those of inner functions and comprehensions, which `inspect.getclosurevars` leaves out
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                codes.append(constant)
        for name in code.co_names:
            if name in space and not hasattr(owner, name):
                named[name] = space[name]
    values = [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values(), *named.values()]
    for cell in function.__closure__ or ():
        with contextlib.suppress(ValueError):  # it is not bound yet
            values.append(cell.cell_contents)
    for place, value in enumerate(values):
        if isinstance(value, type) and not _is_of_library(value):
            values[place] = dict(vars(value))
    return values


def _is_of_library(value: FunctionType | type) -> bool:
    return (value.__module__ or "").partition(".")[0] in _LIBRARIES


def _copy(part: Any, memo: dict[int, Any]) -> None:
    """Adds a copy of a module or distribution to a memo, as `copy.deepcopy` does in five times the time: most of their values are plain."""
    cls: Any = type(part)
    state = None if _copies_itself(cls) else getattr(part, "__getstate__", lambda: vars(part).copy())()
    if not isinstance(state, dict):  # an own way, or slots
        copy.deepcopy(part, memo)
    elif id(part) not in memo:
        new = memo[id(part)] = cls.__new__(cls)
        for name, value in state.items():
            if (kind := type(value)) in _EMPTY and not value:
                value = kind()
            elif kind is dict and name in ("_parameters", "_modules"):
                value, given = {}, value
                for key, item in given.items():
                    value[key] = memo[id(item)] if id(item) in memo else copy.deepcopy(item, memo)
            elif kind not in _PLAIN:
                value = memo[id(value)] if id(value) in memo else copy.deepcopy(value, memo)
            vars(new)[name] = value


@lru_cache(maxsize=512)
def _copies_itself(cls: type) -> bool:
    """Returns whether a class has its own way to be copied."""
    usual = nn.Module if issubclass(cls, nn.Module) else object
    return any(getattr(cls, name, None) is not getattr(usual, name, None) for name in ("__deepcopy__", "__setstate__", "__reduce_ex__"))


def _share_storage(tensor: Tensor, watched: bool = False) -> Tensor:
    if nn.parameter.is_lazy(tensor):
        raise ExpressionError("A lazy module has no weights before its first call: evaluate the energy once before sampling.")
    # Autograd refuses tensors of inference mode, and those that another thread trains unless they have a `_version` of their own.
    held = tensor.detach().clone() if tensor.is_inference() else tensor.detach() if watched else tensor.data
    if not isinstance(tensor, nn.Parameter):
        return held if tensor.requires_grad or tensor.is_inference() else tensor
    own_class = type(tensor) is not nn.Parameter and issubclass(type(tensor), nn.Parameter)
    new = held.as_subclass(type(tensor)) if own_class else nn.Parameter(held, requires_grad=False)
    vars(new).update(vars(tensor))
    return new
