"""`AnimeShooterPipeline`: a reference picture and captions in, the shots of a story out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import CogVideoXPipeline, DiffusionPipeline
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.utils import BaseOutput
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from model import checkpoint
from model.images import as_reference_images, blank_reference, check_video_size, spatial_factor, to_rgb, to_uint8_clip
from model.lora import load_loras
from model.mllm import StoryContext, StoryReader, story_condition


@dataclass
class AnimeShooterPipelineOutput(BaseOutput):
    """A generated story.

    Attributes:
        shots: one uint8 array [F, H, W, 3] a caption, RGB, in story order.
    """

    shots: list[np.ndarray]


class AnimeShooterPipeline(DiffusionPipeline, CogVideoXLoraLoaderMixin):
    """Generates the shots of a story one after another (paper, section 4).

    Shot 1 is made from the reference and caption 1; its last frame then joins the context of shot 2, and so on, for as
    many captions as there are. Denoising itself is `diffusers.CogVideoXPipeline` with the condition in the place of
    its prompt embeddings. Guidance is against a blank reference and empty captions with the same last frames.

    Checkpoints are those of `model.AnimeShooterGen`. The text encoder is not needed to generate:
    ``from_pretrained(path, text_encoder=None)`` saves its memory.
    """

    _optional_components = ["text_encoder", "text_tokenizer"]  # noqa: RUF012 (diffusers' own convention)

    def __init__(
        self,
        mllm: Any,
        tokenizer: Any,
        image_processor: Any,
        adapter: Any,
        transformer: Any,
        vae: Any,
        scheduler: Any,
        text_encoder: Any = None,
        text_tokenizer: Any = None,
        mllm_lora_rank: int = 32,
        transformer_lora_rank: int = 64,
    ) -> None:
        super().__init__()
        self.register_modules(
            mllm=mllm,
            tokenizer=tokenizer,
            image_processor=image_processor,
            adapter=adapter,
            transformer=transformer,
            vae=vae,
            scheduler=scheduler,
            text_encoder=text_encoder,
            text_tokenizer=text_tokenizer,
        )
        self.register_to_config(mllm_lora_rank=mllm_lora_rank, transformer_lora_rank=transformer_lora_rank)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, revision: str | None = None, **kwargs: Any
    ) -> AnimeShooterPipeline:
        """Loads a checkpoint folder or Hub repository, with its LoRA adapters if it has any.

        Args:
            pretrained_model_name_or_path: what `save_pretrained` wrote, or a Hub repository of it.
            revision: branch, tag or commit on the Hub.
            **kwargs: passed to `DiffusionPipeline.from_pretrained`: ``dtype``, single components, ...

        Raises:
            ValueError: it is no checkpoint of AnimeShooterGen, or an incomplete one.
        """
        folder = checkpoint.resolve(pretrained_model_name_or_path, revision)
        try:
            kwargs = {**checkpoint.automatic_components(folder), "use_safetensors": True, **kwargs}
            pipeline = super().from_pretrained(str(folder), **kwargs)
            load_loras(pipeline.mllm, pipeline.transformer, folder)
        except (OSError, SafetensorError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"{folder}: the checkpoint is damaged, save or download it again ({reason})") from error
        checkpoint.check_filled(pipeline, folder)
        return pipeline

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        safe_serialization: bool = True,
        *,
        share_with: str | os.PathLike[str] | None = None,
    ) -> None:
        """Writes the checkpoint, safetensors only; see `model.checkpoint.save`.

        Raises:
            ValueError: pickled weights were asked for, or the folder holds something else.
        """
        if not safe_serialization:
            raise ValueError("checkpoints are written as safetensors only; leave safe_serialization=True")
        checkpoint.save(self, save_directory, share_with)

    def __call__(
        self,
        reference: Any,
        captions: Sequence[str],
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        generator: torch.Generator | None = None,
        callback: Callable[[int, np.ndarray], None] | None = None,
    ) -> AnimeShooterPipelineOutput:
        """Generates a whole story.

        Args:
            reference: the character's picture or sheet (PIL image, or uint8 [H, W, 3 or 4]), a list of them, or None.
            captions: one text a shot; any number of shots.
            num_frames: frames a shot, 4k+1; the transformer's own number by default.
            height: pixels, a multiple of 16 (VAE cell times patch); the transformer's own by default.
            width: likewise.
            num_inference_steps: denoising steps a shot.
            guidance_scale: strength of classifier-free guidance; at most 1 turns it off.
            generator: source of the noise; the same seed gives the same story.
            callback: called after each shot with its number from 0 and its frames.

        Raises:
            ValueError: no captions, or a size the video model cannot make.
        """
        shots = []
        stream = self.generate_shots(
            reference, captions, num_frames, height, width, num_inference_steps, guidance_scale, generator
        )
        for i, shot in enumerate(stream):
            shots.append(shot)
            if callback is not None:
                callback(i, shot)
        return AnimeShooterPipelineOutput(shots=shots)

    def generate_shots(
        self,
        reference: Any,
        captions: Sequence[str],
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 6.0,
        generator: torch.Generator | None = None,
    ) -> Iterator[np.ndarray]:
        """The shots of a story as they are ready, uint8 [F, H, W, 3] each; arguments as of calling the pipeline.

        Only the shot in the making and the last frames of those before it are kept.

        Raises:
            ValueError: at once, not at the first shot: no captions, or a size the video model cannot make.
        """
        if isinstance(captions, str) or not captions or not all(isinstance(text, str) for text in captions):
            raise ValueError("captions is a list of texts, one a shot, with at least one")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is at least 1, not {num_inference_steps}")
        config, factor = self.transformer.config, spatial_factor(self.vae)
        size = {
            "num_frames": config.sample_frames if num_frames is None else num_frames,
            "height": config.sample_height * factor if height is None else height,
            "width": config.sample_width * factor if width is None else width,
        }
        check_video_size(self.vae, config.patch_size, size["num_frames"], size["height"], size["width"])
        references = as_reference_images(reference)
        sampling = {**size, "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
        return self._shots(references, list(captions), sampling, generator)

    def _shots(
        self, references: list[Image.Image], captions: list[str], sampling: dict[str, Any], generator: Any
    ) -> Iterator[np.ndarray]:
        video = CogVideoXPipeline(
            tokenizer=None, text_encoder=None, vae=self.vae, transformer=self.transformer, scheduler=self.scheduler
        )
        video.set_progress_bar_config(**getattr(self, "_progress_bar_config", {}))
        last_frames: list[Image.Image] = []
        for i in range(len(captions)):
            with torch.no_grad():
                condition = self._condition(references, captions[: i + 1], last_frames, sampling["guidance_scale"] > 1)
                latents = video(
                    prompt_embeds=condition[:1],
                    negative_prompt_embeds=condition[1:] if len(condition) > 1 else None,
                    generator=generator,
                    output_type="latent",
                    **sampling,
                ).frames
                shot = decode_latents(self.vae, latents)[0].cpu().numpy()
            last_frames.append(to_rgb(shot[-1]))
            yield shot

    def _condition(
        self, references: list[Image.Image], captions: list[str], last_frames: list[Image.Image], guided: bool
    ) -> Tensor:
        """[1 or 2, L, D]: the last shot's condition, then the one to guide away from."""
        stories = [StoryContext(references, captions, last_frames)]
        if guided:
            stories.append(StoryContext([blank_reference()], [""] * len(captions), last_frames))
        reader = StoryReader(self.mllm, self.tokenizer, self.image_processor, self.adapter.config.num_queries)
        condition = story_condition(reader, self.adapter, stories)[:, -1]
        return condition.to(self.transformer.device, self.transformer.dtype)


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """Latents [B, F', C, h, w] -> uint8 [B, 4(F'-1)+1, H, W, 3].

    CogVideoX's decoder treats the first latent frame as a single picture only when F' is odd (clips of 8k+1 frames, as
    it was trained on); from an even F' it makes 4F' frames, of which the first three, before that picture, are dropped.
    """
    frames = (latents.shape[1] - 1) * int(vae.config.temporal_compression_ratio) + 1
    latents = latents.permute(0, 2, 1, 3, 4) / vae.config.scaling_factor
    return to_uint8_clip(vae.decode(latents.to(vae.device, vae.dtype)).sample[:, :, -frames:])
