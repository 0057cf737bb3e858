"""Sizes and sources of the parts of AnimeShooterGen, and the two presets.

A part is described by the keyword arguments of its own Hugging Face configuration class. Where ``pretrained`` names a
Hub repository (or a local folder), the weights come from there and the sizes below only serve to lay the model out
without weights (``device="meta"``: parameter counts, memory estimates); where it is ``None``, the weights are random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

Settings = Mapping[str, Any]


def _frozen(**settings: Any) -> Settings:
    return MappingProxyType(settings)


@dataclass(frozen=True)
class MllmConfig:
    """The multimodal language model that reads reference, captions and last frames.

    Attributes:
        model_type: ``model_type`` of a transformers image-text configuration (e.g. ``qwen3_vl``).
        text: fields of its ``text_config``.
        vision: fields of its ``vision_config``.
        pretrained: Hub repository or folder of the weights; None for random ones.
        image_processor: fields of the image processor of a randomly initialised model.
        lora_rank: rank of the LoRA trained on the language model; alpha equals the rank.
    """

    model_type: str
    text: Settings
    vision: Settings
    pretrained: str | None = None
    image_processor: Settings = field(default_factory=_frozen)
    lora_rank: int = 32


@dataclass(frozen=True)
class AdapterConfig:
    """Learnable queries and Q-Former: ``num_queries`` a shot, ``num_layers`` blocks (paper: 64 and 12)."""

    num_queries: int = 64
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072


@dataclass(frozen=True)
class VideoConfig:
    """The video diffusion model: transformer, causal VAE, noise schedule and T5, in CogVideoX's own terms."""

    transformer: Settings
    vae: Settings
    text_encoder: Settings
    scheduler: Settings
    pretrained: str | None = None
    lora_rank: int = 64


@dataclass(frozen=True)
class ModelConfig:
    """All of AnimeShooterGen. Widths that must agree (MLLM, adapter, T5, DiT) are checked when it is made."""

    name: str
    mllm: MllmConfig
    adapter: AdapterConfig
    video: VideoConfig

    def __post_init__(self) -> None:
        """Raises ValueError when the condition would not fit the video transformer."""
        width = self.video.transformer["text_embed_dim"]
        if self.video.text_encoder["d_model"] != width:
            raise ValueError(
                f"model config {self.name}: text encoder is {self.video.text_encoder['d_model']} wide, but the "
                f"transformer's text_embed_dim is {width}; make them equal"
            )
        if self.video.vae["latent_channels"] != self.video.transformer["in_channels"]:
            raise ValueError(f"model config {self.name}: vae latent_channels must equal transformer in_channels")


# CogVideoX-2B's schedule, as diffusers' conversion of its weights sets it: v-prediction, zero terminal SNR, and steps
# counted from the end, so that sampling starts at pure noise.
_COGVIDEOX_2B_SCHEDULE = _frozen(
    num_train_timesteps=1000,
    beta_start=0.00085,
    beta_end=0.012,
    beta_schedule="scaled_linear",
    prediction_type="v_prediction",
    rescale_betas_zero_snr=True,
    snr_shift_scale=3.0,
    timestep_spacing="trailing",
    set_alpha_to_one=True,
    clip_sample=False,
)


def _tiny() -> ModelConfig:
    mllm = MllmConfig(
        model_type="qwen3_vl",
        text=_frozen(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=8192,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_interleaved": True,
                "mrope_section": [4, 2, 2],
            },
        ),
        vision=_frozen(
            depth=2,
            hidden_size=32,
            intermediate_size=64,
            num_heads=2,
            out_hidden_size=64,
            patch_size=16,
            spatial_merge_size=2,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
        ),
        image_processor=_frozen(
            patch_size=16,
            merge_size=2,
            size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        lora_rank=4,
    )
    video = VideoConfig(
        transformer=_frozen(
            num_attention_heads=4,
            attention_head_dim=16,
            num_layers=2,
            in_channels=4,
            out_channels=4,
            time_embed_dim=64,
            text_embed_dim=64,
            max_text_seq_length=24,
            sample_height=8,
            sample_width=12,
            sample_frames=9,
        ),
        vae=_frozen(
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=2,
            latent_channels=4,
            sample_height=64,
            sample_width=96,
        ),
        text_encoder=_frozen(d_model=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"),
        scheduler=_COGVIDEOX_2B_SCHEDULE,
        lora_rank=4,
    )
    adapter = AdapterConfig(num_queries=64, hidden_size=64, num_layers=2, num_heads=4, intermediate_size=128)
    return ModelConfig(name="tiny", mllm=mllm, adapter=adapter, video=video)


def _paper() -> ModelConfig:
    mllm = MllmConfig(
        model_type="qwen3_vl",
        pretrained="Qwen/Qwen3-VL-8B-Instruct",
        text=_frozen(
            vocab_size=151936,
            hidden_size=4096,
            intermediate_size=12288,
            num_hidden_layers=36,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=262144,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 5000000.0,
                "mrope_interleaved": True,
                "mrope_section": [24, 20, 20],
            },
        ),
        vision=_frozen(depth=27, hidden_size=1152, intermediate_size=4304, num_heads=16, out_hidden_size=4096),
    )
    video = VideoConfig(
        pretrained="zai-org/CogVideoX-2b",
        transformer=_frozen(
            num_attention_heads=30,
            attention_head_dim=64,
            num_layers=30,
            in_channels=16,
            out_channels=16,
            time_embed_dim=512,
            text_embed_dim=4096,
            max_text_seq_length=226,
            sample_height=60,
            sample_width=90,
            sample_frames=49,
        ),
        vae=_frozen(block_out_channels=(128, 256, 256, 512), layers_per_block=3, latent_channels=16, scaling_factor=1.15258426),
        text_encoder=_frozen(
            vocab_size=32128,
            d_model=4096,
            d_kv=64,
            d_ff=10240,
            num_layers=24,
            num_heads=64,
            feed_forward_proj="gated-gelu",
        ),
        scheduler=_COGVIDEOX_2B_SCHEDULE,
    )
    return ModelConfig(name="paper", mllm=mllm, adapter=AdapterConfig(), video=video)


PRESETS = MappingProxyType({"tiny": _tiny, "paper": _paper})


def preset(name: str) -> ModelConfig:
    """The configuration called ``name``: ``tiny`` (random weights, CPU) or ``paper`` (Qwen3-VL-8B + CogVideoX-2B).

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no model preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
