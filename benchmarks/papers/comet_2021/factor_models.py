r"""COMETs of global factors, which the experiments on the room and on faces share: how they are made, trained and kept.

Batches have 16 pictures. The rate of Adam falls to 0 as half a cosine, from 1e-3 with a descent and from 2e-3 without; the error is
`charbonnier`. A convolutional energy with a new encoder has a squared error and a rate of 1e-3 that is a tenth in the last 15 %, because it
learns more so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.papers.comet_2021.training import Budget, fit
from composable_energy.sampling import Noise
from composable_energy_comet import ConvEnergy, Decomposition, charbonnier
from composable_energy_training import Batch
from composable_energy_training.precision import Precision

FACTORS = ("lamp intensity", "lamp x", "lamp y", "lamp z", "camera x", "camera y", "camera z")
COMPONENTS, LATENT = 4, 16
SQUARED, CHARBONNIER = Decomposition(iterations=3), Decomposition(iterations=3, reconstruction=charbonnier)


def create_comet(head: str, seed: int, components: int = COMPONENTS, latent: int = LATENT) -> Any:
    """Returns an untrained COMET for global factors. The decoder of the quadratic energy needs coordinates of pixels."""
    torch.manual_seed(seed)
    places = {"coordinates": "absolute"} if head == "quadratic" else {}
    return ce.get("encoder", "comet-global", size=32, components=components, latent=latent, head=head, **places)


def train_comet(
    model: Any,
    images: Tensor,
    steps: int,
    seed: int,
    objective: Any = None,
    labels: Mapping[str, Tensor] | None = None,
    slow: bool = False,
    precision: Precision = "float32",
) -> dict[str, float]:
    """Trains a COMET on batches of 16.

    Args:
        model: The COMET.
        images: With shape $(N, 3, 32, 32)$, or $(N, 2, 3, 32, 32)$ for pairs; a batch has 8 pairs.
        steps: Number of steps; their time depends on the machine and on what else it does.
        seed: Seed of batches and noise.
        objective: The objective; if None, `SQUARED` for a descent with a new encoder, else `CHARBONNIER`.
        labels: Labels of each row for the objective.
        slow: Whether the encoder was trained before.
        precision: That of the loss, as in `Budget`.

    Returns:
        The figures of `fit`.
    """
    descends = isinstance(model.energy, ConvEnergy)
    fresh = descends and not slow
    if objective is None:
        objective = SQUARED if fresh else CHARBONNIER
    model.energy.set_image(images.flatten(0, -4))
    model.to(memory_format=torch.channels_last).train()

    def loss(rows: Tensor, step: int) -> Tensor:
        x = images[rows].flatten(0, -4)
        batch_labels = {name: values[rows] for name, values in (labels or {}).items()}
        return objective.loss(model, Batch(x, batch_labels, Noise(seed, range(len(x)), step))).value

    batch, rate = 16 if images.ndim == 4 else 8, 1e-3 if descends else 2e-3
    budget = Budget(steps=steps, batch=batch, rate=rate, cosine=not fresh, precision=precision)
    figures = fit(loss, model.parameters(), len(images), budget, seed, model.encoder.parameters() if slow else ())
    model.eval()
    return figures


def train_or_load(path: Path, model: nn.Module, train: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Trains a model and saves it, or loads it; returns the figures of the training."""
    if not path.exists():
        figures = train()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"figures": figures, "weights": model.state_dict()}, path)
    found = torch.load(path)
    model.load_state_dict(found["weights"])
    model.eval()
    return found["figures"]


def reconstruct(model: Any, images: Tensor) -> Tensor:
    """Returns the reconstructions of pictures."""
    with torch.no_grad():
        return torch.cat([model.decode(model.encode(some)).detach() for some in images.split(64)])
