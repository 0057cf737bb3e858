"""Baseline IP-Adapter + I2V: a key frame a shot that looks like the reference, then image to video; nothing is trained.

Key frame  SDXL with an IP-Adapter: the reference picture and the shot's caption
Video      CogVideoX image to video from the key frame, with the same caption
Paper      SDXL, IP-Adapter, CogVideoX-5B; no shot knows of another

All key frames are made first, then SDXL leaves memory. They stay beside the clips as ``key_1.png``, ``key_2.png``, ...

Run: python recipes/baselines/ip_adapter_i2v.py --reference fox.png --script story.json --out stories/fox_ip_adapter

Weights are named by folders or Hub repositories in diffusers' layout, safetensors only. The defaults are the published models
that the paper's description fits; they were not at hand when this was written, so with them it is not verified: what was run
are the same classes and the same loader with small random weights. The paper states no adapter scale, steps or guidance.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from animeshooter_dataset import DataError
from recipes.baselines.stories import refuse_taken, uint8_frames, write_story
from recipes.generate import read_reference, read_script


@dataclass(frozen=True)
class Weights:
    """Where the models come from: folders, or repositories of the Hub.

    Args:
        sdxl: an SDXL pipeline.
        adapter: holds the IP-Adapter for SDXL and its image encoder.
        adapter_subfolder: of ``adapter``.
        adapter_weights: the file there.
        image_encoder: folder of the image encoder, from ``adapter`` where it has a slash, else from the subfolder.
        video: a CogVideoX image-to-video pipeline.
    """

    sdxl: str = "stabilityai/stable-diffusion-xl-base-1.0"
    adapter: str = "h94/IP-Adapter"
    adapter_subfolder: str = "sdxl_models"
    adapter_weights: str = "ip-adapter_sdxl.safetensors"
    image_encoder: str = "image_encoder"
    video: str = "zai-org/CogVideoX-5b-I2V"


@dataclass(frozen=True)
class Sampling:
    """How it is sampled.

    Args:
        scale: how much the key frame heeds the reference, 0 to 1.
        key_height: of the key frame in pixels; scaled to cover the clip and cropped at its centre.
        key_width: likewise.
        key_steps: denoising steps of a key frame.
        key_guidance: its classifier-free guidance.
        frames: of a shot, 4k + 1.
        height: of a shot in pixels.
        width: likewise.
        steps: denoising steps of a shot.
        guidance: its classifier-free guidance.
        fps: frames a second.
    """

    scale: float = 0.6
    key_height: int = 832
    key_width: int = 1216
    key_steps: int = 30
    key_guidance: float = 5.0
    frames: int = 49
    height: int = 480
    width: int = 720
    steps: int = 50
    guidance: float = 6.0
    fps: float = 8.0


def generate_story(
    reference: Path, script: Path, out: Path, *, weights: Weights, sampling: Sampling = Sampling(), seed: int = 0
) -> Path:
    """A story of which each shot is a picture that was set in motion.

    Args:
        reference: picture of the character.
        script: as of ``animeshooter generate``.
        out: folder to write; must be empty or not there.
        weights: the models.
        sampling: how they are sampled.
        seed: of the noise.

    Returns:
        The path of ``story.mp4``.

    Raises:
        DataError: reference, script or weights cannot be read, or ``out`` is taken.
    """
    refuse_taken(out)
    captions, picture = read_script(script), read_reference(reference)
    check_weights(weights)
    keys = key_frames(picture, captions, weights, sampling, torch.Generator().manual_seed(seed))
    out.mkdir(parents=True, exist_ok=True)
    for number, key in enumerate(keys, 1):
        key.save(out / f"key_{number}.png")
    about = {
        "system": "IP-Adapter + I2V",
        "weights": asdict(weights),
        "key_frames": [f"key_{number}.png" for number in range(1, len(keys) + 1)],
    }
    settings = {"seed": seed, **asdict(sampling)}
    shots = animate(keys, captions, weights, sampling, torch.Generator().manual_seed(seed))
    return write_story(shots, out, script=script, captions=captions, reference=reference, settings=settings, about=about)


def check_weights(weights: Weights) -> None:
    """Look whether both pipelines are there, before the first works for minutes.

    Raises:
        DataError: one is not, or the adapter is no safetensors.
    """
    from diffusers import CogVideoXImageToVideoPipeline, StableDiffusionXLPipeline

    for kind, source in ((StableDiffusionXLPipeline, weights.sdxl), (CogVideoXImageToVideoPipeline, weights.video)):
        with _Loading(source):
            found = kind.load_config(source).get("_class_name")
            if found != kind.__name__:
                raise ValueError(f"a {found}, and a {kind.__name__} is needed")
    if not weights.adapter_weights.endswith(".safetensors"):
        raise DataError(f"{weights.adapter_weights}: not safetensors; pickled weights are not loaded")


def key_frames(
    reference: Image.Image, captions: Sequence[str], weights: Weights, sampling: Sampling, generator: torch.Generator
) -> list[Image.Image]:
    """One picture a caption with the looks of the reference, of the size of a shot.

    Raises:
        DataError: the models cannot be loaded.
    """
    from diffusers import StableDiffusionXLPipeline

    pipeline = _load(StableDiffusionXLPipeline, weights.sdxl)
    with _Loading(weights.adapter):
        pipeline.register_modules(image_encoder=_image_encoder(weights))
        pipeline.load_ip_adapter(
            weights.adapter,
            subfolder=weights.adapter_subfolder,
            weight_name=weights.adapter_weights,
            image_encoder_folder=None,
        )
    pipeline.set_ip_adapter_scale(sampling.scale)
    pipeline.to(_device())
    size = {"height": sampling.key_height, "width": sampling.key_width}
    keys = []
    for caption in captions:
        made = pipeline(
            caption,
            ip_adapter_image=reference,
            num_inference_steps=sampling.key_steps,
            guidance_scale=sampling.key_guidance,
            generator=generator,
            **size,
        )
        keys.append(cover(made.images[0], sampling.height, sampling.width))
    return keys


def animate(
    keys: Sequence[Image.Image], captions: Sequence[str], weights: Weights, sampling: Sampling, generator: torch.Generator
) -> Iterator[np.ndarray]:
    """The shots, uint8 [F, H, W, 3], each from its key frame on.

    Raises:
        DataError: the model cannot be loaded, or cannot make clips of that size.
    """
    from diffusers import CogVideoXImageToVideoPipeline

    gc.collect()  # SDXL has gone out of scope
    torch.cuda.empty_cache()
    pipeline = _load(CogVideoXImageToVideoPipeline, weights.video).to(_device())
    length = pipeline.transformer.config.max_text_seq_length
    for key, caption in zip(keys, captions, strict=True):
        with _Loading(weights.video):
            video = pipeline(
                image=key,
                prompt=caption,
                num_frames=sampling.frames,
                height=sampling.height,
                width=sampling.width,
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance,
                generator=generator,
                max_sequence_length=length,
                output_type="np",
            )
        yield uint8_frames(video.frames[0])


def cover(image: Image.Image, height: int, width: int) -> Image.Image:
    """An image scaled to cover ``height`` x ``width``, aspect kept, its centre cropped."""
    scale = max(height / image.height, width / image.width)
    size = max(width, round(image.width * scale)), max(height, round(image.height * scale))
    image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


class _Loading:
    """Inside, what a library says of weights or sizes becomes a line that names them."""

    def __init__(self, source: str) -> None:
        self.source = source

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, OSError | ValueError) and not isinstance(error, DataError):
            raise DataError(f"{self.source}: {' '.join(str(error).split())[:300]}") from None


def _load(kind: Any, source: str) -> Any:
    from recipes.stage import quiet_loading

    quiet_loading()
    with _Loading(source):
        pipeline = kind.from_pretrained(source, use_safetensors=True, dtype=_dtype())
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty(), leave=False)
    return pipeline


def _image_encoder(weights: Weights) -> Any:
    """The image encoder of the IP-Adapter; diffusers' own loading of it would fall back to pickled weights."""
    from transformers import CLIPVisionModelWithProjection

    name = weights.image_encoder
    folder = name if "/" in name else Path(weights.adapter_subfolder, name).as_posix()
    return CLIPVisionModelWithProjection.from_pretrained(
        weights.adapter, subfolder=folder, use_safetensors=True, dtype=_dtype()
    ).eval()


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _dtype() -> torch.dtype:
    return torch.bfloat16 if torch.cuda.is_available() else torch.float32


def parser_of() -> argparse.ArgumentParser:
    """The arguments: the script's, and every field of :class:`Weights` and :class:`Sampling`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, required=True, metavar="IMAGE")
    parser.add_argument("--script", type=Path, required=True, metavar="STORY.json")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seed", type=int, default=0)
    for group in (Weights(), Sampling()):
        for name, value in asdict(group).items():
            parser.add_argument(f"--{name.replace('_', '-')}", type=type(value), default=value, help="(%(default)s)")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Make a story; returns the exit code."""
    args = vars(parser_of().parse_args(argv))
    weights = Weights(**{name: args[name] for name in asdict(Weights())})
    sampling = Sampling(**{name: args[name] for name in asdict(Sampling())})
    try:
        story = generate_story(
            args["reference"], args["script"], args["out"], weights=weights, sampling=sampling, seed=args["seed"]
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"story: {story}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
