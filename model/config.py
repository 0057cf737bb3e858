"""Sizes and sources of the parts of AnimeShooterGen, and the presets.

A part is described by the keyword arguments of its own Hugging Face configuration class. Where ``pretrained`` names a
Hub repository (or a local folder), the weights come from there and the sizes below only serve to lay the model out
without weights (``device="meta"``: parameter counts, memory estimates); where it is ``None``, the weights are random.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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
    """The video diffusion model: transformer, causal VAE, noise schedule and text encoder, in diffusers' own terms.

    Attributes:
        transformer: fields of the transformer's configuration.
        vae: fields of the VAE's.
        text_encoder: fields of the text encoder's.
        scheduler: fields of the scheduler's.
        kind: "cogvideox" or "wan" (see `model.backbones`).
        pretrained: Hub repository or folder in diffusers layout; None for random weights.
        lora_rank: rank of the LoRA of the last stage; alpha equals the rank.
        clip_size: frames, height and width of a clip by default; None for the transformer's own.
    """

    transformer: Settings
    vae: Settings
    text_encoder: Settings
    scheduler: Settings
    kind: str = "cogvideox"
    pretrained: str | None = None
    lora_rank: int = 64
    clip_size: tuple[int, int, int] | None = None

    @property
    def condition_size(self) -> int:
        """Width of the condition the transformer takes."""
        return int(self.transformer["text_dim" if self.kind == "wan" else "text_embed_dim"])

    @property
    def latent_channels(self) -> int:
        """Channels of the VAE's latents."""
        return int(self.vae["z_dim" if self.kind == "wan" else "latent_channels"])


@dataclass(frozen=True)
class ModelConfig:
    """All of AnimeShooterGen. Widths that must agree (MLLM, adapter, text encoder, DiT) are checked when it is made."""

    name: str
    mllm: MllmConfig
    adapter: AdapterConfig
    video: VideoConfig

    def __post_init__(self) -> None:
        """Raises ValueError when the condition or the latents would not fit the video transformer."""
        video = self.video
        if video.kind not in ("cogvideox", "wan"):
            raise ValueError(f"model config {self.name}: no video backbone {video.kind!r}; choose cogvideox or wan")
        width = video.text_encoder["d_model"]
        if width != video.condition_size:
            raise ValueError(
                f"model config {self.name}: text encoder is {width} wide, but the transformer's "
                f"{'text_dim' if video.kind == 'wan' else 'text_embed_dim'} is {video.condition_size}; make them equal"
            )
        if video.latent_channels != video.transformer["in_channels"]:
            raise ValueError(f"model config {self.name}: vae latent_channels must equal transformer in_channels")


def with_sources(config: ModelConfig, mllm: str | None = None, video: str | None = None) -> ModelConfig:
    """``config`` with the weights of its parts from elsewhere.

    Args:
        config: a preset; its adapter and LoRA ranks stay.
        mllm: Hub repository or folder of a transformers image-text model; None leaves what the preset says.
        video: Hub repository or folder, in diffusers layout, of a video model of the preset's backbone; likewise.
    """
    if mllm is not None:
        config = replace(config, mllm=replace(config.mllm, pretrained=mllm))
    if video is not None:
        config = replace(config, video=replace(config.video, pretrained=video))
    return config


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
# The other published configurations below are those of the Hub repositories named in ``pretrained`` (config.json of each
# part), and for Wan of its own repository (wan/configs) and diffusers' conversion of its weights.
_COGVIDEOX_5B_SCHEDULE = _frozen(**{**_COGVIDEOX_2B_SCHEDULE, "snr_shift_scale": 1.0})
_COGVIDEOX_2B = _frozen(
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
)
_COGVIDEOX_5B = _frozen(
    **{**_COGVIDEOX_2B, "num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True}
)
_T5_XXL = _frozen(
    vocab_size=32128, d_model=4096, d_kv=64, d_ff=10240, num_layers=24, num_heads=64, feed_forward_proj="gated-gelu"
)
_UMT5_XXL = _frozen(**{**_T5_XXL, "vocab_size": 256384})
_WAN_SCHEDULE = _frozen(
    num_train_timesteps=1000, prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, solver_order=2
)
_WAN_1_3B = _frozen(
    num_attention_heads=12,
    attention_head_dim=128,
    num_layers=30,
    in_channels=16,
    out_channels=16,
    text_dim=4096,
    freq_dim=256,
    ffn_dim=8960,
    cross_attn_norm=True,
    qk_norm="rms_norm_across_heads",
)
_WAN_14B = _frozen(**{**_WAN_1_3B, "num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824})
_WAN_5B = _frozen(**{**_WAN_1_3B, "num_attention_heads": 24, "in_channels": 48, "out_channels": 48, "ffn_dim": 14336})
_WAN_VAE = _frozen(z_dim=16, base_dim=96)
# Mean and deviation of its 48 channels are read from the repository with its weights.
_WAN_22_VAE = _frozen(
    z_dim=48,
    base_dim=160,
    decoder_base_dim=256,
    is_residual=True,
    in_channels=12,
    out_channels=12,
    patch_size=2,
    scale_factor_spatial=16,
)
_QWEN3_VL_8B = MllmConfig(
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
    image_processor=_frozen(
        patch_size=16,
        merge_size=2,
        temporal_patch_size=2,
        size={"shortest_edge": 65536, "longest_edge": 16777216},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    ),
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


def _tiny_wan() -> ModelConfig:
    tiny = _tiny()
    video = VideoConfig(
        kind="wan",
        transformer=_frozen(
            num_attention_heads=4,
            attention_head_dim=16,
            num_layers=2,
            in_channels=4,
            out_channels=4,
            text_dim=64,
            freq_dim=32,
            ffn_dim=128,
        ),
        vae=_frozen(
            z_dim=4, base_dim=4, num_res_blocks=1, latents_mean=[0.1, -0.2, 0.0, 0.3], latents_std=[1.1, 0.9, 1.0, 1.2]
        ),
        text_encoder=tiny.video.text_encoder,
        scheduler=_WAN_SCHEDULE,
        lora_rank=4,
        clip_size=(9, 64, 96),
    )
    return ModelConfig(name="tiny_wan", mllm=tiny.mllm, adapter=tiny.adapter, video=video)


def _cogvideox(name: str, pretrained: str, transformer: Settings, scheduler: Settings, scaling_factor: float) -> ModelConfig:
    vae = _frozen(
        block_out_channels=(128, 256, 256, 512), layers_per_block=3, latent_channels=16, scaling_factor=scaling_factor
    )
    video = VideoConfig(transformer, vae, _T5_XXL, scheduler, pretrained=pretrained)
    return ModelConfig(name=name, mllm=_QWEN3_VL_8B, adapter=AdapterConfig(), video=video)


def _wan(
    name: str, pretrained: str, transformer: Settings, vae: Settings, clip: tuple[int, int, int], shift: float
) -> ModelConfig:
    schedule = _frozen(**{**_WAN_SCHEDULE, "flow_shift": shift})
    video = VideoConfig(transformer, vae, _UMT5_XXL, schedule, kind="wan", pretrained=pretrained, clip_size=clip)
    return ModelConfig(name=name, mllm=_QWEN3_VL_8B, adapter=AdapterConfig(), video=video)


def _small() -> ModelConfig:
    mllm = MllmConfig(
        model_type="qwen3_vl",
        text=_frozen(
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=8192,
            initializer_range=0.08,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_interleaved": True,
                "mrope_section": [8, 4, 4],
            },
        ),
        vision=_frozen(
            depth=2,
            hidden_size=64,
            intermediate_size=128,
            num_heads=4,
            out_hidden_size=128,
            patch_size=16,
            spatial_merge_size=2,
            num_position_embeddings=64,
            deepstack_visual_indexes=[0],
            initializer_range=0.08,
        ),
        image_processor=_frozen(
            patch_size=16,
            merge_size=2,
            size={"shortest_edge": 64 * 64, "longest_edge": 96 * 96},
            image_mean=[0.5, 0.5, 0.5],
            image_std=[0.5, 0.5, 0.5],
        ),
        lora_rank=16,
    )
    video = VideoConfig(
        transformer=_frozen(
            num_attention_heads=6,
            attention_head_dim=32,
            num_layers=4,
            in_channels=8,
            out_channels=8,
            time_embed_dim=128,
            text_embed_dim=128,
            max_text_seq_length=32,
            sample_height=8,
            sample_width=12,
            sample_frames=9,
        ),
        vae=_frozen(
            block_out_channels=(16, 32, 32, 32),
            layers_per_block=1,
            norm_num_groups=4,
            latent_channels=8,
            sample_height=64,
            sample_width=96,
            scaling_factor=1.0,
        ),
        text_encoder=_frozen(d_model=128, d_kv=32, d_ff=256, num_layers=2, num_heads=4, feed_forward_proj="gated-gelu"),
        scheduler=_COGVIDEOX_2B_SCHEDULE,
        lora_rank=16,
    )
    adapter = AdapterConfig(num_queries=32, hidden_size=128, num_layers=4, num_heads=4, intermediate_size=256)
    return ModelConfig(name="small", mllm=mllm, adapter=adapter, video=video)


def _paper() -> ModelConfig:
    return _cogvideox("paper", "zai-org/CogVideoX-2b", _COGVIDEOX_2B, _COGVIDEOX_2B_SCHEDULE, 1.15258426)


def _paper_5b() -> ModelConfig:
    return _cogvideox("paper_5b", "zai-org/CogVideoX-5b", _COGVIDEOX_5B, _COGVIDEOX_5B_SCHEDULE, 0.7)


def _wan_1_3b() -> ModelConfig:
    return _wan("wan_1_3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", _WAN_1_3B, _WAN_VAE, (81, 480, 832), 3.0)


def _wan_14b() -> ModelConfig:
    return _wan("wan_14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers", _WAN_14B, _WAN_VAE, (81, 480, 832), 3.0)


def _wan_5b() -> ModelConfig:
    return _wan("wan_5b", "Wan-AI/Wan2.2-TI2V-5B-Diffusers", _WAN_5B, _WAN_22_VAE, (121, 704, 1280), 5.0)


PRESETS = MappingProxyType(
    {
        "tiny": _tiny,
        "small": _small,
        "paper": _paper,
        "tiny_wan": _tiny_wan,
        "paper_5b": _paper_5b,
        "wan_1_3b": _wan_1_3b,
        "wan_14b": _wan_14b,
        "wan_5b": _wan_5b,
    }
)


def preset(name: str) -> ModelConfig:
    """The configuration called ``name``.

    ``tiny`` and ``tiny_wan`` have random weights and run on a CPU. The others read Qwen3-VL-8B and a published video model:
    ``paper`` CogVideoX-2B, ``paper_5b`` CogVideoX-5B, ``wan_1_3b`` and ``wan_14b`` Wan 2.1, ``wan_5b`` Wan 2.2 TI2V.

    Raises:
        ValueError: there is no such preset.
    """
    if name not in PRESETS:
        raise ValueError(f"no model preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]()
