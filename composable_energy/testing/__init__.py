"""The conformance kit: checks of energies and samplers for first-party and third-party plug-ins, as in `check_energy(E, x)`.

A failed check raises an `AssertionError`; no test runner is needed. A new release may add checks: pin the version in your continuous
integration. Other packages bring the checks of their kinds: `composable_energy_training.testing` those of recipes,
`composable_energy_image.testing` those of worlds and encoders, `composable_energy_triton.testing` those of kernels.
"""

from composable_energy.lazy import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
