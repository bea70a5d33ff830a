"""The kernel of the entry point: the inputs that it accepts, its tiles, and its launch."""

from functools import cached_property
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from composable_energy.sampling import Kernel, Noise, StepCoefficients

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_OLDEST = (3, 3)
_TILE = 256  # quads of numbers in a program: 8 numbers for each of 128 threads


class TritonKernel(Kernel):
    """The step as one Triton kernel: points and gradients are read once, noise is made in registers, and points are written once.

    It runs on GPUs that Triton knows, and on the CPU where `TRITON_INTERPRET=1` was set before Triton was imported: slowly, for tests.
    """

    def available(self) -> tuple[bool, str]:
        if find_spec("triton") is None:
            return False, "Triton is not installed: `pip install composable-energy[triton]`"
        import triton

        if tuple(map(int, triton.__version__.split(".")[:2])) < _OLDEST:
            return False, f"Triton {triton.__version__} is too old: {'.'.join(map(str, _OLDEST))} is the oldest that is tested"
        if self._interpreted or torch.cuda.is_available():
            return True, ""
        return False, "torch finds no GPU"

    def refusal(self, x: Tensor) -> str:
        if x.dtype not in _DTYPES:
            return f"it takes float32, bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
        if x.device.type != ("cpu" if self._interpreted else "cuda"):
            return f"it takes points on {'the CPU under the interpreter' if self._interpreted else 'a GPU'}, not on {x.device}"
        return ""

    def langevin_step(
        self,
        x: Tensor,
        gradient: Tensor | None,
        momentum: Tensor | None,
        coefficients: StepCoefficients,
        noise: Noise,
        stream: int,
        out: Tensor,
        out_momentum: Tensor | None,
    ) -> None:
        import triton

        rows, size = len(x), x[0].numel()
        quads = min(_TILE, triton.next_power_of_2(triton.cdiv(size, 4)))
        height = min(_TILE // quads, triton.next_power_of_2(rows))
        grid = (triton.cdiv(rows, height) * triton.cdiv(size, 4 * quads),)
        low, high = (0.0, 0.0) if coefficients.low is None or coefficients.high is None else (coefficients.low, coefficients.high)
        seed = noise.seed % 2**64
        words = (seed & 0xFFFFFFFF, seed >> 32, noise.step, noise.chains[0], stream)
        with torch.cuda.device_of(x):
            self._step[grid](
                x,
                x if momentum is None else momentum,
                x if gradient is None else gradient,
                out,
                out if out_momentum is None else out_momentum,
                *map(float, (coefficients.drift, coefficients.scale, coefficients.keep, coefficients.move, low, high)),
                *(word - 2**32 if word >= 2**31 else word for word in words),  # 32 bits as numbers with a sign
                rows,
                size,
                GRADIENT=gradient is not None,
                MOMENTUM=momentum is not None,
                READ=coefficients.keep != 0.0,
                NOISE=coefficients.scale != 0.0,
                BOX=coefficients.low is not None,
                ROWS=height,
                QUADS=quads,
            )

    @cached_property
    def _step(self) -> Any:
        from composable_energy_triton.step import langevin

        return langevin

    @cached_property
    def _interpreted(self) -> bool:
        """Whether Triton interprets its kernels, which it settles when they are defined."""
        import triton

        return not isinstance(self._step, triton.JITFunction)
