"""Recorded draws, energies and gradients of twelve expressions, which a change of the code has to keep."""
