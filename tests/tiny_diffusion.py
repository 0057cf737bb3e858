"""Folders in the layout of published diffusers models, at the smallest size and with random weights."""

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXTransformer3DModel,
    EulerDiscreteScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from model.build import build_components
from model.config import preset

WIDTH = 32
"""Of the image embedding that the IP-Adapter reads."""


def write_sdxl(folder):
    """An SDXL pipeline."""
    torch.manual_seed(0)
    text = CLIPTextConfig(
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
        hidden_size=WIDTH,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        projection_dim=WIDTH,
        vocab_size=600,
    )
    StableDiffusionXLPipeline(
        vae=AutoencoderKL(
            block_out_channels=[16, 16],
            norm_num_groups=8,
            down_block_types=["DownEncoderBlock2D"] * 2,
            up_block_types=["UpDecoderBlock2D"] * 2,
            latent_channels=4,
        ),
        text_encoder=CLIPTextModel(text),
        text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=_unet(),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"),
        add_watermarker=False,
    ).save_pretrained(folder)


def _unet():
    return UNet2DConditionModel(
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        cross_attention_dim=2 * WIDTH,
    )


def _tokenizer():
    """CLIP's own class over single characters."""
    characters = "abcdefghijklmnopqrstuvwxyz0123456789.,!?'"
    words = ["<|startoftext|>", "<|endoftext|>", *characters, *(f"{one}</w>" for one in characters)]
    return CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77)


def write_ip_adapter(folder):
    """``sdxl_models/ip-adapter_sdxl.safetensors`` with its image encoder, as the published ones lie."""
    torch.manual_seed(1)
    sub = folder / "sdxl_models"
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    vision.projection_dim = WIDTH
    CLIPVisionModelWithProjection(vision).save_pretrained(sub / "image_encoder")
    unet = _unet()
    width = unet.config.cross_attention_dim
    weights = {
        "image_proj.proj.weight": torch.randn(4 * width, WIDTH),
        "image_proj.proj.bias": torch.randn(4 * width),
        "image_proj.norm.weight": torch.ones(width),
        "image_proj.norm.bias": torch.zeros(width),
    }
    cross = [name for name in unet.attn_processors if name.endswith("attn2.processor")]
    for number, name in enumerate(cross):
        out = unet.get_submodule(name.removesuffix(".processor")).to_k.out_features
        for part in ("k", "v"):
            weights[f"ip_adapter.{2 * number + 1}.to_{part}_ip.weight"] = torch.randn(out, width)
    save_file(weights, sub / "ip-adapter_sdxl.safetensors")


def write_image_to_video(folder):
    """A CogVideoX image-to-video pipeline with the text encoder, tokenizer and VAE of our tiny preset."""
    parts = build_components(preset("tiny"), seed=2)
    torch.manual_seed(3)
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        num_layers=1,
        in_channels=8,
        out_channels=4,
        time_embed_dim=16,
        text_embed_dim=64,
        max_text_seq_length=24,
        sample_height=8,
        sample_width=12,
        sample_frames=9,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )
    assert isinstance(parts["vae"], AutoencoderKLCogVideoX)
    CogVideoXImageToVideoPipeline(
        tokenizer=parts["text_tokenizer"],
        text_encoder=parts["text_encoder"],
        vae=parts["vae"],
        transformer=transformer,
        scheduler=CogVideoXDDIMScheduler(prediction_type="v_prediction"),
    ).save_pretrained(folder)
