r"""Seven factors of the room: how well codes that nobody labelled hold them, COMET beside what users would otherwise take.

    pip install -e '.[scenes,metrics]' -c constraints.txt
    python benchmarks/papers/comet_2021/factors.py --only comet-warm --seed 0 [--seconds 250] [--data FOLDER] [--parts FOLDER]
    python benchmarks/papers/comet_2021/factors.py --gather [--write]

The first trains one model and scores it, in one thread; weights and figures go to the folder of parts, and what lies there is not done
again. Without `--only` all models are done, for seeds 0, 1 and 2. The second makes the table of the parts that are there. The protocol:

- **Data**: the world `room`, 32 x 32: 8,000 pictures with random factors to train on (seed 1), 2,000 to test (seed 3), and the grid of
  4 values (0, 1/3, 2/3, 1) of each of 7 factors, 16,384 pictures. Time is that of one processor, for training alone.
- **Codes** have 64 numbers: for COMET the K = 4 components with d = 16 one after another, for the beta-VAE the mean of its posterior;
  raw pixels are the 768 of pictures averaged to 16 x 16.
- **Training**: Adam with batches of 16 for COMET and 64 for others; its rate falls to nothing as half a cosine, from 1e-3 where there is a
  descent, from 2e-3 elsewhere. COMET's error is `charbonnier`, that of the beta-VAE squared and summed, that of the autoencoder one or the
  other. The convolutional energy of the warm start begins with the encoder of the quadratic one, which then learns at a twentieth of the
  rate. One that begins with nothing has a squared error and a rate of 1e-3 that is a tenth in the last 15 %, by which it learns more.
- Each model is scored twice. **raw** takes codes as they are. **PCA 64** (the paper's protocol for COMET) takes principal components of
  the codes, fitted on the first 5,000 training pictures, centred and not scaled: for 64 numbers it is a rotation.
- **BetaVAE** (Higgins et al., 2017), on the grid: 200 + 200 points for each factor, each the mean over 64 pairs that share the factor of
  |z1 - z2|, each code over its standard deviation on the grid; the share that logistic regression gets right on the second 200.
- **MIG** (Chen et al., 2018), on the grid: 20 bins of equal width for each code; (largest - second largest mutual information) / ln 4,
  mean over factors.
- **MCC**, on the test pictures: Pearson correlations of codes and factors, matched one to one; the mean of the 7 matched ones.
- **R2**, on the test pictures: of each factor by least squares from all raw codes, fitted on the training pictures.

Figures are means over seeds with standard errors. The seed is that of weights, order and noise, and of the pairs of the BetaVAE score.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from baselines import Autoencoder, codes_of, encoder, pixels, principal, trained
from comet_common import CACHE, RESULTS, Budget, Room, about, fit, room, show, write
from torch import Tensor, nn

import composable_energy as ce
from composable_energy.sampling import Noise
from composable_energy_comet import ConvEnergy, Decomposition, charbonnier
from composable_energy_training import Batch

__all__ = ["FACTORS", "MODELS", "SQUARED", "gathered", "scored"]

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
"""Models and the seconds that each is trained; `comet-warm` goes on from the encoder of `comet-quadratic`, whose seconds are added."""


def comet(head: str, seed: int) -> Any:
    """Returns a COMET for global factors that learnt nothing. The decoder of the quadratic energy needs to know where pixels are."""
    torch.manual_seed(seed)
    places = {"coordinates": "absolute"} if head == "quadratic" else {}
    return ce.get_encoder("comet-global", size=32, components=COMPONENTS, latent=LATENT, head=head, **places)


def learnt(
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
        images: With shape $(N, 3, 32, 32)$, or $(N, 2, 3, 32, 32)$ if they come in pairs, of which a batch takes 8.
        seconds: Of the processor.
        seed: Of order and noise.
        objective: What is minimized; if None, `SQUARED` for a descent from nothing, else `CHARBONNIER`.
        labels: What the objective is told of each row.
        slow: Whether the encoder was trained before.

    Returns:
        What `fit` measured.
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
        told = {name: values[rows] for name, values in (labels or {}).items()}
        return objective.loss(model, Batch(x, told, Noise(seed, range(len(x)), step))).value

    batch, rate = 16 if images.ndim == 4 else 8, 1e-3 if descends else 2e-3
    budget = Budget(seconds=seconds, batch=batch, rate=rate, cosine=not fresh)
    told = fit(loss, model.parameters(), len(images), budget, seed, model.encoder.parameters() if slow else ())
    model.eval()
    return told


def kept(path: Path, model: nn.Module, train: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Trains a model and keeps it, or takes over what was kept; returns what training measured."""
    if not path.exists():
        told = train()
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"told": told, "weights": model.state_dict()}, path)
    found = torch.load(path)
    model.load_state_dict(found["weights"])
    model.eval()
    return found["told"]


def model_of(name: str, seed: int, images: Tensor, parts: Path, seconds: float | None = None) -> tuple[Any, dict[str, float]]:
    """Returns a trained model, one of `MODELS`, and what training measured: steps, seconds of the processor, loss."""
    path, time = parts / f"{name}-{seed}.pt", MODELS[name] if seconds is None else seconds
    if name.startswith("comet"):
        model: Any = comet("quadratic" if name == "comet-quadratic" else "conv", seed)
        if name == "comet-warm":
            first, before = model_of("comet-quadratic", seed, images, parts)
            model.encoder.load_state_dict(first.encoder.state_dict())
        else:
            before = {"seconds": 0.0}
        told = kept(path, model, lambda: learnt(model, images, time, seed, slow=name == "comet-warm"))
        return model, told | {"seconds": told["seconds"] + before["seconds"]}
    if name.startswith(("beta", "autoencoder")):
        model = Autoencoder(float(name[5:]) if name.startswith("beta") else None, charbonnier if name.endswith("charbonnier") else None)
        return model, kept(path, model, lambda: trained(model, images, time, seed))
    torch.manual_seed(seed)
    return (encoder() if name == "untrained" else nn.Identity()), {"steps": 0, "seconds": 0.0}


def reconstructed(model: Any, images: Tensor) -> Tensor:
    """Returns what a model makes of pictures from its codes, with their shape."""
    with torch.no_grad():
        return torch.cat([model.decode(model.encode(some)).detach() for some in images.split(64)])


def scored(encode: Callable[[Tensor], Tensor], data: Room, seed: int) -> dict[str, Any]:
    """Returns the scores of codes, raw and as principal components, and the R2 of each factor."""
    from composable_energy_comet.metrics import linear_r2

    train, test, grid = (codes_of(encode, images) for images in (data.train, data.test, data.grid))
    turn = principal(train[:FITTED])
    r2 = linear_r2(train, data.train_factors, test, data.test_factors)
    return {
        "R2": float(r2.mean()),
        "R2 of each": dict(zip(FACTORS, r2.tolist(), strict=True)),
        "raw": _three(grid, test, data, seed),
        "PCA 64": _three(turn(grid), turn(test), data, seed),
    }


def _three(grid: Tensor, test: Tensor, data: Room, seed: int) -> dict[str, float]:
    from composable_energy_comet.metrics import beta_vae_score, mean_correlation, mutual_information_gap

    return {
        "BetaVAE": 100 * float(beta_vae_score(grid, data.levels, pairs=PAIRS, seed=seed)),
        "MIG": 100 * float(mutual_information_gap(grid, data.levels, bins=20, points=None)),
        "MCC": 100 * float(mean_correlation(test, data.test_factors)),
    }


def part(name: str, seed: int, data: Room, parts: Path, seconds: float | None = None) -> dict[str, Any]:
    """Trains and scores a model, and writes its part."""
    model, told = model_of(name, seed, data.train, parts, seconds)
    encode = pixels if name == "pixels" else getattr(model, "encode", model)
    decodes = hasattr(model, "decode")
    error = {"MSE": float((reconstructed(model, data.test) - data.test).square().mean())} if decodes else {}
    result = {"model": name, "seed": seed, **told, **error, **scored(encode, data, seed)}
    write(parts / f"{name}-{seed}.json", about(**result))
    return result


def gathered(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
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


def verdicts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns what was asked of the warm start, beside what it came to: R2, and MCC against beta 4 and both floors of PCA."""
    by = {row["model"]: row for row in rows}
    if "comet-warm" not in by:
        return []
    ours = by["comet-warm"]
    found = [{"asked": "R2 >= .95", "comet-warm": ours["R2"][0], "other": 0.95}]
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
        {"asked": f"MCC, PCA 64, above {name} {protocol}", "comet-warm": ours["MCC, PCA 64"][0], "other": by[name][f"MCC, {protocol}"][0]}
        for name, protocol in others
        if name in by
    ]
    return [row | {"holds": row["comet-warm"] >= row["other"]} for row in found]


def gather(parts: Path, keep: bool) -> None:
    """Prints the table of the parts that are there, and writes it where asked."""
    files = [parts / f"{name}-{seed}.json" for name in MODELS for seed in range(10)]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    rows = gathered(results)
    show("Seven factors of the room: means over seeds ± standard errors", [_line(row) for row in rows])
    show("R2 of each factor, seed 0", [{"model": r["model"], **r["R2 of each"]} for r in results if r["seed"] == 0])
    asked = verdicts(rows)
    if asked:
        show("Asked of quadratic, then conv", asked)
    if keep:
        protocol = (__doc__ or "").partition("The protocol:")[2].strip()
        write(RESULTS / "factors.json", {"protocol": protocol, "table": rows, "asked": asked, "runs": results})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME", help=", ".join(MODELS))
    parser.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--seconds", type=float, help="of the processor, instead of what each model gets")
    parser.add_argument("--data", type=Path, default=CACHE, help="where pictures are rendered to")
    parser.add_argument("--parts", type=Path, default=CACHE / "factors", help="where weights and figures of each run are kept")
    parser.add_argument("--train", action="store_true", help="train only, score later")
    parser.add_argument("--gather", action="store_true", help="make the table of the parts that are there")
    parser.add_argument("--write", action="store_true", help="write the table into the repository")
    told = parser.parse_args()
    if not told.gather:
        data = room(told.data)
        for seed in told.seed:
            for name in told.only:
                if (told.parts / f"{name}-{seed}.json").exists():
                    continue
                if told.train:
                    print(name, seed, model_of(name, seed, data.train, told.parts, told.seconds)[1], flush=True)
                    continue
                result = part(name, seed, data, told.parts, told.seconds)
                print(name, seed, {key: value for key, value in result.items() if key not in ("model", "seed", "R2 of each")}, flush=True)
    if not told.train:
        gather(told.parts, told.write)


if __name__ == "__main__":
    main()
