"""Models by name, and their folders."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

import safetensors.torch

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import check_config, config_bytes, read_config, read_tensors, write_through
from composable_energy_comet.attention import AttentionEncoder
from composable_energy_comet.comet import Comet
from composable_energy_comet.conv import ConvEnergy
from composable_energy_comet.options import one_of
from composable_energy_comet.quadratic import QuadraticEnergy
from composable_energy_comet.vectors import VectorEncoder

__all__ = ["SHIPPED", "comet", "comet_global", "load_comet", "save_comet"]

SHIPPED = Path(__file__).parent / "weights"
"""Where the models lie that come with the package."""

_VERSION = 2  # 1 had no digests
_CONFIG, _TENSORS = "comet.json", "comet.safetensors"
_ENERGIES = {"comet-conv": ConvEnergy, "comet-quadratic": QuadraticEnergy}
_ENCODERS = {"attention": AttentionEncoder, "vector": VectorEncoder}


def comet(
    size: int = 32,
    channels: int = 3,
    *,
    components: int = 4,
    latent: int = 16,
    head: Literal["conv", "quadratic"] = "conv",
    coordinates: Literal["relative", "absolute"] = "relative",
    filters: int | None = None,
    encoder_filters: int = 32,
    seen: int | None = None,
    cells: int | None = None,
    inhibition: bool = True,
    cap: float | None = 8.0,
    weights: str | None = None,
    **energy: Any,
) -> Comet:
    """Returns a model that finds objects: recurrent attention, and an energy that sees pixels relative to its component.

    Args:
        size: Height and width of pictures: 16, 32, 64, ...
        channels: Of pictures.
        components: How many components a picture has: the largest number of objects, or one more.
        latent: Numbers of a component, without its pose.
        head: `"conv"`, the paper's energy, or `"quadratic"`, whose minimum is known.
        coordinates: `"relative"` to the component, or `"absolute"`, as in the paper.
        filters: Of the energy; its own number if None.
        encoder_filters: Of the encoder.
        seen: The height and width that the encoder averages pictures to; `size` if None.
        inhibition: Whether its looks turn away from what earlier ones saw.
        cap: The size of its logits, so that no look narrows to one cell; None for no bounds.
        cells: Those of the grid that it attends to; a quarter of `seen`, but at least 8, if None.
        weights: The folder of a trained model, or the name of one that comes with the package, which says all else; untrained if None.
        **energy: Other options of `ConvEnergy` or `QuadraticEnergy`, such as `iterations`, `step` and `start`.

    Raises:
        OptionError: An option is unknown or out of range.
        FileFormatError: The folder is damaged, or of another kind.
    """
    if weights is not None:
        return load_comet(weights)
    shape = {"size": size, "channels": channels, "latent": latent}
    options = {**shape, **({} if filters is None else {"filters": filters}), "coordinates": coordinates, **energy}
    pose = one_of("coordinates", coordinates, ("relative", "absolute")) == "relative"
    encoder = {
        **shape,
        "components": components,
        "pose": pose,
        "filters": encoder_filters,
        "seen": seen,
        "cells": cells,
        "inhibition": inhibition,
        "cap": cap,
    }
    return _made("attention", encoder, f"comet-{one_of('head', head, ('conv', 'quadratic'))}", options)


def comet_global(
    size: int = 32,
    channels: int = 3,
    *,
    components: int = 4,
    latent: int = 16,
    head: Literal["conv", "quadratic"] = "conv",
    network: Literal["plain", "residual"] = "plain",
    filters: int | None = None,
    weights: str | None = None,
    **energy: Any,
) -> Comet:
    """Returns a model that finds factors of whole pictures, such as light and camera: one vector, cut into components without a place.

    Args:
        size: Height and width of pictures: 16, 32, 64, ...
        channels: Of pictures.
        components: How many components a picture has.
        latent: Numbers of a component.
        head: `"conv"`, the paper's energy, or `"quadratic"`, whose minimum is known.
        network: The encoder: `"plain"`, or the paper's `"residual"`.
        filters: Of the energy; its own number if None.
        weights: As for `comet`.
        **energy: Other options of `ConvEnergy` or `QuadraticEnergy`.

    Raises:
        OptionError: An option is unknown or out of range.
        FileFormatError: The folder is damaged, or of another kind.
    """
    if weights is not None:
        return load_comet(weights)
    shape = {"size": size, "channels": channels, "latent": latent}
    # The decoder of quadratic energies has to know which pixel it paints.
    knows = {"stem": "stride", "coordinates": "none"} if head == "conv" else {"coordinates": "absolute"}
    options = {**shape, **({} if filters is None else {"filters": filters}), **knows, **energy}
    encoder = {**shape, "components": components, "network": network}
    return _made("vector", encoder, f"comet-{one_of('head', head, ('conv', 'quadratic'))}", options)


def save_comet(model: Comet, folder: str | Path, *, half: bool = False) -> None:
    """Writes a model to a folder, from which `load_comet` reads it.

    `comet.safetensors` has the weights; `comet.json` has the options, the SHA-256 of the other file and a checksum of itself, so that
    damage to either is found. Who edits `comet.json` by hand removes its line `checksum`.

    Args:
        model: The model.
        folder: Where to; it is made if it is not there.
        half: Whether to write weights in half precision, for small files.
    """
    target = Path(folder).expanduser()
    target.mkdir(parents=True, exist_ok=True)
    kind = next(name for name, made in _ENCODERS.items() if isinstance(model.encoder, made))
    told = {
        "version": _VERSION,
        "encoder": {"kind": kind, **model.encoder.config()},
        "energy": {"kind": model.energy.name, **model.energy.config()},
    }
    tensors = {name: value.detach().half() if half else value.detach() for name, value in model.state_dict().items()}
    data = safetensors.torch.save({name: value.cpu().contiguous() for name, value in tensors.items()})
    for name, content in ((_TENSORS, data), (_CONFIG, config_bytes(told, data))):
        beside = target / f".{name}"
        write_through(beside, content)
        beside.replace(target / name)


def load_comet(weights: str | Path) -> Comet:
    """Returns a trained model in eval mode, in single precision.

    A folder of version 1, which earlier packages wrote, has no digests. It is read with a warning: damage to it may stay unseen.

    Args:
        weights: The folder that `save_comet` or a recipe wrote, or the name of a model that comes with the package: `"sprites"`.

    Raises:
        FileFormatError: There is no such model, or it is damaged or of another version.
    """
    folder = Path(weights).expanduser()
    if not (folder / _CONFIG).is_file() and (SHIPPED / str(weights) / _CONFIG).is_file():
        folder = SHIPPED / str(weights)
    if not (folder / _CONFIG).is_file():
        names = ", ".join(sorted(path.parent.name for path in SHIPPED.glob(f"*/{_CONFIG}")))
        raise FileFormatError(f"{str(weights)!r} is neither a folder with {_CONFIG} nor a model that comes with the package ({names}).")
    told = read_config(folder / _CONFIG)
    digest = check_config(told, folder / _CONFIG)
    if told.get("version") not in (1, _VERSION):
        raise FileFormatError(f"{folder} was written in version {told.get('version')}, this package reads 1 and {_VERSION}.")
    if told["version"] == 1:
        warnings.warn(
            f"{folder} was written in version 1, without digests, so damage to it may stay unseen; `save_comet` writes it anew with them.",
            stacklevel=2,
        )
    tensors = read_tensors(folder / _TENSORS, digest, _CONFIG, unchecked=told["version"] == 1)
    try:
        encoder, energy = dict(told["encoder"]), dict(told["energy"])
        model = _made(encoder.pop("kind"), encoder, energy.pop("kind"), energy)
        model.load_state_dict({name: value.float() for name, value in tensors.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FileFormatError(f"{folder} is damaged, or no folder of a Comet: {error}.") from error
    return model.eval()


def _made(encoder: str, encoder_options: dict[str, Any], energy: str, energy_options: dict[str, Any]) -> Comet:
    try:
        return Comet(_ENCODERS[encoder](**encoder_options), _ENERGIES[energy](**energy_options))
    except TypeError as error:
        raise OptionError(f"{energy} does not take these options: {error}.") from error
