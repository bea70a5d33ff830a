"""What a step takes of each chain: operations of matrix products, and bytes that are read and written; a part of `benchmarks.scaling`.

Each operation of torch counts with all tensors that it takes and returns, as if no cache kept any of them. That is what a GPU moves for
many chains in eager mode. Philox noise by operations of torch stands for that of a GPU without Triton.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

import composable_energy as ce
from composable_energy.sampling import Noise, energy_and_gradient
from composable_energy_mcmc import Langevin

_FREE = {torch.ops.aten.empty, torch.ops.aten.empty_like, torch.ops.aten.detach}


class Traffic(TorchDispatchMode):
    """Counts operations of torch that compute, the bytes that they read and write, and the operations of numbers in products."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = self.bytes = self.products = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in _FREE:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            self.operations += 1
            if func.overloadpacket in flop_registry:
                self.products += flop_registry[func.overloadpacket](*args, **(kwargs or {}), out_val=out)
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def _take_steps(energy: ce.Energy, x: torch.Tensor, steps: int) -> None:
    sampler, noise = Langevin(0.01), Noise(0, range(len(x)), kind="philox")
    with torch.no_grad():
        state = sampler.init(energy, x, noise)
        for step in range(1, steps + 1):
            state, _ = sampler.step(energy, state, noise.at(step))


def measure_operations(cases: Mapping[str, Callable[[], ce.Energy]], chains: int = 10_000) -> dict[str, Any]:
    """Returns what a gradient and a step take of each chain: operations of matrix products, and bytes read and written."""
    found: dict[str, Any] = {}
    for case, make in cases.items():
        energy = make().eval().requires_grad_(False)
        x = torch.randn(chains, *(energy.event_shape or ()))
        with Traffic() as gradient:
            energy_and_gradient(energy, x)
        ends = []
        for steps in (2, 12):
            with Traffic() as whole:
                _take_steps(energy, x, steps)
            ends.append(whole)
        found[case] = {
            "coordinates": x[0].numel(),
            "products": gradient.products / chains,
            "gradient_bytes": gradient.bytes / chains,
            "gradient_operations": gradient.operations,
            "step_bytes": (ends[1].bytes - ends[0].bytes) / 10 / chains,
            "step_operations": (ends[1].operations - ends[0].operations) / 10,
        }
        print(case, found[case], flush=True)
    return found
