"""`AnimeShooterPipeline`: a reference picture and captions in, the shots of a story out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders import CogVideoXLoraLoaderMixin
from diffusers.utils import BaseOutput
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor

from model import checkpoint
from model.backbones import Backbone, backbone_of
from model.denoise import denoise
from model.guidance import Branch, guided
from model.images import Reference, as_references, given_references, to_rgb
from model.lora import load_loras
from model.memory import ConditionPolicy
from model.mllm import StoryReader, shot_context, story_condition
from model.pathway import Pathway


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
    many captions as there are; what exactly a shot remembers is `policy`, saved with the checkpoint. Denoising itself is
    `model.denoise` with the condition in the place of the video model's text features. Guidance (`model.guidance`) is
    against a blank reference and empty captions with the same frames remembered.

    Checkpoints are those of `model.AnimeShooterGen`. The text encoder is not needed to generate:
    ``from_pretrained(path, text_encoder=None)`` saves its memory.
    """

    _optional_components = ["text_encoder", "text_tokenizer", "context"]  # noqa: RUF012 (diffusers' own convention)

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
        context: Any = None,
        clip_size: dict[str, int] | None = None,
        mllm_lora_rank: int = 32,
        transformer_lora_rank: int = 64,
        condition_policy: dict[str, Any] | None = None,
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
            context=context,
        )
        self.register_to_config(
            mllm_lora_rank=mllm_lora_rank,
            transformer_lora_rank=transformer_lora_rank,
            condition_policy=condition_policy,
            clip_size=clip_size,
        )

    @property
    def backbone(self) -> Backbone:
        """The video model as the components now stand."""
        return backbone_of(self.components, clip_size_of(self.config.clip_size))

    @property
    def policy(self) -> ConditionPolicy:
        """What a shot remembers of those before it: as the checkpoint was trained."""
        return ConditionPolicy.from_dict(self.config.condition_policy)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, revision: str | None = None, **kwargs: Any
    ) -> AnimeShooterPipeline:
        """Loads a checkpoint folder or Hub repository, with its LoRA adapters if it has any.

        Args:
            pretrained_model_name_or_path: what `save_pretrained` wrote, or a Hub repository of it.
            revision: branch, tag or commit on the Hub.
            **kwargs: passed to `DiffusionPipeline.from_pretrained`: single components, ... A ``dtype`` is that of the frozen
                parts; without one every part keeps the type it is stored in (`model.checkpoint.types_of`).

        Raises:
            ValueError: it is no checkpoint of AnimeShooterGen, or an incomplete one.
        """
        folder = checkpoint.resolve(pretrained_model_name_or_path, revision)
        try:
            asked = kwargs.pop("torch_dtype", None) if "dtype" not in kwargs else kwargs["dtype"]
            asked = None if asked == "auto" else asked
            kwargs["dtype"] = asked if isinstance(asked, Mapping) else checkpoint.types_of(folder, asked)
            kwargs = {**checkpoint.automatic_components(folder), **checkpoint.language_models(folder, kwargs), **kwargs}
            kwargs.setdefault("use_safetensors", True)
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
        *,
        reference_guidance_scale: float | None = None,
        characters: Sequence[Sequence[str] | None] | None = None,
    ) -> AnimeShooterPipelineOutput:
        """Generates a whole story.

        Args:
            reference: the character's picture or sheet (PIL image, or uint8 [H, W, 3 or 4]), a list of them, a mapping of
                characters' names to pictures, or None.
            captions: one text a shot; any number of shots.
            num_frames: frames a shot, 4k+1; the transformer's own number by default.
            height: pixels, a multiple of 16 (VAE cell times patch); the transformer's own by default.
            width: likewise.
            num_inference_steps: denoising steps a shot.
            guidance_scale: strength of classifier-free guidance; at most 1 turns it off. With
                ``reference_guidance_scale`` it is that of the captions alone.
            generator: source of the noise; the same seed gives the same story.
            callback: called after each shot with its number from 0 and its frames.
            reference_guidance_scale: strength of guidance by the reference, as `model.guidance.guided` has it.
            characters: who is in each shot: of named references only theirs are read. None, for a shot or for all of them,
                reads every reference.

        Raises:
            ValueError: no captions, or a size the video model cannot make.
        """
        shots = []
        stream = self.generate_shots(
            reference,
            captions,
            num_frames,
            height,
            width,
            num_inference_steps,
            guidance_scale,
            generator,
            reference_guidance_scale=reference_guidance_scale,
            characters=characters,
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
        *,
        reference_guidance_scale: float | None = None,
        characters: Sequence[Sequence[str] | None] | None = None,
    ) -> Iterator[np.ndarray]:
        """The shots of a story as they are ready, uint8 [F, H, W, 3] each; arguments as of calling the pipeline.

        Only the shot in the making and the frames that are remembered of those before it are kept.

        Raises:
            ValueError: at once, not at the first shot: no captions, or a size the video model cannot make.
        """
        if isinstance(captions, str) or not captions or not all(isinstance(text, str) for text in captions):
            raise ValueError("captions is a list of texts, one a shot, with at least one")
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps is at least 1, not {num_inference_steps}")
        frames, high, wide = self.backbone.default_size
        size = {
            "num_frames": frames if num_frames is None else num_frames,
            "height": high if height is None else height,
            "width": wide if width is None else width,
        }
        self.backbone.check_size(size["num_frames"], size["height"], size["width"])
        references = cast_of(given_references(reference), characters or [None] * len(captions), len(captions))
        branches = guided(guidance_scale, reference_guidance_scale)
        sampling = {**size, "num_inference_steps": num_inference_steps}
        return self._shots(references, list(captions), branches, sampling, generator)

    def _shots(
        self,
        references: list[list[Reference]],
        captions: list[str],
        branches: Sequence[Branch],
        sampling: dict[str, Any],
        generator: Any,
    ) -> Iterator[np.ndarray]:
        backbone = self.backbone
        shape = backbone.latent_shape(sampling["num_frames"], sampling["height"], sampling["width"])
        memory: list[list[Image.Image]] = []
        pathway = None
        if self.context is not None:
            pathway = Pathway(self.policy, backbone, sampling["height"], sampling["width"])
        for i in range(len(captions)):
            with torch.no_grad(), self.progress_bar(total=sampling["num_inference_steps"]) as bar:
                conditions = self._condition(references[i], captions[: i + 1], memory, branches)
                latents = denoise(
                    backbone,
                    conditions,
                    [branch.weight for branch in branches],
                    shape,
                    sampling["num_inference_steps"],
                    generator,
                    None if pathway is None else pathway.guided(references[i], memory, branches),
                    progress=bar.update,
                )
                shot = backbone.decode(latents)[0].cpu().numpy()
            memory.append([to_rgb(frame) for frame in self.policy.of_clip(shot)])
            yield shot

    def _condition(
        self,
        references: Sequence[Reference],
        captions: Sequence[str],
        memory: Sequence[Sequence[Image.Image]],
        branches: Sequence[Branch],
    ) -> Tensor:
        """Conditions [K, L, D] of the last shot, one for each branch of the guidance."""
        nobody, silence = as_references(None), [""] * len(captions)
        sequences = [
            shot_context(
                self.policy,
                (references if one.reference else None) or nobody,
                captions if one.caption else silence,
                memory,
            )
            for one in branches
        ]
        reader = StoryReader(self.mllm, self.tokenizer, self.image_processor, self.adapter.config.num_queries)
        condition = story_condition(reader, self.adapter, sequences, last=True)[:, 0]
        return condition.to(self.transformer.device, self.transformer.dtype)


def clip_size_of(told: Mapping[str, int] | None) -> tuple[int, int, int] | None:
    """Frames, height and width of a clip by default, as a checkpoint tells them; None where it leaves them open."""
    return None if told is None else (told["frames"], told["height"], told["width"])


def cast_of(references: list[Reference], characters: Sequence[Sequence[str] | None], shots: int) -> list[list[Reference]]:
    """The references of each shot, if any: of those with a name only whoever is in it, in the order given there.

    Args:
        references: all of them.
        characters: names, a shot; None for everybody.
        shots: how many there are.

    Raises:
        ValueError: the characters of another number of shots.
    """
    if len(characters) != shots:
        raise ValueError(f"characters of {len(characters)} shots and captions of {shots}: give a list of names for each shot")
    chosen = []
    for names in characters:
        there = references if names is None else [one for one in references if one.name is None]
        there = there + [one for name in dict.fromkeys(names or ()) for one in references if one.name == name]
        chosen.append(there)
    return chosen
