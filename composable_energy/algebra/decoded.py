"""An energy whose points are shown decoded: `as_energy(prior, decoder=g)` of an energy."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.algebra.node import Transformed
from composable_energy.algebra.text import Operand
from composable_energy.arithmetic import Estimate
from composable_energy.bases import evidence_of
from composable_energy.energy import Energy
from composable_energy.errors import ExpressionError
from composable_energy.identity import token_of
from composable_energy.options import check_instance


class Decoded(Transformed):
    r"""The same energy $E(z)$, whose points $z$ are latent points of a decoder $g$: `sample` returns $g(z)$.

    Other than `PulledBack`, it changes no value: it says in which space an energy lives, as a prior does.

    Args:
        operand: The energy of latent points, without a decoder.
        decoder: The decoder $g$.

    Raises:
        ExpressionError: The operand has a decoder.
        OptionError: The decoder is no module.
    """

    def __init__(self, operand: Energy, decoder: nn.Module) -> None:
        if operand.decoder is not None:
            raise ExpressionError(f"{operand} is already an energy of latent points, of the decoder {type(operand.decoder).__name__}.")
        super().__init__(operand)
        self.generator = check_instance("decoder", decoder, nn.Module)
        token_of(decoder)
        self._decoders = (decoder,)
        self._bases = operand.bases

    def config(self) -> dict[str, Any]:
        return {"decoder": self.generator}

    @property
    def decoded_shape(self) -> torch.Size | None:
        shape = getattr(self.generator, "event_shape", None)
        return None if shape is None else torch.Size(shape)

    @property
    def grounded(self) -> bool:
        return self.terms[0].grounded

    @property
    def log_normalizer(self) -> Estimate | None:
        return self.terms[0].log_normalizer

    def forward_evidence(self, x: Tensor, **conditions: Any) -> Tensor:
        return evidence_of(self.terms[0], x, conditions)

    def text(self, operand: Operand) -> str:
        return self.name or f"{operand(self.terms[0], 95)}.shown_by({type(self.generator).__name__})"
