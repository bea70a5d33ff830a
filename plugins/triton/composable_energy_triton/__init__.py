"""The fused step as a Triton kernel."""

from composable_energy_triton.kernel import TritonKernel

__all__ = ["TritonKernel"]
