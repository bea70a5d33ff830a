r"""The models of the table of factors: how each row is trained, in as many steps as take the time of all other rows.

Budgets are numbers of steps in inverse proportion to the time of a step, which was measured in turns.

`comet-coarse` has two components of 32 numbers. A quadratic energy of 16 x 16 pixels is trained first, on pictures that are averaged to its
size, with the encoder of 32 x 32 pixels: a step takes a third of the time. A quadratic energy of all pixels then begins with this encoder,
which learns at a twentieth of the rate, and with the first layers of the coarse decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.papers.comet_2021.training import Budget, fit
from benchmarks.papers.comet_2021.worlds import average_pixels
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, QuadraticEnergy, charbonnier
from composable_energy_training import Batch

CODES = 64
BATCH, RATE = 16, 2e-3


def encoder(outputs: int = CODES, channels: int = 3) -> nn.Sequential:
    """Returns a network from pictures with shape $(B, C, 32, 32)$ to numbers with shape $(B, D)$."""
    return nn.Sequential(
        *(nn.Conv2d(channels, 32, 4, 2, 1), nn.SiLU(), nn.Conv2d(32, 64, 4, 2, 1), nn.SiLU(), nn.Conv2d(64, 64, 4, 2, 1), nn.SiLU()),
        *(nn.Flatten(), nn.Linear(1024, 256), nn.SiLU(), nn.Linear(256, outputs)),
    )


def decoder(codes: int = CODES, channels: int = 3) -> nn.Sequential:
    """Returns the mirror image of `encoder`; its pictures are not clipped to [0, 1]."""
    return nn.Sequential(
        *(nn.Linear(codes, 256), nn.SiLU(), nn.Linear(256, 1024), nn.SiLU(), nn.Unflatten(1, (64, 4, 4))),
        *(nn.ConvTranspose2d(64, 64, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(64, 32, 4, 2, 1), nn.SiLU()),
        nn.ConvTranspose2d(32, channels, 4, 2, 1),
    )


class Autoencoder(nn.Module):
    r"""An autoencoder, or a beta-VAE (Higgins et al., 2017), whose loss is the squared error summed over pixels and
    $\beta \operatorname{KL}(q(z \mid x) \,\Vert\, \mathcal N(0, 1))$.
    """

    def __init__(
        self, beta: float | None = None, reconstruction: Callable[[Tensor, Tensor], Tensor] | None = None, codes: int = CODES
    ) -> None:
        super().__init__()
        self.beta, self.reconstruction, self.codes = beta, reconstruction, codes
        self.encoder = encoder(codes if beta is None else 2 * codes)
        self.decoder = decoder(codes)

    def encode(self, x: Tensor) -> Tensor:
        """Returns codes, the means of $q(z | x)$, with shape $(B, D)$."""
        return self.encoder(x)[:, : self.codes]

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def loss(self, x: Tensor) -> Tensor:
        if self.reconstruction is not None:
            return self.reconstruction(self.decoder(self.encoder(x)), x).mean()
        if self.beta is None:
            return (self.decoder(self.encoder(x)) - x).square().sum((1, 2, 3)).mean()
        mean, log_variance = self.encoder(x).chunk(2, 1)
        z = mean + (log_variance / 2).exp() * torch.randn_like(mean)
        kl = (mean.square() + log_variance.exp() - 1 - log_variance).sum(1) / 2
        return ((self.decoder(z) - x).square().sum((1, 2, 3)) + self.beta * kl).mean()


def train_autoencoder(model: Autoencoder, images: Tensor, steps: int, seed: int) -> dict[str, float]:
    """Trains a model by `fit` on batches of 16 with no clip, and returns the figures of `fit`."""
    torch.manual_seed(seed)
    for layer in model.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            layer.reset_parameters()
    budget = Budget(steps=steps, batch=BATCH, rate=RATE, cosine=True, clip=float("inf"))
    return fit(lambda rows, _: model.loss(images[rows]), model.parameters(), len(images), budget, seed)


def pixels(x: Tensor) -> Tensor:
    """Returns raw pixels as codes: pictures averaged to 16 x 16, with shape $(B, 768)$."""
    return nn.functional.avg_pool2d(x, 2).flatten(1)


def codes_of(encode: Callable[[Tensor], Tensor], images: Tensor, size: int = 256) -> Tensor:
    """Returns the codes of many pictures, with shape $(N, D)$."""
    with torch.no_grad():
        return torch.cat([encode(some).flatten(1) for some in images.split(size)])


def fit_principal_components(codes: Tensor, most: int = CODES) -> Callable[[Tensor], Tensor]:
    """Returns the map to the principal components of some codes: they are centred and turned, but not scaled."""
    mean = codes.double().mean(0)
    values, axes = torch.linalg.eigh(torch.cov((codes.double() - mean).T))
    chosen = axes[:, values.argsort(descending=True)[:most]]
    return lambda some: ((some.double() - mean) @ chosen).to(some)


COMPONENTS, LATENT, COARSE, RATE = 2, 32, 16, 2e-3
NUMBERS = 64

ROWS: Mapping[str, tuple[int, ...]] = {
    "comet-coarse": (3600, 340),
    "autoencoder-charbonnier": (5000,),
    "beta-4": (5000,),
    "beta-1": (5000,),
    "beta-0.25": (5000,),
    "beta-0.25-10": (5000,),
    "pixels": (),
    "untrained": (),
}
"""The steps of each stage of the training of each row. The last number of `beta-0.25-10` is that of its codes; others have 64."""


def train_row(name: str, seed: int, images: Tensor, parts: Path, share: float = 1.0) -> tuple[Any, dict[str, Any]]:
    """Returns the model of a row, trained or loaded, and the figures of its training."""
    model, steps = _create(name, seed), scaled_steps(name, share)
    if not steps:
        return model, {"steps": 0}
    path = parts / f"{name}-{seed}-{'-'.join(map(str, steps))}.pt"
    if not path.exists():
        figures = _train(name, model, seed, images, steps)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"figures": figures, "weights": model.state_dict()}, path)
    found = torch.load(path)
    model.load_state_dict(found["weights"])
    return model.eval(), found["figures"]


def codes_of_row(name: str, model: Any) -> Callable[[Tensor], Tensor]:
    """Returns the function from pictures to codes."""
    return pixels if name == "pixels" else getattr(model, "encode", model)


def scaled_steps(name: str, share: float = 1.0) -> tuple[int, ...]:
    """Returns the steps of each stage of a row, at least one."""
    return tuple(max(1, round(share * steps)) for steps in ROWS[name])


def _create(name: str, seed: int) -> Any:
    if name == "comet-coarse":
        torch.manual_seed(seed)
        return ce.get("encoder", "comet-global", size=32, components=COMPONENTS, latent=LATENT, head="quadratic", coordinates="absolute")
    torch.manual_seed(seed)
    if name == "autoencoder-charbonnier":
        return Autoencoder(reconstruction=charbonnier)
    if name.startswith("beta"):
        beta, codes = (*name.split("-")[1:], NUMBERS)[:2]
        return Autoencoder(float(beta), codes=int(codes))
    return encoder() if name == "untrained" else nn.Identity()


def _train(name: str, model: Any, seed: int, images: Tensor, steps: tuple[int, ...]) -> dict[str, Any]:
    if name == "comet-coarse":
        model.energy.set_image(images)
        stages = [_train_coarse(model, seed, images, steps[0]), _descend(model, images, steps[1], seed, model.encoder.parameters())]
        model.eval()
    else:
        stages = [train_autoencoder(model, images, steps[0], seed)]
    times = [stage["seconds"] for stage in stages]
    return {"steps": sum(steps), "seconds of stages": times, "loss": stages[-1]["loss"]}


def _train_coarse(model: Comet, seed: int, images: Tensor, steps: int) -> dict[str, float]:
    """Trains the encoder of a model with a quadratic energy of fewer pixels, whose first layers the model takes over."""
    torch.manual_seed(seed)
    energy = QuadraticEnergy(COARSE, images.shape[1], LATENT, coordinates="absolute")
    energy.set_image(average_pixels(images, images.shape[-1] // COARSE))
    figures = _descend(Comet(model.encoder, energy), images, steps, seed)
    for name in ("spread", "place", "mix"):
        getattr(model.energy, name).load_state_dict(getattr(energy, name).state_dict())
    return figures


def _descend(model: Any, images: Tensor, steps: int, seed: int, slow: Iterable[nn.Parameter] = ()) -> dict[str, float]:
    """Trains a COMET with quadratic energies on batches of 16; an encoder that was trained before is slow."""
    model.to(memory_format=torch.channels_last).train()
    objective = Decomposition(iterations=3, reconstruction=charbonnier)

    def loss(rows: Tensor, step: int) -> Tensor:
        return objective.loss(model, Batch(images[rows], {}, Noise(seed, range(len(rows)), step))).value

    return fit(loss, model.parameters(), len(images), Budget(steps=steps, rate=RATE, cosine=True), seed, slow)
