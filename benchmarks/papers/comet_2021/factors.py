r"""Seven factors of the room: how much of them codes without labels contain, for COMET and for baselines.

    python -m benchmarks.papers.comet_2021.factors [--only comet-warm] [--seed 0] [--seconds 250] [--data FOLDER] [--parts FOLDER]
    python -m benchmarks.papers.comet_2021.factors --gather [--write]

The first trains and scores models in one thread, by default all of them for seeds 0, 1 and 2; weights and figures go to the folder of
parts, and existing ones are used again. The second prints the table of all parts that exist. The protocol:

- **Data**: the world `room`, 32 x 32: 8,000 training pictures with random factors (seed 1), 2,000 test pictures (seed 3), and the grid of
  4 values (0, 1/3, 2/3, 1) of each of 7 factors, 16,384 pictures. Time is that of one processor, for training alone.
- **Codes** have 64 numbers: for COMET the K = 4 components with d = 16 one after another, for the beta-VAE the mean of its posterior;
  pixels are the 768 numbers of pictures averaged to 16 x 16.
- **Training**: Adam with batches of 16 for COMET and 64 for baselines; its rate falls to 0 as half a cosine, from 1e-3 with a descent,
  from 2e-3 without. COMET's error is `charbonnier`, that of the beta-VAE squared and summed, and the autoencoder is trained with either.
  The convolutional energy of the warm start begins with the encoder of the quadratic one, which then learns at a twentieth of the rate. A
  convolutional energy with a new encoder has a squared error and a rate of 1e-3 that is a tenth in the last 15 %, because it learns more
  so.
- Each model is scored twice. **raw** takes codes as they are. **PCA 64** (the paper's protocol for COMET) takes principal components of
  the codes, fitted on the first 5,000 training pictures, centered and not scaled: for 64 numbers it is a rotation.
- **BetaVAE** (Higgins et al., 2017), on the grid: 200 + 200 points for each factor, each the mean over 64 pairs that share the factor of
  |z1 - z2|, each code divided by its standard deviation on the grid; the accuracy of logistic regression on the second 200.
- **MIG** (Chen et al., 2018), on the grid: 20 bins of equal width for each code; (largest - second largest mutual information) / ln 4,
  mean over factors.
- **MCC**, on the test pictures: Pearson correlations of codes and factors, matched one to one; the mean of the 7 matched ones.
- **R2**, on the test pictures: of each factor by least squares from all raw codes, fitted on the training pictures.

Figures are means over seeds with standard errors. The seed is that of weights, batches and noise, and of the pairs of the BetaVAE score.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import composable_energy as ce
from benchmarks.harness import read_json
from benchmarks.papers.comet_2021.baselines import Autoencoder, codes_of, encoder, fit_principal_components, pixels, train_autoencoder
from benchmarks.papers.comet_2021.options import experiment_parser
from benchmarks.papers.comet_2021.training import Budget, fit
from benchmarks.papers.comet_2021.worlds import Room, render_room
from benchmarks.papers.experiment import COMET, print_table, write_rounded
from composable_energy.sampling import Noise
from composable_energy_comet import ConvEnergy, Decomposition, charbonnier
from composable_energy_training import Batch

__all__ = ["FACTORS", "MODELS", "SQUARED", "score", "summarize"]

FACTORS = ("lamp intensity", "lamp x", "lamp y", "lamp z", "camera x", "camera y", "camera z")
COMPONENTS, LATENT, PAIRS, FITTED = 4, 16, 64, 5000
SQUARED, CHARBONNIER = Decomposition(iterations=3), Decomposition(iterations=3, reconstruction=charbonnier)

MODELS: Mapping[str, float] = {
    "comet": 150,
    "comet-quadratic": 410,
    "comet-warm": 180,
    "beta-4": 150,
    "beta-1": 150,
    "beta-0.25": 150,
    "autoencoder": 150,
    "autoencoder-charbonnier": 150,
    "pixels": 0,
    "untrained": 0,
}
"""Models and the seconds of their training; `comet-warm` continues with the encoder of `comet-quadratic`, whose seconds are added."""


def create_comet(head: str, seed: int) -> Any:
    """Returns an untrained COMET for global factors. The decoder of the quadratic energy needs coordinates of pixels."""
    torch.manual_seed(seed)
    places = {"coordinates": "absolute"} if head == "quadratic" else {}
    return ce.get_encoder("comet-global", size=32, components=COMPONENTS, latent=LATENT, head=head, **places)


def train_comet(
    model: Any,
    images: Tensor,
    seconds: float,
    seed: int,
    objective: Any = None,
    labels: Mapping[str, Tensor] | None = None,
    slow: bool = False,
) -> dict[str, float]:
    """Trains a COMET on batches of 16.

    Args:
        model: The COMET.
        images: With shape $(N, 3, 32, 32)$, or $(N, 2, 3, 32, 32)$ for pairs; a batch has 8 pairs.
        seconds: Processor seconds.
        seed: Seed of batches and noise.
        objective: The objective; if None, `SQUARED` for a descent with a new encoder, else `CHARBONNIER`.
        labels: Labels of each row for the objective.
        slow: Whether the encoder was trained before.

    Returns:
        The figures of `fit`.
    """
    descends = isinstance(model.energy, ConvEnergy)
    fresh = descends and not slow
    if objective is None:
        objective = SQUARED if fresh else CHARBONNIER
    model.energy.set_image(images.flatten(0, -4))
    if not descends:
        model.to(memory_format=torch.channels_last)
    model.train()

    def loss(rows: Tensor, step: int) -> Tensor:
        x = images[rows].flatten(0, -4)
        batch_labels = {name: values[rows] for name, values in (labels or {}).items()}
        return objective.loss(model, Batch(x, batch_labels, Noise(seed, range(len(x)), step))).value

    batch, rate = 16 if images.ndim == 4 else 8, 1e-3 if descends else 2e-3
    budget = Budget(seconds=seconds, batch=batch, rate=rate, cosine=not fresh)
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


def load_model(name: str, seed: int, images: Tensor, parts: Path, seconds: float | None = None) -> tuple[Any, dict[str, float]]:
    """Returns a trained model, one of `MODELS`, and the figures of its training: steps, processor seconds, loss."""
    path, time = parts / f"{name}-{seed}.pt", MODELS[name] if seconds is None else seconds
    if name.startswith("comet"):
        model: Any = create_comet("quadratic" if name == "comet-quadratic" else "conv", seed)
        if name == "comet-warm":
            first, before = load_model("comet-quadratic", seed, images, parts)
            model.encoder.load_state_dict(first.encoder.state_dict())
        else:
            before = {"seconds": 0.0}
        figures = train_or_load(path, model, lambda: train_comet(model, images, time, seed, slow=name == "comet-warm"))
        return model, figures | {"seconds": figures["seconds"] + before["seconds"]}
    if name.startswith(("beta", "autoencoder")):
        model = Autoencoder(float(name[5:]) if name.startswith("beta") else None, charbonnier if name.endswith("charbonnier") else None)
        return model, train_or_load(path, model, lambda: train_autoencoder(model, images, time, seed))
    torch.manual_seed(seed)
    return (encoder() if name == "untrained" else nn.Identity()), {"steps": 0, "seconds": 0.0}


def reconstruct(model: Any, images: Tensor) -> Tensor:
    """Returns the reconstructions of pictures."""
    with torch.no_grad():
        return torch.cat([model.decode(model.encode(some)).detach() for some in images.split(64)])


def score(encode: Callable[[Tensor], Tensor], data: Room, seed: int) -> dict[str, Any]:
    """Returns the scores of codes, raw and as principal components, and the R2 of each factor."""
    from composable_energy_comet.metrics import linear_r2

    train, test, grid = (codes_of(encode, images) for images in (data.train, data.test, data.grid))
    turn = fit_principal_components(train[:FITTED])
    r2 = linear_r2(train, data.train_factors, test, data.test_factors)
    return {
        "R2": float(r2.mean()),
        "R2 of each": dict(zip(FACTORS, r2.tolist(), strict=True)),
        "raw": _disentanglement(grid, test, data, seed),
        "PCA 64": _disentanglement(turn(grid), turn(test), data, seed),
    }


def _disentanglement(grid: Tensor, test: Tensor, data: Room, seed: int) -> dict[str, float]:
    from composable_energy_comet.metrics import beta_vae_score, mean_correlation, mutual_information_gap

    return {
        "BetaVAE": 100 * float(beta_vae_score(grid, data.levels, pairs=PAIRS, seed=seed)),
        "MIG": 100 * float(mutual_information_gap(grid, data.levels, bins=20, points=None)),
        "MCC": 100 * float(mean_correlation(test, data.test_factors)),
    }


def train_and_score(name: str, seed: int, data: Room, parts: Path, seconds: float | None = None) -> dict[str, Any]:
    """Trains and scores a model, and writes its figures."""
    model, figures = load_model(name, seed, data.train, parts, seconds)
    encode = pixels if name == "pixels" else getattr(model, "encode", model)
    decodes = hasattr(model, "decode")
    error = {"MSE": float((reconstruct(model, data.test) - data.test).square().mean())} if decodes else {}
    result = {"model": name, "seed": seed, **figures, **error, **score(encode, data, seed)}
    write_rounded(parts / f"{name}-{seed}.json", result)
    return result


def summarize(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns a row for each model, in the order of `MODELS`: means over seeds, and standard errors of the mean."""
    rows = []
    for name in MODELS:
        some = [result for result in results if result["model"] == name]
        if not some:
            continue
        row: dict[str, Any] = {"model": name, "seeds": len(some)}
        for key in ("seconds", "steps", "MSE", "R2"):
            if all(key in result for result in some):
                row[key] = mean_and_error([result[key] for result in some])
        for protocol in ("raw", "PCA 64"):
            for score in ("BetaVAE", "MIG", "MCC"):
                row[f"{score}, {protocol}"] = mean_and_error([result[protocol][score] for result in some])
        rows.append(row)
    return rows


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """Returns the mean of some numbers and its standard error, None for one alone."""
    numbers = torch.tensor(values, dtype=torch.float64)
    return float(numbers.mean()), float(numbers.std() / len(numbers) ** 0.5) if len(numbers) > 1 else None


def _line(row: Mapping[str, Any]) -> dict[str, Any]:
    digits = {"seconds": 0, "steps": 0, "MSE": 4, "R2": 3}
    texts = {}
    for key, value in row.items():
        if isinstance(value, tuple):
            places, (mean, error) = digits.get(key, 1), value
            value = f"{mean:.{places}f}" + ("" if error is None else f"±{error:.{places}f}")
        texts[key.replace("BetaVAE", "Beta")] = value
    return texts


def goals(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns the goals of the warm start and what it reached: R2, and MCC in comparison with the baselines."""
    by = {row["model"]: row for row in rows}
    if "comet-warm" not in by:
        return []
    ours = by["comet-warm"]
    found = [{"goal": "R2 >= .95", "comet-warm": ours["R2"][0], "other": 0.95}]
    others = [
        ("beta-4", "raw"),
        ("beta-4", "PCA 64"),
        ("autoencoder", "PCA 64"),
        ("autoencoder-charbonnier", "PCA 64"),
        ("pixels", "PCA 64"),
        ("beta-1", "raw"),
        ("beta-0.25", "raw"),
    ]
    found += [
        {"goal": f"MCC, PCA 64, above {name} {protocol}", "comet-warm": ours["MCC, PCA 64"][0], "other": by[name][f"MCC, {protocol}"][0]}
        for name, protocol in others
        if name in by
    ]
    return [row | {"holds": row["comet-warm"] >= row["other"]} for row in found]


def gather(parts: Path, write: bool) -> None:
    """Prints the table of all parts that exist, and writes it."""
    files = [parts / f"{name}-{seed}.json" for name in MODELS for seed in range(10)]
    results = [read_json(file) for file in files if file.exists()]
    rows = summarize(results)
    print_table("Seven factors of the room: means over seeds ± standard errors", [_line(row) for row in rows])
    print_table("R2 of each factor, seed 0", [{"model": r["model"], **r["R2 of each"]} for r in results if r["seed"] == 0])
    reached = goals(rows)
    if reached:
        print_table("Goals of quadratic, then conv", reached)
    if write:
        COMET.write("factors", {"table": rows, "goals": reached, "runs": results})


def main(arguments: Sequence[str] | None = None) -> None:
    parser = experiment_parser("factors", __doc__)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="of one processor, instead of those of each model")
    parser.add_argument("--train", action="store_true", help="train only, score later")
    parser.add_argument("--gather", action="store_true", help="train nothing, and print the table of what exists")
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    parts = args.parts / "factors"
    if not args.gather:
        data = render_room(args.data)
        for name, seed in ((name, seed) for seed in args.seed for name in args.only):
            if (parts / f"{name}-{seed}.json").exists():
                continue
            if args.train:
                print(name, seed, load_model(name, seed, data.train, parts, args.seconds)[1], flush=True)
                continue
            result = train_and_score(name, seed, data, parts, args.seconds)
            print(name, seed, {key: value for key, value in result.items() if key not in ("model", "seed", "R2 of each")}, flush=True)
    if not args.train:
        gather(parts, args.write)


if __name__ == "__main__":
    main()
