"""The fused step `langevin_step`, and the interface of kernels for it."""

from composable_energy.kernels.kernel import Counter, Kernel, StepCoefficients
from composable_energy.kernels.langevin import langevin_step, normal

__all__ = ["Counter", "Kernel", "StepCoefficients", "langevin_step", "normal"]
