"""Networks of pipelines as functions of points, times and conditions, and the decoders of their points."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from composable_energy.errors import OptionError
from composable_energy_diffusion.pipelines.files import check_fields
from composable_energy_viz.files import check_range


class Network(nn.Module):
    """A network of a pipeline without conditions; subclasses are called as `model(x_t, t, **conditions)`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        config: Mapping[str, Any] = model.config  # pyright: ignore[reportAssignmentType]
        if (side := config["sample_size"]) is None:
            raise OptionError(f"The {type(model).__name__} does not say the size of its points: set sample_size in its config.json.")
        self.event_shape = torch.Size((config["in_channels"], *((side, side) if isinstance(side, int) else tuple(side))))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Returns the output of the network, with the shape of the points."""
        return self.predict(x, t)

    def predict(self, x: Tensor, t: Tensor, **conditions: Any) -> Tensor:
        """Calls the network. A second half of its channels, the variances that it learnt, is left out."""
        output = self.model(x, t, **conditions, return_dict=False)[0]
        return output[:, : x.shape[1]] if output.shape[1] == 2 * x.shape[1] else output


class ClassNetwork(Network):
    """A network that takes a class."""

    def __init__(self, model: nn.Module, classes: int, null_class: int | None) -> None:
        super().__init__(model)
        self.classes, self.null_class = classes, null_class

    def forward(self, x: Tensor, t: Tensor, class_label: Tensor) -> Tensor:
        self.check_class(class_label)
        return self.predict(x, t, class_labels=class_label)

    def check_class(self, class_label: int | Tensor) -> None:
        """Raises OptionError if a class is no whole number, or out of range."""
        labels = torch.as_tensor(class_label)
        whole = not labels.is_floating_point() and labels.dtype != torch.bool
        if not whole or bool(((labels < 0) | (labels >= self.classes)).any()):
            found = labels.unique().tolist()[:8]
            raise OptionError(f"class_label must be a whole number from 0 to {self.classes - 1}, got {', '.join(map(str, found))}.")


class PromptNetwork(Network):
    """A network that takes the tokens of a text, with shape $(B, L, D)$, as the text encoder of the pipeline returns them."""

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor) -> Tensor:
        return self.predict(x, t, encoder_hidden_states=prompt)

    def encode(self, pipeline: Any, prompt: object) -> dict[str, Tensor]:
        """Returns the conditions of a prompt, each with one row, by the tokenizer and the text encoder of a pipeline."""
        return {"prompt": self._encoded(pipeline, prompt)[0]}

    def encode_none(self, pipeline: Any) -> dict[str, Tensor]:
        """Returns the conditions of no prompt: those of the empty one."""
        return self.encode(pipeline, "")

    @torch.no_grad()
    def _encoded(self, pipeline: Any, prompt: object) -> Any:
        if not isinstance(prompt, str):
            raise OptionError(f"A prompt must be a text, got {prompt!r}.")
        missing = [name for name in ("tokenizer", "text_encoder") if pipeline.components.get(name) is None]
        if missing or not hasattr(pipeline, "encode_prompt"):
            raise OptionError(f"{type(pipeline).__name__} has no {' and '.join(missing) or 'encode_prompt'}, so it cannot encode a prompt.")
        return pipeline.encode_prompt(prompt, device=pipeline.device, num_images_per_prompt=1, do_classifier_free_guidance=False)


class SizedPromptNetwork(PromptNetwork):
    """A network that also takes a summary of the text and the size of the picture, as that of Stable Diffusion XL."""

    sizes: Tensor

    def __init__(self, model: nn.Module, sizes: Sequence[int]) -> None:
        super().__init__(model)
        self.register_buffer("sizes", torch.tensor([sizes], dtype=next(model.parameters()).dtype), persistent=False)

    def forward(self, x: Tensor, t: Tensor, prompt: Tensor, summary: Tensor) -> Tensor:
        added = {"text_embeds": summary, "time_ids": self.sizes.expand(len(x), -1)}
        return self.predict(x, t, encoder_hidden_states=prompt, added_cond_kwargs=added)

    def encode(self, pipeline: Any, prompt: object) -> dict[str, Tensor]:
        found = self._encoded(pipeline, prompt)
        return {"prompt": found[0], "summary": found[2]}

    def encode_none(self, pipeline: Any) -> dict[str, Tensor]:
        found = super().encode_none(pipeline)
        zeros = pipeline.config.get("force_zeros_for_empty_prompt")
        return {name: torch.zeros_like(value) for name, value in found.items()} if zeros else found


def network_of(pipeline: Any) -> Network:
    """Returns the network of a pipeline."""
    found = {name: part for name in ("unet", "transformer") if (part := pipeline.components.get(name)) is not None}
    known = ", ".join(_KNOWN)
    if len(found) != 1:
        raise OptionError(f"{type(pipeline).__name__} has no single network `unet` or `transformer`, such as {known}.")
    ((part, model),) = found.items()
    if (name := type(model).__name__) not in _KNOWN:
        way = "To use it anyway, pass a function of points, times and conditions that calls it to ce.get('energy', 'diffusion', model=...)."
        raise OptionError(f"The {part} of {type(pipeline).__name__} is a {name}; known are {known}. {way}")
    return _KNOWN[name](pipeline, model)


def _unet(pipeline: Any, model: Any) -> Network:
    config = model.config
    if config["num_class_embeds"] is not None and config["class_embed_type"] is None:
        return ClassNetwork(model, config["num_class_embeds"], None)
    check_fields(model, class_embed_type=None)
    return Network(model)


def _conditional_unet(pipeline: Any, model: Any) -> Network:
    check_fields(model, class_embed_type=None, num_class_embeds=None, encoder_hid_dim_type=None, time_cond_proj_dim=None)
    if model.config["addition_embed_type"] != "text_time":
        check_fields(model, addition_embed_type=None)
        return PromptNetwork(model)
    summary = pipeline.text_encoder_2.config.projection_dim
    check_fields(model, projection_class_embeddings_input_dim=6 * model.config["addition_time_embed_dim"] + summary)
    size = [pipeline.vae_scale_factor * side for side in Network(model).event_shape[1:]]
    return SizedPromptNetwork(model, (*size, 0, 0, *size))


def _dit(pipeline: Any, model: Any) -> Network:
    classes = model.transformer_blocks[0].norm1.emb.class_embedder.embedding_table.num_embeddings
    count = model.config["num_embeds_ada_norm"]
    return ClassNetwork(model, classes, count if classes > count else None)


_KNOWN = {"UNet2DModel": _unet, "UNet2DConditionModel": _conditional_unet, "DiTTransformer2DModel": _dit}


class Pixels(nn.Module):
    """Decodes points in [-1, 1] to pictures in [0, 1]."""

    def __init__(self, event_shape: torch.Size) -> None:
        super().__init__()
        self.event_shape = event_shape

    def forward(self, x: Tensor) -> Tensor:
        """Returns the pictures, with shape $(B, C, H, W)$."""
        return (x / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        return check_range(images, 0.5) * 2 - 1


class Latents(nn.Module):
    """Decodes latent points by the autoencoder of a pipeline, an `AutoencoderKL` of diffusers, to pictures in [0, 1]."""

    def __init__(self, vae: Any, latent_shape: torch.Size) -> None:
        super().__init__()
        self.vae = vae
        self.scale, self.shift = float(vae.config["scaling_factor"]), float(vae.config["shift_factor"] or 0)
        factor = 2 ** (len(vae.config["block_out_channels"]) - 1)
        self.event_shape = torch.Size((vae.config["out_channels"], *(factor * side for side in latent_shape[1:])))

    def forward(self, x: Tensor) -> Tensor:
        return (self.vae.decode(x / self.scale + self.shift, return_dict=False)[0] / 2 + 0.5).clamp(0, 1)

    def encode(self, images: Tensor) -> Tensor:
        """Returns the means of the latent points of pictures."""
        return (self.vae.encode(check_range(images, 0.5) * 2 - 1, return_dict=False)[0].mean - self.shift) * self.scale


def decoder_of(pipeline: Any, network: Network) -> nn.Module:
    """Returns the decoder of the points of a pipeline."""
    if (vae := pipeline.components.get("vae") or pipeline.components.get("vqvae")) is None:
        return Pixels(network.event_shape)
    if type(vae).__name__ != "AutoencoderKL":
        raise OptionError(f"The autoencoder of {type(pipeline).__name__} is a {type(vae).__name__}; known is AutoencoderKL.")
    check_fields(vae, latents_mean=None, latents_std=None, latent_channels=network.event_shape[0])
    return Latents(vae, network.event_shape)
