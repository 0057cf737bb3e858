"""Pictures and clips in the forms callers hold them, made into the one form each part of the model takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

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


class Reference(NamedTuple):
    """A reference picture and whose it is; None where that is not said."""

    name: str | None
    picture: Image.Image


def as_references(reference: Any) -> list[Reference]:
    """The reference pictures of one story as it is read: those given, or a blank one; see :func:`given_references`."""
    return given_references(reference) or [Reference(None, blank_reference())]


def given_references(reference: Any) -> list[Reference]:
    """The reference pictures of one story, none or more.

    Args:
        reference: None, a picture, a (name, picture) pair, a list of either, or a mapping of names to pictures.

    Raises:
        ValueError: something in it is no picture.
    """
    if reference is None:
        return []
    if isinstance(reference, Mapping):
        reference = list(reference.items())
    given = [reference] if _is_named(reference) or not isinstance(reference, (list, tuple)) else reference
    return [Reference(one[0], to_rgb(one[1])) if _is_named(one) else Reference(None, to_rgb(one)) for one in given]


def as_frames(shot: Any) -> list[Image.Image]:
    """The frames by which a shot is remembered: a picture, a list of them, or uint8 [K, H, W, 3] -> RGB images."""
    several = isinstance(shot, (list, tuple)) or getattr(shot, "ndim", 3) == 4
    return [to_rgb(picture) for picture in (shot if several else [shot])]


def _is_named(one: Any) -> bool:
    return isinstance(one, tuple) and len(one) == 2 and (one[0] is None or isinstance(one[0], str))


def letterboxed(picture: Picture, height: int, width: int) -> Tensor:
    """A picture as large as fits into a frame, whole and in the middle, on white: uint8 [height, width, 3]."""
    image = to_rgb(picture)
    scale = min(width / image.width, height / image.height)
    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    sheet = Image.new("RGB", (width, height), "white")
    sheet.paste(
        image if size == image.size else image.resize(size, Image.Resampling.LANCZOS),
        ((width - size[0]) // 2, (height - size[1]) // 2),
    )
    return torch.from_numpy(np.array(sheet))


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
