"""Pictures and clips in the forms callers hold them, made into the one form each part of the model takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLCogVideoX

Picture: TypeAlias = "Image.Image | np.ndarray | Tensor"

_BLANK_SIDE = 224


def blank_reference() -> Image.Image:
    """The picture that stands for "no reference": a white sheet with nobody on it.

    It is shown where a story has no reference and where the reference is dropped for classifier-free guidance, so
    that the layout of the token sequence is always the same.
    """
    return Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE), "white")


def to_rgb(picture: Picture) -> Image.Image:
    """An RGB image of ``picture``; transparent pixels (reference sheets are RGBA) become white.

    Args:
        picture: a PIL image, or a uint8 array or tensor [H, W, 3 or 4].

    Raises:
        ValueError: the array is of another type or shape.
    """
    if not isinstance(picture, Image.Image):
        array = np.asarray(picture.cpu() if isinstance(picture, Tensor) else picture)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (3, 4):
            raise ValueError(
                f"a picture is a PIL image or uint8 of shape [H, W, 3 or 4], not {array.dtype} {list(array.shape)}"
            )
        picture = Image.fromarray(array)
    if picture.mode == "RGB":
        return picture
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        sheet = Image.new("RGBA", picture.size, "white")
        return Image.alpha_composite(sheet, picture).convert("RGB")
    return picture.convert("RGB")


def as_reference_images(reference: Any) -> list[Image.Image]:
    """The reference pictures of one story: None, one picture, or a list of them -> at least one RGB image."""
    if reference is None:
        return [blank_reference()]
    pictures = list(reference) if isinstance(reference, (list, tuple)) else [reference]
    return [to_rgb(picture) for picture in pictures] or [blank_reference()]


def spatial_factor(vae: AutoencoderKLCogVideoX) -> int:
    """Pixels a latent cell spans in height and width (8 for CogVideoX)."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def check_video_size(vae: AutoencoderKLCogVideoX, patch_size: int, frames: int, height: int, width: int) -> None:
    """Checks that a clip fits the causal VAE and the transformer's patches.

    Raises:
        ValueError: ``frames`` is not 4k+1 (k from the VAE), or a side is not a multiple of cell times patch.
    """
    step = int(vae.config.temporal_compression_ratio)
    if frames < 1 or frames % step != 1:
        low = max(frames - 1, 0) // step * step + 1
        raise ValueError(f"a clip has {step}k+1 frames, not {frames}; use {low} or {low + step}")
    cell = spatial_factor(vae) * patch_size
    if height % cell or width % cell or not height or not width:
        raise ValueError(f"height and width must be multiples of {cell}, not {height} x {width}")


def to_signed_clip(frames: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] -> float32 [B, 3, F, H, W] in [-1, 1], the VAE's input.

    Raises:
        ValueError: another type or shape.
    """
    if frames.dtype != torch.uint8 or frames.ndim != 5 or frames.shape[-1] != 3:
        raise ValueError(f"a clip batch is uint8 of shape [B, F, H, W, 3], not {frames.dtype} {list(frames.shape)}")
    return frames.permute(0, 4, 1, 2, 3).float() / 127.5 - 1.0


def to_uint8_clip(video: Tensor) -> Tensor:
    """Float [B, 3, F, H, W] in [-1, 1] -> uint8 [B, F, H, W, 3]."""
    video = (video.float().clamp(-1.0, 1.0) + 1.0) * 127.5
    return video.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
