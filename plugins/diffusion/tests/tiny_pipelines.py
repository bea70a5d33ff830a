"""Small pipelines with random weights, built by diffusers' own classes and saved by `save_pretrained`."""

import importlib
import json
from pathlib import Path
from typing import Any

import torch


class _Later:
    """A module that is imported when a name of it is first used: the import of diffusers takes seconds."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __getattr__(self, name: str) -> Any:
        return getattr(importlib.import_module(self.name), name)


diffusers, transformers = _Later("diffusers"), _Later("transformers")
UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "attention_head_dim": 8,
}

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1, "clip_sample": False}


def seeded(build: Any, **options: Any) -> Any:
    """Returns a network with weights of a seed; the last layers are not zero, so that conditions count."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(**options)
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.05)
    return model.eval()


def plain(folder: Path, scheduler: Any = None, **options: Any) -> Path:
    """Saves an unconditional pipeline."""
    diffusers.DDPMPipeline(seeded(diffusers.UNet2DModel, **UNET, **options), scheduler or diffusers.DDPMScheduler()).save_pretrained(folder)
    return folder


def classes(folder: Path, scheduler: Any = None, **options: Any) -> Path:
    """Saves a pipeline with four classes and a null class."""
    return plain(folder, scheduler, **{"num_class_embeds": 5, **options})


def autoencoder() -> Any:
    """Returns an autoencoder of pictures of 16 pixels with latents of 4 x 8 x 8."""
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return seeded(diffusers.AutoencoderKL, block_out_channels=(8, 8), norm_num_groups=4, latent_channels=4, **blocks)


def transformer(folder: Path, scheduler: Any = None) -> Path:
    """Saves a DiT of latents with six classes, three of them named, and learnt variances."""
    size = {"num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "sample_size": 8, "norm_num_groups": 4}
    model = seeded(diffusers.DiTTransformer2DModel, **size, in_channels=4, out_channels=8, num_embeds_ada_norm=6)
    labels = {0: "cat", 1: "dog, puppy", 2: "shark"}
    diffusers.DiTPipeline(model, autoencoder(), scheduler or diffusers.DDIMScheduler(), id2label=labels).save_pretrained(folder)
    return folder


def text(folder: Path, scheduler: Any = None, sizes: bool = False, **options: Any) -> Path:
    """Saves a pipeline like Stable Diffusion: a small CLIP text encoder, latents, a UNet with cross attention. With sizes it is like Stable
    Diffusion XL: two text encoders, and a UNet that takes sizes."""
    tokens = tokenizer(folder.with_name(f"{folder.name}-tokens"))
    widths = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "projection_dim": 16}
    ends = {"max_position_embeddings": 12, "bos_token_id": 0, "eos_token_id": 1}
    config = transformers.CLIPTextConfig(vocab_size=len(tokens), **ends, **widths)
    parts = {"vae": autoencoder(), "text_encoder": seeded(transformers.CLIPTextModel, config=config), "tokenizer": tokens}
    parts["scheduler"] = scheduler or diffusers.DDIMScheduler(**STABLE)
    if sizes:
        added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 64}
        second = {"text_encoder_2": seeded(transformers.CLIPTextModelWithProjection, config=config), "tokenizer_2": tokens}
        unet = _conditional_unet(cross_attention_dim=32, **added)
        pipeline = diffusers.StableDiffusionXLPipeline(**parts, **second, unet=unet, add_watermarker=False)
    else:
        unchecked = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
        unet = _conditional_unet(cross_attention_dim=16, **options)
        pipeline = diffusers.StableDiffusionPipeline(**parts, **unchecked, unet=unet)
    pipeline.save_pretrained(folder)
    return folder


def _conditional_unet(**options: Any) -> Any:
    blocks = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
    common = {name: UNET[name] for name in ("sample_size", "block_out_channels", "layers_per_block", "norm_num_groups")}
    return seeded(diffusers.UNet2DConditionModel, **common, **blocks, **{"attention_head_dim": 2, **options})


def tokenizer(folder: Path) -> Any:
    """Returns a CLIP tokenizer of lower-case letters, from files that are written here."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)
