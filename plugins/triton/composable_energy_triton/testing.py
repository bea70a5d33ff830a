"""Checks of kernels of the fused step, for first-party and third-party plug-ins; see `composable_energy.testing`."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from composable_energy.registry import get
from composable_energy.sampling import Kernel, Noise, StepCoefficients, reference_step
from composable_energy.testing import Check, SkipCheck, build_subject, named_checks, run_checks

__all__ = ["check_kernel", "kernel_checks"]

KernelLike = str | Kernel | Callable[[], Kernel]

SHAPES = ((1, 1), (3, 2), (7, 3), (2, 4), (5,), (300, 2), (4, 3, 5, 7), (3, 770), (2, 4099))
_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_SEEDS = (0, 1, 16, 2**31 + 5, 2**32, 2**63, 2**64 - 1)
_NUMBERS = ((0.3, 0.7), (0.3, 0.0), (0.1, 0.7, 0.9, 0.0, -0.5, 0.75), (0.1, 0.7, 0.0))
_FORMS = tuple(StepCoefficients(*numbers) for numbers in _NUMBERS)
_DRAW, _BOXED = StepCoefficients(0.0, 1.0, 0.0), _FORMS[2]
_WALKS = (StepCoefficients(0.3, 0.7, 0.9, 0.2), StepCoefficients(0.3, 0.0, 1.0, 0.2, -1.0, 1.0))


def check_kernel(
    kernel: KernelLike,
    *,
    device: torch.device | str = "cpu",
    shapes: Sequence[tuple[int, ...]] = SHAPES,
    expected_failures: Mapping[str, str] | None = None,
) -> None:
    """Runs the checks of a kernel; see `kernel_checks` for the arguments, and `run_checks` for `expected_failures`."""
    run_checks(kernel_checks(kernel, device=device, shapes=shapes), expected_failures)


def kernel_checks(kernel: KernelLike, *, device: torch.device | str = "cpu", shapes: Sequence[tuple[int, ...]] = SHAPES) -> list[Check]:
    """Returns the checks of a kernel. They cover every dtype that the kernel does not refuse.

    | name | what is checked |
    |---|---|
    | `available` | it can be built, can run here, and takes float32 |
    | `bounds` | nothing is written outside of the results |
    | `noise` | normal numbers agree with Philox within 1e-6 (relative above 1), for any seed, step, chain and stream |
    | `step` | points agree with the reference within rounding in float32, and within one unit in the last place of shorter dtypes |
    | `momentum` | points and momenta agree with the reference in the same way |
    | `chains` | ten chains at once get the same bits as four and six chains |
    | `inputs` | a step does not change points, gradient and momentum |
    | `nan` | NaN stays NaN, also in a box, and affects no other number |

    Args:
        kernel: The kernel, its class or its name.
        device: The device.
        shapes: The shapes of points.
    """
    return named_checks(_CHECKS, _Subject(kernel, torch.device(device), tuple(shapes)))


class _Points(NamedTuple):
    x: Tensor
    gradient: Tensor | None
    momentum: Tensor | None = None


@dataclass(frozen=True)
class _Subject:
    source: KernelLike
    device: torch.device
    shapes: tuple[tuple[int, ...], ...]

    @cached_property
    def kernel(self) -> Kernel:
        return build_subject(self.source, Kernel, partial(get, "kernel"))

    @property
    def dtypes(self) -> list[torch.dtype]:
        taken = [dtype for dtype in _DTYPES if not self.kernel.refusal(torch.zeros(1, 1, dtype=dtype, device=self.device))]
        if not taken:
            raise SkipCheck("it takes no dtype")
        return taken

    def cases(self) -> Iterator[tuple[tuple[int, ...], torch.dtype, Noise, int]]:
        """Yields each shape with a dtype, in turn, the noise and a stream."""
        dtypes = self.dtypes
        for i, shape in enumerate(self.shapes):
            noise = _noise_of(shape[0], _SEEDS[i % len(_SEEDS)], i, (0, 2**31 - 2, 2**32 - 400)[i % 3])
            yield shape, dtypes[i % len(dtypes)], noise, i % 4

    def points(self, shape: tuple[int, ...], dtype: torch.dtype, momentum: bool = False) -> _Points:
        generator = torch.Generator().manual_seed(sum(shape))
        x, g, p = (torch.randn(shape, generator=generator).to(self.device, dtype) for _ in range(3))
        return _Points(x, g, p if momentum else None)

    def step(self, points: _Points, coefficients: StepCoefficients, noise: Noise, stream: int = 0) -> list[Tensor]:
        out, out_momentum = torch.full_like(points.x, 7.0), None if points.momentum is None else torch.full_like(points.x, 7.0)
        self.kernel.langevin_step(*points, coefficients, noise, stream, out, out_momentum)
        return [out] if out_momentum is None else [out, out_momentum]


def _noise_of(chains: int, seed: int = 0, step: int = 0, first: int = 0) -> Noise:
    return Noise(seed, range(first, first + chains), step, "philox")


def _expected(points: _Points, coefficients: StepCoefficients, noise: Noise, stream: int) -> list[Tensor]:
    return [some for some in reference_step(*points, coefficients, noise, stream) if some is not None]


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
    points = _Points(torch.zeros(3, 770, device=subject.device), None)
    for i, seed in enumerate(_SEEDS):
        noise = _noise_of(3, seed, (1, 16, 2**31 + 7, 2**32 - 1)[i % 4], (5, 2**31 - 1, 2**32 - 3)[i % 3])
        stream = (0, 1, 2**31)[i % 3]
        (got,), (expected,) = subject.step(points, _DRAW, noise, stream), _expected(points, _DRAW, noise, stream)
        _assert_near(got, expected, f"{noise} with stream {stream}", 1e-6)


def _step(subject: _Subject, momentum: bool = False) -> None:
    for shape, dtype, noise, stream in subject.cases():
        points = subject.points(shape, dtype, momentum)
        for coefficients in _WALKS if momentum else _FORMS:
            results = zip(subject.step(points, coefficients, noise, stream), _expected(points, coefficients, noise, stream), strict=True)
            for name, (got, expected) in zip(("points", "momenta"), results, strict=False):
                _assert_near(got, expected, f"{name} of shape {shape} and {dtype} after {coefficients}")


def _chains(subject: _Subject) -> None:
    for size in (2, 12, 193, 770):
        points = subject.points((10, size), torch.float32)
        (whole,) = subject.step(points, _FORMS[0], _noise_of(10, 11, 2, 40))
        for first, last in ((0, 4), (4, 10)):
            some = _Points(*(None if tensor is None else tensor[first:last] for tensor in points))  # pyright: ignore[reportArgumentType]
            (part,) = subject.step(some, _FORMS[0], _noise_of(last - first, 11, 2, 40 + first))
            assert torch.equal(part, whole[first:last]), f"chains {first} to {last} of ten get other bits alone, for {size} coordinates"


def _inputs(subject: _Subject) -> None:
    for coefficients, momentum in ((_BOXED, False), (_WALKS[0], True)):
        points = [some for some in subject.points((5, 37), torch.float32, momentum) if some is not None]
        before = [some.clone() for some in points]
        subject.step(_Points(*points), coefficients, _noise_of(5))
        assert all(map(torch.equal, points, before)), "a step changes its input"


def _bounds(subject: _Subject) -> None:
    for shape in subject.shapes:
        count = torch.Size(shape).numel()
        memory = [torch.full((count + 8192,), 7.0, device=subject.device) for _ in range(2)]
        out, out_momentum = (some[4096 : 4096 + count].view(shape) for some in memory)
        points = subject.points(shape, torch.float32, momentum=True)
        subject.kernel.langevin_step(*points, _WALKS[0], _noise_of(shape[0]), 0, out, out_momentum)
        for some in memory:
            beside = torch.cat([some[:4096], some[4096 + count :]])
            assert bool((beside == 7.0).all()), f"something is written outside of points of shape {shape}"


def _nan(subject: _Subject) -> None:
    x, gradient, _ = subject.points((3, 5), torch.float32)
    x[0, 1] = torch.nan
    if gradient is not None:
        gradient[2, 4] = torch.nan
    (got,) = subject.step(_Points(x, gradient), _BOXED, _noise_of(3))
    wrong = torch.zeros(3, 5, dtype=torch.bool)
    wrong[0, 1] = wrong[2, 4] = True
    assert torch.equal(got.isnan().cpu(), wrong), "NaN is removed or spreads"


def _momentum(subject: _Subject) -> None:
    _step(subject, momentum=True)


_CHECKS = (_available, _bounds, _noise, _step, _momentum, _chains, _inputs, _nan)
