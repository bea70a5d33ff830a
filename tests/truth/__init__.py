"""Random expressions, whose draws are compared with quadrature: `python -m tests.truth`."""
