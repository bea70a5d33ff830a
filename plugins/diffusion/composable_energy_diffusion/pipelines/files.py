"""Reads pipelines of diffusers from a folder or the Hugging Face hub: safetensors only, and no code of theirs."""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from composable_energy.errors import FileFormatError, OptionError
from composable_energy.files import exists, expanded, is_file
from composable_energy.options import check_choice, import_extra

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}

_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers", None)
_UNUSED = ("safety_checker", "feature_extractor", "image_encoder")


def read_pipeline(location: str, *, revision: str | None = None, variant: str | None = None, dtype: str = "float32") -> Any:
    """Returns a pipeline of diffusers."""
    diffusers = import_extra("diffusers", "diffusers")
    precision = DTYPES[check_choice("dtype", dtype, DTYPES)]
    place = str(expanded(location)) if exists(expanded(location)) else location
    index = _read_index(diffusers, place, revision)
    options: dict[str, Any] = {name: None for name in _UNUSED if name in index}
    if importlib.util.find_spec("accelerate") is None:
        options["low_cpu_mem_usage"] = False  # the default warns
    try:
        with _no_progress(diffusers.utils.logging):
            return diffusers.DiffusionPipeline.from_pretrained(
                place, revision=revision, variant=variant, dtype=precision, use_safetensors=True, **options
            )
    except Exception as error:  # diffusers raises OSError, ValueError, TypeError, ImportError and others for damaged files
        raise FileFormatError(
            f"The pipeline {place} cannot be read: {_first_lines(error)} Weights must be safetensors; a pipeline with pickled ones is "
            "converted by `pipe.save_pretrained(folder, safe_serialization=True)` where you trust it."
        ) from error


def _read_index(diffusers: Any, place: str, revision: str | None) -> Mapping[str, Any]:
    """Returns `model_index.json`, if all parts that it names are of diffusers and transformers."""
    folder = Path(place)
    local = folder.is_absolute() or place.startswith((".", "~")) or exists(folder)
    if local and not is_file(folder / _INDEX):
        raise FileFormatError(
            f"{place} is no pipeline of diffusers: there is no {_INDEX}. Give the folder that `save_pretrained` of a pipeline wrote, "
            "or `owner/name` of the hub; for a network alone use ce.get('energy', 'diffusion', model=...)."
        )
    try:
        index = diffusers.DiffusionPipeline.load_config(place, revision=revision)
    except Exception as error:
        raise FileFormatError(f"{place} is no pipeline of diffusers: {_first_lines(error)}") from error
    name = index.get("_class_name")
    parts = {part: value[0] for part, value in index.items() if isinstance(value, list | tuple) and len(value) == 2}
    foreign = {part: library for part, library in parts.items() if library not in _LIBRARIES and part not in _UNUSED}
    if not isinstance(name, str) or foreign:
        what = f"its parts {foreign}" if foreign else f"its class {name!r}"
        raise OptionError(f"{place} needs code of its own ({what}), which is never run; known are pipelines of diffusers and transformers.")
    if not isinstance(getattr(diffusers, name, None), type):
        raise OptionError(f"{place} is a pipeline of the class {name}, which diffusers {diffusers.__version__} does not have.")
    return index


def check_fields(part: Any, **expected: Any) -> None:
    """Raises `OptionError` if a field of the configuration of a part has another value than the one that is known."""
    for field, value in expected.items():
        found = part.config.get(field, value)
        if found != value:
            raise OptionError(f"{type(part).__name__} cannot be mapped: its field {field} is {found!r}; known: {value!r}.")


def _first_lines(error: Exception) -> str:
    text = " ".join(str(error).split())[:400].rstrip(".")
    return f"{type(error).__name__}: {text}."


@contextmanager
def _no_progress(logging: Any) -> Iterator[None]:
    """A context without the progress bars of diffusers; restores them on exit."""
    before = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if before:
            logging.enable_progress_bar()
