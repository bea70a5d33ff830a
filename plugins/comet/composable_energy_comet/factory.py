"""Builds COMET models by name, saves them to folders and loads them."""

from pathlib import Path
from typing import Any, Literal

import torch

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import expanded, is_file, read_record, write_record
from composable_energy.options import check_choice
from composable_energy_comet.component import QuadraticEnergy, options_of
from composable_energy_comet.conv import ConvEnergy, WindowEnergy
from composable_energy_comet.encoders import AttentionEncoder, GlimpseEncoder, VectorEncoder
from composable_energy_comet.model import Comet

SHIPPED = Path(__file__).parent / "weights"
"""The folder of the models that come with the package."""

_FILE = "comet.safetensors"
_VERSION = 3
_ENERGIES = {"comet-conv": ConvEnergy, "comet-quadratic": QuadraticEnergy, "comet-window": WindowEnergy}
_ENCODERS = {"attention": AttentionEncoder, "glimpse": GlimpseEncoder, "vector": VectorEncoder}


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
    weights: Literal["objects", "sprites"] | str | None = None,
    **energy: Literal["pool", "stride", "image", "uniform", "none"] | Any,
) -> Comet:
    """Returns a model that finds objects, by recurrent attention and an energy in coordinates relative to each component.

    Args:
        size: Height and width of pictures: 16, 32, 64, ...
        components: Number of components of a picture: the largest number of objects, or one more.
        latent: Numbers in the latent of a component, without its pose.
        head: `"conv"`, the paper's energy, or `"quadratic"`, whose minimum has a closed form.
        coordinates: `"relative"` to the component, or `"absolute"`, as in the paper.
        seen: Height and width that the encoder averages pictures to; `size` if None.
        cap: Bound of the attention logits, so that attention does not collapse to one cell; None for no bound.
        cells: Height and width of the attention grid; a quarter of `seen`, but at least 8, if None.
        weights: Folder of a trained model, or the name of one in the package; sets all other options. None builds an untrained model.
        **energy: Other options of `ConvEnergy` or `QuadraticEnergy`, such as `iterations`, `step` and `start`.
    """
    if weights is not None:
        return load_comet(weights)
    shape = {"size": size, "channels": channels, "latent": latent}
    options = {**shape, "filters": filters, "coordinates": coordinates, **energy}
    pose = check_choice("coordinates", coordinates, ("relative", "absolute")) == "relative"
    encoder = dict(shape, components=components, pose=pose, filters=encoder_filters, seen=seen, cells=cells, inhibition=inhibition, cap=cap)
    return _build("attention", encoder, f"comet-{check_choice('head', head, ('conv', 'quadratic'))}", options)


def comet_global(
    size: int = 32,
    channels: int = 3,
    *,
    components: int = 4,
    latent: int = 16,
    head: Literal["conv", "quadratic"] = "conv",
    network: Literal["plain", "residual"] = "plain",
    filters: int | None = None,
    weights: Literal["objects", "sprites"] | str | None = None,
    **energy: Literal["pool", "stride", "image", "uniform", "none"] | Any,
) -> Comet:
    """Returns a model that finds factors of the whole picture, such as light and camera: one vector, split into components without a pose.

    Args:
        size: Height and width of pictures. The arguments that are not listed here are those of `comet`.
        latent: Numbers in the latent of a component.
        network: The encoder: `"plain"`, or the paper's `"residual"`.
    """
    if weights is not None:
        return load_comet(weights)
    shape = {"size": size, "channels": channels, "latent": latent}
    # The decoder of a quadratic energy is spatial: without coordinates it would paint every pixel alike.
    spatial = {"stem": "stride", "coordinates": "none"} if head == "conv" else {"coordinates": "absolute"}
    options = {**shape, "filters": filters, **spatial, **energy}
    encoder = {**shape, "components": components, "network": network}
    return _build("vector", encoder, f"comet-{check_choice('head', head, ('conv', 'quadratic'))}", options)


def comet_window(
    size: int = 64,
    channels: int = 3,
    *,
    components: int = 5,
    latent: int = 24,
    window: int = 32,
    filters: int = 64,
    encoder_filters: int = 32,
    seen: int | None = 32,
    again: int = 2,
    weights: Literal["objects", "sprites"] | str | None = None,
    **energy: Literal["pool", "stride", "image", "uniform", "none"] | Any,
) -> Comet:
    """Returns a model that finds sharp objects on a ground: a glimpse of each object, and an energy painted in a window around its place.

    The first component is the ground, with the light on it; it has no place. Windows have as many pixels in a picture of any size.

    Args:
        size: Height and width of pictures. The arguments that are not listed here are those of `comet`.
        components: Number of components of a picture, with the ground: one more than the largest number of objects.
        window: Height and width of the largest windows in pixels, those of the largest object with its shadow: 8, 16, 32, ...
        seen: Height and width of the copy of the picture in which attention finds places; `size` if None.
        again: Further components of decomposed pictures, each a window where the picture is explained worst; 0 for those of the training.
        **energy: Other options of `WindowEnergy`, such as `colors`.
    """
    if weights is not None:
        return load_comet(weights)
    shape = {"size": size, "channels": channels, "latent": latent, "window": window}
    encoder = {**shape, "components": components, "filters": encoder_filters, "seen": seen, "again": again}
    return _build("glimpse", encoder, "comet-window", {**shape, "filters": filters, **energy})


def save_comet(model: Comet, folder: str | Path, *, half: bool = False, small_encoder: bool = False) -> None:
    """Saves the options and weights of a model to the file `comet.safetensors` of a folder, which may be new, for `load_comet`.

    Args:
        half: Whether to store weights in half precision, for small files.
        small_encoder: Whether to store those of the encoder in 8 bits, `float8_e4m3fn`. The error of the shipped objects grows by 3 %.
    """
    kind = next(name for name, encoder in _ENCODERS.items() if isinstance(model.encoder, encoder))
    config = {"encoder": {"kind": kind, **options_of(model.encoder)}, "energy": {"kind": model.energy.name, **options_of(model.energy)}}
    tensors = {name: value.detach().half() if half else value.detach() for name, value in model.state_dict().items()}
    if small_encoder:
        tensors |= {name: value.to(torch.float8_e4m3fn) for name, value in tensors.items() if name.startswith("encoder.")}
    write_record(expanded(folder) / _FILE, "comet", _VERSION, config, tensors)


def load_comet(weights: str | Path) -> Comet:
    """Loads a trained model, in eval mode and single precision.

    Args:
        weights: The folder that `save_comet` or a recipe wrote, or the name of a model of the package: `"sprites"`, `"objects"`.

    Raises:
        FileFormatError: There is no such model, or it is damaged or of another version.
    """
    folder = expanded(weights)
    if is_file(SHIPPED / Path(weights).name / _FILE) and str(weights) == Path(weights).name:
        folder = SHIPPED / str(weights)
    if not is_file(folder / _FILE):
        names = ", ".join(sorted(path.parent.name for path in SHIPPED.glob(f"*/{_FILE}")))
        raise FileFormatError(f"{str(weights)!r} is neither a folder with {_FILE} nor a model that comes with the package ({names}).")
    config, tensors = read_record(folder / _FILE, "comet", _VERSION, weights=True)
    try:
        encoder, energy = dict(config["encoder"]), dict(config["energy"])
        model = _build(encoder.pop("kind"), encoder, energy.pop("kind"), energy)
        model.load_state_dict({name: value.float() for name, value in tensors.items()})
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise FileFormatError(f"{folder} is damaged, or not the folder of a Comet: {error}.") from error
    return model.eval()


def _build(encoder: str, encoder_options: dict[str, Any], energy: str, energy_options: dict[str, Any]) -> Comet:
    try:
        given = {name: value for name, value in energy_options.items() if value is not None}
        return Comet(_ENCODERS[encoder](**encoder_options), _ENERGIES[energy](**given))
    except TypeError as error:
        raise OptionError(f"{energy} does not take these options: {error}.") from error
