"""Tiny image-text models with random weights, one of each family that stories can be read with, and NVILA's own layout."""

import itertools
import json

import torch
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3TextConfig,
    GotOcr2ImageProcessorPil,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from model.build import build_components, seeded
from model.config import preset
from model.tokenizer import IMAGE_PAD, VISION_END, VISION_START, add_query_tokens, small_tokenizer

QUERIES = 4
TEXT = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
NAMES = ("qwen3_vl", "internvl", "gemma3", "llava", "nvila")


def parts(family, folder=None):
    """Model, tokenizer (with ``QUERIES`` query tokens) and image processor of a family; NVILA is loaded from ``folder``."""
    with seeded(0):
        return {"qwen3_vl": _qwen3_vl, "nvila": lambda: _nvila(folder)}.get(family, lambda: _fixed(family))()


def _tokens(tokenizer):
    return {name: tokenizer.convert_tokens_to_ids(name) for name in (IMAGE_PAD, VISION_START, VISION_END)}


def _tokenizer():
    tokenizer = small_tokenizer()
    add_query_tokens(tokenizer, QUERIES)
    return tokenizer


def _qwen3_vl():
    made = build_components(preset("tiny"))
    return made["mllm"], made["tokenizer"], made["image_processor"]


def _fixed(family):
    tokenizer = _tokenizer()
    ids, vocabulary = _tokens(tokenizer), {**TEXT, "vocab_size": len(tokenizer)}
    square = {"height": 64, "width": 64}
    if family == "internvl":
        config = InternVLConfig(
            vision_config=InternVLVisionConfig(**VISION, image_size=64, patch_size=16),
            text_config=Qwen2Config(**vocabulary, num_key_value_heads=2),
            image_token_id=ids[IMAGE_PAD],
            image_seq_length=4,
        )
        tokens = {"start_image_token": VISION_START, "end_image_token": VISION_END, "context_image_token": IMAGE_PAD}
        settings = {"pad_token": tokenizer.pad_token, "eos_token": tokenizer.eos_token, "extra_special_tokens": tokens}
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer, **settings)
        # As the published processor is set: stories switch its tiles off.
        processor = GotOcr2ImageProcessorPil(size=square, crop_to_patches=True)
        return InternVLForConditionalGeneration(config).eval(), tokenizer, processor
    if family == "gemma3":
        config = Gemma3Config(
            vision_config=SiglipVisionConfig(**VISION, image_size=64, patch_size=16).to_dict(),
            text_config=Gemma3TextConfig(**vocabulary, num_key_value_heads=2, head_dim=16, sliding_window=64).to_dict(),
            mm_tokens_per_image=4,
            boi_token_index=ids[VISION_START],
            eoi_token_index=ids[VISION_END],
            image_token_index=ids[IMAGE_PAD],
        )
        model = Gemma3ForConditionalGeneration(config).eval()
        torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight)  # zero as it is made: blind
        return model, tokenizer, Gemma3ImageProcessorPil(size=square)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**VISION, image_size=64, patch_size=16),
        text_config=LlamaConfig(**vocabulary),
        image_token_id=ids[IMAGE_PAD],
        image_seq_length=16,
    )
    processor = CLIPImageProcessorPil(size={"shortest_edge": 64}, crop_size=square)
    return LlavaForConditionalGeneration(config).eval(), tokenizer, processor


def _nvila(folder):
    from model.nvila import load_nvila

    write_nvila(folder)
    model, tokenizer, processor = load_nvila(str(folder))
    add_query_tokens(tokenizer, QUERIES)
    model.resize_token_embeddings(len(tokenizer))
    return model, tokenizer, processor


def write_nvila(folder, projector="mlp_downsample_2x2_fix", scales="64,128,192"):
    """A folder in the layout of NVILA's repositories, with small random weights; returns the three parts."""
    from safetensors.torch import save_file

    tokenizer = small_tokenizer()
    llm = Qwen2ForCausalLM(Qwen2Config(**TEXT, num_key_value_heads=2, vocab_size=len(tokenizer)))
    tower = SiglipVisionModel(SiglipVisionConfig(**VISION, image_size=80, patch_size=16))  # 5 x 5 patches: an odd side
    llm.save_pretrained(folder / "llm")
    tokenizer.save_pretrained(folder / "llm")
    tower.save_pretrained(folder / "vision_tower")
    SiglipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder / "vision_tower")
    width, joined = VISION["hidden_size"] * len(scales.split(",")), 3 if "3x3" in projector else 2
    wide = [width * joined**2, *([width * 3] if joined == 3 else []), TEXT["hidden_size"]]
    weights, number = {}, 1
    for one, after in itertools.pairwise(wide):
        weights |= {f"layers.{number}.weight": torch.rand(one), f"layers.{number}.bias": torch.randn(one)}
        weights |= _linear(f"layers.{number + 1}", one, after)
        number += 3
    weights |= _linear(f"layers.{number}", wide[-1], wide[-1])
    (folder / "mm_projector").mkdir()
    save_file(weights, folder / "mm_projector" / "model.safetensors")
    (folder / "mm_projector" / "config.json").write_text(json.dumps({"mm_projector_type": projector}))
    told = {"llm_cfg": {}, "vision_tower_cfg": {}, "mm_projector_cfg": {}, "dynamic_s2": True, "s2_scales": scales}
    told |= {"mm_vision_select_layer": -2, "mm_vision_select_feature": "cls_patch"}
    (folder / "config.json").write_text(json.dumps(told))
    return llm, tower, weights


def _linear(name, inside, outside):
    return {f"{name}.weight": torch.randn(outside, inside) * inside**-0.5, f"{name}.bias": torch.randn(outside)}
