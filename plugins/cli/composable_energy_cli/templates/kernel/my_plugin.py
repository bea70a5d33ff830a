"""A kernel: the fused Langevin step in torch operations, as the frame for one of a device."""

import torch
from torch import Tensor

from composable_energy.sampling import Kernel, Noise, StepCoefficients

__all__ = ["MyPlugin"]


class MyPlugin(Kernel):
    """One step in float32, with the noise of Philox counters."""

    def available(self) -> tuple[bool, str]:
        """Returns whether it can run on this machine, and if not the reason."""
        return True, ""

    def refusal(self, x: Tensor) -> str:
        """Returns why it refuses points of this dtype and device; empty if it takes them."""
        return "" if x.dtype == torch.float32 else f"it takes no {x.dtype}"

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
        """Writes the points after a step, and the momentum if there is one; see `composable_energy.sampling.Kernel`."""
        drift, scale, keep, move, low, high = coefficients
        force = torch.zeros_like(x) if gradient is None else gradient
        drawn = scale * noise.normal(x, stream) if scale else 0.0
        if momentum is None or out_momentum is None:
            new = (keep * x if keep else 0.0) - drift * force + drawn
        else:
            kicked = momentum - drift * force
            halfway = x + move * kicked
            out_momentum.copy_(keep * kicked + drawn)
            new = halfway + move * out_momentum
        out.copy_(new if low is None else new.clamp(low, high))
