r"""Events over angles: wells of an angle, and arcs of the circle, as exact Boolean statements over a base."""

import math

import torch
from torch import Tensor, nn

import composable_energy as ce
from composable_energy import Energy
from composable_energy.errors import OptionError, ShapeError
from composable_energy.options import check_choice, check_integer, check_number
from composable_energy_molecules.residues import ANGLES

WELLS = {"gauche+": 60.0, "trans": 180.0, "gauche-": -60.0}
"""The wells of a bond between tetrahedral atoms, with their centres in degrees."""


class Wells:
    r"""The well of an angle as a variable: `well = Wells(1, base)`, and then `well("trans")` and `~well("trans")` are events.

    Given the angle $\chi$ a well has the probability $\propto e^{s \cos(\chi - \mu)}$: close to 1 inside its third of the circle, with
    borders of a chosen width. Statements about one variable are exclusive; those of several are combined exactly.

    Args:
        chi: The number of the angle, from 1 on.
        base: The density of the angles; None for evidence alone.
        border: The width of the borders in degrees: the distance from a border where the odds are $e$.

    Example:
        >>> from composable_energy_molecules import GeneratedRotamers, Wells, context_of
        >>> base = GeneratedRotamers().given(context=context_of("LYS", -1.1, -0.8))
        >>> first, second = Wells(1, base), Wells(2, base)
        >>> print(first("trans") & ~second("trans"), (first("trans") & first("gauche+")).unsatisfiable)
        chi1 trans & ~chi2 trans True
    """

    def __init__(self, chi: int, base: Energy | None = None, *, border: float = 3.0) -> None:
        self.base, self.chi = base, _check_angle(chi)
        sharpness = 1 / (math.sqrt(3) * math.radians(check_number("border", border, above=0)))
        self.logits = _Cosines(self.chi, torch.tensor(list(WELLS.values())), sharpness)

    def __call__(self, *wells: str) -> ce.ClassifierEnergy:
        """Returns the event that the angle is in one of some wells of `WELLS`."""
        names = [check_choice("well", well, WELLS) for well in wells]
        labels = [list(WELLS).index(name) for name in names]
        return ce.ClassifierEnergy(self.logits, labels, self.base, labels=len(WELLS), name=f"chi{self.chi} {' or '.join(names)}")


def arc(chi: int, centre: float, half_width: float, base: Energy | None = None, *, border: float = 3.0) -> ce.ClassifierEnergy:
    r"""Returns the event that an angle is within some degrees of a centre.

    Args:
        chi: The number of the angle, from 1 on; `base` and `border` are those of `Wells`.
        centre: The centre in degrees.
        half_width: The largest distance from the centre, in degrees, below 180.
    """
    half = math.radians(check_number("half_width", half_width, above=0, below=180))
    slope = 1 / (math.radians(check_number("border", border, above=0)) * math.sin(half))
    logits = _Cosines(_check_angle(chi), torch.tensor([float(check_number("centre", centre))]), slope, math.cos(half))
    return ce.ClassifierEnergy(logits, 1, base, labels=2, name=f"chi{chi} within {half_width:g} of {centre:g}")


class _Cosines(nn.Module):
    r"""The logits $s (\cos(\chi - \mu_k) - t)$, with shape $(B, K)$."""

    centres: Tensor

    def __init__(self, chi: int, degrees: Tensor, sharpness: float, threshold: float = 0.0) -> None:
        super().__init__()
        self.chi, self.sharpness, self.threshold = chi, sharpness, threshold
        self.register_buffer("centres", torch.deg2rad(degrees))

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1:] != (ANGLES,):
            raise ShapeError(f"An event of chi{self.chi} needs points of shape (B, {ANGLES}), got {tuple(x.shape)}.")
        return self.sharpness * ((x[:, self.chi - 1, None] - self.centres.to(x)).cos() - self.threshold)


def _check_angle(chi: int) -> int:
    if check_integer("chi", chi) > ANGLES:
        raise OptionError(f"chi must be a number from 1 to {ANGLES}, got {chi}.")
    return chi
