"""Checks of kernels of the fused step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from composable_energy.kernels import Counter, Kernel, StepCoefficients
from composable_energy.kernels.reference import reference_step
from composable_energy.noise import Noise
from composable_energy.testing.checks import Check, SkipCheck, build_subject, named_checks, run_checks

KernelLike = str | Kernel | Callable[[], Kernel]

SHAPES = ((1, 1), (3, 2), (7, 3), (2, 4), (5,), (300, 2), (4, 3, 5, 7), (3, 770), (2, 4099))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SEEDS = (0, 1, 16, 2**31 + 5, 2**32, 2**63, 2**64 - 1)
_FORMS = (
    StepCoefficients((1.0,), 0.3, 0.7, 1.0, 0.0, None, None),
    StepCoefficients((), 0.0, 1.0, 0.0, 0.0, None, None),
    StepCoefficients((1.0,), 0.3, 0.0, 1.0, 0.0, None, None),
    StepCoefficients((0.5, -2.0, 1.0), 0.1, 0.7, 0.9, 0.0, -0.5, 0.75),
    StepCoefficients((0.25,) * 9, 0.1, 0.7, 0.0, 0.0, None, None),
)
_WALKS = (StepCoefficients((1.0,), 0.3, 0.7, 0.9, 0.2, None, None), StepCoefficients((0.5, -2.0), 0.3, 0.0, 1.0, 0.2, -1.0, 1.0))


def check_kernel(
    kernel: KernelLike,
    *,
    device: torch.device | str = "cpu",
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Runs the checks of a kernel; see `kernel_checks`.

    Args:
        kernel: The kernel, its class or its name.
        device: The device.
        shapes: The shapes of points.
        expected_failures: The names of checks that are known to fail, with the reasons; one that passes is reported as a failure.

    Raises:
        AssertionError: Checks fail; the message has a line for each.
    """
    run_checks(kernel_checks(kernel, device=device, shapes=shapes), expected_failures)


def kernel_checks(kernel: KernelLike, *, device: torch.device | str = "cpu", shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Check]:
    """Returns the checks of a kernel. They cover every dtype that the kernel does not refuse.

    | name | what is checked |
    |---|---|
    | `available` | it can be built, can run here, and takes float32 |
    | `noise` | normal numbers agree with Philox within 1e-6 (relative above 1), for any seed, step, chain and stream |
    | `step` | points agree with the reference within rounding in float32, and within one unit in the last place of shorter dtypes |
    | `momentum` | points and momenta agree with the reference in the same way |
    | `inplace` | a step in place writes the same bits |
    | `chains` | ten chains at once get the same bits as four and six chains |
    | `inputs` | a step that is not in place does not change points, gradients and momentum |
    | `bounds` | nothing is written outside of the results |
    | `nan` | NaN stays NaN, also in a box, and affects no other number |

    If `available`, `bounds` or `noise` fails, those that follow are skipped: their failures would be consequences.

    Args:
        kernel: The kernel, its class or its name.
        device: The device.
        shapes: The shapes of points.
    """
    subject = _Subject(kernel, torch.device(device), tuple(shapes))
    functions = {name: _bound(function, subject) for name, function in _CHECKS.items()}
    return named_checks(functions, ("available", "bounds", "noise"), momentum=("step",))


def _bound(function: Callable[[_Subject], None], subject: _Subject) -> Callable[[], None]:
    return lambda: function(subject)


@dataclass(frozen=True)
class _Points:
    x: Tensor
    gradients: list[Tensor]
    momentum: Tensor | None

    def copy(self) -> _Points:
        return _Points(self.x.clone(), [g.clone() for g in self.gradients], None if self.momentum is None else self.momentum.clone())

    @property
    def all(self) -> list[Tensor]:
        return [self.x, *self.gradients, *([] if self.momentum is None else [self.momentum])]


@dataclass(frozen=True)
class _Subject:
    source: KernelLike
    device: torch.device
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def kernel(self) -> Kernel:
        from composable_energy.registry import get

        return build_subject(self.source, Kernel, partial(get, "kernel"))

    @property
    def dtypes(self) -> list[torch.dtype]:
        taken = [dtype for dtype in _DTYPES if not self.kernel.refusal(torch.zeros(1, 1, dtype=dtype, device=self.device))]
        if not taken:
            raise SkipCheck("it takes no dtype")
        return taken

    def cases(self) -> Iterator[tuple[tuple[int, ...], torch.dtype, Counter]]:
        """Yields each shape with a dtype, in turn, and a counter."""
        dtypes = self.dtypes
        for i, shape in enumerate(self.shapes):
            yield shape, dtypes[i % len(dtypes)], Counter(_SEEDS[i % len(_SEEDS)], i, (0, 2**31 - 2, 2**32 - 400)[i % 3], i % 4)

    def points(self, shape: tuple[int, ...], dtype: torch.dtype, coefficients: StepCoefficients, momentum: bool = False) -> _Points:
        generator = torch.Generator().manual_seed(sum(shape))
        drawn = [torch.randn(shape, generator=generator).to(self.device, dtype) for _ in range(len(coefficients.weights) + 2)]
        return _Points(drawn[0], drawn[2:], drawn[1] if momentum else None)

    def step(self, points: _Points, coefficients: StepCoefficients, counter: Counter, inplace: bool = False) -> list[Tensor]:
        out = points.x if inplace else torch.full_like(points.x, 7.0)
        out_momentum = points.momentum if inplace or points.momentum is None else torch.full_like(points.x, 7.0)
        self.kernel.langevin_step(points.x, points.gradients, points.momentum, coefficients, counter, out, out_momentum)
        return [out] if out_momentum is None else [out, out_momentum]

    def expected(self, points: _Points, coefficients: StepCoefficients, counter: Counter) -> list[Tensor]:
        noise = Noise(counter.seed, range(counter.chain, counter.chain + len(points.x)), counter.step, "philox")
        new = reference_step(points.x, points.gradients, points.momentum, coefficients, noise, counter.stream, False)
        return [some for some in new if some is not None]


def _assert_near(got: Tensor, expected: Tensor, what: str, rounding: float = 4e-6) -> None:
    spacing = torch.finfo(expected.dtype).eps if expected.dtype in (torch.bfloat16, torch.float16) else 0.0
    off = (got.double() - expected.double()).abs()
    allowed = rounding * expected.double().abs().clamp_min(1.0) + spacing * expected.double().abs()
    assert bool((off <= allowed).all()), f"{what}: off by up to {off.max().item():.3g}"


def _available(subject: _Subject) -> None:
    kernel = subject.kernel
    ready, reason = kernel.available()
    assert ready, f"it cannot run here: {reason}"
    refused = kernel.refusal(torch.zeros(1, 1, device=subject.device))
    assert not refused, f"it refuses float32 on {subject.device}: {refused}"


def _noise(subject: _Subject) -> None:
    coefficients, x = _FORMS[1], torch.zeros(3, 770, device=subject.device)
    for i, seed in enumerate(_SEEDS):
        counter = Counter(seed, (1, 16, 2**31 + 7, 2**32 - 1)[i % 4], (5, 2**31 - 1, 2**32 - 3)[i % 3], (0, 1, 2**31)[i % 3])
        points = _Points(x, [], None)
        (got,), (expected,) = subject.step(points, coefficients, counter), subject.expected(points, coefficients, counter)
        _assert_near(got, expected, f"the noise of {counter}", 1e-6)


def _step(subject: _Subject) -> None:
    for shape, dtype, counter in subject.cases():
        for coefficients in _FORMS:
            points = subject.points(shape, dtype, coefficients)
            (got,), (expected,) = subject.step(points, coefficients, counter), subject.expected(points, coefficients, counter)
            _assert_near(got, expected, f"points of shape {shape} and {dtype} after {coefficients}")


def _momentum(subject: _Subject) -> None:
    for shape, dtype, counter in subject.cases():
        for coefficients in _WALKS:
            points = subject.points(shape, dtype, coefficients, momentum=True)
            results = zip(subject.step(points, coefficients, counter), subject.expected(points, coefficients, counter), strict=True)
            for name, (got, expected) in zip(("points", "momenta"), results, strict=True):
                _assert_near(got, expected, f"{name} of shape {shape} and {dtype} after {coefficients}")


def _inplace(subject: _Subject) -> None:
    for dtype in subject.dtypes:
        for coefficients, momentum in ((_FORMS[3], False), (_WALKS[0], True)):
            points, counter = subject.points((5, 37), dtype, coefficients, momentum), Counter(3, 4, 5, 6)
            new, written = subject.step(points, coefficients, counter), subject.step(points.copy(), coefficients, counter, inplace=True)
            assert all(torch.equal(a, b) for a, b in zip(new, written, strict=True)), f"a step of {dtype} in place differs"


def _chains(subject: _Subject) -> None:
    for size in (2, 12, 193, 770):
        points = subject.points((10, size), torch.float32, _FORMS[0])
        (whole,) = subject.step(points, _FORMS[0], Counter(11, 2, 40, 0))
        for first, last in ((0, 4), (4, 10)):
            some = _Points(points.x[first:last], [gradient[first:last] for gradient in points.gradients], None)
            (part,) = subject.step(some, _FORMS[0], Counter(11, 2, 40 + first, 0))
            assert torch.equal(part, whole[first:last]), f"chains {first} to {last} of ten get other bits alone, for {size} coordinates"


def _inputs(subject: _Subject) -> None:
    for coefficients, momentum in ((_FORMS[3], False), (_WALKS[0], True)):
        points = subject.points((5, 37), torch.float32, coefficients, momentum)
        before = points.copy()
        subject.step(points, coefficients, Counter(0, 0, 0, 0))
        assert all(torch.equal(a, b) for a, b in zip(points.all, before.all, strict=True)), "a step changes its input"


def _bounds(subject: _Subject) -> None:
    for shape in subject.shapes:
        points, count = subject.points(shape, torch.float32, _WALKS[0], momentum=True), torch.Size(shape).numel()
        memory = [torch.full((count + 8192,), 7.0, device=subject.device) for _ in range(2)]
        out, out_momentum = (some[4096 : 4096 + count].view(shape) for some in memory)
        subject.kernel.langevin_step(points.x, points.gradients, points.momentum, _WALKS[0], Counter(0, 0, 0, 0), out, out_momentum)
        for some in memory:
            beside = torch.cat([some[:4096], some[4096 + count :]])
            assert bool((beside == 7.0).all()), f"something is written outside of points of shape {shape}"


def _nan(subject: _Subject) -> None:
    coefficients, counter = _FORMS[3], Counter(0, 0, 0, 0)
    points = subject.points((3, 5), torch.float32, coefficients)
    points.x[0, 1], points.gradients[0][2, 4] = torch.nan, torch.nan
    (got,) = subject.step(points, coefficients, counter)
    wrong = torch.zeros(3, 5, dtype=torch.bool)
    wrong[0, 1] = wrong[2, 4] = True
    assert torch.equal(got.isnan().cpu(), wrong), "NaN is removed or spreads"


_CHECKS: Mapping[str, Callable[[_Subject], None]] = {
    "available": _available,
    "noise": _noise,
    "step": _step,
    "momentum": _momentum,
    "inplace": _inplace,
    "chains": _chains,
    "inputs": _inputs,
    "bounds": _bounds,
    "nan": _nan,
}
