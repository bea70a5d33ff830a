r"""Normalisers: estimates of $\log Z$, the logarithm of $\int e^{-E(x)}\, dx$, and mixtures that use them."""

from composable_energy.normalizers.calibrating import calibrate
from composable_energy.normalizers.estimating import LogZ, log_z

__all__ = ["LogZ", "calibrate", "log_z"]
