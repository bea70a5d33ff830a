"""A pipeline of diffusers as an energy, and its prompts or classes as concepts."""

from typing import Any

from torch import Tensor

from composable_energy import Energy, Recommendation
from composable_energy.errors import ExpressionError, OptionError
from composable_energy.files import expanded, is_directory
from composable_energy.options import nearest
from composable_energy.registry import get
from composable_energy_diffusion.energy import DiffusionEnergy
from composable_energy_diffusion.pipelines.files import process_of, read_pipeline
from composable_energy_diffusion.pipelines.networks import ClassNetwork, PromptNetwork, decoder_of, network_of


class PipelineEnergy(DiffusionEnergy):
    r"""The energy of a pipeline of diffusers at noise levels; without a condition that of its unconditional model.

    `E.concept("a dog")` is the energy of a prompt and `E.concept(class_label=3)` that of a class, both relative to the unconditional model.
    Prompts are encoded by the pipeline's own tokenizer and text encoder. The network, the schedule and what the network predicts are read
    from the pipeline. Points are those of the network: pixels in [-1, 1], or latents of the autoencoder; samples are decoded to pictures in
    [0, 1], those of `E.latents` are not. The recommended sampler is `sde` with 40 levels. A safety checker is neither loaded nor applied.

    Args:
        location: A folder that `save_pretrained` wrote, or `owner/name` of the hub.
        revision: A branch, tag or commit, for the hub.
        variant: The variant of the weight files, such as `fp16`.
        dtype: The precision of the networks: `float32`, `float16` or `bfloat16`.
        unconditional: The class that stands for none; None for that of the pipeline, which a DiT has and a `UNet2DModel` does not name.
            For a pipeline with text it is the prompt that stands for none; None for the empty one.

    Raises:
        FileFormatError: The location holds no pipeline that can be read.
        OptionError: The pipeline, its network or its scheduler has a class or field that is not known.
    """

    def __init__(
        self,
        location: str,
        *,
        revision: str | None = None,
        variant: str | None = None,
        dtype: str = "float32",
        unconditional: int | str | None = None,
    ) -> None:
        self._options = {"location": location, "revision": revision, "variant": variant, "dtype": dtype, "unconditional": unconditional}
        pipeline = read_pipeline(location, revision=revision, variant=variant, dtype=dtype)
        network = network_of(pipeline)
        schedule, parametrisation = process_of(pipeline.scheduler)
        null: dict[str, Any] = {}
        if isinstance(network, PromptNetwork):
            null = network.encode_none(pipeline) if unconditional is None else network.encode(pipeline, unconditional)
        elif isinstance(network, ClassNetwork):
            label = network.null_class if unconditional is None else unconditional
            null = {} if label is None else {"class_label": _check_class(network, label)}
        elif unconditional is not None:
            raise OptionError(f"{location} takes no conditions, so there is no unconditional={unconditional!r}.")
        name, decoder = str(location).rstrip("/").rpartition("/")[2], decoder_of(pipeline, network)
        about: dict[str, Any] = {"name": name, "event_shape": network.event_shape, "decoder": decoder}
        super().__init__(network, schedule, parametrisation, unconditional=null, **about)
        self.recommended = Recommendation("sde", {"levels": 40})
        self.labels: dict[str, int] = dict(getattr(pipeline, "labels", None) or {})
        self._pipeline: Any = pipeline if isinstance(network, PromptNetwork) else None
        self.requires_grad_(False).eval()

    def config(self) -> dict[str, Any]:
        return dict(self._options)

    def concept(self, name: str | None = None, /, **conditions: Any) -> Energy:
        """Returns the energy of a prompt or a class, relative to the unconditional model.

        Args:
            name: A prompt, or the name of a class where the pipeline names its classes.
            **conditions: `prompt="a dog"` or `class_label=3`.

        Raises:
            ExpressionError: The pipeline has no text or no classes, or does not say which class stands for none.
            OptionError: There is no such class.
        """
        if name is not None:
            conditions = {"class_label" if self.labels else "prompt": name, **conditions}
        if "class_label" in conditions and isinstance(self.model, ClassNetwork):
            if isinstance(label := conditions["class_label"], str):
                if label not in self.labels:
                    raise OptionError(f"{self} has no class {label!r}.{nearest(label, self.labels) or ' Give its number.'}")
                label = self.labels[label]
            conditions["class_label"] = _check_class(self.model, label)
        if "prompt" in conditions and not isinstance(conditions["prompt"], Tensor):
            conditions |= self.encode(conditions["prompt"])
        return super().concept(**conditions)

    def encode(self, prompt: str) -> dict[str, Tensor]:
        """Returns the conditions of a prompt, for `E.given(**E.encode("a dog"))`: tensors with one row.

        Raises:
            ExpressionError: The pipeline has no text.
            OptionError: The prompt is no text.
        """
        if not isinstance(self.model, PromptNetwork):
            ways = "`class_label=`" if isinstance(self.model, ClassNetwork) else "no condition"
            raise ExpressionError(f"{self} takes no prompt: it has no text encoder, and takes {ways}.")
        if self._pipeline is None:  # a copy, which is without it
            own = self._options
            self._pipeline = read_pipeline(own["location"], revision=own["revision"], variant=own["variant"], dtype=own["dtype"])
        device = next(self.parameters()).device
        return {name: value.to(device) for name, value in self.model.encode(self._pipeline, prompt).items()}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_pipeline": None}  # tokenizers are slow to copy, and samplers need none


def load_pipeline(location: str, *, prompt: str | None = None, class_label: int | str | None = None, **options: Any) -> Energy:
    """Returns a pipeline of diffusers as an energy, or one of its concepts: `ce.load("diffusers:LOCATION", prompt="a dog")`.

    Concepts of two calls have equal bases, so an expression counts the base once. Take all from one energy,
    `E.concept("a dog") & E.concept("a leash")`, to keep one network in memory and evaluate it once.

    Args:
        location: A folder that `save_pretrained` wrote, or `owner/name` of the hub.
        prompt: A prompt; None for the energy of the pipeline.
        class_label: The number or name of a class; None for the energy of the pipeline.
        **options: `revision`, `variant`, `dtype` and `unconditional` of `PipelineEnergy`, which lists the errors too.

    Raises:
        ExpressionError: The pipeline does not take a prompt, or a class.
        OptionError: An option is unknown, or there is no such class.
    """
    folder = expanded(location)
    location = str(folder.resolve()) if is_directory(folder) else location  # a saved expression loads in any working directory
    energy: Any = get("energy", "diffusers", location=location, **options)
    conditions = {name: value for name, value in (("prompt", prompt), ("class_label", class_label)) if value is not None}
    return energy.concept(**conditions) if conditions else energy


def _check_class(network: ClassNetwork, label: Any) -> Any:
    try:
        network.check_class(label)
    except (TypeError, RuntimeError) as error:
        raise OptionError(f"class_label must be a whole number, got {label!r}.") from error
    return label
