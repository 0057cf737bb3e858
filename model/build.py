"""Making the components of AnimeShooterGen from a configuration: with random weights, pretrained, or weightless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from model.adapter import QueryAdapter
from model.config import MllmConfig, ModelConfig, VideoConfig
from model.tokenizer import EOS, IMAGE_PAD, PAD, VISION_END, VISION_START, add_query_tokens, small_tokenizer

Components = dict[str, Any]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Random numbers from ``seed`` inside, the global generators as they were afterwards."""
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        yield


def build_components(
    config: ModelConfig, seed: int = 0, dtype: torch.dtype | None = None, device: str | None = None
) -> Components:
    """Makes every component ``config`` describes.

    Args:
        config: see `model.config`.
        seed: of the random weights; the global random state is left as it was.
        dtype: of the pretrained components; the adapter is float32 in any case.
        device: "meta" lays the models out without weights, tokenizers or downloads.

    Returns:
        Components by the names of the checkpoint's folders; tokenizers and image processor are None on "meta".
    """
    if device not in (None, "meta"):
        raise ValueError(f"components are built on the CPU or on 'meta', not on {device!r}; move the model afterwards")
    abstract = device == "meta"
    with seeded(seed), torch.device(device or "cpu"):
        parts = _pretrained_mllm(config, dtype) if config.mllm.pretrained and not abstract else _mllm(config, abstract)
        if config.video.pretrained and not abstract:
            parts |= _pretrained_video(config.video, dtype)
        else:
            parts |= _video(config.video, abstract)
        parts["adapter"] = _adapter(config, parts)
    return parts


def _adapter(config: ModelConfig, parts: Components) -> QueryAdapter:
    adapter, transformer = config.adapter, parts["transformer"].config
    return QueryAdapter(
        num_queries=adapter.num_queries,
        mllm_hidden_size=parts["mllm"].config.get_text_config().hidden_size,
        condition_length=transformer.max_text_seq_length,
        condition_size=transformer.text_embed_dim,
        hidden_size=adapter.hidden_size,
        num_layers=adapter.num_layers,
        num_heads=adapter.num_heads,
        intermediate_size=adapter.intermediate_size,
    )


def _mllm(config: ModelConfig, abstract: bool) -> Components:
    from transformers import AutoConfig, AutoModelForImageTextToText

    mllm: MllmConfig = config.mllm
    text, tokens, tokenizer = dict(mllm.text), {}, None
    if not abstract:
        tokenizer = small_tokenizer()
        add_query_tokens(tokenizer, config.adapter.num_queries)
        text |= {"vocab_size": len(tokenizer)}
        names = {"image": IMAGE_PAD, "vision_start": VISION_START, "vision_end": VISION_END}
        tokens = {f"{name}_token_id": tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
        tokens["video_token_id"] = len(tokenizer) + 1  # never occurs
    settings = AutoConfig.for_model(mllm.model_type, text_config=text, vision_config=dict(mllm.vision), **tokens)
    parts: Components = {"mllm": AutoModelForImageTextToText.from_config(settings), "tokenizer": tokenizer}
    parts["image_processor"] = None if abstract else _image_processor(mllm)
    return parts


def _image_processor(mllm: MllmConfig) -> Any:
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(**mllm.image_processor)


def _pretrained_mllm(config: ModelConfig, dtype: torch.dtype | None) -> Components:
    from transformers import AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

    source = config.mllm.pretrained
    safe: Any = {"use_safetensors": True, "trust_remote_code": False}
    mllm = AutoModelForImageTextToText.from_pretrained(source, dtype=dtype or "auto", **safe)
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    add_query_tokens(tokenizer, config.adapter.num_queries)
    if len(tokenizer) > mllm.get_input_embeddings().num_embeddings:
        mllm.resize_token_embeddings(len(tokenizer))
    image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    return {"mllm": mllm, "tokenizer": tokenizer, "image_processor": image_processor}


def _video(video: VideoConfig, abstract: bool) -> Components:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
    from transformers import T5Config, T5EncoderModel

    tokenizer = None if abstract else small_tokenizer(append_eos=True)
    text = dict(video.text_encoder)
    if tokenizer is not None:
        pad, eos = tokenizer.convert_tokens_to_ids([PAD, EOS])
        text |= {"vocab_size": len(tokenizer), "pad_token_id": pad, "eos_token_id": eos}
    blocks = len(video.vae["block_out_channels"])
    return {
        "text_encoder": T5EncoderModel(T5Config(**text)),
        "text_tokenizer": tokenizer,
        "transformer": CogVideoXTransformer3DModel(**video.transformer),
        "vae": AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * blocks,
            up_block_types=("CogVideoXUpBlock3D",) * blocks,
            **video.vae,
        ),
        "scheduler": CogVideoXDDIMScheduler(**video.scheduler),
    }


def _pretrained_video(video: VideoConfig, dtype: torch.dtype | None) -> Components:
    from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
    from transformers import AutoTokenizer, T5EncoderModel

    source = video.pretrained
    # Older copies of the repository space the sampling steps otherwise than CogVideoX's own scripts do.
    spacing = {"timestep_spacing": video.scheduler["timestep_spacing"]}

    def load(cls: Any, name: str, **settings: Any) -> Any:
        return cls.from_pretrained(source, subfolder=name, use_safetensors=True, **settings)

    return {
        "text_encoder": load(T5EncoderModel, "text_encoder", dtype=dtype or "auto"),
        "text_tokenizer": AutoTokenizer.from_pretrained(source, subfolder="tokenizer", trust_remote_code=False),
        "transformer": load(CogVideoXTransformer3DModel, "transformer", dtype=dtype),
        "vae": load(AutoencoderKLCogVideoX, "vae", dtype=dtype),
        "scheduler": CogVideoXDDIMScheduler.from_pretrained(source, subfolder="scheduler", **spacing),
    }
