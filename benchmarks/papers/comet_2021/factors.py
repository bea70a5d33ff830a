r"""Seven factors of the room: how much of them codes without labels contain, for COMET and for baselines, at equal time.

    python -m benchmarks.papers.comet_2021.factors [--only comet-coarse ...] [--seed 5 6 7] [--share 1] [--write]

Models train in one thread, by default for seeds 5, 6 and 7, on which no setting was chosen; weights and figures go to the folder of parts,
and existing ones are used again. The protocol:

- **Data**: the world `room`, 32 x 32: 8,000 training pictures with random factors (seed 1), 2,000 test pictures (seed 3), and the grid of
  4 values (0, 1/3, 2/3, 1) of each of 7 factors, 16,384 pictures.
- **Time**: numbers of steps that take equally long; see `ROWS`.
- **Codes** have 64 numbers: for COMET those of its components one after another, for the beta-VAE the mean of its posterior. `beta-0.25-10`
  has 10 numbers; pixels are pictures averaged to 16 x 16, 768 numbers.
- **Training**: Adam, whose rate falls to 0 as half a cosine. The error of COMET and the autoencoder is `charbonnier`, that of the beta-VAE
  squared and summed.
- Each model is scored twice. **raw** takes codes as they are. **PCA 64** (the paper's protocol for COMET) takes principal components of
  the codes, fitted on the first 5,000 training pictures, centered and not scaled: for 64 numbers it is a rotation.
- **BetaVAE** (Higgins et al., 2017), on the grid: 200 + 200 points for each factor, each the mean over 64 pairs that share the factor of
  |z1 - z2|, each code divided by its standard deviation on the grid; the accuracy of logistic regression on the second 200.
- **MIG** (Chen et al., 2018), on the grid: 20 bins of equal width for each code; (largest - second largest mutual information) / ln 4,
  mean over factors.
- **MCC**, on the test pictures: Pearson correlations of codes and factors, matched one to one; the mean of the 7 matched ones.
- **R2**, on the test pictures: of each factor by least squares from all raw codes, fitted on the training pictures.

Figures are means over seeds with standard errors. The seed is that of weights, batches and noise, and of the pairs of the BetaVAE score.
InfoGAN is not run: adversarial training needs settings of its own.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.worlds import SEEDS, Budget, Room, average_pixels, fit, render_room, run_experiment
from benchmarks.papers.experiment import write_rounded
from composable_energy.sampling import Noise
from composable_energy_comet import Comet, Decomposition, QuadraticEnergy, charbonnier
from composable_energy_comet.metrics import beta_vae_score, linear_r2, mean_correlation, mutual_information_gap
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


COMPONENTS, LATENT, COARSE = 2, 32, 16

ROWS: Mapping[str, tuple[int, ...]] = {
    "comet-coarse": (3600, 340),
    **dict.fromkeys(("autoencoder-charbonnier", "beta-4", "beta-1", "beta-0.25", "beta-0.25-10"), (5000,)),
    **dict.fromkeys(("pixels", "untrained"), ()),
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
    torch.manual_seed(seed)
    if name == "comet-coarse":
        return ce.get("encoder", "comet-global", size=32, components=COMPONENTS, latent=LATENT, head="quadratic", coordinates="absolute")
    if name == "autoencoder-charbonnier":
        return Autoencoder(reconstruction=charbonnier)
    if name.startswith("beta"):
        beta, codes = (*name.split("-")[1:], CODES)[:2]
        return Autoencoder(float(beta), codes=int(codes))
    return encoder() if name == "untrained" else nn.Identity()


def _train(name: str, model: Any, seed: int, images: Tensor, steps: tuple[int, ...]) -> dict[str, Any]:
    if name == "comet-coarse":
        model.energy.set_image(images)
        stages = [_train_coarse(model, seed, images, steps[0]), _descend(model, images, steps[1], seed, model.encoder.parameters())]
        model.eval()
    else:
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
                layer.reset_parameters()
        budget = Budget(steps=steps[0], batch=BATCH, rate=RATE, cosine=True, clip=float("inf"))
        stages = [fit(lambda rows, _: model.loss(images[rows]), model.parameters(), len(images), budget, seed)]
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


PAIRS, FITTED = 64, 5000


def score(encode: Callable[[Tensor], Tensor], data: Room, seed: int) -> dict[str, Any]:
    """Returns the scores of codes, raw and as principal components, and the mean R2 of the factors."""
    train, test, grid = (codes_of(encode, images) for images in (data.train, data.test, data.grid))
    turn = fit_principal_components(train[:FITTED])
    r2 = linear_r2(train, data.train_factors, test, data.test_factors)
    return {
        "R2": float(r2.mean()),
        "raw": _disentanglement(grid, test, data, seed),
        "PCA 64": _disentanglement(turn(grid), turn(test), data, seed),
    }


def _disentanglement(grid: Tensor, test: Tensor, data: Room, seed: int) -> dict[str, float]:
    return {
        "BetaVAE": 100 * float(beta_vae_score(grid, data.levels, pairs=PAIRS, seed=seed)),
        "MIG": 100 * float(mutual_information_gap(grid, data.levels, bins=20, points=None)),
        "MCC": 100 * float(mean_correlation(test, data.test_factors)),
    }


def train_and_score(name: str, seed: int, data: Room, parts: Path, share: float) -> dict[str, Any]:
    """Trains and scores the model of a row, and writes its figures; or reads them."""
    path = parts / f"{'-'.join(map(str, (name, seed, *scaled_steps(name, share))))}.json"
    if not path.exists():
        model, figures = train_row(name, seed, data.train, parts, share)
        write_rounded(path, {"model": name, "seed": seed, **figures, **score(codes_of_row(name, model), data, seed)})
    return read_json(path)


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each model, in the order of `ROWS`: means over seeds, and standard errors of the mean."""
    rows = []
    for name in ROWS:
        some = [result for result in results if result["model"] == name]
        if not some:
            continue
        row: dict[str, Any] = {"model": name, "seeds": len(some)}
        row |= {key: mean_and_error([result[key] for result in some]) for key in ("steps", "R2") if key in some[0]}
        for protocol in ("raw", "PCA 64"):
            for score in ("BetaVAE", "MIG", "MCC"):
                row[f"{score}, {protocol}"] = mean_and_error([result[protocol][score] for result in some])
        rows.append(row)
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean of some numbers and its standard error, None for one alone."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std() / len(numbers) ** 0.5) if len(numbers) > 1 else None


def run(args: Any) -> Iterator[dict[str, Any]]:
    parts, data, results = args.parts / "factors", render_room(args.data), []
    for seed, name in product(args.seed, args.only):
        results.append(train_and_score(name, seed, data, parts, args.share))
        print(name, seed, results[-1]["R2"], flush=True)
    yield {"table": summarize(results), "runs": results}


if __name__ == "__main__":
    run_experiment("factors", __doc__, run, only=list(ROWS), seed=SEEDS, share=1.0)
