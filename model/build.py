"""Making the components of AnimeShooterGen from a configuration: with random weights, pretrained, or weightless."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from model.adapter import QueryAdapter
from model.backbones import condition_length_of
from model.config import MllmConfig, ModelConfig, VideoConfig
from model.pretrained import laid_out_mllm, laid_out_video, load_mllm, load_video, video_class
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
        dtype: of the pretrained components, and of random ones on another device than the CPU; the adapter is float32 in
            any case.
        device: "meta" lays the models out without weights, tokenizers or downloads. Any other device is where random
            weights are made, a large model's in seconds.

    Returns:
        Components by the names of the checkpoint's folders; tokenizers and image processor are None on "meta".

    Raises:
        ValueError: a source that cannot be loaded (see `model.pretrained`), or pretrained parts on another device.
    """
    abstract, elsewhere = device == "meta", device not in (None, "cpu", "meta")
    if elsewhere and (config.mllm.pretrained or config.video.pretrained):
        raise ValueError(f"pretrained components are read to the CPU, not to {device!r}; move the model afterwards")
    with seeded(seed), torch.device(device or "cpu"):
        with _default_dtype(dtype if elsewhere else None):
            if config.mllm.pretrained and not abstract:  # trained in bfloat16, it overflows in float16
                parts = load_mllm(config, torch.bfloat16 if dtype is torch.float16 else dtype)
            else:
                parts = _mllm(config, abstract)
            if config.video.pretrained and not abstract:
                parts |= load_video(config.video, dtype)
            else:
                parts |= _video(config.video, abstract)
        parts["adapter"] = _adapter(config, parts)
    return parts


@contextmanager
def _default_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype or before)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _adapter(config: ModelConfig, parts: Components) -> QueryAdapter:
    adapter = config.adapter
    return QueryAdapter(
        num_queries=adapter.num_queries,
        mllm_hidden_size=parts["mllm"].config.get_text_config().hidden_size,
        condition_length=condition_length_of(parts["transformer"].config),
        condition_size=parts["text_encoder"].config.d_model,
        hidden_size=adapter.hidden_size,
        num_layers=adapter.num_layers,
        num_heads=adapter.num_heads,
        intermediate_size=adapter.intermediate_size,
    )


def _mllm(config: ModelConfig, abstract: bool) -> Components:
    from transformers import AutoConfig, AutoModelForImageTextToText

    mllm: MllmConfig = config.mllm
    if mllm.pretrained and Path(mllm.pretrained).is_dir():  # laid out as that folder's weights would be
        return {"mllm": laid_out_mllm(mllm.pretrained), "tokenizer": None, "image_processor": None}
    text, tokens, tokenizer = dict(mllm.text), {}, None
    if not abstract:
        tokenizer = small_tokenizer()
        add_query_tokens(tokenizer, config.adapter.num_queries)
        text |= {"vocab_size": max(len(tokenizer), text.get("vocab_size", 0))}
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


def _video(video: VideoConfig, abstract: bool) -> Components:
    tokenizer = None if abstract else small_tokenizer(append_eos=True)
    text = dict(video.text_encoder)
    if tokenizer is not None:
        pad, eos = tokenizer.convert_tokens_to_ids([PAD, EOS])
        vocabulary = max(len(tokenizer), text.get("vocab_size", 0))
        text |= {"vocab_size": vocabulary, "pad_token_id": pad, "eos_token_id": eos}
    vae = dict(video.vae)
    if video.kind == "cogvideox":
        blocks = len(vae["block_out_channels"])
        vae |= {"down_block_types": ("CogVideoXDownBlock3D",) * blocks, "up_block_types": ("CogVideoXUpBlock3D",) * blocks}
    encoder = video_class(video.kind, "text_encoder")
    if video.pretrained and Path(video.pretrained).is_dir():  # laid out as that folder's weights would be
        return {**laid_out_video(video), "text_tokenizer": tokenizer}
    return {
        "text_encoder": encoder(encoder.config_class(**text)),
        "text_tokenizer": tokenizer,
        "transformer": video_class(video.kind, "transformer")(**video.transformer),
        "vae": video_class(video.kind, "vae")(**vae),
        "scheduler": _scheduler(video),
    }


def _scheduler(video: VideoConfig) -> Any:
    with torch.device("cpu"):  # it holds tables, not weights
        return video_class(video.kind, "scheduler")(**video.scheduler)
