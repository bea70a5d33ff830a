"""Checks of energies."""

import copy
import math
import pickle
import random
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import softplus

from composable_energy.algebra import negate
from composable_energy.arithmetic import unsqueeze_to
from composable_energy.energies.energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.files import load
from composable_energy.sampling import twin
from composable_energy.supports import coordinates_of, is_discrete
from composable_energy.testing.checks import Check, Gaussian, SkipCheck, assert_close, build_subject, named_checks, run_checks

EnergyLike = str | Energy | Callable[[], Energy]


def check_energy(energy: EnergyLike, x: Tensor, *, expected_failures: Mapping[str, str] | None = None) -> None:
    """Runs the checks of an energy at points; its arguments are those of `energy_checks` and of `run_checks`.

    Raises:
        AssertionError: A check fails.
    """
    run_checks(energy_checks(energy, x), expected_failures)


def energy_checks(energy: EnergyLike, x: Tensor) -> list[Check]:
    """Returns the checks of an energy. They use a twin; checks of copies and files put the energy in eval mode meanwhile.

    | name | what is checked |
    |---|---|
    | `build` | it can be built, is an `Energy`, binds its conditions, and has a twin |
    | `shape` | energies are finite, with shape $(B,)$, and have the dtype and device of the points |
    | `input` | the points are not changed |
    | `randomness` | no random number is drawn, and a second call returns the same |
    | `copy` | a deep copy has the same energies to the bit and separate weights |
    | `rows` | the energy of a point does not depend on the other points of the batch, nor on their order |
    | `gradient` | `with_gradient` agrees with `forward` and finite differences in float64; a point has no gradient at another one |
    | `dtypes` | converted to float32 and float64 it returns energies of that dtype, which agree |
    | `pickle`, `save` | a copy has the same energies to the bit; lambdas cannot be pickled or saved |
    | `evidence` | bases and evidence add up to the energy |
    | `algebra` | the laws of `&`, `|`, `~`, `*` and `-` hold with it as an operand |

    For an energy without value (`has_value` is False) gradients are checked instead; `gradient`, `evidence` and `algebra` are skipped.

    Args:
        energy: The energy, its name, or a function without arguments that builds it, called when a check runs.
        x: At least three distinct points where it is finite and smooth, with shape $(B, *)$.
    """
    return named_checks(_CHECKS, energy, x, run=_check)


def _check(function: Callable[[Energy, Tensor], None], energy: EnergyLike, x: Tensor) -> None:
    """Runs a check of an energy in eval mode, or of its twin."""
    subject = build_subject(energy, Energy, load, "lift it with `composable_energy.as_energy`")
    if function not in (_copy, _pickle, _save):
        return function(twin(subject), x.detach().clone())
    training = [module for module in subject.modules() if module.training]
    subject.eval()
    try:
        function(subject, x.detach().clone())
    finally:
        for module in training:
            module.training = True


def _require_value(energy: Energy) -> None:
    if not energy.has_value:
        raise SkipCheck(f"{energy} has no value")


def _values(energy: Energy, x: Tensor) -> Tensor:
    """Returns the energies, or the gradients of an energy without value."""
    return energy(x) if energy.has_value else energy.with_gradient(x)[1]


def _build(energy: Energy, x: Tensor) -> None:
    unbound = ", ".join(sorted(energy.required_conditions))
    assert not unbound, f"{unbound} must be bound before it can be checked, with `.given(...)` or `.at(...)`"
    assert len(x.unique(dim=0)) >= 3, "the checks need three points that differ"


def _shape(energy: Energy, x: Tensor) -> None:
    energies = energy(x) if energy.has_value else energy.with_gradient(x)[0]
    assert energies.shape == (len(x),), f"energies have shape {tuple(energies.shape)}, expected ({len(x)},)"
    assert energies.dtype == x.dtype, f"energies are {energies.dtype}, the points {x.dtype}"
    assert energies.device == x.device, f"energies are on {energies.device}, the points on {x.device}"
    assert bool(energies.isfinite().all()), f"energies are not finite: {energies.tolist()}"
    if energy.has_value:
        assert energy(x[:1]).shape == (1,), f"the energy of one point has shape {tuple(energy(x[:1]).shape)}, expected (1,)"
        return
    assert not bool(energies.any()), f"without value, `with_gradient` returns zeros for the energies, got {energies.tolist()}"
    gradient = energy.with_gradient(x)[1]
    what = f"{tuple(gradient.shape)}, {gradient.dtype} on {gradient.device}"
    assert (gradient.shape, gradient.dtype, gradient.device) == (x.shape, x.dtype, x.device), f"gradients are {what}, unlike the points"
    assert bool(gradient.isfinite().all()), "gradients are not finite"


def _rows(energy: Energy, x: Tensor) -> None:
    energies = _values(energy, x)
    assert_close(torch.cat([_values(energy, x[i : i + 1]) for i in range(len(x))]), energies, "alone and in a batch", network=energy)
    assert_close(_values(energy, x.flip(0)), energies.flip(0), "in another order", network=energy)
    assert_close(_values(energy, torch.cat([x[:1], 10 * x[1:] + 1]))[:1], energies[:1], "beside other points", factor=10, network=energy)


def _gradient(energy: Energy, x: Tensor) -> None:
    _require_value(energy)
    if is_discrete(energy.support):
        raise SkipCheck("its points are discrete")
    energy, x = copy.deepcopy(energy).double(), x.double()
    (own, gradient), point = energy.with_gradient(x), x.clone().requires_grad_()
    energies = energy(point)
    assert_close(own, energies, "the energies of `with_gradient` and of `forward`", factor=10, network=energy)
    if energies.requires_grad:  # an energy that overrides `with_gradient` may not support autograd
        assert not bool(torch.autograd.grad(energies[0], point)[0][1:].any()), "the energy of the first point has a gradient at the others"
    generator, coordinates = torch.Generator().manual_seed(0), coordinates_of(energy.support, x.shape[1:], x.dtype, x.device)
    u = x if coordinates is None else coordinates.inverse(x)  # where points move inside of the support, as rows of a simplex do
    with torch.no_grad():
        for _ in range(4):
            direction = torch.randn(u.shape, generator=generator, dtype=torch.float64).to(x.device)
            step = 1e-5 * (1 + u.abs().max()) / unsqueeze_to(direction.flatten(1).norm(dim=1), u)
            moved = [v if coordinates is None else coordinates.points(v)[0] for v in (u + step * direction, u - step * direction)]
            (up, down), step = map(energy, moved), step.flatten()
            slope, expected = (up - down) / (2 * step), (gradient * (moved[0] - moved[1])).flatten(1).sum(1) / (2 * step)
            rounding = 100 * torch.finfo(torch.float64).eps * (1 + up.abs()) / step
            off = (slope - expected).abs() - 1e-4 * (1 + expected.abs()) - rounding
            worst = int(off.argmax())
            assert off[worst] <= 0, f"`with_gradient` gives a slope of {expected[worst]:.6g}, finite differences {slope[worst]:.6g}"


def _dtypes(energy: Energy, x: Tensor) -> None:
    results = {}
    for dtype in (torch.float32, torch.float64):
        results[dtype] = _values(copy.deepcopy(energy).to(dtype), x.to(dtype))
        assert results[dtype].dtype == dtype, f"points of {dtype} have energies of {results[dtype].dtype}"
    assert_close(results[torch.float64].float(), results[torch.float32], "float32 and float64", factor=1000)


def _input(energy: Energy, x: Tensor) -> None:
    before = x.clone()
    _values(energy, x)
    assert torch.equal(x, before), "the points have been changed in place"


def _randomness(energy: Energy, x: Tensor) -> None:
    states = torch.get_rng_state(), random.getstate()
    first = _values(energy, x)
    assert torch.equal(torch.get_rng_state(), states[0]), "it draws random numbers from torch"
    assert random.getstate() == states[1], "it draws random numbers from Python's `random`"
    assert torch.equal(_values(energy, x), first), "a second call gives other energies"


def _copy(energy: Energy, x: Tensor) -> None:
    copied = copy.deepcopy(energy)
    assert torch.equal(_values(copied, x), _values(energy, x)), "a deep copy has other energies"
    shared = {id(p) for p in energy.parameters()} & {id(p) for p in copied.parameters()}
    assert not shared, "a deep copy shares weights with the original"


def _pickle(energy: Energy, x: Tensor) -> None:
    try:
        data = pickle.dumps(energy)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        inside = (value for module in energy.modules() for value in vars(module).values())
        if any(isinstance(value, types.FunctionType) and "<" in value.__qualname__ for value in inside):
            raise SkipCheck("a lambda or a function inside a function cannot be pickled") from error
        raise
    assert torch.equal(_values(pickle.loads(data), x), _values(energy, x)), "an unpickled copy has other energies"


def _save(energy: Energy, x: Tensor) -> None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            energy.save(Path(folder) / "energy")
        except ExpressionError as error:
            raise SkipCheck(str(error)) from error
        wrong = "a saved and loaded copy has other energies: `config` must return all arguments, and tensors be parameters or buffers"
        assert torch.equal(_values(load(Path(folder) / "energy").to(x.device).eval(), x), _values(energy, x)), wrong


def _evidence(energy: Energy, x: Tensor) -> None:
    _require_value(energy)
    total = energy.evidence(x)
    assert total.shape == (len(x),), f"evidence has shape {tuple(total.shape)}, expected ({len(x)},)"
    assert_close(sum((base(x) for base in energy.bases), total), energy(x), "bases and evidence", factor=10)


def _algebra(energy: Energy, x: Tensor) -> None:
    _require_value(energy)
    b, c = Gaussian(torch.zeros_like(x[0])), Gaussian(torch.ones_like(x[0]), 2.0)
    b.decoder = c.decoder = energy.decoder  # in the same space
    b.variables = c.variables = dict(energy.variables)
    if is_discrete(energy.support):
        b.support = c.support = energy.support
    for law, left, right in _laws(energy, b, c, x):
        assert_close(left if isinstance(left, Tensor) else left(x), right if isinstance(right, Tensor) else right(x), law, factor=10)
    assert torch.equal((1 * energy)(x), energy(x)), "1 * A is not A"
    assert not bool((energy - energy)(x).any()), "A - A is not 0"
    if energy.no_complement is None:
        assert negate(negate(energy)) is energy, "~~A is not A"
        assert (~(energy | b)).equals(negate(energy) & negate(b)), "~(A | B) is not ~A & ~B"


def _laws(a: Energy, b: Energy, c: Energy, x: Tensor) -> Iterator[tuple[str, Energy | Tensor, Energy | Tensor]]:
    """Yields the laws of the algebra, with energies, or their values, that have to be equal."""
    at_a, at_b = a(x), b(x)
    yield "A & B is the sum", a & b, at_a + at_b
    yield "A & B is B & A", a & b, b & a
    yield "& is associative", (a & b) & c, a & (b & c)
    yield "A | B is the mixture", a | b, -torch.logaddexp(-at_a, -at_b)
    yield "A | B is B | A", a | b, b | a
    yield "| is associative", (a | b) | c, a | (b | c)
    yield "2 * A is twice A", 2 * a, 2 * at_a
    yield "A / 2 is half of A", a / 2, at_a / 2
    yield "A - B is the difference", a - b, at_a - at_b
    if a.no_complement is not None or not a.evidence_has_value:
        return
    if math.isfinite(level := a.evidence(x).detach().median().item()):  # that of an absolute energy itself needs draws
        expected = softplus((level - a.evidence(x)) / 0.5)
        yield "~A by its level is a softplus", negate(a, level=level, temperature=0.5, mode="level").evidence(x), expected
    if a.bases:
        other = b.relative_to(a.bases[0].energy)
        yield "~(A & B) is ~A | ~B", ~(a & other), negate(a) | negate(other)
        yield "~(A | B) is ~A & ~B", ~(a | other), negate(a) & negate(other)


_CHECKS = (_build, _shape, _input, _randomness, _copy, _rows, _gradient, _dtypes, _pickle, _save, _evidence, _algebra)
